"""Which images are scored, and what belongs to each: an image that is missing, extra or there twice is an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.sources.files import Files, ImageFolder, first_few
from evaluation.gate import Row


@dataclass(frozen=True)
class Pair:
    """One output with its references."""

    name: str
    output: Path
    hq: Path | None
    lq: Path | None
    dataset: str  # its set; one name for all where there are none


def pairs(outputs: str, *, hq: str | None, lq: str | None, rows: Mapping[str, Row] | None) -> list[Pair]:
    """The images of a folder, by name.

    Args:    rows: the challenge's table, which says what images there are and of which set; names are then base names up to
                 their first dot, wherever the files lie. None: names are paths without suffix, and all images are one set.
    Raises:  ValueError: no such folder; images that are missing, extra or there twice, named.
    """
    named = {"outputs": by_name(outputs, rows is not None)}
    named |= {key: by_name(folder, rows is not None) for key, folder in (("hq", hq), ("lq", lq)) if folder is not None}
    wanted = set(named["outputs"]) if rows is None else set(rows)
    here = {"outputs": outputs, "hq": hq, "lq": lq}
    for key, files in named.items():
        if missing := sorted(wanted - set(files)):
            raise ValueError(f"{key}={here[key]} lacks {len(missing)} images: {first_few(missing)}")
        if key == "outputs" and (extra := sorted(set(files) - wanted)):
            raise ValueError(f"outputs={outputs} holds {len(extra)} images that the challenge does not: {first_few(extra)}")
    if rows is None:
        for key, files in named.items():
            if extra := sorted(set(files) - wanted):
                raise ValueError(f"{key}={here[key]} holds {len(extra)} images without an output: {first_few(extra)}")
    return [
        Pair(
            name,
            named["outputs"][name],
            named.get("hq", {}).get(name),
            named.get("lq", {}).get(name),
            rows[name].dataset if rows is not None else "",
        )
        for name in sorted(wanted)
    ]


def by_name(folder: str, base_names: bool) -> dict[str, Path]:
    """Name -> file. Raises ValueError: a name is there twice."""
    if (Path(folder) / "checkpoints").is_dir():
        raise ValueError(f"{folder} is a run: restore with it first (python restore.py {folder} LQ OUT), and score OUT")
    source: Files = ImageFolder(root=folder)
    found: dict[str, Path] = {}
    for path in source.paths:
        name = PurePosixPath(path).name.partition(".")[0] if base_names else PurePosixPath(path).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{folder} holds {name} twice: {found[name].name} and {path}")
        found[name] = source.root / path
    return found

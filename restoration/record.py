"""restore.json beside the outputs: what made them, so that no folder is filled by two configurations."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.writing import write_bytes

NAME = "restore.json"
Weights = dict[str, dict[str, dict[str, Any]]]  # key of the command -> path of a file -> sha256, bytes and mtime_ns


@dataclass(frozen=True)
class Record:
    """What made the outputs of a folder.

    Args:    settings: key -> value, without those that name weights.
             weights: of each key that names weights; equal bytes and mtime_ns spare a second reading of a file.
             input: where the images came from last. Outputs of another input may lie there too, under other names.
    """

    settings: dict[str, Any]
    weights: Weights
    input: str
    folder: Path = field(compare=False)

    def differences(self, there: "Record") -> Iterator[str]:
        """What is not as it was there, a phrase each."""
        for key in dict.fromkeys([*there.settings, *self.settings]):
            before, now = there.settings.get(key), self.settings.get(key)
            if before != now:
                yield f"{key} was {json.dumps(before)}, is {json.dumps(now)}"
        for key in dict.fromkeys([*there.weights, *self.weights]):
            before, now = (each.weights.get(key, {}) for each in (there, self))
            if _hashes(before) != _hashes(now):
                yield f"{key} had other weights ({', '.join(before) or 'none'})"

    def write(self) -> None:
        """In one step: another process never reads half of it."""
        content = {"settings": self.settings, "weights": self.weights, "input": self.input}
        write_bytes(self.folder / NAME, (json.dumps(content, indent=1) + "\n").encode())


def read(folder: Path) -> Record | None:
    """None: there is none. Raises ValueError: it is damaged."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Record(content["settings"], content["weights"], content["input"], folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} can't be read ({error}): give another folder, or overwrite=true") from error


def weights_of(files: Mapping[str, Sequence[str]], there: Record | None) -> Weights:
    """The hashes of files, runs and folders by key; files that are as there was recorded are not read again.

    Raises: ValueError: there is no such file; OSError: it can't be read.
    """
    known = there.weights if there else {}
    return {key: {str(path): _about(path, known.get(key, {})) for path in _files_of(given)} for key, given in files.items()}


def _about(path: Path, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    status = path.stat()
    now = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    before = known.get(str(path), {})
    if now.items() <= before.items():
        return before
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), **now}


def _files_of(given: Sequence[str]) -> Iterator[Path]:
    """The files that paths stand for: of a run its last checkpoint, of another folder all in it."""
    for path in map(Path, given):
        last = path / "checkpoints" / "last.ckpt"
        if last.is_file():
            yield last
        elif path.is_dir():
            yield from sorted(each for each in path.rglob("*") if each.is_file())
        elif path.exists():
            yield path  # what is not there, the stage says when it is opened


def _hashes(files: dict[str, dict[str, Any]]) -> list[str]:
    return sorted(each["sha256"] for each in files.values())

"""What lies in conf/: its groups, and the choices in each. Imports nothing heavy: --help reads it."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from yaml import safe_load

MOST_BYTES, MOST_NODES, DEEPEST = 2**20, 100_000, 100  # of a file that someone else made

CONF = Path(__file__).parents[1] / "conf"


def groups() -> list[str]:
    """Names that train.py can choose in: model=NAME, task=NAME, data=NAME …"""
    listed = _train_yaml()["defaults"]
    return sorted(name for each in listed if isinstance(each, dict) for name in each if not name.startswith("override "))


def own_keys() -> dict[str, Any]:
    """What conf/train.yaml itself sets, outside of all groups: every run has it."""
    return {key: value for key, value in _train_yaml().items() if key not in ("defaults", "hydra", *groups())}


@cache
def whole_trainer() -> dict[str, Any]:
    """The keys that every choice of trainer has."""
    content: dict[str, Any] = safe_load((CONF / "trainer" / "auto.yaml").read_text(encoding="utf-8"))
    return content


@cache
def _train_yaml() -> dict[str, Any]:
    content: dict[str, Any] = safe_load((CONF / "train.yaml").read_text(encoding="utf-8"))
    return content


def choices(group: str) -> list[Path]:
    """The files of a group, one for each NAME in GROUP=NAME."""
    return sorted((CONF / group).glob("*.yaml"))


def choices_with(group: str, text: str) -> list[str]:
    """Names of the choices whose file, or a file that it starts from, holds a text."""

    def holds(file: Path) -> bool:
        content = file.read_text(encoding="utf-8")
        above = safe_load(content).get("defaults", [])
        names = [name.partition("@")[0] for name in above if isinstance(name, str) and name != "_self_"]
        bases = [CONF / (f"{name[1:]}.yaml" if name.startswith("/") else f"{group}/{name}.yaml") for name in names]
        return text in content or any(holds(base) for base in bases if base.is_file())

    return [file.stem for file in choices(group) if holds(file)]


def refuse_shadows(folder: Path) -> None:
    """Raises ValueError: there is no folder of that name (--config-dir), it has a file that conf/ has, which would win, or one
    that no configuration is (check_yaml)."""
    if not folder.is_dir():
        raise ValueError(f"--config-dir {folder}: there is no such folder")
    for file in sorted(folder.rglob("*.yaml")):
        check_yaml(file, aliases=True)
        if (CONF / file.relative_to(folder)).exists():
            raise ValueError(f"{file}: conf/ has {file.relative_to(folder)} too, and that is read: give yours another name")


def check_yaml(file: Path, *, aliases: bool) -> None:
    """Looks at a file before it is loaded, as its aliases can stand for more than any memory holds.

    Args:   aliases: false for files that a run wrote, which have none.
    Raises: ValueError: it is no YAML, larger or deeper than a configuration, or has aliases that it may not have.
    """
    if (size := file.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{file} has {size:,} bytes: no configuration has more than {MOST_BYTES:,}")
    sizes: dict[str, int] = {}  # of what an anchor names, with all that its aliases stand for
    open_: list[tuple[str | None, int]] = [(None, 0)]  # the collections around, and their sizes so far
    try:
        for event in yaml.parse(file.read_bytes(), yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) and not (aliases and event.anchor in sizes):
                raise ValueError(f"{file} has the alias *{event.anchor}: write out what it stands for")
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((event.anchor, 1))
            elif isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
                scalar = (event.anchor, 1) if isinstance(event, yaml.ScalarEvent) else None
                alias = (None, sizes[event.anchor]) if isinstance(event, yaml.AliasEvent) else None
                anchor, size = scalar or alias or open_.pop()
                sizes |= {anchor: size} if anchor else {}
                open_[-1] = (open_[-1][0], open_[-1][1] + size)
            if len(open_) > DEEPEST or open_[-1][1] > MOST_NODES:
                raise ValueError(f"{file} holds more than {MOST_NODES:,} values or {DEEPEST} levels: no configuration does")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from error


def first_comment(file: Path) -> str:
    """What --help says of a choice."""
    comments = (line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def comments(*files: Path) -> dict[str, str]:
    """Key at the top of these files -> the comment on its line."""
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    found = (re.fullmatch(r"([a-z]\w*):.*\s#\s*(.*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}

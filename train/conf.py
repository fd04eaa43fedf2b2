"""What lies in conf/: its groups, and the choices in each. Imports nothing heavy: --help reads it."""

from pathlib import Path

CONF = Path(__file__).parents[1] / "conf"


def groups() -> list[str]:
    """Names that a command can choose in: model=NAME, task=NAME, data=NAME … Not Hydra's own, nor chains of stages."""
    return sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name not in ("hydra", "stages"))


def choices(group: str) -> list[Path]:
    """The files of a group, one for each NAME in GROUP=NAME."""
    return sorted((CONF / group).glob("*.yaml"))


def choices_with(group: str, text: str) -> list[str]:
    """Names of the choices whose file holds a text."""
    return [file.stem for file in choices(group) if text in file.read_text()]


def first_comment(file: Path) -> str:
    """What --help says of a choice."""
    comments = (line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@package")), "")

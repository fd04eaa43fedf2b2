"""What a data set says of its own files, judged before it is followed: a stranger may have written it."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from data.sources.shown import first_few


def check_cards(folder: Path) -> None:
    """Looks at what a local folder says of its own files before `datasets` follows it, also over the network.

    Raises:  ValueError: it leads out of the folder, has aliases, which can stand for more than any memory holds, or is damaged.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK as HEAD  # what `datasets` finds with it, and nothing else

    for name in ("README.md", ".huggingface.yaml"):
        file = folder / name
        text = file.read_bytes().decode("utf-8-sig") if file.is_file() else ""
        if name == "README.md":
            head = HEAD.search(text)
            text = head[2] if head else ""
        try:
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
                raise ValueError(f"{file} has YAML aliases, which data sets do without: write out what they stand for")
            card = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is no YAML: {error}") from error
        if leading_out := [place for place in _places(card) if _leads_out(place)]:
            raise ValueError(f"{file} names files out of the folder ({first_few(leading_out)}): correct its data_files")


def _places(card: Any) -> Iterator[str]:
    """The files and folders that its `configs` name, in each of the forms that `datasets` takes."""
    configs = card.get("configs") if isinstance(card, dict) else None
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict):
            files = config.get("data_files", [])
            for each in files if isinstance(files, list) else [files]:
                paths = each.get("path", []) if isinstance(each, dict) else each
                yield from map(str, paths if isinstance(paths, list) else [paths])
            yield str(config.get("data_dir") or "")


def _leads_out(pattern: str) -> bool:
    path = PurePosixPath(pattern)
    return bool(urlsplit(pattern).scheme) or "::" in pattern or path.is_absolute() or ".." in path.parts


def belongs(file: str, root: str) -> bool:
    """Whether a file that a data set names may be read: below the root of a local one; else on the hub, or by https."""
    folder = Path(root).expanduser()
    if folder.exists():
        return "://" not in file and Path(os.path.abspath(file)).is_relative_to(folder.resolve())
    return "::" not in file and file.startswith((f"hf://datasets/{root}@", f"hf://datasets/{root}/", "https://"))

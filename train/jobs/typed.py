"""What a person typed for restore.py or evaluate.py: options, choices, and KEY=VALUE without Hydra's quoting."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from train.conf import refuse_shadows


@dataclass
class Typed:
    """A command line taken apart: options, choices in groups, places (arguments without a key) and KEY=VALUE."""

    options: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)  # of --config-dir
    groups: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    behind: list[tuple[str, str]] = field(default_factory=list)  # of the background's pipeline
    prefix: str = ""  # of these keys as a user types them

    @classmethod
    def of(cls, arguments: Sequence[str], groups: Sequence[str]) -> "Typed":
        """groups: what the command chooses in. Raises ValueError: an option that there is not."""
        typed = cls()
        rest = iter(arguments)
        for argument in rest:
            key, equals, value = argument.partition("=")
            if key in ("--help", "-h"):
                typed.options.append(key)
            elif key in ("--cfg", "-c"):
                typed.options.append(key)
                value = value if equals else next(rest, "")  # job: the part of the configuration that is ours
            elif key in ("--config-dir", "-cd"):
                typed.folders = [Path(value if equals else next(rest, "")).expanduser().absolute()]
                refuse_shadows(typed.folders[0])
            elif argument.startswith("-"):
                raise ValueError(f"{argument}: there is no such option (--help lists them)")
            elif equals and key in groups:
                typed.groups.append(argument)
            elif equals and key.startswith("background."):
                typed.behind.append((key.removeprefix("background."), value))
            elif equals and re.fullmatch(r"[A-Za-z_][\w.]*", key):
                typed.pairs.append((key, value))
            else:
                typed.places.append(argument)
        return typed

    @property
    def prints(self) -> bool:
        """Whether the configuration is to be printed, and nothing else done."""
        return bool({"--cfg", "-c"} & set(self.options))

    @property
    def asks_for_help(self) -> bool:
        """Whether pipelines or protocols, and keys are to be listed."""
        return bool({"--help", "-h"} & set(self.options))

    def choice(self, group: str, otherwise: str) -> str:
        """What was chosen in a group."""
        found = (each.partition("=")[2] for each in reversed(self.groups) if each.startswith(f"{group}="))
        return next(found, otherwise)


def followed(value: Any) -> str | None:
    """The key whose value another takes: steps of ${steps}."""
    match = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
    return match[1] if match else None


def as_typed(key: str, text: str, hint: Any) -> Any:
    """The value that was meant. Text stays as it was typed, but for ~, the home folder, and null where a key may be null."""
    if text == "null" and type(None) in get_args(hint):
        return None
    if is_text(hint):
        return os.path.expanduser(text).replace("${", "\\${")
    try:
        return OverridesParser.create().parse_override(f"{key}={text}").value()
    except HydraException:
        return text.replace("${", "\\${")


def is_text(hint: Any) -> bool:
    """Whether an annotation is of text: str, Annotated[str, …], or one of these and None."""
    if get_origin(hint) is Annotated:
        return is_text(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return any(map(is_text, get_args(hint)))
    return hint is str

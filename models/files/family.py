"""A family: one network, and how the files that hold its weights are recognised, loaded and written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]
Arguments = dict[str, Any]


class CheckpointError(ValueError):
    """A file that can't be used, with its name, the reason and what to do."""


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """The weights as they stand in the network's state dict."""
    return {key: value.contiguous() for key, value in network.state_dict().items()}


def under_params_ema(network: nn.Module) -> dict[str, Any]:
    """What the reference programs of CodeFormer and GFPGAN read: they ask for params_ema."""
    return {"params_ema": state_of(network)}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Another library's folder form of a network, with a config.json that names the library's class.

    Args:    of: that class. holds: the network, in words.
             read: the network of a folder. Raises for one that can't be read.
             write: makes the folder. arguments: of the constructor, of a network that was read.
    """

    of: str
    holds: str
    read: Callable[[Path], nn.Module]
    write: Callable[[Any, Path], None]
    arguments: Callable[[Any], Arguments]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What there is to know about the files of one network.

    Args:    name: as the user sees it. network: the class; its constructor's arguments are what a file is asked for.
             recognise: from keys and shapes the constructor's arguments, and in words what no key tells; None for another
                 family's file. No two families may take the same file.
             values: arguments that the values tell, not the shapes.
             state: weights and derived tensors of a network, in the order of the official files.
             write: content of the file that the reference programs read. Raises CheckpointError where they can't.
             derived: endings of keys that follow from the arguments. Files may hold them or lack them.
             converted: weights of another form that were meant for this network, as its own; all others as they are.
             folder: another library's folder form, where there is one.
    """

    name: str
    network: type[nn.Module]
    recognise: Callable[[Shapes], tuple[Arguments, list[str]] | None]
    write: Callable[[Any], dict[str, Any]]
    values: Callable[[Mapping[str, Tensor]], Arguments] = lambda _: {}
    state: Callable[[Any], dict[str, Tensor]] = state_of
    derived: tuple[str, ...] = ()
    converted: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]] = lambda _, state: state
    folder: Folder | None = None


def class_path(network: type[nn.Module]) -> str:
    return f"{network.__module__}.{network.__name__}"


def shown(text: str, most: int = 200) -> str:
    """A stranger's text as one line of at most that many characters: those that would move a terminal as escapes."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text[:most])


def first(keys: list[str]) -> str:
    return ", ".join(map(shown, keys[:3])) + (", ..." if len(keys) > 3 else "")

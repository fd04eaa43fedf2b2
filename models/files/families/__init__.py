"""The families of networks whose files we open and write, one module each; a further module is found by itself."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from models.files.family import Arguments, CheckpointError, Family, first, shown


@dataclass(frozen=True)
class Recognised:
    """A family, the constructor arguments of its network, and what the file could not tell (`assumed`, in words)."""

    family: str
    arguments: Arguments
    assumed: list[str] = field(default_factory=list)
    recorded: bool = False


def find_families() -> dict[str, Family]:
    """By name, every Family that a module of this package defines; modules in the order of their names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found = dict.fromkeys(value for module in modules for value in vars(module).values() if isinstance(value, Family))
    families = {family.name: family for family in found}
    assert len(families) == len(found), f"two families have one name: {[family.name for family in found]}"
    return families


FAMILIES = find_families()


def family_of(network: nn.Module) -> Family | None:
    """None: a network whose files are of no family, such as a discriminator or a part of another network."""
    return next((family for family in FAMILIES.values() if isinstance(network, family.network)), None)


def full_state(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a family's network and, where it has them, the derived tensors, in the order of the official files."""
    family = family_of(network)
    assert family is not None, f"{type(network).__name__} is of no family"
    return family.state(network)


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """The family and constructor arguments of a bare state dict. Raises CheckpointError for one that no family knows."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    for name, family in FAMILIES.items():
        try:
            found = family.recognise(shapes)
            if found:
                arguments, assumed = found
                return Recognised(name, arguments | family.values(state), assumed)
        except Exception as error:  # a stranger's keys and shapes raise nearly anything
            raise CheckpointError(
                f"looks like {name}, but its configuration can't be read: at {shown(str(error))}, key missing or odd"
            ) from error
    raise CheckpointError(f"unknown network: its first keys are {first(list(state))}; families known: {', '.join(FAMILIES)}")


def is_known(state: Mapping[str, Tensor]) -> bool:
    """Whether these are a family's keys, though some may be missing or odd."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    try:
        return any(family.recognise(shapes) for family in FAMILIES.values())
    except Exception:  # a family has begun to read them; `recognise` says what is odd
        return True

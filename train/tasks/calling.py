"""How a task calls its network: which arguments its forward takes, and what it returns."""

import inspect
from typing import Any, Protocol, get_type_hints, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Branching(Protocol):
    """A network of which some outputs have parameters of their own: models.gfpgan.GFPGAN. branches: their names."""

    branches: frozenset[str]


def check_arguments(network: nn.Module, given: frozenset[str], inputs: int = 1) -> None:
    """Raises ValueError where a network's forward needs other tensors or keyword arguments than the task gives it."""
    parameters = inspect.signature(network.forward).parameters.values()
    tensors = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    if len(tensors) > inputs:
        raise ValueError(
            f"{type(network).__name__} needs {', '.join(tensors)}, which this task does not give it: IRControlNet is trained "
            "with task=control"
        )
    named = {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}
    if lacking := [name for name, needed in named.items() if needed and name not in given]:
        raise ValueError(
            f"{type(network).__name__} needs {', '.join(lacking)}, which this task does not give it: CodeFormer is trained "
            "with task=codes or task=controllable"
        )
    if odd := sorted(given - named.keys()):
        raise ValueError(f"{type(network).__name__} takes no {', '.join(odd)}: this task is for network=codeformer")


def outputs(made: Any) -> dict[str, Any]:
    """What a network returned, by name: an image is `restored`, a NamedTuple says its names itself (one is `restored`)."""
    named = {"restored": made} if isinstance(made, Tensor) else made._asdict()
    return {name: value for name, value in named.items() if value is not None}


def named_outputs(network: nn.Module) -> frozenset[str]:
    """The names of `outputs`, as the annotation of the network's forward has them."""
    return frozenset(getattr(get_type_hints(type(network).forward).get("return"), "_fields", ()))

"""optimizer.parts: what of a network stays as it is, and what learns at another rate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from torch.optim import Optimizer


@dataclass
class Part:
    """Parameters that learn alike.

    Args: pattern: that names them in optimizer.parts; empty: all that none names.
          factor: on the learning rate; 0: frozen.     sizes: parameter's name -> how many numbers it holds.
    """

    pattern: str
    factor: float
    sizes: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        rate = "frozen" if not self.factor else f"at {self.factor:g} x optimizer.lr"
        return f"{self.pattern or 'the rest'} {rate} ({sum(self.sizes.values())} parameters in {len(self.sizes)} tensors)"


def split(network: nn.Module, factors: Mapping[str, float]) -> list[Part]:
    """The parts of a network, the rest first; those of factor 0 are frozen here.

    Args:   factors: pattern -> factor on the learning rate. A pattern names parameters, or modules that hold them, and may have
                wildcards (*, ?); where several fit, the last counts.
    Raises: ValueError: a pattern is for nothing, or nothing is left to train.
    """
    parts = {pattern: Part(pattern, factor) for pattern, factor in {"": 1.0, **factors}.items()}
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        fitting = [pattern for pattern in factors if fits(pattern, name)]
        parts[fitting[-1] if fitting else ""].sizes[name] = parameter.numel()
    for pattern in factors:
        if not parts[pattern].sizes:
            raise ValueError(f"optimizer.parts: {_why_empty(pattern, network, trained)}")
    if not any(part.sizes for part in parts.values() if part.factor):
        raise ValueError("optimizer.parts freezes all of the network: leave something to train")
    for part in parts.values():
        for name in part.sizes:
            network.get_parameter(name).requires_grad_(part.factor > 0)
    return [part for part in parts.values() if part.sizes]


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern names a parameter or a module around it: encoder, layers.*.norm1 or *.bias."""
    steps = name.split(".")
    return any(fnmatchcase(".".join(steps[: n + 1]), pattern) for n in range(len(steps)))


def _why_empty(pattern: str, network: nn.Module, trained: Mapping[str, nn.Parameter]) -> str:
    if any(fits(pattern, name) for name in trained):
        return f"all that {pattern} names is named by a later pattern too, which counts: put {pattern} after it"
    if any(fits(pattern, name) for name, _ in network.named_parameters()):
        return f"{pattern} names only what {type(network).__name__} keeps frozen itself: leave {pattern} out"
    top = ", ".join(dict.fromkeys(name.split(".")[0] for name in trained))
    return (
        f"{pattern} names no parameter of {type(network).__name__}, whose parts are {top}; a pattern may have *, as in *.bias"
    )


def optimizer_of(network: nn.Module, parts: list[Part], make: Callable[..., Optimizer]) -> Optimizer:
    """Trains a network by its named parameters, a group for each part, each step at the part's factor times the learning rate.

    Between steps all groups have one rate, so that any schedule can move it, whatever it computes that from.
    """
    trained = [part for part in parts if part.factor]
    optimizer = make(params=[{"params": [(name, network.get_parameter(name)) for name in part.sizes]} for part in trained])
    rates: list[float] = []

    def multiply(*_: object) -> None:
        rates[:] = [group["lr"] for group in optimizer.param_groups]
        for group, part in zip(optimizer.param_groups, trained, strict=True):
            group["lr"] *= part.factor

    def put_back(*_: object) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    if any(part.factor != 1 for part in trained):
        optimizer.register_step_pre_hook(multiply)
        optimizer.register_step_post_hook(put_back)
    return optimizer

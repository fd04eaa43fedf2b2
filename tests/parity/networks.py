"""What the cases of networks have in common: strict loading, and outputs of submodules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.cases import Case


def load(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Strictly, but for the counts of batches, which cases leave out."""
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing), missing


def middle_of(case: Case) -> list[str]:
    """The submodules whose outputs a case holds as mid.NAME."""
    return [o["name"].removeprefix("mid.") for o in case.outputs if o["name"].startswith("mid.")]


def run_with_middle(network: nn.Module, images: Tensor, middle: list[str]) -> dict[str, Any]:
    """The output as "out" and those of the submodules as "mid.NAME". One that runs never, or twice, fails."""
    produced: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            assert name not in produced, f"{name} ran twice"
            produced[name] = output.clone()

        return hook

    handles = [network.get_submodule(name).register_forward_hook(keep(f"mid.{name}")) for name in middle]
    with torch.no_grad():
        produced["out"] = network(images)
    for handle in handles:
        handle.remove()
    return produced

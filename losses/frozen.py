"""Networks that a loss or a task uses and nobody trains."""

from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn


class FrozenNetworks(nn.Module):
    """Holds networks, `frozen`, that follow its device and dtype, but are not among its parameters, state dict or modes.

    So an optimizer, an EMA, DDP, a checkpoint or `.train()` cannot reach them.
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.frozen = networks  # a tuple, so that they are not registered as submodules

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for network in self.frozen:
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)


def frozen_within(module: nn.Module) -> list[nn.Module]:
    """The networks that a module and its submodules hold in this way."""
    return [network for each in module.modules() if isinstance(each, FrozenNetworks) for network in each.frozen]


@runtime_checkable
class Pretrained(Protocol):
    """A network that says where its weights came from, as models.files.weights.pretrained makes it do."""

    weights_from: str


class Frozen(FrozenNetworks):
    """Runs a network in eval mode and in its own precision; gradients pass through it to its input, never to its weights.

    Raises: ValueError: nobody says where the network's weights came from, so they are random.
    """

    def __init__(self, network: nn.Module) -> None:
        if not (isinstance(network, Pretrained) and network.weights_from):
            raise ValueError(
                f"the frozen network {type(network).__name__} has no trained weights, and random ones teach nothing: give it "
                "through models.files.weights.pretrained, as conf/loss/mse_lpips_id.yaml does"
            )
        super().__init__(network.eval().requires_grad_(False))

    def forward(self, *inputs: Tensor) -> Any:
        """What the network makes of its inputs, which are cast to the dtype of its weights; in no autocast."""
        weight = next(self.frozen[0].parameters(), None)
        if weight is not None:  # under autocast images come in half precision, and with a -true precision the weights are in it
            inputs = tuple(each.to(weight.dtype) for each in inputs)
        with torch.autocast(inputs[0].device.type, enabled=False):
            return self.frozen[0](*inputs)

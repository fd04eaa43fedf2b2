"""A network that a loss uses and nobody trains."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """Runs a network in eval mode and in its own precision; gradients pass through it to its input, never to its weights.

    The network follows the owner's device and dtype, but is not among the owner's parameters, state dict or modes:
    an optimizer, an EMA, DDP, a checkpoint or `.train()` cannot reach it.

    Raises: ValueError: nobody says where the network's weights came from, so they are random.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not getattr(network, "weights_from", None):
            raise ValueError(
                f"the frozen network {type(network).__name__} has no trained weights, and random ones teach nothing: give it "
                "through models.files.weights.pretrained, as conf/loss/mse_lpips_id.yaml does"
            )
        self.frozen = (network.eval().requires_grad_(False),)  # a tuple, so that it is not registered as a submodule

    def forward(self, *inputs: Tensor) -> Any:
        weight = next(self.frozen[0].parameters(), None)
        if weight is not None:  # under autocast images come in half precision, and with a -true precision the weights are in it
            inputs = tuple(each.to(weight.dtype) for each in inputs)
        with torch.autocast(inputs[0].device.type, enabled=False):
            return self.frozen[0](*inputs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.frozen[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

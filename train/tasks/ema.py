"""Running average of the restoring network's weights."""

import weakref
from copy import deepcopy

import torch
from torch import nn


class EMA(nn.Module):
    """average = decay * average + (1 - decay) * network after every generator update; starts as a copy.

    Only the network it is given, so no loss network or discriminator; float buffers are averaged too (BasicSR leaves
    them out), integer ones copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.average = deepcopy(network).eval().requires_grad_(False)
        self._of: weakref.ref[nn.Module] | None = None  # the network whose tensors were looked up

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        if self._of is None or self._of() is not network:  # looked up once, as that takes longer than averaging
            self._of = weakref.ref(network)
            new, old = network.state_dict(), self.average.state_dict()
            floats = [key for key, value in old.items() if value.is_floating_point()]
            self._floats = [old[key] for key in floats], [new[key] for key in floats]
            self._rest = [(old[key], new[key]) for key in old.keys() - set(floats)]
        torch._foreach_lerp_(*self._floats, 1 - self.decay)
        for average, value in self._rest:
            average.copy_(value)

    def train(self, mode: bool = True) -> "EMA":
        """Stays in eval mode, whatever its owner does."""
        return super().train(False)

"""Pixel losses on images (b, 3, h, w) in [0, 1]."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from losses.weighted import Loss, Weight

Reduction = Literal["mean", "sum"]


class Reduced(Loss):
    """A term that is averaged or added up over all values of a batch."""

    def __init__(self, *, weight: Weight, reduction: Reduction) -> None:
        super().__init__(weight=weight)
        self.reduction = reduction


class MSE(Reduced):
    """Squared error. With reduction "sum" it adds up the whole batch of a device, as DiffBIR's train_stage1.py does."""

    def forward(self, restored: Tensor, hq: Tensor) -> Tensor:
        """restored: (b, 3, h, w). hq: (b, 3, h, w). Returns a scalar."""
        return F.mse_loss(restored, hq, reduction=self.reduction)


class L1(Reduced):
    """Absolute error."""

    def forward(self, restored: Tensor, hq: Tensor) -> Tensor:
        """restored: (b, 3, h, w). hq: (b, 3, h, w). Returns a scalar."""
        return F.l1_loss(restored, hq, reduction=self.reduction)


class Charbonnier(Loss):
    """Mean of sqrt(difference ** 2 + epsilon ** 2) (Lai et al. 2017, arXiv:1704.03915, section 3.2)."""

    def __init__(self, *, weight: Weight, epsilon: Annotated[float, Gt(0)]) -> None:
        super().__init__(weight=weight)
        self.epsilon = epsilon

    def forward(self, restored: Tensor, hq: Tensor) -> Tensor:
        """restored: (b, 3, h, w). hq: (b, 3, h, w). Returns a scalar."""
        return torch.sqrt((restored - hq).square() + self.epsilon**2).mean()

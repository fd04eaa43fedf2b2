"""A permutation of rows with a quick gradient, for networks whose attention works in windows."""

from typing import Any

import torch
from torch import Tensor


class Reorder(torch.autograd.Function):
    """x[:, order] for a permutation; the gradient is x[:, inverse], not the slow scattered sum of index_select."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(1, inverse), None, None

"""Operations that several networks share, written anew where PyTorch's own are slow, inexact or keep much memory on a CPU.

Each gives what the plain operations in its docstring give. Letters in shapes: b batch, c and o channels, h/w of a map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Reorder(torch.autograd.Function):
    """x[:, order] for a permutation. Its gradient is gradient[:, inverse], where index_select's own is a slow scattered sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        """x: (b, n, c), same shape out. order: (n,), a permutation of 0 … n - 1. inverse: (n,), with order[inverse[i]] = i."""
        ctx.save_for_backward(inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(1, inverse), None, None


def nearest_up_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(nearest x2 of x, weight, bias, padding=1), (b, c, h, w) to (b, o, 2h, 2w), in 4/9 of the multiplications.

    Both together are one transposed convolution of stride 2: an output pixel sees only 2x2 different inputs, so the 3x3
    taps that fall on the same input are summed first.
    """
    taps = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])  # (row or column of the new kernel, 3x3 tap)
    kernel = torch.einsum("iy,jx,ocyx->coij", taps, taps, weight)
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


def laid_out(x: Tensor) -> Tensor:
    """x with channels last in memory if it is on a CPU, where convolutions are then up to several times as fast."""
    return x.contiguous(memory_format=torch.channels_last if x.device.type == "cpu" else torch.contiguous_format)


def norm_swish_convolution(x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d, *, last_use: bool = False) -> Tensor:
    """conv(silu(norm(x))) for a 3x3 convolution, (b, c, h, w) to (b, o, h, w). last_use: whether x may be written over."""
    tensors = (x, *norm.parameters(), *conv.parameters())
    gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    # The compiler fuses the three itself, and decides itself what to recompute in the backward pass. On a GPU, recomputing is
    # slower than keeping everything (benchmarks/RESULTS.md).
    if torch.compiler.is_compiling() or (gradient and x.device.type != "cpu"):
        return conv(F.silu(norm(x)))
    if gradient:
        return NormSwishConvolution.apply(x, norm.weight, norm.bias, conv.weight, conv.bias, norm.num_groups, norm.eps)
    activated, _, _ = normalised(x, norm.weight, norm.bias, norm.num_groups, norm.eps, swish=True, overwrite=last_use)
    return conv(activated.to(x.dtype))


class NormSwishConvolution(torch.autograd.Function):
    """conv(silu(norm(x))) that keeps only x for the backward pass, where the three by themselves keep a map each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        """x: (b, c, h, w) to (b, o, h, w). gain, offset: (c,) of the norm. weight, bias: (o, c, 3, 3) and (o,)."""
        activated, mean, rstd = normalised(x, gain, offset, groups, eps, swish=True)
        ctx.save_for_backward(x, gain, offset, weight, mean, rstd)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return F.conv2d(activated.to(dtype), weight.to(dtype), bias.to(dtype), padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, offset, weight, mean, rstd = ctx.saved_tensors
        of_x, of_gain, of_offset, of_weight, of_bias = ctx.needs_input_grad[:5]
        wide = _dense(_widened(x))
        groups = mean.shape[1]
        normed = torch.addcmul(*_affine(mean, rstd, gain, offset), wide)
        below = of_x or of_gain or of_offset
        at_activated, at_weight, at_bias = torch.ops.aten.convolution_backward(
            gradient,
            F.silu(normed).to(gradient.dtype),
            weight.to(gradient.dtype),
            [weight.shape[0]],
            *([1, 1], [1, 1], [1, 1], False, [0, 0], 1),  # stride, padding, dilation, transposed, output padding, groups
            [below, of_weight, of_bias],
        )
        at_x = at_gain = at_offset = None
        if below:
            at_normed = torch.ops.aten.silu_backward(at_activated.to(wide.dtype), normed)
            b, c, h, w = x.shape
            at_x, at_gain, at_offset = torch.ops.aten.native_group_norm_backward(
                at_normed.contiguous(memory_format=_layout(wide)),
                *(wide, mean, rstd, gain.to(wide.dtype), b, c, h * w, groups),
                [of_x, of_gain, of_offset],
            )
        # autograd casts each gradient to the dtype of its input
        return at_x, at_gain, at_offset, at_weight, at_bias, None, None


def normalised(
    x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, *, swish: bool, overwrite: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm of x, (b, c, h, w), and the mean and 1 / deviation of each group, (b, groups); float32 for half precision.

    PyTorch's kernel for channels last on a CPU is wrong by up to 1e-4 on a map of 512x512, as it adds up pixel after pixel in
    float32. There we take `sum`, which adds pairwise, and square strip by strip, so that the squares need no map of their own.

    Args: swish: apply silu to the result. overwrite: x may be written over, which saves a map.
    """
    b, c, h, w = x.shape
    x = _dense(_widened(x))
    if h * w <= 128 * 128 or x.device.type != "cpu" or x.is_contiguous():
        normed, mean, rstd = torch.native_group_norm(x, gain.to(x.dtype), offset.to(x.dtype), b, c, h * w, groups, eps)
        return F.silu(normed, inplace=True) if swish else normed, mean, rstd
    count = c // groups * h * w
    mean = x.sum((2, 3)).double().unflatten(1, (groups, -1)).sum(2).div(count).to(x.dtype)
    center = mean.repeat_interleave(c // groups, 1)[..., None, None]
    strips = x.split(max(1, 2**21 // (c * w)), dim=2)
    squares = torch.stack([(strip - center).square_().sum((2, 3)) for strip in strips])
    variance = squares.sum(0, dtype=torch.float64).unflatten(1, (groups, -1)).sum(2) / count
    rstd = (variance + eps).rsqrt().to(x.dtype)
    shift, scale = _affine(mean, rstd, gain, offset)
    normed = torch.addcmul(shift, scale, x, out=x if overwrite else torch.empty_like(x))
    return F.silu(normed, inplace=True) if swish else normed, mean, rstd


def _affine(mean: Tensor, rstd: Tensor, gain: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The shift and the scale, both (b, c, 1, 1), with which group norm is shift + scale * x."""
    scale = gain.to(mean.dtype).view(1, mean.shape[1], -1) * rstd.unsqueeze(2)
    shift = offset.to(mean.dtype).view_as(scale[:1]) - scale * mean.unsqueeze(2)
    return shift.flatten(1)[..., None, None], scale.flatten(1)[..., None, None]


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_layout(x))


def _layout(x: Tensor) -> torch.memory_format:
    """The memory format in which PyTorch's group norm takes x."""
    last = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format

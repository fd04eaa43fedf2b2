"""ELAN and ELAN-light (Zhang et al. 2022, arXiv:2203.06697), scale 1 to 4: window attention at a low cost.

Keys are those of xindongzhang/ELAN models/elan_network.py and, at scale 1, HGGT's ImageEnhancement/basicsr/archs/elan_arch.py.
Feature maps are (b, c, h, w) with channels last in memory, so that a pixel's channels are one row and 1x1 convolutions are
matrix products. Letters in shapes: b batch, c channels, n = window ** 2 pixels of a window.
"""

import math
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Interval, MinLen
from torch import Tensor, nn

from models.kernels import Reorder
from models.swinir import RGB_MEAN

Positive = Annotated[int, Ge(1)]


class ELAN(nn.Module):
    """Enlarges an image, or enhances it at its size (scale 1); official weights load with strict=True.

    At scale 1 the tail is one convolution to RGB that predicts the whole image: the input is not added to it (as in HGGT).

    Args:
        scale: output size over input size.
        m_elan: attention layers in all; they form m_elan // (1 + n_share) blocks.
        c_elan: channels of the body, a multiple of 3.
        n_share: how many further attention layers of a block share the attention maps of its first one (1 in ELAN-light).
        r_expand: channels between the two shift-convolutions of a layer, as a multiple of c_elan.
        window_sizes: sides of the three groups' windows in pixels, even; every other block is shifted by half a window.
        img_range: scale of the values inside the network (255 in every official file); input and output stay in [0, 1].
        image_skip: add the input image to the output and start the tail at zero, so that training starts from the identity.
            Ours, for short trainings; no official file has it.

    Raises: ValueError for a combination that no forward could run.
    """

    mean: Tensor

    def __init__(
        self,
        *,
        scale: Annotated[int, Interval(ge=1, le=4)],
        m_elan: Positive,
        c_elan: Positive,
        n_share: Annotated[int, Ge(0)],
        r_expand: Positive,
        window_sizes: Annotated[list[Positive], MinLen(3)],
        img_range: Annotated[float, Gt(0)] = 255.0,
        image_skip: bool = False,
    ) -> None:
        super().__init__()
        if len(window_sizes) != 3 or any(window % 2 for window in window_sizes):
            raise ValueError(f"network.window_sizes={window_sizes}: give three even sizes, such as [4, 8, 16]")
        if c_elan % 3:
            raise ValueError(f"network.c_elan={c_elan} is no multiple of 3, one part for each window size")
        if not m_elan // (1 + n_share):
            raise ValueError(f"network.m_elan={m_elan} is less than the 1 + n_share={1 + n_share} layers of one block")
        if image_skip and scale != 1:
            raise ValueError(f"network.image_skip=true needs an output of the input's size, but scale={scale}: set scale=1")
        self.scale, self.img_range, self.image_skip = scale, img_range, image_skip
        self.windows = window_sizes
        self.multiple = math.lcm(*window_sizes)  # images are padded until both sides are multiples of it
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.head = nn.Sequential(nn.Conv2d(3, c_elan, 3, padding=1))
        blocks = m_elan // (1 + n_share)
        self.body = Body(Block(c_elan, r_expand, n_share, window_sizes, shifted=bool(i % 2)) for i in range(blocks))
        self.tail = nn.Sequential(nn.Conv2d(c_elan, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        if image_skip:
            for parameter in self.tail.parameters():
                nn.init.zeros_(parameter)
        self.register_load_state_dict_pre_hook(_drop_constants)

    def forward(self, lq: Tensor) -> Tensor:
        """Args:    lq: (b, 3, H, W) in [0, 1], any H and W that reflection can pad.
        Returns: (b, 3, H * scale, W * scale), about [0, 1], not clamped.
        Raises:  ValueError: a side is too small to be padded to a multiple of the windows."""
        height, width = lq.shape[-2:]
        x = (self._pad(lq) - self.mean) * self.img_range
        features = self.head(x.contiguous(memory_format=torch.channels_last))
        h, w = features.shape[-2:]
        orders = window_orders(h, w, self.windows, features.device)
        restored = self.tail(self.body(features, orders) + features)
        if self.image_skip:
            restored = restored + x
        return restored[..., : height * self.scale, : width * self.scale] / self.img_range + self.mean

    def _pad(self, lq: Tensor) -> Tensor:
        """Reflected, bottom and right, to a multiple of every window."""
        bottom, right = -lq.shape[-2] % self.multiple, -lq.shape[-1] % self.multiple
        if bottom >= lq.shape[-2] or right >= lq.shape[-1]:
            raise ValueError(
                f"an image of {lq.shape[-2]}x{lq.shape[-1]} is too small to be padded by reflection to a multiple of "
                f"{self.multiple} (of network.window_sizes): give images of more than {self.multiple // 2} pixels a side"
            )
        return F.pad(lq, (0, right, 0, bottom), mode="reflect") if bottom or right else lq

    def derived_buffers(self) -> dict[str, Tensor]:
        """The keys of an official file that hold constants: shift kernels and, above scale 1, the mean as 1x1 convolutions.

        Our state dict leaves them out. Loading checks and drops them, and an export adds them, as other programs read them.
        """
        values: dict[str, Tensor] = {}
        if self.scale > 1:
            for name, sign in (("sub_mean", -1), ("add_mean", 1)):
                values[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
                values[f"{name}.bias"] = sign * self.img_range * torch.tensor(RGB_MEAN)
        for name, module in self.named_modules():
            if isinstance(module, Shift):
                values[f"{name}.weight"] = module.kernel()
        return values


class Body(nn.ModuleList):
    """The blocks, one after the other."""

    def forward(self, x: Tensor, orders: "Orders") -> Tensor:
        """x: (b, c, h, w), h and w multiples of each window; same shape out. orders: what `window_orders` gave."""
        for block in self:
            x = block(x, orders)
        return x


class Block(nn.Module):
    """ELAB: 1 + n_share times [local features, group-wise attention], both residual (Zhang et al. 2022, section 3.3)."""

    def __init__(self, c: int, r_expand: int, n_share: int, windows: list[int], *, shifted: bool) -> None:
        super().__init__()
        self.modules_lfe = nn.ModuleDict({f"lfe_{i}": LocalFeatures(c, r_expand) for i in range(1 + n_share)})
        self.modules_gmsa = nn.ModuleDict(
            {f"gmsa_{i}": GroupAttention(c, windows, shifted=shifted, own_maps=i == 0) for i in range(1 + n_share)}
        )

    def forward(self, x: Tensor, orders: "Orders") -> Tensor:
        """x: (b, c, h, w), same shape out. orders: as in Body."""
        queries: list[Tensor] = []
        for features, attention in zip(self.modules_lfe.values(), self.modules_gmsa.values(), strict=True):
            x = features(x) + x
            attended, queries = attention(x, orders, queries)
            x = attended + x
        return x


class LocalFeatures(nn.Module):
    """LFE: two shift-convolutions with a ReLU between them (section 3.2). The official programs ignore any other act_type."""

    def __init__(self, c: int, r_expand: int) -> None:
        super().__init__()
        self.conv0 = nn.ModuleDict({"shift_conv": Shift(c, c * r_expand)})
        self.conv1 = nn.ModuleDict({"shift_conv": Shift(c * r_expand, c)})

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w); same shape out."""
        return self.conv1["shift_conv"](self.conv0["shift_conv"](x), relu=True)


class Shift(nn.Module):
    """Shift-convolution: four fifths of the channels move by a pixel, each fifth another way, then a 1x1 convolution."""

    def __init__(self, c: int, out: int) -> None:
        super().__init__()
        self.c = c
        self.conv1x1 = nn.Conv2d(c, out, 1)

    def forward(self, x: Tensor, *, relu: bool = False) -> Tensor:
        """(b, c, h, w) to (b, out, h, w). relu: whether a ReLU comes first."""
        rows = Moved.apply(x.permute(0, 2, 3, 1), self.c // 5, relu)
        return F.linear(rows, self.conv1x1.weight.flatten(1), self.conv1x1.bias).permute(0, 3, 1, 2)

    def kernel(self) -> Tensor:
        """(c, 1, 3, 3): the depthwise kernel that official files hold for the moves; it has a single 1 in each channel."""
        group = self.c // 5
        kernel = torch.zeros(self.c, 1, 3, 3)
        for i, (row, column) in enumerate([(1, 2), (1, 0), (2, 1), (0, 1)]):
            kernel[i * group : (i + 1) * group, 0, row, column] = 1
        kernel[4 * group :, 0, 1, 1] = 1
        return kernel


class Moved(torch.autograd.Function):
    """`moved` with a gradient for which it keeps nothing but, with a ReLU, its output."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: int, relu: bool) -> Tensor:
        """rows: (b, h, w, c), same shape out. group, relu: as in `moved`."""
        out = moved(rows, group, 1, relu)
        ctx.group, ctx.relu = group, relu
        if relu:
            ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.relu:
            (out,) = ctx.saved_tensors
            gradient = gradient * (out > 0)
        return moved(gradient, ctx.group, -1, False), None, None


def moved(rows: Tensor, group: int, by: int, relu: bool) -> Tensor:
    """Moves the first four groups of channels by a pixel: left, right, up and down; (b, h, w, c), same shape out.

    Zeros come in at the edges. The channels behind the four groups stay where they are.

    Args: group: channels of a group. by: 1, or -1 for the opposite directions, which is the transpose.
          relu: whether the ReLU of rows is moved, not rows itself.
    """

    def copy(source: Tensor, target: Tensor) -> None:
        if relu:
            torch.clamp_min(source, 0, out=target)
        else:
            target.copy_(source)

    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    for i, (dim, step) in enumerate([(2, by), (2, -by), (1, by), (1, -by)]):
        source, target = (t[..., i * group : (i + 1) * group] for t in (rows, out))
        length = rows.shape[dim] - 1
        copy(source.narrow(dim, 1 if step > 0 else 0, length), target.narrow(dim, 0 if step > 0 else 1, length))
        target.narrow(dim, length if step > 0 else 0, 1).zero_()
    copy(rows[..., 4 * group :], out[..., 4 * group :])
    return out


class GroupAttention(nn.Module):
    """GMSA: each window size gets a third of the channels; softmax(q q^T) v in a window, no scale, no heads (section 3.2).

    Args: own_maps: False for the layers that share: they compute v alone and take q, and so the attention maps, from the first
          layer of their block.
    """

    def __init__(self, c: int, windows: list[int], *, shifted: bool, own_maps: bool) -> None:
        super().__init__()
        self.windows, self.shifted, self.own_maps = windows, shifted, own_maps
        out = 2 * c if own_maps else c
        self.project_inp = nn.Sequential(nn.Conv2d(c, out, 1), nn.BatchNorm2d(out))
        self.project_out = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor, orders: "Orders", queries: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Args:    x: (b, c, h, w). orders: as in Body.
                 queries: of the layer whose maps are shared, (b * windows, 1, n, c / 3) for each group; [] with own_maps.
        Returns: (b, c, h, w), and the queries, given or new.
        """
        b, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        attended = []
        for i, (projected, window) in enumerate(zip(self._projected(rows), self.windows, strict=True)):
            order, back = orders[window, self.shifted]
            tokens = Reorder.apply(projected, order, back).view(-1, 1, window**2, projected.shape[-1])
            if self.own_maps:
                q, v = tokens.chunk(2, dim=-1)
                queries = [*queries, q]
            else:
                q, v = queries[i], tokens
            y = F.scaled_dot_product_attention(q, q, v, scale=1.0)
            attended.append(Reorder.apply(y.reshape(b, h * w, c // 3), back, order))
        out = F.linear(torch.cat(attended, dim=-1), self.project_out.weight.flatten(1), self.project_out.bias)
        return out.view(b, h, w, c).permute(0, 3, 1, 2), queries

    def _projected(self, rows: Tensor) -> list[Tensor]:
        """project_inp for the group of each window size: (b, h * w, c) to three of (b, h * w, c / 3).

        With own_maps they are twice as wide: queries, then values.
        """
        convolution, norm = cast(tuple[nn.Conv2d, nn.BatchNorm2d], tuple(self.project_inp))
        mean, var = cast(tuple[Tensor, Tensor], (norm.running_mean, norm.running_var))
        weight, bias = convolution.weight.flatten(1), cast(Tensor, convolution.bias)
        if not self.training:  # the norm scales and shifts each channel, which weight and bias can do as well
            gain = norm.weight / (var + norm.eps).sqrt()
            weight, bias = weight * gain[:, None], (bias - mean) * gain + norm.bias
            return [F.linear(rows, *part) for part in zip(weight.chunk(3), bias.chunk(3), strict=True)]
        cast(Tensor, norm.num_batches_tracked).add_(1)
        momentum = cast(float, norm.momentum)
        groups: list[Tensor] = []
        for i in range(3):
            group = slice(i * len(bias) // 3, (i + 1) * len(bias) // 3)
            made = F.linear(rows, weight[group], bias[group]).flatten(0, 1)
            # mean[group] and var[group] are views, so that the running statistics of the norm itself are updated.
            made = F.batch_norm(made, mean[group], var[group], norm.weight[group], norm.bias[group], True, momentum, norm.eps)
            groups.append(made.unflatten(0, rows.shape[:2]))
        return groups


Orders = dict[tuple[int, bool], tuple[Tensor, Tensor]]


def window_orders(h: int, w: int, windows: list[int], device: torch.device) -> Orders:
    """(window, shifted) -> an order (h * w,) and its inverse: rows[order] are the pixels of the map, window after window.

    A shift rolls the map up and left by half a window. Pixels that are rolled around are not masked, as published.
    """
    orders: Orders = {}
    pixels = torch.arange(h * w, device=device)
    for window in windows:
        for shifted in (False, True):
            by = -(window // 2) if shifted else 0
            rolled = pixels.view(h, w).roll((by, by), (0, 1))
            order = rolled.view(h // window, window, w // window, window).transpose(1, 2).flatten()
            orders[window, shifted] = order, torch.empty_like(order).scatter_(0, order, pixels)
    return orders


def _drop_constants(network: ELAN, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Takes the constants out of a state dict that is about to be loaded.

    Raises: ValueError: a constant differs from this network's, compared in the file's precision. The mean tells
            another img_range.
    """
    expected = network.derived_buffers()
    for key in [key for key in state if key.removeprefix(prefix) in expected]:
        value, wanted = state.pop(key), expected[key.removeprefix(prefix)]
        if not isinstance(value, Tensor) or value.device.type == "meta":
            continue
        if not torch.allclose(value.cpu(), wanted.to(value.dtype)):
            raise ValueError(
                f"{key} holds {value.flatten()[:3].tolist()} where network.img_range={network.img_range:g} and "
                f"c_elan give {wanted.flatten()[:3].tolist()}: the file is of another configuration"
            )

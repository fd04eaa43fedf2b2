"""SwinIR (Liang et al. 2021, arXiv:2108.10257) with all official heads, and DiffBIR's variant of it for stage 1.

Keys are those of JingyunLiang/SwinIR models/network_swinir.py and XPixelGroup/DiffBIR diffbir/model/swinir.py.
Letters in shapes: b batch, c channels, h/w height and width of the feature map, n = window_size ** 2 tokens in a window.
"""

from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Interval, MinLen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.kernels import Reorder, nearest_up_convolution

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K; a constant of SwinIR's and of ELAN's architecture
MASKED = -100.0  # added to masked scores in the official code, which does not use -inf

Positive = Annotated[int, Ge(1)]


class SwinIR(nn.Module):
    """Restores an image with shifted-window attention on a feature map; official weights load with strict=True.

    Args:
        img_size: side of the feature map that the official file was built for. It only decides whether windows are shifted
            (never if img_size <= window_size, as in the reference), and the size of the `attn_mask` that an export writes.
        in_chans: 3 (RGB, whose mean the network subtracts) or any other number (no mean).
        embed_dim: channels c of the body; each entry of num_heads must divide it.
        depths: attention blocks in each residual group (RSTB).
        num_heads: attention heads in each group, as many entries as depths.
        window_size: side of an attention window, in feature pixels.
        mlp_ratio: hidden width of a block's MLP, as a multiple of embed_dim.
        unshuffle: factor of the pixel-unshuffle before the first convolution; 1 is none. DiffBIR's stage 1 has 8.
        upscale: factor of the head. The image grows by upscale / unshuffle.
        upsampler: "nearest+conv" (x2, x4, x8), "pixelshuffle" (powers of 2, and 3), "pixelshuffledirect",
            or "" (restoration at the same size: the input is added to the output).
        resi_connection: convolutions at the end of each group and of the body.
        img_range: scale of the values inside the network; input and output stay in [0, 1].
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 over all blocks.
        image_skip: add the input image to the head's output and start the head's last convolution at zero, so that
            training starts from the identity. Ours, for short trainings; no official file has it.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.

    Raises: ValueError for a combination that no forward could run.
    """

    mean: Tensor

    def __init__(
        self,
        *,
        img_size: Positive,
        in_chans: Positive,
        embed_dim: Positive,
        depths: Annotated[list[Positive], MinLen(1)],
        num_heads: list[Positive],
        window_size: Positive,
        mlp_ratio: Annotated[float, Gt(0)],
        unshuffle: Positive,
        upscale: Positive,
        upsampler: Literal["nearest+conv", "pixelshuffle", "pixelshuffledirect", ""],
        resi_connection: Literal["1conv", "3conv"],
        img_range: Annotated[float, Gt(0)] = 1.0,
        drop_path_rate: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
        image_skip: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads):
            raise ValueError(
                f"network.depths={depths} and network.num_heads={num_heads} differ in length: give each group both"
            )
        if wrong := [heads for heads in num_heads if embed_dim % heads]:
            raise ValueError(f"network.num_heads={num_heads}: {wrong[0]} does not divide network.embed_dim={embed_dim}")
        if image_skip and upscale != unshuffle:
            raise ValueError(
                f"network.image_skip=true needs an output of the input's size, "
                f"but upscale={upscale} differs from unshuffle={unshuffle}: make them equal"
            )
        if upsampler == "" and (upscale != 1 or unshuffle != 1):
            raise ValueError(f"network.upsampler='' keeps the size: upscale={upscale} and unshuffle={unshuffle} must be 1")
        self.img_size, self.unshuffle, self.upscale, self.img_range = img_size, unshuffle, upscale, img_range
        self.window_size = min(window_size, img_size)
        self.multiple = self.window_size * unshuffle  # images are padded until both sides are multiples of it
        self.shift = 0 if img_size <= window_size else window_size // 2
        self.image_skip, self.gradient_checkpointing = image_skip, gradient_checkpointing
        mean = RGB_MEAN if in_chans == 3 else [0.0] * in_chans
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)

        stem = nn.Conv2d(in_chans * unshuffle**2, embed_dim, 3, padding=1)
        self.conv_first = stem if unshuffle == 1 else nn.Sequential(nn.PixelUnshuffle(unshuffle), stem)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed_dim)})
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(depths)  # plain numbers, on any device
        self.layers = nn.ModuleList(
            ResidualGroup(embed_dim, heads, self.window_size, self.shift, mlp_ratio, rate.tolist(), resi_connection)
            for heads, rate in zip(num_heads, rates, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = group_convolution(embed_dim, resi_connection)
        self._build_head(embed_dim, in_chans, upsampler)

        self.apply(_initialise)
        if image_skip:
            last = self.upsample[0] if upsampler == "pixelshuffledirect" else self.conv_last
            assert isinstance(last, nn.Conv2d)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.register_load_state_dict_pre_hook(_drop_derived_keys)

    def _build_head(self, embed_dim: int, out_chans: int, upsampler: str) -> None:
        self.upsampler = upsampler
        features = 64  # in every official file
        doublings = self.upscale.bit_length() - 1
        power_of_two = self.upscale == 2**doublings
        if upsampler == "":
            self.conv_last = nn.Conv2d(embed_dim, out_chans, 3, padding=1)
        elif upsampler == "pixelshuffledirect":
            self.upsample = shuffle_up(embed_dim, out_chans, self.upscale)
        else:
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, features, 3, padding=1), nn.LeakyReLU(0.01))
            if upsampler == "pixelshuffle":
                if not power_of_two and self.upscale != 3:
                    raise ValueError(f"network.upscale={self.upscale}: upsampler='pixelshuffle' takes 3 or a power of 2")
                factors = [2] * doublings if power_of_two else [3]
                self.upsample = nn.Sequential(*(layer for f in factors for layer in shuffle_up(features, features, f)))
            else:
                if not power_of_two or not 1 <= doublings <= 3:
                    raise ValueError(f"network.upscale={self.upscale}: upsampler='nearest+conv' takes 2, 4 or 8")
                for i in range(1, doublings + 1):
                    self.add_module(f"conv_up{i}", nn.Conv2d(features, features, 3, padding=1))
                self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
            self.conv_last = nn.Conv2d(features, out_chans, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        """Args:    lq: (b, in_chans, H, W) in [0, 1], any H and W that reflection can pad.
        Returns: (b, in_chans, H * upscale / unshuffle, W * upscale / unshuffle), about [0, 1], not clamped.

        The input is padded by reflection, bottom and right, to a multiple of window_size * unshuffle, and the output is
        cropped. (DiffBIR's own code pads to window_size and then does not crop.)
        """
        height, width = lq.shape[-2:]
        x = (self._pad(lq) - self.mean) * self.img_range
        features = self.conv_first(x)
        features = self.conv_after_body(self.body(features)) + features
        restored = self.head(features)
        if self.upsampler == "" or self.image_skip:
            restored = restored + x
        restored = restored / self.img_range + self.mean
        return restored[..., : height * self.upscale // self.unshuffle, : width * self.upscale // self.unshuffle]

    def _pad(self, lq: Tensor) -> Tensor:
        multiple = self.multiple
        bottom, right = -lq.shape[-2] % multiple, -lq.shape[-1] % multiple
        if bottom >= lq.shape[-2] or right >= lq.shape[-1]:
            raise ValueError(
                f"an image of {lq.shape[-2]}x{lq.shape[-1]} is too small to be padded by reflection to a multiple of "
                f"{multiple} (window_size {self.window_size} x unshuffle {self.unshuffle}): "
                f"give images of more than {multiple // 2} pixels a side"
            )
        return F.pad(lq, (0, right, 0, bottom), mode="reflect") if bottom or right else lq

    def body(self, features: Tensor) -> Tensor:
        """All residual groups, on (b, c, h, w) with h and w multiples of window_size; same shape out."""
        h, w = features.shape[-2:]
        # Made contiguous once, here: the layers below keep the layout, and each block would copy a transposed one.
        tokens = self.patch_embed["norm"](features.flatten(2).transpose(1, 2).contiguous())
        shifted = shift_windows(h, w, self.window_size, self.shift, tokens.device) if self.shift else None
        for group in self.layers:
            tokens = group(tokens, (h, w), shifted, self.gradient_checkpointing and self.training)
        return self.norm(tokens).transpose(1, 2).unflatten(2, (h, w))

    def head(self, features: Tensor) -> Tensor:
        """Features (b, c, h, w) to the image (b, in_chans, h * upscale, w * upscale), in the network's own range."""
        if self.upsampler == "":
            return self.conv_last(features)
        if self.upsampler == "pixelshuffledirect":
            return self.upsample(features)
        # With few channels and many pixels, convolutions are up to twice as fast with channels last.
        x = self.conv_before_upsample(features.contiguous(memory_format=torch.channels_last))
        if self.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(x))
        for i in range(1, self.upscale.bit_length()):
            convolution = self.get_submodule(f"conv_up{i}")
            assert isinstance(convolution, nn.Conv2d)
            x = F.leaky_relu(nearest_up_convolution(x, convolution.weight, convolution.bias), 0.2, inplace=True)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2, inplace=True))

    def derived_buffers(self) -> dict[str, Tensor]:
        """The keys of an official file that follow from the configuration: position indices and masks.

        Our state dict leaves them out. Loading drops them, and an export adds them, as other programs read them.
        """
        index = relative_position_index(self.window_size)
        mask = shift_mask(self.img_size, self.img_size, self.window_size, self.shift) if self.shift else None
        buffers: dict[str, Tensor] = {}
        for name, module in self.named_modules():
            if isinstance(module, Block):
                buffers[f"{name}.attn.relative_position_index"] = index.clone()
                if module.shift and mask is not None:
                    buffers[f"{name}.attn_mask"] = mask.clone()
        return buffers


class ResidualGroup(nn.Module):
    """RSTB: blocks, every other one shifted, then a convolution, and the group's input added (Liang et al. 2021, eq. 7)."""

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path: list[float], connection: str
    ) -> None:
        super().__init__()
        blocks = nn.ModuleList(
            Block(dim, heads, window, shift if i % 2 else 0, mlp_ratio, rate) for i, rate in enumerate(drop_path)
        )
        self.window = window
        self.residual_group = nn.ModuleDict({"blocks": blocks})
        self.conv = group_convolution(dim, connection)

    def forward(self, tokens: Tensor, size: tuple[int, int], shifted: "Shift | None", recompute: bool) -> Tensor:
        """tokens: (b, h * w, c) in row order, same shape out. size: (h, w), multiples of window. shifted: from `shift_windows`.

        Args: recompute: whether to recompute each block in the backward pass instead of keeping its activations.
        """
        # All layers but the convolution treat each token or each window by itself, so tokens stay in window order until then.
        x = to_windows(tokens.unflatten(1, size), self.window)
        for block in self.residual_group["blocks"]:  # type: ignore[attr-defined]
            x = checkpoint(block, x, shifted, use_reentrant=False) if recompute else block(x, shifted)
        x = self.conv(from_windows(x, self.window, size).permute(0, 3, 1, 2))
        return x.flatten(2).transpose(1, 2) + tokens


class Block(nn.Module):
    """One Swin block: (shifted) window attention and MLP, both pre-norm and residual (Liu et al. 2021, eq. 3)."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.drop_attn, self.drop_mlp = StochasticDepth(drop_path), StochasticDepth(drop_path)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, windows: Tensor, shifted: "Shift | None") -> Tensor:
        """windows: (b, windows, n, c) of the map that is not shifted, same shape out. shifted: from `shift_windows`."""
        x = self.norm1(windows)
        if self.shift and shifted is not None:
            x = Reorder.apply(x.flatten(1, 2), shifted.order, shifted.back).view_as(windows)
            x = self.attn(x, shifted.mask)
            x = Reorder.apply(x.flatten(1, 2), shifted.back, shifted.order).view_as(windows)
        else:
            x = self.attn(x, None)
        x = windows + self.drop_attn(x)
        return x + self.drop_mlp(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class StochasticDepth(nn.Module):
    """Drops the whole branch of a sample with probability `rate`, or else scales it up (Huang et al. 2016, arXiv:1603.09382).

    `uniform`, (b,) in [0, 1), decides for each sample of the current batch. A task that knows which samples these are sets it,
    so that a sample's draw does not depend on the batch that it is in. If it is None, torch's generator draws.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.uniform: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """branch: (b, …), same shape out."""
        if not self.training or self.rate == 0:
            return branch
        uniform = torch.rand(branch.shape[0], device=branch.device) if self.uniform is None else self.uniform
        kept = (uniform >= self.rate).to(branch.dtype) / (1 - self.rate)
        return branch * kept.view(-1, *[1] * (branch.dim() - 1))


class WindowAttention(nn.Module):
    """Multi-head attention in each window with a learned bias by relative position (Liu et al. 2021, eq. 4)."""

    position: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("position", relative_position_index(window).flatten(), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Args:    windows: (b, windows, n, c). mask: (windows, n, n), 0 or -100, added to the scores; None means no shift.
        Returns: (b, windows, n, c).
        """
        b, count, n, c = windows.shape
        bias = self.relative_position_bias_table.t()[:, self.position].view(1, self.heads, n, n)
        if mask is not None:
            bias = bias + mask.to(bias.dtype).unsqueeze(1)
            bias = bias if b == 1 else bias.repeat(b, 1, 1, 1)
        # Fused kernels take heads whose width is a multiple of 8. Padding them with zeros changes no score and no output.
        pad = -self.head_dim % 8
        weight = F.pad(self.qkv.weight.view(3 * self.heads, self.head_dim, c), (0, 0, 0, pad)).flatten(0, 1)
        weight_bias = F.pad(self.qkv.bias.view(3 * self.heads, self.head_dim), (0, pad)).flatten()
        qkv = F.linear(windows, weight, weight_bias).view(b * count, n, 3, self.heads, self.head_dim + pad)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = bias.to(q.dtype).expand(b * count, -1, -1, -1)
        if windows.device.type == "cpu" and torch.is_grad_enabled():
            # SDPA has no fused kernel for a bias that needs a gradient, and would also search for fully masked rows.
            x = (q @ (k * self.head_dim**-0.5).transpose(-2, -1)).add_(bias).softmax(-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.head_dim**-0.5)
        weight = F.pad(self.proj.weight.view(c, self.heads, self.head_dim), (0, pad)).flatten(1)
        return F.linear(x.transpose(1, 2).reshape(b, count, n, -1), weight, self.proj.bias)


class Shift(NamedTuple):
    """Where the windows of the shifted map find their tokens in those of the map itself; positions count in window order."""

    order: Tensor  # (h * w,): the position, in the windows that are not shifted, of each token of the shifted windows
    back: Tensor  # (h * w,): the inverse of order
    mask: Tensor  # (windows, n, n): see `shift_mask`


def shift_windows(h: int, w: int, window: int, shift: int, device: torch.device) -> Shift:
    """For a map of h x w, both multiples of window, that is rolled up and left by shift."""
    rows = torch.arange(h * w, device=device).view(1, h, w, 1)
    plain = to_windows(rows, window).flatten()
    moved = to_windows(rows.roll((-shift, -shift), dims=(1, 2)), window).flatten()
    order = plain.argsort()[moved]
    return Shift(order, order.argsort(), shift_mask(h, w, window, shift, device))


def to_windows(x: Tensor, window: int) -> Tensor:
    """(b, h, w, c) to (b, windows, n, c), windows in row order."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(b, -1, window * window, c)


def from_windows(windows: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """(b, windows, n, c) back to (b, h, w, c)."""
    h, w = size
    x = windows.view(-1, h // window, w // window, window, window, windows.shape[-1]).transpose(2, 3)
    return x.reshape(-1, h, w, windows.shape[-1])


def relative_position_index(window: int) -> Tensor:
    """(n, n): for each pair (query, key) the row of the bias table, (dy + window - 1) * (2 * window - 1) + dx + window - 1."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def shift_mask(h: int, w: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """(windows, n, n): -100 between tokens that share a window only because the map was rolled by shift, else 0."""
    rows = _region(h, window, shift, device)
    columns = _region(w, window, shift, device)
    region = to_windows((3 * rows[:, None] + columns[None])[None, :, :, None], window)[0, :, :, 0]
    return (region[:, :, None] != region[:, None, :]).float() * MASKED


def _region(length: int, window: int, shift: int, device: torch.device | None) -> Tensor:
    """(length,): for each row of the rolled map 0 before the last window, 1 in it, and 2 where it was rolled around."""
    i = torch.arange(length, device=device)
    return (i >= length - window).long() + (i >= length - shift).long()


def group_convolution(dim: int, connection: str) -> nn.Module:
    """The convolution(s) that close a group: one 3x3, or the 3x3, 1x1, 3x3 bottleneck of the large models."""
    if connection == "1conv":
        return nn.Conv2d(dim, dim, 3, padding=1)
    narrow = dim // 4
    return nn.Sequential(
        nn.Conv2d(dim, narrow, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, narrow, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, dim, 3, padding=1),
    )


def shuffle_up(channels_in: int, channels_out: int, factor: int) -> nn.Sequential:
    """(b, channels_in, h, w) to (b, channels_out, factor * h, factor * w)."""
    return nn.Sequential(nn.Conv2d(channels_in, channels_out * factor**2, 3, padding=1), nn.PixelShuffle(factor))


def _initialise(module: nn.Module) -> None:
    """Linear weights as in the reference; convolutions and LayerNorm keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _drop_derived_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Official files carry `attn_mask` and `relative_position_index`; both follow from the configuration."""
    for key in [k for k in state if k.startswith(prefix) and k.endswith((".attn_mask", ".relative_position_index"))]:
        del state[key]

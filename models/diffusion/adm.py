"""The diffusion U-Net in pixels (ADM; Dhariwal and Nichol 2021, arXiv:2105.05233): the unconditional face model of DifFace.

Keys are those of openai/guided-diffusion's unet.py, which DifFace, PGDiff and DT-BFR share. Letters in shapes: b batch,
c channels, h/w of a map, e width of the time embedding (4 * model_channels).
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GROUPS = 32  # of every GroupNorm
Positive = Annotated[int, Ge(1)]


class ADM(nn.Module):
    """Noise (and the range of its variance) from a noisy image and its timestep.

    Args:    image_size: side of the images. It decides at which levels attention_resolutions, sides of maps in pixels, put
                 attention; other sides keep it at these levels.
             model_channels: width at full size. channel_mult: width of each level as a multiple of it.
             num_res_blocks: residual blocks of a level, one number for all or one for each; the decoder has one more.
             out_channels: 6 with a learned variance, else 3. num_classes: the image's class is given too.
             use_scale_shift_norm: the embedding scales and shifts the second norm, else it is added.
             resblock_updown: residual blocks resample. conv_resample: else, whether a convolution does.
             use_new_attention_order: order of queries, keys and values in qkv.
             gradient_checkpointing: blocks are computed again in the backward pass.
    """

    def __init__(
        self,
        *,
        image_size: Positive,
        model_channels: Positive,
        num_res_blocks: Positive | list[Positive],
        attention_resolutions: list[Positive],
        channel_mult: list[Positive],
        in_channels: Positive = 3,
        out_channels: Positive = 6,
        num_head_channels: Positive = 64,
        num_classes: Positive | None = None,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        conv_resample: bool = True,
        use_new_attention_order: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        blocks = [num_res_blocks] * len(channel_mult) if isinstance(num_res_blocks, int) else num_res_blocks
        if len(blocks) != len(channel_mult):
            raise ValueError(f"num_res_blocks={blocks} for {len(channel_mult)} levels (channel_mult): give one number for each")
        embedding = 4 * model_channels
        self.model_channels, self.gradient_checkpointing = model_channels, gradient_checkpointing
        self.multiple = 2 ** (len(channel_mult) - 1)
        self.time_embed = nn.Sequential(nn.Linear(model_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, embedding)

        def residual(inputs: int, outputs: int, change: str = "") -> ResBlock:
            return ResBlock(inputs, outputs, embedding, scale_shift=use_scale_shift_norm, change=change)

        def attended(side: int, channels: int) -> list[nn.Module]:
            heads = channels // num_head_channels
            return [AttentionBlock(channels, heads, use_new_attention_order)] if side in attention_resolutions else []

        channels, side = channel_mult[0] * model_channels, image_size
        self.input_blocks = nn.ModuleList([Steps(nn.Conv2d(in_channels, channels, 3, padding=1))])
        skips = [channels]
        for level, (factor, count) in enumerate(zip(channel_mult, blocks, strict=True)):
            for _ in range(count):
                width = factor * model_channels
                self.input_blocks.append(Steps(residual(channels, width), *attended(side, width)))
                channels = width
                skips.append(channels)
            if level < len(channel_mult) - 1:
                smaller = residual(channels, channels, "down") if resblock_updown else Downsample(channels, conv_resample)
                self.input_blocks.append(Steps(smaller))
                skips.append(channels)
                side //= 2
        heads = channels // num_head_channels
        middle = AttentionBlock(channels, heads, use_new_attention_order)
        self.middle_block = Steps(residual(channels, channels), middle, residual(channels, channels))
        self.output_blocks = nn.ModuleList()
        for level, (factor, count) in reversed(list(enumerate(zip(channel_mult, blocks, strict=True)))):
            for number in range(count + 1):
                width = factor * model_channels
                steps: list[nn.Module] = [residual(channels + skips.pop(), width), *attended(side, width)]
                channels = width
                if level and number == count:
                    steps.append(residual(channels, channels, "up") if resblock_updown else Upsample(channels, conv_resample))
                    side *= 2
                self.output_blocks.append(Steps(*steps))
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        for block in self.modules():
            if isinstance(block, ResBlock | AttentionBlock):
                block.begin_as_identity()

    def forward(self, x: Tensor, timesteps: Tensor, classes: Tensor | None = None) -> Tensor:
        """Args:    x: (b, in_channels, h, w), about [-1, 1], sides multiples of 2 ** (levels - 1).
                 timesteps: (b,) of the long chain. classes: (b,) int64, with num_classes.
        Returns: (b, out_channels, h, w).
        Raises:  ValueError: sides that the levels can't halve.
        """
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise ValueError(
                f"the diffusion network takes sides that are multiples of {self.multiple}, and this image has "
                f"{x.shape[-1]}x{x.shape[-2]}"
            )
        embedding = self.time_embed(embedded(timesteps, self.model_channels).to(x.dtype))
        if classes is not None:
            embedding = embedding + self.label_emb(classes)
        skips = []
        for block in self.input_blocks:
            x = self._run(block, x, embedding)
            skips.append(x)
        x = self._run(self.middle_block, x, embedding)
        for block in self.output_blocks:
            x = self._run(block, torch.cat([x, skips.pop()], dim=1), embedding)
        made: Tensor = self.out(x)
        return made

    def _run(self, block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, embedding, use_reentrant=False)
        return block(x, embedding)


class Steps(nn.Sequential):
    """Modules after one another, of which residual blocks get the embedding too."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]  # nn.Sequential takes one
        """x: (b, c, h, w); embedding: (b, e)."""
        for module in self:
            x = module(x, embedding) if isinstance(module, ResBlock) else module(x)
        return x


class ResBlock(nn.Module):
    """Norm, SiLU, convolution; the embedding; norm, SiLU, convolution; added to the input.

    Args:    change: "up" and "down" resample both ways (nearest, mean of four) before the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, *, scale_shift: bool, change: str) -> None:
        super().__init__()
        self.scale_shift, self.change = scale_shift, change
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs if scale_shift else outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, outputs), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def begin_as_identity(self) -> None:
        """A network begins with residual branches that add nothing."""
        for parameter in self.out_layers[3].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (b, inputs, h, w); embedding: (b, e); to (b, outputs, h', w')."""
        h = self.in_layers[1](self.in_layers[0](x))
        if self.change:
            h, x = (resampled(each, self.change) for each in (h, x))
        h = self.in_layers[2](h)
        given = self.emb_layers(embedding)[..., None, None]
        if self.scale_shift:
            scale, shift = given.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + given)
        made: Tensor = self.skip_connection(x) + self.out_layers[1:](h)
        return made


class AttentionBlock(nn.Module):
    """Self-attention over all places of a map, added to it."""

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = max(1, heads), new_order
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def begin_as_identity(self) -> None:
        """See ResBlock."""
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to the same shape."""
        b, c, height, width = x.shape
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        if self.new_order:  # all queries, all keys, all values
            q, k, v = qkv.view(b, 3, self.heads, c // self.heads, -1).unbind(1)
        else:  # head after head
            q, k, v = qkv.view(b, self.heads, 3, c // self.heads, -1).unbind(2)
        seen = F.scaled_dot_product_attention(*(each.transpose(-1, -2) for each in (q, k, v)))
        return (flat + self.proj_out(seen.transpose(-1, -2).reshape(b, c, -1))).view(b, c, height, width)


class Downsample(nn.Module):
    """Half the size, by a convolution or by the mean of four."""

    def __init__(self, channels: int, convolves: bool) -> None:
        super().__init__()
        self.op: nn.Module = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if convolves else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to (b, c, h / 2, w / 2)."""
        made: Tensor = self.op(x)
        return made


class Upsample(nn.Module):
    """Twice the size by nearest neighbours, and a convolution."""

    def __init__(self, channels: int, convolves: bool) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(channels, channels, 3, padding=1) if convolves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to (b, c, 2 * h, 2 * w)."""
        made: Tensor = self.conv(resampled(x, "up"))
        return made


def resampled(x: Tensor, change: str) -> Tensor:
    """Twice the size by nearest neighbours ("up"), or half by the mean of four ("down")."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if change == "up" else F.avg_pool2d(x, 2)


def embedded(timesteps: Tensor, width: int) -> Tensor:
    """(b,) to (b, width) cosines and sines, from fast to slow."""
    half = width // 2
    slowing = torch.exp(-math.log(10_000) * torch.arange(half, device=timesteps.device, dtype=torch.float32) / half)
    angles = timesteps.float()[:, None] * slowing
    return torch.cat([angles.cos(), angles.sin()], dim=1)

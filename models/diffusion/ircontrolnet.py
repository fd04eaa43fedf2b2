"""IRControlNet (Lin et al. 2023, DiffBIR, arXiv:2308.15070): a trainable copy of the encoder of Stable Diffusion's UNet.

It sees the latent of a first restoration beside the noisy latent. The residuals that it gives are added to the frozen UNet's
skip connections. Keys are those of XPixelGroup/DiffBIR's published files (v1_face.pth, v2.pth, DiffBIR_v2.1.pt). Letters in
shapes: b batch, c channels, n = h * w tokens of a map, m tokens of the text.
"""

import math
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from annotated_types import Gt, MinLen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.diffusion import ldm

Positive = Annotated[int, Gt(0)]


class IRControlNet(nn.Module):
    """Turns a noisy latent and a condition latent into one residual for each skip connection of the UNet, and for its middle.

    As built, all residuals are zero and all other weights random. `copy_encoder` makes it the copy that training starts from.

    Args:    in_channels: of the noisy latent. hint_channels: of the condition latent.
             model_channels: width of the first level. channel_mult: width of each level as a multiple of model_channels, from
                 high to low resolution. num_res_blocks: residual blocks of a level.
             attention_resolutions: downsampling factors (not sizes) of the levels with attention. The middle always has it.
             num_head_channels: channels of one attention head. context_dim: width of the text features.
             gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.
    Raises:  ValueError: a width that the norms' 32 groups or the heads don't divide, or a factor that no level has.
    """

    def __init__(
        self,
        *,
        in_channels: Positive,
        hint_channels: Positive,
        model_channels: Positive,
        channel_mult: Annotated[list[Positive], MinLen(1)],
        num_res_blocks: Positive,
        attention_resolutions: list[Positive],
        num_head_channels: Positive,
        context_dim: Positive,
        gradient_checkpointing: bool,
    ) -> None:
        super().__init__()
        _check(model_channels, channel_mult, attention_resolutions, num_head_channels)
        self.in_channels = in_channels
        self.hint_channels = hint_channels
        self.num_head_channels = num_head_channels
        self.gradient_checkpointing = gradient_checkpointing
        self.multiple = 2 ** (len(channel_mult) - 1)  # both sides of a latent must be multiples of it
        self.model_channels = width = model_channels
        embedding = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(in_channels + hint_channels, width, 3, padding=1)])])
        widths = [width]
        for level, factor in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [ResBlock(width, factor * model_channels, embedding)]
                width = factor * model_channels
                if 2**level in attention_resolutions:
                    layers.append(SpatialTransformer(width, width // num_head_channels, context_dim))
                self.input_blocks.append(Stage(layers))
                widths.append(width)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(Stage([Downsample(width)]))
                widths.append(width)
        self.zero_convs = nn.ModuleList(zero_convolution(width) for width in widths)
        self.middle_block = Stage(
            [
                ResBlock(width, width, embedding),
                SpatialTransformer(width, width // num_head_channels, context_dim),
                ResBlock(width, width, embedding),
            ]
        )
        self.middle_block_out = zero_convolution(width)

    def forward(self, latent: Tensor, timesteps: Tensor, text: Tensor, condition: Tensor) -> list[Tensor]:
        """Args:    latent: (b, in_channels, h, w), noised to timesteps (b,), whole numbers in 0..999.
                 text: (b, m, context_dim). condition: (b, hint_channels, h, w), the latent of the first restoration.
        Returns: residuals (b, c, height, width), one for each skip connection of the UNet in the order in which the UNet makes
                 them, and last the one for its middle block.
        Raises:  ValueError: sides that can't be halved at each level, or a condition of another size.
        """
        if latent.shape[-2:] != condition.shape[-2:]:
            raise ValueError(f"the condition is {tuple(condition.shape)}, the latent {tuple(latent.shape)}: sides must agree")
        if any(side % self.multiple for side in latent.shape[-2:]):
            h, w = latent.shape[-2:]
            raise ValueError(
                f"a latent of {h}x{w} (an image of {8 * h}x{8 * w}) can't be halved {self.multiple.bit_length() - 1} times: "
                f"pad images to multiples of {8 * self.multiple}"
            )
        dtype = self.get_parameter("input_blocks.0.0.weight").dtype  # the weights may be in half precision, and the latent not
        embedding = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(dtype))
        x, text = torch.cat([latent, condition], 1).to(dtype), text.to(dtype)
        residuals = []
        for stage, zero in zip(self.input_blocks, self.zero_convs, strict=True):
            x = self._run(stage, x, embedding, text)
            residuals.append(zero(x))
        return [*residuals, self.middle_block_out(self._run(self.middle_block, x, embedding, text))]

    def _run(self, stage: nn.Module, x: Tensor, embedding: Tensor, text: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return cast(Tensor, checkpoint(stage, x, embedding, text, use_reentrant=False))
        return stage(x, embedding, text)

    def copy_encoder(self, unet: nn.Module) -> None:
        """Copies encoder and middle block of diffusers' UNet2DConditionModel; weights for the condition's channels become zero.

        As long as the zero convolutions are zero, the controlled UNet gives what it gives without control.

        Raises:  ValueError: a UNet of another form, such as one of SD 1.5. The network is then left as it was.
        """
        self.load_state_dict(self.encoder_of(unet), strict=False)

    def encoder_of(self, unet: nn.Module) -> dict[str, Tensor]:
        """The weights that `copy_encoder` copies, under our names. Raises ValueError: a UNet of another form."""
        config: Any = unet.config
        state = ldm.to_official(unet.state_dict(), ldm.unet_names(config), "the UNet")
        entry = "input_blocks.0.0.weight"
        state[entry] = F.pad(state[entry], (0, 0, 0, 0, 0, self.hint_channels))
        own = {key: value for key, value in self.state_dict().items() if not key.startswith(("zero_convs", "middle_block_out"))}
        odd = [
            f"{key} {tuple(state[key].shape) if key in state else 'missing'}, here {tuple(value.shape)}"
            for key, value in own.items()
            if key not in state or state[key].shape != value.shape
        ]
        extra = [key for key in state if key.startswith(("time_embed", "input_blocks", "middle_block")) and key not in own]
        heads = config["attention_head_dim"]  # diffusers keeps the number of heads under this name
        heads = [heads] * len(config["block_out_channels"]) if isinstance(heads, int) else heads
        widths = {width // count for width, count in zip(config["block_out_channels"], heads, strict=True)}
        if not odd and widths != {self.num_head_channels}:
            odd = [f"attention heads of {sorted(widths)} channels, here num_head_channels={self.num_head_channels}"]
        if odd or extra:
            raise ValueError(
                f"the UNet is of another form than the control network: {len(odd + extra)} keys differ, first "
                f"{(odd + extra)[0]}; take Stable Diffusion 2.1-base, or network.* of this UNet{ldm.hint_of_sd1(config)}"
            )
        return {key: state[key] for key in own}


def _check(model_channels: int, channel_mult: list[int], attention_resolutions: list[int], num_head_channels: int) -> None:
    widths = [model_channels, *(factor * model_channels for factor in channel_mult)]
    if wrong := [width for width in widths if width % 32]:
        raise ValueError(
            f"network.model_channels={model_channels}: widths are multiples of 32 (its norms' groups), not {wrong[0]}"
        )
    factors = [2**level for level in range(len(channel_mult))]
    if unknown := [factor for factor in attention_resolutions if factor not in factors]:
        raise ValueError(
            f"network.attention_resolutions={attention_resolutions}: no level has factor {unknown[0]}; "
            f"with channel_mult={channel_mult} the factors are {factors}"
        )
    attentive = [m * model_channels for factor, m in zip(factors, channel_mult, strict=True) if factor in attention_resolutions]
    if wrong := [width for width in (*attentive, widths[-1]) if width % num_head_channels]:
        raise ValueError(f"network.num_head_channels={num_head_channels} does not divide the width {wrong[0]}")


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """(b,) to float32 (b, dim): cosines, then sines, of dim / 2 frequencies that fall geometrically from 1 towards 1e-4."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=timesteps.device))
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def zero_convolution(channels: int) -> nn.Sequential:
    """A 1x1 convolution whose output is zero until it is trained."""
    convolution = nn.Conv2d(channels, channels, 1)
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(cast(Tensor, convolution.bias))
    return nn.Sequential(convolution)


class Stage(nn.ModuleList):
    """The layers between two skip connections. Each layer gets the timestep or the text if it takes them."""

    def forward(self, x: Tensor, embedding: Tensor, text: Tensor) -> Tensor:
        """x: (b, c, h, w) to (b, o, h, w), or to (b, c, h/2, w/2) where the layer halves.

        Args: embedding: (b, 4 * model_channels), of the timestep. text: (b, m, context_dim).
        """
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, text)
            else:
                x = layer(x)
        return x


class Downsample(nn.Module):
    """A convolution that halves the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to (b, c, h/2, w/2)."""
        return self.op(x)


class ResBlock(nn.Module):
    """Two convolutions with the timestep's embedding added between them, and a skip connection around both."""

    def __init__(self, channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Identity(),  # dropout of 0 in the reference, where it counts as layer 2
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (b, channels, h, w) to (b, out_channels, h, w). embedding: (b, 4 * model_channels), of the timestep."""
        h = self.in_layers(x) + self.emb_layers(embedding)[..., None, None]
        return self.skip_connection(x) + self.out_layers(h)


class SpatialTransformer(nn.Module):
    """Attention of the places of a map to each other and to the text, added to the map."""

    def __init__(self, channels: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)  # 1e-5 in the residual blocks, as in the reference
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, context_dim)])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x: (b, c, h, w), same shape out. text: (b, m, context_dim)."""
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, text)
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text and a gated MLP; all pre-norm and residual."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.attn1 = Attention(dim, dim, heads)
        self.ff = FeedForward(dim)
        self.attn2 = Attention(dim, context_dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        """(b, n, c), with text (b, m, context_dim); same shape out."""
        own = self.norm1(tokens)
        tokens = tokens + self.attn1(own, own)
        tokens = tokens + self.attn2(self.norm2(tokens), text)
        return tokens + self.ff(self.norm3(tokens))


class Attention(nn.Module):
    """Queries of `dim` channels to keys and values from `context_dim` channels."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """(b, n, dim) and (b, m, context_dim) to (b, n, dim)."""
        q, k, v = (
            x.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for x in (self.to_q(tokens), self.to_k(context), self.to_v(context))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """An MLP four times as wide as its input, with a GEGLU as its activation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n, dim), same shape out."""
        return self.net(tokens)


class GEGLU(nn.Module):
    """Values times the GELU (exact, not its tanh form) of as many gates; both are linear in the input (Shazeer 2020)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n, dim) to (b, n, out_dim)."""
        values, gate = self.proj(tokens).chunk(2, -1)
        return values * F.gelu(gate)

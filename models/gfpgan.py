"""GFPGAN (Wang et al. 2021, arXiv:2101.04061): a U-Net that steers a StyleGAN2 face prior.

Keys are those of TencentARC/GFPGAN gfpgan/archs/gfpganv1_arch.py and gfpganv1_clean_arch.py. models/stylegan2.py explains the
two forms. Letters in shapes: b batch, c channels, n style features.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple, cast

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from models.kernels import laid_out
from models.stylegan2 import (
    GAIN,
    Bias,
    CleanConv2d,
    ConvLayer,
    EqualConv2d,
    EqualLinear,
    Generator,
    HalvingBlock,
    Kernel,
    Noise,
    Resampler,
    StyleGAN2Generator,
    StyleGAN2GeneratorClean,
    Width,
    activated,
    channels,
)
from models.vqgan import Positive, unsigned


class Restoration(NamedTuple):
    """What GFPGAN makes of an image."""

    restored: Tensor  # (b, 3, out_size, out_size), about [0, 1], not clamped
    pyramid: tuple[Tensor, ...]  # the U-Net's own images, (b, 3, side, side) for the sides 8, 16, … out_size, about [0, 1]
    latent: Tensor  # (b, layers or 1, n): what the prior makes the face from


class GFPGAN(nn.Module):
    """What both forms have in common; see GFPGANv1 for the arguments.

    Args: decoder: the prior. resample_kernel: with which the U-Net halves its maps; null: bilinear.
          equalised: whether this is the equalised form, not the clean one.
    """

    def __init__(
        self,
        *,
        decoder: Generator,
        out_size: int,
        num_style_feat: int,
        channel_multiplier: int,
        resample_kernel: list[float] | None,
        narrow: float,
        fix_decoder: bool,
        different_w: bool,
        sft_half: bool,
        equalised: bool,
    ) -> None:
        super().__init__()
        self.out_size = out_size
        self.common: dict[str, Any] = {  # the arguments that both forms take
            "out_size": out_size,
            "num_style_feat": num_style_feat,
            "channel_multiplier": channel_multiplier,
            "fix_decoder": fix_decoder,
            "num_mlp": len(list(decoder.style_mlp.children())),
            "different_w": different_w,
            "narrow": narrow,
            "sft_half": sft_half,
        }
        widths = channels(out_size, channel_multiplier, narrow / 2)
        upwards = list(widths.values())
        sft_width = 1 if sft_half else 2
        self.conv_body_first = _activated_layer(3, upwards[-1], 1, equalised)
        self.conv_body_down = nn.ModuleList(
            HalvingBlock(upwards[i], upwards[i - 1], equalised=equalised) for i in range(len(upwards) - 1, 0, -1)
        )
        self.final_conv = _activated_layer(widths[4], widths[4], 3, equalised)
        self.conv_body_up = nn.ModuleList(
            DoublingBlock(upwards[i - 1], upwards[i], equalised=equalised) for i in range(1, len(upwards))
        )
        self.toRGB = nn.ModuleList(_layer(width, 3, 1, equalised) for width in upwards[1:])
        self.latents = decoder.num_latent if different_w else 1
        styles = self.latents * num_style_feat
        self.final_linear = EqualLinear(widths[4] * 16, styles) if equalised else nn.Linear(widths[4] * 16, styles)
        self.stylegan_decoder = decoder
        self.stylegan_decoder.style_mlp.requires_grad_(False)  # official files hold it, but here the U-Net gives the styles
        if fix_decoder:
            self.stylegan_decoder.requires_grad_(False)
        self.condition_scale = nn.ModuleList(_condition(width, sft_width, 1.0, equalised) for width in upwards[1:])
        self.condition_shift = nn.ModuleList(_condition(width, sft_width, 0.0, equalised) for width in upwards[1:])
        self.halving, self.doubling = Resampler(resample_kernel), Resampler(None)

    prior = "stylegan_decoder"  # the part that init.prior's weights are for
    branches = frozenset({"pyramid"})  # outputs that parameters of their own make: train/tasks/adversarial.py tells DDP

    @classmethod
    def mistakes(cls, config: dict[str, Any]) -> Iterator[str]:
        """Of a configuration that trains this network: a prior without weights. See train/jobs/config.py."""
        init = config["init"]
        if init.get("prior") or init["ckpt"]:
            return
        if "prior" in init and init["required"]:
            yield (
                "init.prior is not set, and this recipe starts from trained weights: give init.prior=FILE, a StyleGAN2 "
                "(python -m models.weights fetch stylegan2_ffhq), or init.ckpt=FILE, a whole network"
            )
        elif config["network"]["fix_decoder"]:
            yield (
                "network.fix_decoder=true would freeze a prior of random weights: give init.prior=FILE or init.ckpt=FILE, or "
                "set network.fix_decoder=false"
            )

    @property
    def face_px(self) -> int:
        """Side of the aligned faces that it takes, and no other image."""
        return self.out_size

    def forward(self, lq: Tensor, *, noise: Noise = None) -> Restoration:
        """Args:    lq: (b, 3, out_size, out_size) in [0, 1].
                 noise: as in StyleGAN2Generator. By default it is drawn anew while training, and in eval mode it is the file's
                     own, so that an image always gives the same result (the reference draws it anew in both modes).
        Returns: the restored image (b, 3, out_size, out_size); the U-Net's own images (b, 3, side, side) with sides from 8 to
                 out_size; all about [0, 1] and not clamped. And the latent (b, layers or 1, n).
        Raises:  ValueError: another size than out_size, or noise of another shape.
        """
        size = self.out_size
        if lq.shape[-2:] != (size, size):
            raise ValueError(
                f"GFPGAN with out_size={size} takes images of {size}x{size}, not {lq.shape[-2]}x{lq.shape[-1]}: resize them"
            )
        x = activated(_convolved(laid_out(2 * lq - 1), self.conv_body_first, GAIN))
        skips: list[Tensor] = []
        for block in self.conv_body_down:
            x = block(x, self.halving)
            skips.append(x)
        x = activated(_convolved(x, self.final_conv, GAIN))
        latent = self.final_linear(x.flatten(1))
        conditions, pyramid = [], []
        for block, scale, shift, to_rgb in zip(
            self.conv_body_up, self.condition_scale, self.condition_shift, self.toRGB, strict=True
        ):
            x = block(x + skips.pop(), self.doubling)
            conditions.append((_conditioned(x, scale), _conditioned(x, shift)))
            pyramid.append(unsigned(_convolved(x, to_rgb)))
        latent, decoder = latent.unflatten(1, (self.latents, -1)), self.stylegan_decoder
        restored = decoder(latent.expand(-1, decoder.num_latent, -1), noise=noise, conditions=conditions)
        return Restoration(restored, tuple(pyramid), latent)


class GFPGANv1(GFPGAN):
    """The network of the paper, in its equalised form: GFPGANv1.pth, and how the clean files were trained.

    Args:    out_size: side of the images, a power of 2. num_style_feat: width of a latent.
             channel_multiplier: of the channels of maps from 64 px on. narrow: of all channels.
             resample_kernel: four taps, [1, 3, 3, 1] as published; null: bilinear. Only the bilinear form converts to clean
                 files and back.
             fix_decoder: whether the prior stays frozen.
             num_mlp, lr_mlp: number and learning-rate factor of the prior's layers from styles to latents. No forward runs
                 these layers; they exist because official files hold them.
             different_w: whether each layer of the prior has a latent of its own, not one for all.
             sft_half: whether the U-Net steers half of the prior's channels, not all.
    Raises:  ValueError for a combination that no forward could run.
    """

    def __init__(
        self,
        *,
        out_size: Positive,
        num_style_feat: Positive,
        channel_multiplier: Positive,
        resample_kernel: Kernel | None,
        fix_decoder: bool,
        num_mlp: Annotated[int, Ge(0)],
        lr_mlp: Width,
        different_w: bool,
        narrow: Width,
        sft_half: bool,
    ) -> None:
        super().__init__(
            decoder=StyleGAN2Generator(
                out_size=out_size,
                num_style_feat=num_style_feat,
                num_mlp=num_mlp,
                channel_multiplier=channel_multiplier,
                resample_kernel=resample_kernel,
                lr_mlp=lr_mlp,
                narrow=narrow,
            ),
            out_size=out_size,
            num_style_feat=num_style_feat,
            channel_multiplier=channel_multiplier,
            resample_kernel=resample_kernel,
            narrow=narrow,
            fix_decoder=fix_decoder,
            different_w=different_w,
            sft_half=sft_half,
            equalised=True,
        )
        self.resample_kernel, self.lr_mlp = resample_kernel, lr_mlp

    def converted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A clean network's weights as those of this one, if this one resamples bilinearly; any other state dict as it is."""
        wanted = self.state_dict()
        pairs = _counterparts(wanted, self.lr_mlp)
        if self.resample_kernel is not None or state.keys() != {name for name, _ in pairs.values()}:
            return state
        if any(state[name].numel() != wanted[key].numel() for key, (name, _) in pairs.items()):
            return state
        return {key: (state[name] / factor).view_as(wanted[key]) for key, (name, factor) in pairs.items()}


class GFPGANv1Clean(GFPGAN):
    """The clean form: versions 1.2, 1.3 and 1.4. Args: as GFPGANv1."""

    def __init__(
        self,
        *,
        out_size: Positive,
        num_style_feat: Positive,
        channel_multiplier: Positive,
        fix_decoder: bool,
        num_mlp: Annotated[int, Ge(0)],
        different_w: bool,
        narrow: Width,
        sft_half: bool,
    ) -> None:
        super().__init__(
            decoder=StyleGAN2GeneratorClean(
                out_size=out_size,
                num_style_feat=num_style_feat,
                num_mlp=num_mlp,
                channel_multiplier=channel_multiplier,
                narrow=narrow,
            ),
            out_size=out_size,
            num_style_feat=num_style_feat,
            channel_multiplier=channel_multiplier,
            resample_kernel=None,
            narrow=narrow,
            fix_decoder=fix_decoder,
            different_w=different_w,
            sft_half=sft_half,
            equalised=False,
        )


class DoublingBlock(nn.Module):
    """Doubles the side: two 3x3 convolutions, plus a 1x1 convolution on the shortcut. Equalised, the sum is over sqrt(2)."""

    def __init__(self, inputs: int, outputs: int, *, equalised: bool) -> None:
        super().__init__()
        self.conv1 = _activated_layer(inputs, inputs, 3, equalised)
        self.conv2: ConvUpLayer | CleanConv2d
        self.skip: EqualConv2d | CleanConv2d
        if equalised:
            self.conv2, self.skip = ConvUpLayer(inputs, outputs), EqualConv2d(inputs, outputs, 1, bias=False)
        else:
            self.conv2, self.skip = CleanConv2d(inputs, outputs, 3), CleanConv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, doubler: Resampler) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, 2 * h, 2 * w)."""
        branch = activated(_convolved(x, self.conv1, GAIN))
        branch = activated(doubler.double_convolution(branch, *self.conv2.folded()))  # gains sqrt(2) and 1 / sqrt(2) cancel
        shortcut = doubler.doubled(_convolved(x, self.skip, 1 / GAIN))  # with a 1x1 convolution either may come first
        return shortcut.add_(branch)


class ConvUpLayer(EqualConv2d):
    """An equalised convolution that follows a doubling. Official files keep its bias with the activation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, bias=False)
        self.activation = Bias(outputs)

    def folded(self, gain: float = 1.0) -> tuple[Tensor, Tensor | None]:
        return super().folded(gain)[0], self.activation.bias * gain


def _activated_layer(inputs: int, outputs: int, kernel_size: int, equalised: bool) -> ConvLayer | CleanConv2d:
    return ConvLayer(inputs, outputs, kernel_size) if equalised else CleanConv2d(inputs, outputs, kernel_size)


def _layer(inputs: int, outputs: int, kernel_size: int, equalised: bool, bias_init: float = 0.0) -> EqualConv2d | CleanConv2d:
    if equalised:
        return EqualConv2d(inputs, outputs, kernel_size, bias_init=bias_init)
    return CleanConv2d(inputs, outputs, kernel_size)


def _condition(width: int, factor: int, bias_init: float, equalised: bool) -> nn.ModuleList:
    """Two 3x3 convolutions. The activation between them has a number of its own in official files, hence the nn.Identity."""
    last = _layer(width, factor * width, 3, equalised, bias_init)
    return nn.ModuleList([_layer(width, width, 3, equalised), nn.Identity(), last])


def _conditioned(x: Tensor, layers: nn.Module) -> Tensor:
    first, _, last = cast(nn.ModuleList, layers)
    return _convolved(activated(_convolved(x, first, GAIN)), last)


def _convolved(x: Tensor, layer: Any, gain: float = 1.0) -> Tensor:
    """gain times a convolution that keeps the side, before its activation; (b, c, h, w) to (b, o, h, w)."""
    weight, bias = layer.folded(gain)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


# From one form to the other ---------------------------------------------------------------------------------------------


def to_clean(network: GFPGANv1) -> GFPGANv1Clean:
    """The clean network that gives the same images. Versions 1.2 to 1.4 were made like this from what had been trained.

    Raises: ValueError: a network that resamples by a kernel, which the clean form can't.
    """
    if network.resample_kernel is not None:
        raise ValueError(
            f"network.resample_kernel={network.resample_kernel}: only a GFPGANv1 with resample_kernel=null, which resamples "
            "bilinearly, has a clean form"
        )
    made, state = _alike(GFPGANv1Clean(**network.common), network), network.state_dict()
    wanted = made.state_dict()
    pairs = _counterparts(state, network.lr_mlp).items()
    made.load_state_dict({name: (state[key] * factor).view_as(wanted[name]) for key, (name, factor) in pairs})
    return made


def to_equalised(network: GFPGANv1Clean, *, lr_mlp: float) -> GFPGANv1:
    """The GFPGANv1 with resample_kernel=null that gives the same images, for further training; the inverse of `to_clean`."""
    made = _alike(GFPGANv1(**network.common, resample_kernel=None, lr_mlp=lr_mlp), network)
    made.load_state_dict(made.converted(network.state_dict()))
    return made


def _alike(made: Any, network: nn.Module) -> Any:
    """`made`, moved to the device and set to the precision and mode of `network`."""
    return made.to(next(network.parameters())).train(network.training)


# Layers whose clean values include the activation's gain; of style convolutions only the noise's weight and the bias do.
ACTIVATED = re.compile(
    r"style_mlp|conv_body_first|final_conv|\.conv1\.|condition_\w+\.\d+\.0\.|style_conv(1|s\.\d+)\.(weight|bias)$"
)


def _counterparts(state: Mapping[str, Tensor], lr_mlp: float) -> dict[str, tuple[str, float]]:
    """Equalised key -> the clean key, and the factor from the equalised value to the clean one (their shapes may differ)."""
    found = {}
    for key, value in state.items():
        name = re.sub(r"(conv_body_first|final_conv|conv1|conv2|skip)\.\d\.(weight|bias)$", r"\1.\2", key)
        name = re.sub(r"\.activat(e|ion)\.bias$", ".bias", name)
        name = re.sub(r"style_mlp\.(\d+)\.", lambda m: f"style_mlp.{2 * int(m[1]) - 1}.", name)
        weighs = name.endswith(".weight") and value.ndim > 1 and "constant_input" not in name
        factor = math.prod(value.shape[1 if value.ndim < 5 else 2 :]) ** -0.5 if weighs else 1.0
        if "style_mlp" in name:
            factor *= lr_mlp
        if ACTIVATED.search(name):
            factor *= GAIN
        elif ".skip." in name:
            factor /= GAIN
        found[key] = (name, factor)
    return found

"""StyleGAN2 (Karras et al. 2020, arXiv:1912.04958): generator and discriminator, made of PyTorch's own operations alone.

One architecture, two forms. The equalised form stores weights of unit variance, scales them at run time and resamples with a
FIR kernel (keys of XPixelGroup/BasicSR basicsr/archs/stylegan2_arch.py). The clean form has the scales in its weights and
resamples bilinearly (keys of TencentARC/GFPGAN gfpgan/archs/stylegan2_clean_arch.py). Between them lies the equalised form
with bilinear resampling, in which GFPGAN's clean files were trained: it has the keys of the first and computes what the second
computes.

All activations are leaky ReLUs, for which leaky(g * x) = g * leaky(x): a gain after one is folded into the weights before it.

Letters in shapes: b batch, c and o channels, n style features, k side of a kernel.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, MaxLen, MinLen
from torch import Tensor, nn

from models.kernels import laid_out
from models.vqgan import Positive, unsigned

GAIN = math.sqrt(2)  # of every equalised activation, with which it keeps the variance
SLOPE = 0.2
SMALL = 32  # on a CPU, plain operations double maps with smaller sides, as they prepare less

Noise = Sequence[Tensor] | torch.Generator | None
Kernel = Annotated[list[float], MinLen(4), MaxLen(4)]
Width = Annotated[float, Gt(0)]


def channels(out_size: int, channel_multiplier: int, narrow: float) -> dict[int, int]:
    """Side of a map -> its channels, from 4 to out_size.

    Raises: ValueError: out_size is no power of 2 from 8 to 1024, or a level would have no channel.
    """
    if out_size not in (8, 16, 32, 64, 128, 256, 512, 1024):
        raise ValueError(f"network.out_size={out_size}: give a power of 2 from 8 to 1024")
    sides = [4 << level for level in range(out_size.bit_length() - 2)]
    found = {side: int((512 if side < 64 else 16384 // side * channel_multiplier) * narrow) for side in sides}
    if not all(found.values()):
        raise ValueError(f"network.narrow={narrow} leaves a level without channels: {found}; give more")
    return found


def activated(x: Tensor) -> Tensor:
    """leaky_relu(x), written over x. Only outputs of convolutions and linear layers go in, whose gradients don't need them."""
    return F.leaky_relu_(x, SLOPE)


# Resampling -------------------------------------------------------------------------------------------------------------


class Resampler(nn.Module):
    """Halves and doubles maps: with a FIR kernel of four taps and zeros around the map, or bilinearly (kernel None).

    It adds nothing to a state dict.
    """

    def __init__(self, kernel: Sequence[float] | None) -> None:
        super().__init__()
        self.fir = kernel is not None
        self.taps: Tensor
        if kernel is not None and not sum(kernel):
            raise ValueError(f"network.resample_kernel={list(kernel)} adds up to 0: the official one is [1, 3, 3, 1]")
        taps = torch.tensor(kernel or [1.0, 3.0, 3.0, 1.0])  # away from the edges, bilinear doubling is this kernel too
        self.register_buffer("taps", torch.outer(taps, taps) / taps.sum() ** 2, persistent=False)

    def smoothed(self, x: Tensor, padding: int, *, stride: int = 1, gain: float = 1.0, bias: Tensor | None = None) -> Tensor:
        """gain * kernel over each channel, plus bias (c,): (b, c, h, w) to (b, c, (h + 2 * padding - 4) // stride + 1, …)."""
        kernel = (gain * self.taps.flip(0, 1)).to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernel, bias, stride, padding, groups=x.shape[1])

    def doubled(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to (b, c, 2 * h, 2 * w)."""
        if not self.fir:
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        kernel = (4 * self.taps).to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])

    def halve_convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Halves the side, then convolves: (b, c, h, w) to (b, o, h / 2, w / 2). weight: (o, c, k, k), k = 3 or 1.

        With the FIR kernel, a 3x3 convolution of stride 2 on the smoothed map does the halving.
        """
        if not self.fir:
            halved = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
            return F.conv2d(halved, weight, bias, padding=weight.shape[-1] // 2)
        if weight.shape[-1] == 1:
            return F.conv2d(self.smoothed(x, 1, stride=2), weight, bias)
        return F.conv2d(self.smoothed(x, 2), weight, bias, stride=2)

    def double_convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Doubles the side and convolves: (b, c, h, w) to (b, o, 2 * h, 2 * w). weight: (o, c, 3, 3).

        With the FIR kernel a transposed convolution of stride 2 comes first and smoothing second, as in StyleGAN2.
        """
        if self.fir:
            spread = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            return self.smoothed(spread, 1, gain=4, bias=bias)
        if (
            x.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and min(x.shape[-2:]) >= SMALL
        ):
            return self._bilinear_convolution(x, weight, bias)
        return F.conv2d(self.doubled(x), weight, bias, padding=1)

    def _bilinear_convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """conv2d(self.doubled(x), weight, bias, padding=1) in a quarter of the multiplications, without gradients.

        Away from the edges the convolution may come before the smoothing. At an edge the order counts, since the convolution
        sees zeros beyond it and the doubling sees the edge pixel again. So the outermost rows and columns are computed from
        strips, in the plain order.
        """
        around = F.pad(x, (1, 1, 1, 1), mode="replicate")
        spread = F.conv_transpose2d(around, weight.flip(2, 3).transpose(0, 1), stride=2, padding=1)
        made = self.smoothed(spread, 0, gain=4, bias=bias)
        for axis in (2, 3):
            for near, edge in ((0, 0), (x.shape[axis] - 2, -1)):
                strip = F.conv2d(self.doubled(x.narrow(axis, near, 2)), weight, bias, padding=1)
                made.select(axis, edge).copy_(strip.select(axis, edge))
        return made


# Layers of the equalised form -------------------------------------------------------------------------------------------


class EqualLinear(nn.Module):
    """A linear layer that stores weight and bias divided by lr_mul, and the weight also multiplied by sqrt(inputs)."""

    def __init__(self, inputs: int, outputs: int, *, bias_init: float = 0.0, lr_mul: float = 1.0) -> None:
        super().__init__()
        self.scale, self.lr_mul = lr_mul / math.sqrt(inputs), lr_mul
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_mul)
        self.bias = nn.Parameter(torch.full((outputs,), bias_init))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """(…, inputs) to (…, outputs), times gain."""
        # Scaling x costs less than scaling the weight.
        return F.linear(x * (self.scale * gain), self.weight, self.bias * (self.lr_mul * gain))


class EqualConv2d(nn.Module):
    """A convolution that stores its weight multiplied by sqrt(fan_in)."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, bias: bool = True, bias_init: float = 0.0) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(inputs * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.full((outputs,), bias_init)) if bias else None

    def folded(self, gain: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """Weight (o, c, k, k) and bias (o,) of the plain convolution whose output is gain times that of this one."""
        return self.weight * (self.scale * gain), None if self.bias is None else self.bias * gain


class Bias(nn.Module):
    """The bias of a layer, which official files keep with the activation after it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class ConvLayer(nn.Module):
    """An equalised convolution with or without an activation. Its parts have the numbers that they have in official files.

    Args: halves: whether the layer halves the side; official files then count a smoothing before the convolution.
          activate: whether an activation follows, which has a bias.
          bias: whether a layer without an activation has a bias all the same.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, *, halves: bool = False, activate: bool = True, bias: bool = False
    ) -> None:
        super().__init__()
        self.number, self.activate = int(halves), activate
        self.add_module(str(self.number), EqualConv2d(inputs, outputs, kernel_size, bias=bias))
        if activate:
            self.add_module(str(self.number + 1), Bias(outputs))

    def folded(self, gain: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """As EqualConv2d.folded, for what comes before the activation."""
        convolution: Any = self.get_submodule(str(self.number))
        weight, bias = convolution.folded(gain)
        return weight, self.get_parameter(f"{self.number + 1}.bias") * gain if self.activate else bias

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h, w), for a layer that does not halve."""
        weight, bias = self.folded(GAIN if self.activate else 1.0)
        made = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        return activated(made) if self.activate else made


class CleanConv2d(nn.Conv2d):
    """A plain convolution, whose weight and bias include all gains."""

    def folded(self, gain: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """As EqualConv2d.folded, but gain is ignored, as weight and bias include it."""
        return self.weight, self.bias


class HalvingBlock(nn.Module):
    """Halves the side: two 3x3 convolutions, plus a 1x1 convolution on the shortcut. Equalised, the sum is over sqrt(2)."""

    def __init__(self, inputs: int, outputs: int, *, equalised: bool) -> None:
        super().__init__()
        self.conv1: ConvLayer | CleanConv2d
        self.conv2: ConvLayer | CleanConv2d
        self.skip: ConvLayer | CleanConv2d
        if equalised:
            self.conv1 = ConvLayer(inputs, inputs, 3)
            self.conv2 = ConvLayer(inputs, outputs, 3, halves=True)
            self.skip = ConvLayer(inputs, outputs, 1, halves=True, activate=False)
        else:
            self.conv1 = CleanConv2d(inputs, inputs, 3)
            self.conv2 = CleanConv2d(inputs, outputs, 3)
            self.skip = CleanConv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, resampler: Resampler) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / 2, w / 2)."""
        branch = activated(F.conv2d(x, *self.conv1.folded(GAIN), padding=1))
        branch = activated(resampler.halve_convolution(branch, *self.conv2.folded()))  # gains sqrt(2) and 1 / sqrt(2) cancel
        return resampler.halve_convolution(x, *self.skip.folded(1 / GAIN)).add_(branch)


# The generator ----------------------------------------------------------------------------------------------------------


class ModulatedConv2d(nn.Module):
    """A convolution whose input channels a style scales and whose output channels return to unit variance (eq. 1 and 3).

    As published, each sample has weights of its own. To scale input and output instead gives the same result, and lets all
    samples share one convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, num_style_feat: int, *, equalised: bool, demodulate: bool
    ) -> None:
        super().__init__()
        fan_in = inputs * kernel_size**2
        self.demodulate, self.scale = demodulate, 1 / math.sqrt(fan_in) if equalised else 1.0
        std = 1.0 if equalised else 1 / math.sqrt(fan_in)
        self.weight = nn.Parameter(std * torch.randn(1, outputs, inputs, kernel_size, kernel_size))
        self.modulation: nn.Module
        if equalised:
            self.modulation = EqualLinear(num_style_feat, inputs, bias_init=1.0)
        else:
            self.modulation = nn.Linear(num_style_feat, inputs)
            nn.init.kaiming_normal_(self.modulation.weight, a=0, mode="fan_in", nonlinearity="linear")
            nn.init.ones_(self.modulation.bias)

    def forward(
        self, x: Tensor, style: Tensor, bias: Tensor, gain: float, noise: Tensor | None, doubler: Resampler | None
    ) -> Tensor:
        """gain * convolution + noise + bias: (b, c, h, w) to (b, o, h, w), or to (b, o, 2 * h, 2 * w) with a doubler.

        style: (b, n). bias: (o,). noise: (b or 1, 1, height, width) of the output, or None.
        """
        weight = self.weight[0]
        styles = self.modulation(style).to(weight.dtype) * self.scale  # in full precision under autocast
        if x.shape[0] == 1 and x.numel() > weight.numel():  # scaling the weights costs less than scaling the maps
            weight = weight * styles.view(1, -1, 1, 1)
            if self.demodulate:
                weight = weight * _normaliser(weight.square().sum((1, 2, 3))).view(-1, 1, 1, 1)
            made = _convolved(x, weight * gain, bias, doubler)
            return made if noise is None else made.add_(noise)
        made = _convolved(x * styles[:, :, None, None].to(x.dtype), weight, None, doubler)
        rescaled = torch.full_like(styles[:, :1], gain)
        if self.demodulate:
            with torch.autocast(x.device.type, enabled=False):
                rescaled = gain * _normaliser(F.linear(styles.square(), weight.square().sum((2, 3))))
        rescaled, bias = rescaled[:, :, None, None].to(made.dtype), bias.view(1, -1, 1, 1).to(made.dtype)
        if noise is None:
            return torch.addcmul(bias, made, rescaled)
        return torch.addcmul(noise.to(made.dtype), made, rescaled).add_(bias)


def _normaliser(square_sum: Tensor) -> Tensor:
    return torch.rsqrt(square_sum + 1e-8)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, doubler: Resampler | None) -> Tensor:
    if doubler is not None:
        return doubler.double_convolution(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


class StyleConv(nn.Module):
    """A modulated 3x3 convolution, noise, bias and activation. The parameter `weight` is the strength of the noise."""

    def __init__(self, inputs: int, outputs: int, num_style_feat: int, *, equalised: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        if not equalised:
            self.bias = nn.Parameter(torch.zeros(1, outputs, 1, 1))
        self.modulated_conv = ModulatedConv2d(inputs, outputs, 3, num_style_feat, equalised=equalised, demodulate=True)
        if equalised:
            self.activate = Bias(outputs)
        self.equalised = equalised

    def forward(self, x: Tensor, style: Tensor, noise: Tensor, doubler: Resampler | None = None) -> Tensor:
        """(b, c, h, w) to (b, o, h, w), or to twice the side with a doubler.

        style: (b, n). noise: (b or 1, 1, height, width) of the output.
        """
        weight, bias = (self.weight * GAIN, self.activate.bias * GAIN) if self.equalised else (self.weight, self.bias.flatten())
        return activated(self.modulated_conv(x, style, bias, GAIN, weight * noise, doubler))


class ToRGB(nn.Module):
    """A modulated 1x1 convolution to an image, whose output does not return to unit variance."""

    def __init__(self, inputs: int, num_style_feat: int, *, equalised: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.modulated_conv = ModulatedConv2d(inputs, 3, 1, num_style_feat, equalised=equalised, demodulate=False)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(b, c, h, w) to (b, 3, h, w), about [-1, 1]. style: (b, n)."""
        return self.modulated_conv(x, style, self.bias.flatten(), 1.0, None, None)


class ConstantInput(nn.Module):
    """The learned 4x4 map from which every image is made."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, channels, 4, 4))


class StyleMLP(nn.Module):
    """Style vectors, first scaled to length sqrt(n), to latents. Clean files count the activations as layers too."""

    def __init__(self, num_style_feat: int, layers: int, lr_mul: float, *, equalised: bool) -> None:
        super().__init__()
        self.equalised = equalised
        for i in range(layers):
            if equalised:
                self.add_module(str(1 + i), EqualLinear(num_style_feat, num_style_feat, lr_mul=lr_mul))
                continue
            layer = nn.Linear(num_style_feat, num_style_feat)
            nn.init.kaiming_normal_(layer.weight, a=SLOPE, mode="fan_in", nonlinearity="leaky_relu")
            nn.init.zeros_(layer.bias)
            self.add_module(str(1 + 2 * i), layer)

    def forward(self, style: Tensor) -> Tensor:
        """Normally distributed styles (b, n) to latents (b, n)."""
        x = style * torch.rsqrt(style.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.children():
            x = activated(layer(x, GAIN) if self.equalised else layer(x))
        return x


class Generator(nn.Module):
    """What both forms of the generator have in common; see StyleGAN2Generator for the other arguments.

    Args: resample_kernel: None: bilinear. equalised: whether this is the equalised form, not the clean one.
    """

    def __init__(
        self,
        *,
        out_size: int,
        num_style_feat: int,
        num_mlp: int,
        channel_multiplier: int,
        narrow: float,
        resample_kernel: list[float] | None,
        lr_mlp: float,
        equalised: bool,
    ) -> None:
        super().__init__()
        self.num_style_feat = num_style_feat
        self.style_mlp = StyleMLP(num_style_feat, num_mlp, lr_mlp, equalised=equalised)
        widths = channels(out_size, channel_multiplier, narrow)
        self.constant_input = ConstantInput(widths[4])
        self.style_conv1 = StyleConv(widths[4], widths[4], num_style_feat, equalised=equalised)
        self.to_rgb1 = ToRGB(widths[4], num_style_feat, equalised=equalised)
        self.style_convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in pairwise(widths.values()):
            self.style_convs.append(StyleConv(inputs, outputs, num_style_feat, equalised=equalised))
            self.style_convs.append(StyleConv(outputs, outputs, num_style_feat, equalised=equalised))
            self.to_rgbs.append(ToRGB(outputs, num_style_feat, equalised=equalised))
        self.noises = nn.Module()
        self.noise_sides = [4, *(side for side in widths if side > 4 for _ in range(2))]
        for number, side in enumerate(self.noise_sides):
            self.noises.register_buffer(f"noise{number}", torch.randn(1, 1, side, side))
        self.num_latent = 2 * len(widths)
        self.resampler = Resampler(resample_kernel)
        self.sample_seeds: list[int] | None = None  # of a training batch, one a sample, from which the sample's noise follows

    def forward(
        self, latent: Tensor, *, noise: Noise = None, conditions: Sequence[tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """Args:    latent: (b, n), from `style_mlp`, one for all layers, or (b, num_latent, n), one for each layer.
                 noise: maps (b or 1, 1, h, w), such as `stored_noise()`, or a generator that draws them. None: in eval mode the
                     stored maps, and while training new ones from sample_seeds, or from PyTorch's own generator where
                     sample_seeds is None (the reference draws in both modes).
                 conditions: for each side from 8 on scale and shift, both (b, o, h, w), of the last o channels that its first
                     convolution gives (GFPGAN's spatial feature transform).
        Returns: (b, 3, out_size, out_size), about [0, 1], not clamped.
        Raises:  ValueError: latents or noise of another shape.
        """
        if latent.shape[1:] not in ((self.num_style_feat,), (self.num_latent, self.num_style_feat)):
            raise ValueError(
                f"latents of shape {tuple(latent.shape)}: give (b, {self.num_style_feat}) for all layers, or "
                f"(b, {self.num_latent}, {self.num_style_feat}), one for each"
            )
        w = latent.unsqueeze(1).expand(-1, self.num_latent, -1) if latent.ndim == 2 else latent
        maps = self._noise(noise, len(latent))
        x = self.style_conv1(laid_out(self.constant_input.weight.expand(len(latent), -1, -1, -1)), w[:, 0], maps[0])
        image = self.to_rgb1(x, w[:, 1])
        for level, to_rgb in enumerate(self.to_rgbs):
            i = 2 * level + 1  # a level's last latent is the next one's first
            x = self.style_convs[2 * level](x, w[:, i], maps[i], self.resampler)
            if conditions is not None:
                x = transformed(x, *conditions[level])
            x = self.style_convs[2 * level + 1](x, w[:, i + 1], maps[i + 1])
            image = to_rgb(x, w[:, i + 2]) + self.resampler.doubled(image)
        return unsigned(image)

    def stored_noise(self) -> list[Tensor]:
        """The noise that the file holds beside the weights, (1, 1, h, w) for each style convolution."""
        return [self.noises.get_buffer(f"noise{number}") for number in range(len(self.noise_sides))]

    def _noise(self, noise: Noise, b: int) -> list[Tensor]:
        sides = self.noise_sides
        if noise is None and not self.training:
            return self.stored_noise()
        if noise is None and self.sample_seeds is not None:
            return self._noise_of(self.sample_seeds)
        if noise is None or isinstance(noise, torch.Generator):
            like = self.constant_input.weight
            device = like.device if noise is None else noise.device
            return [
                torch.randn(b, 1, side, side, generator=noise, device=device, dtype=like.dtype).to(like.device)
                for side in sides
            ]
        fitting = [
            each.ndim == 4 and len(each) in (1, b) and each.shape[1:] == (1, side, side)
            for each, side in zip(noise, sides, strict=False)
        ]
        if len(noise) != len(sides) or not all(fitting):
            raise ValueError(
                f"noise of shapes {[tuple(each.shape) for each in noise]}: give {len(sides)} maps ({b} or 1, 1, side, side) of "
                f"the sides {sides}"
            )
        return list(noise)

    def _noise_of(self, seeds: list[int]) -> list[Tensor]:
        like, areas = self.constant_input.weight, [side * side for side in self.noise_sides]
        rngs = [torch.Generator(like.device).manual_seed(seed) for seed in seeds]
        drawn = [torch.randn(sum(areas), generator=rng, device=like.device) for rng in rngs]
        maps = torch.stack(drawn).to(like.dtype).split(areas, 1)
        return [each.view(-1, 1, side, side) for each, side in zip(maps, self.noise_sides, strict=True)]


def transformed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x with its last channels, as many as scale has, times scale plus shift. Without a gradient x is written over."""
    untouched = x.shape[1] - scale.shape[1]
    if torch.is_grad_enabled():
        return torch.cat([x[:, :untouched], torch.addcmul(shift, x[:, untouched:], scale)], 1)
    torch.addcmul(shift, x[:, untouched:], scale, out=x[:, untouched:])
    return x


class StyleGAN2Generator(Generator):
    """Latents to faces: the prior in GFPGAN v1.

    Args:    out_size: side of the images, a power of 2. num_style_feat: width of styles and latents.
             num_mlp: number of layers from styles to latents.
             channel_multiplier: multiplies the channels of maps from 64 px on. narrow: multiplies all channels.
             resample_kernel: four taps, [1, 3, 3, 1] as published; null: bilinear, as the clean files were trained.
             lr_mlp: learning rate of the layers from styles to latents, as a multiple of that of the others.
    Raises:  ValueError for a combination that no forward could run.
    """

    def __init__(
        self,
        *,
        out_size: Positive,
        num_style_feat: Positive,
        num_mlp: Annotated[int, Ge(0)],
        channel_multiplier: Positive,
        resample_kernel: Kernel | None,
        lr_mlp: Width,
        narrow: Width,
    ) -> None:
        super().__init__(
            out_size=out_size,
            num_style_feat=num_style_feat,
            num_mlp=num_mlp,
            channel_multiplier=channel_multiplier,
            narrow=narrow,
            resample_kernel=resample_kernel,
            lr_mlp=lr_mlp,
            equalised=True,
        )


class StyleGAN2GeneratorClean(Generator):
    """The clean form of StyleGAN2Generator with resample_kernel=null: the prior in GFPGAN 1.2 to 1.4. Args: as there."""

    def __init__(
        self,
        *,
        out_size: Positive,
        num_style_feat: Positive,
        num_mlp: Annotated[int, Ge(0)],
        channel_multiplier: Positive,
        narrow: Width,
    ) -> None:
        super().__init__(
            out_size=out_size,
            num_style_feat=num_style_feat,
            num_mlp=num_mlp,
            channel_multiplier=channel_multiplier,
            narrow=narrow,
            resample_kernel=None,
            lr_mlp=1.0,
            equalised=False,
        )


# The discriminator ------------------------------------------------------------------------------------------------------


class StyleGAN2Discriminator(nn.Module):
    """Gives one logit for each image, and also sees how much the images of a group differ (Karras et al. 2018, section 3).

    Args:    out_size, channel_multiplier, resample_kernel, narrow: as in StyleGAN2Generator.
             stddev_group: images in a group; a smaller batch is one group.
    Raises:  ValueError for a combination that no forward could run.
    """

    def __init__(
        self,
        *,
        out_size: Positive,
        channel_multiplier: Positive,
        resample_kernel: Kernel,
        stddev_group: Positive,
        narrow: Width,
    ) -> None:
        super().__init__()
        self.out_size, self.stddev_group = out_size, stddev_group
        widths = channels(out_size, channel_multiplier, narrow)
        downwards = list(widths.values())[::-1]
        blocks: list[nn.Module] = [ConvLayer(3, downwards[0], 1)]
        blocks += [HalvingBlock(inputs, outputs, equalised=True) for inputs, outputs in pairwise(downwards)]
        self.conv_body = nn.ModuleList(blocks)
        self.final_conv = ConvLayer(widths[4] + 1, widths[4], 3)
        self.final_linear = nn.ModuleList([EqualLinear(widths[4] * 16, widths[4]), EqualLinear(widths[4], 1)])
        self.resampler = Resampler(resample_kernel)

    def forward(self, image: Tensor) -> Tensor:
        """(b, 3, out_size, out_size) in [0, 1] to logits (b, 1).

        Raises: ValueError: images of another size, or a batch that groups of stddev_group don't divide.
        """
        b, _, height, width = image.shape
        if (height, width) != (self.out_size, self.out_size):
            raise ValueError(
                f"a StyleGAN2Discriminator of out_size={self.out_size} judges no {height}x{width}: change data.size"
            )
        group = min(b, self.stddev_group)
        if b % group:
            raise ValueError(
                f"stddev_group={self.stddev_group} does not divide a batch of {b}: change data.batch_size, or stddev_group"
            )
        first, *blocks = self.conv_body
        x = first(laid_out(2 * image - 1))
        for block in blocks:
            x = block(x, self.resampler)
        # images of a group stand b / group apart
        deviation = (x.unflatten(0, (group, -1)).var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        x = torch.cat([x, deviation.repeat(group).view(b, 1, 1, 1).expand(-1, -1, 4, 4)], 1)
        x = self.final_conv(x).flatten(1)
        hidden, last = self.final_linear
        return last(activated(hidden(x, GAIN)))

"""The operators on whole batches of tensors, for GPUs: the same parameters give the same images as `Pipeline.apply`.

Between a Downsample and a ResizeBack every sample has its own size. So a batch lies on a canvas as large as its largest sample,
each sample in its upper left corner. What lies beyond a sample's own area is arbitrary (but finite): operators that look at
neighbours look within the area, so that a sample never depends on the others in its batch.

Parameters and sizes stay on the CPU, where shapes follow from them without waiting for the GPU; what the GPU needs of them goes
there in small copies that don't wait either. Nothing is a matrix product in float32, which may mean TF32, and nothing a
convolution. An operator of your own joins with one function: @applied.register.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial, singledispatch
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from degradations.dct import along, diffjpeg, libjpeg, picked
from degradations.draws import Parameters
from degradations.fields import GOLDEN, MIX, RESOLUTION
from degradations.operators import colour, noise, sensor
from degradations.operators.blur import Blur
from degradations.operators.choose import OneOf, Sometimes
from degradations.operators.jpeg import Jpeg
from degradations.operators.operator import Operator
from degradations.operators.resize import Downsample, RandomResize, ResizeBack
from degradations.operators.sharpen import UsmSharpening

# Fourier transforms are planned anew for every new length, and fast for these; they lie at most 25 % apart.
WAVE_LENGTHS = sorted(odd << power for odd in (1, 3, 5, 7, 9) for power in range(2, 16))
SMALL_LOG2 = 7  # samples of up to 128 pixels stay together

Chosen = np.ndarray | slice  # indices of samples, or all


@dataclass(frozen=True)
class Canvas:
    """Samples of different sizes in one tensor, each in the upper left corner."""

    image: Tensor  # (b, 3, h, w) float32
    sizes: np.ndarray  # (b, 2) int64, each sample's height and width; the largest are h and w
    sizes_there: Tensor  # the same on the image's device

    def sent(self, values: np.ndarray) -> Tensor:
        """The values, on the image's device, without waiting for it."""
        return _sent(values, self.image.device)

    def column(self, values: np.ndarray) -> Tensor:
        """(b,) to (b, 1, 1, 1) float32, on the image's device."""
        return self.sent(np.asarray(values, dtype=np.float32)[:, None, None, None])

    def line(self, axis: int) -> Tensor:
        """0 up to h - 1 (axis 2) or w - 1 (axis 3), on the image's device."""
        return torch.arange(self.image.shape[axis], device=self.image.device)

    def lengths(self, axis: int) -> Tensor:
        """(b, 1) int64: each sample's height (axis 2) or width (axis 3), on the image's device."""
        return self.sizes_there[:, axis - 2, None]

    def inside(self) -> Tensor:
        """(b, 1, h, w) bool: whether a pixel belongs to its sample."""
        rows, columns = (self.line(axis) < self.lengths(axis) for axis in (2, 3))
        return rows[:, None, :, None] & columns[:, None, None, :]


def _sent(values: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def laid(image: Tensor, sizes: np.ndarray) -> Canvas:
    """A canvas of samples with the given sizes."""
    return Canvas(image, sizes, _sent(sizes, image.device))


# The pipeline


@torch.no_grad()
def degraded(
    operators: dict[str, Operator], hq: Tensor, parameters: Parameters, *, hq_too: list[str], quantize: bool
) -> dict[str, Tensor]:
    """What Pipeline.apply does, for a batch.

    Args:    operators, hq_too, quantize: see Pipeline.
             hq: (b, 3, h, w) in [0, 1], on any device.
             parameters: as torch's default_collate makes them of Pipeline.sample's: (b,) tensors and lists of words. They are
                 best left on the CPU; from a GPU they come back in one copy, for which all earlier work there must end.
    Returns: lq and, where hq_too may change it, hq: (b, 3, h', w') float32 on hq's device.
    Raises:  ValueError: in the end samples have different sizes.
             ValueError: an operator has no batched form.
    """
    drawn = on_cpu(parameters)
    with torch.autocast(hq.device.type, enabled=False):
        canvas = laid(hq.float().contiguous(), np.tile(np.array(hq.shape[2:], dtype=np.int64), (len(hq), 1)))
        common = dict(takewhile(lambda item: item[0] in hq_too, operators.items()))
        further = {name: operator for name, operator in operators.items() if name not in common}
        canvas = in_a_row(common, canvas, drawn)
        target = in_a_row({name: further[name] for name in further if name in hq_too}, canvas, drawn)
        lq = whole(in_a_row(further, canvas, drawn)).clamp(0, 1)
        if quantize:
            lq = torch.round(lq * 255) / 255
        return {"lq": lq, "hq": whole(target)} if hq_too else {"lq": lq}


def whole(canvas: Canvas) -> Tensor:
    """The image, if all samples fill it. Raises ValueError if not."""
    if (canvas.sizes != canvas.sizes[0]).any():
        found = ", ".join(f"{height}x{width}" for height, width in np.unique(canvas.sizes, axis=0)[:5])
        raise ValueError(
            f"the degraded samples of one batch have different sizes (height x width: {found}, ...): end the pipeline with "
            "degradations.operators.resize.ResizeBack, or give Downsample one factor, such as [4, 4]"
        )
    return canvas.image


def on_cpu(parameters: Parameters) -> Parameters:
    """The same names with (b,) numpy arrays. Tensors on a GPU come in one copy."""
    tensors = list(_tensors(parameters))
    if any(tensor.device.type != "cpu" for tensor in tensors):
        as_integers = [
            (tensor.double() if tensor.is_floating_point() else tensor.long()).view(torch.int64) for tensor in tensors
        ]
        rows = torch.stack(as_integers).cpu()
        tensors = [row.view(torch.float64) if old.is_floating_point() else row for row, old in zip(rows, tensors, strict=True)]
    return _arrays(parameters, iter(tensors))


def _tensors(parameters: Parameters) -> Iterator[Tensor]:
    for value in parameters.values():
        if isinstance(value, dict):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value


def _arrays(parameters: Parameters, tensors: Iterator[Tensor]) -> Parameters:
    arrays: Parameters = {}
    for name, value in parameters.items():
        if isinstance(value, dict):
            arrays[name] = _arrays(value, tensors)
        else:
            arrays[name] = next(tensors).numpy() if isinstance(value, Tensor) else np.array(value)
    return arrays


@singledispatch
def applied(operator: Operator, canvas: Canvas, parameters: Parameters) -> Canvas:
    """operator.apply for every sample of the canvas. Parameters: (b,) arrays. Raises ValueError: no batched form is known."""
    raise ValueError(
        f"{type(operator).__module__}.{type(operator).__qualname__} has no batched form: set degradation.device=cpu, "
        "or write one and register it with degradations.batched.applied.register"
    )


def in_a_row(operators: dict[str, Operator], canvas: Canvas, parameters: Parameters) -> Canvas:
    """Each operator after the other, with the parameters under its name.

    From one change of sizes to the next, small samples go on without the large ones, on a canvas of their own.
    """
    names = list(operators)
    while names:
        count = next((count for count, name in enumerate(names, 1) if resizes(parameters[name])), len(names))
        stretch, names = {name: operators[name] for name in names[:count]}, names[count:]
        logs = np.log2(canvas.sizes.max(axis=1))
        canvas = in_groups(canvas, np.ceil(logs).clip(min=SMALL_LOG2), partial(one_stretch, stretch, parameters))
    return canvas


def one_stretch(
    operators: dict[str, Operator], parameters: Parameters, size_class: float, samples: Canvas, chosen: Chosen
) -> Canvas:
    """What in_a_row does with the samples of one class of sizes."""
    for name, operator in operators.items():
        samples = applied(operator, samples, of(parameters[name], chosen))
    return samples


def resizes(parameters: Parameters) -> bool:
    """Whether parameters hold a new size, or those of an operator within do."""
    return "height" in parameters or any(resizes(value) for value in parameters.values() if isinstance(value, dict))


# Some samples this way, others that way


def in_groups(canvas: Canvas, labels: np.ndarray, work: Callable[[Any, Canvas, Chosen], Canvas]) -> Canvas:
    """work(label, its samples, which these are) for each label that occurs, put back together in the old order."""
    distinct = np.unique(labels)
    if len(distinct) == 1:
        return work(distinct[0].item(), canvas, slice(None))
    parts = []
    for label in distinct:
        chosen = np.flatnonzero(labels == label)
        there = canvas.sent(chosen)
        height, width = canvas.sizes[chosen].max(axis=0)
        samples = Canvas(canvas.image[there, :, :height, :width], canvas.sizes[chosen], canvas.sizes_there[there])
        parts.append((chosen, there, work(label.item(), samples, chosen)))
    sizes = np.empty_like(canvas.sizes)
    for chosen, _, part in parts:
        sizes[chosen] = part.sizes
    image = canvas.image.new_zeros(len(sizes), canvas.image.shape[1], *sizes.max(axis=0))
    for _, there, part in parts:
        height, width = part.image.shape[2:]
        image[there, :, :height, :width] = part.image
    return laid(image, sizes)


def of(parameters: Parameters, chosen: Chosen) -> Parameters:
    """The parameters of the chosen samples."""
    return {name: of(value, chosen) if isinstance(value, dict) else value[chosen] for name, value in parameters.items()}


@applied.register
def sometimes(operator: Sometimes, canvas: Canvas, parameters: Parameters) -> Canvas:
    def work(done: int, samples: Canvas, chosen: Chosen) -> Canvas:
        return applied(operator.operator, samples, of(parameters, chosen)) if done else samples

    kernels = one_kernel_each(operator, parameters)
    return in_groups(canvas, parameters["done"], work) if kernels is None else filtered(canvas, canvas.sent(kernels))


@applied.register
def one_of(operator: OneOf, canvas: Canvas, parameters: Parameters) -> Canvas:
    def work(way: str, samples: Canvas, chosen: Chosen) -> Canvas:
        return in_a_row(operator.ways[way], samples, of(parameters[way], chosen))

    kernels = one_kernel_each(operator, parameters)
    return in_groups(canvas, parameters["way"], work) if kernels is None else filtered(canvas, canvas.sent(kernels))


# Blur


def filtered(canvas: Canvas, kernels: Tensor) -> Canvas:
    """Correlation by Fourier transforms; borders mirror without repeating the edge pixel, more than once where they must.

    Args:    kernels: (b or 1, c or 1, k, k) float32, k odd.
    """
    half, (height, width) = kernels.shape[-1] // 2, canvas.image.shape[2:]
    shape = tuple(WAVE_LENGTHS[bisect_left(WAVE_LENGTHS, side + 2 * half)] for side in (height, width))
    places = (torch.arange(length, device=canvas.image.device) - half for length in shape)
    padded = picked(canvas.image, *(mirrored(place, canvas.lengths(axis)) for axis, place in zip((2, 3), places, strict=True)))
    waves = torch.fft.rfft2(padded)
    waves *= torch.fft.rfft2(kernels, s=shape).conj()
    image = torch.fft.irfft2(waves, s=shape)[..., :height, :width]
    return replace(canvas, image=image)


def mirrored(places: Tensor, lengths: Tensor) -> Tensor:
    """Integers of any size to 0 .. lengths - 1: ... 2 1 0 1 2 ... length - 2, length - 1, length - 2 ..."""
    period = (2 * lengths - 2).clamp(min=1)
    places = places.remainder(period)
    return torch.minimum(places, (period - places).remainder(period)).minimum(lengths - 1)


@applied.register
def blurred(operator: Blur, canvas: Canvas, parameters: Parameters) -> Canvas:
    kernels = one_kernel_each(operator, parameters)
    assert kernels is not None, "a blur has kernels"
    return filtered(canvas, canvas.sent(kernels))


def one_kernel_each(operator: Operator, parameters: Parameters) -> np.ndarray | None:
    """(b, 1, k, k) float32 for a blur or a choice between blurs, of which one filtering does all; None for anything else."""
    if isinstance(operator, Blur):
        sizes = parameters["kernel_size_px"]
        groups = [(np.flatnonzero(sizes == size), size) for size in np.unique(sizes).tolist()]
        parts = [(chosen, operator.kernel({**of(parameters, chosen), "kernel_size_px": size})) for chosen, size in groups]
        return framed(len(sizes), [(chosen, kernels[:, None]) for chosen, kernels in parts])
    if isinstance(operator, Sometimes):
        kernels = one_kernel_each(operator.operator, parameters)
        done = np.flatnonzero(parameters["done"])
        return None if kernels is None else framed(len(kernels), [(done, kernels[done])])
    if isinstance(operator, OneOf) and all(len(way) == 1 for way in operator.ways.values()):
        parts = []
        for way in np.unique(parameters["way"]).tolist():
            [(name, blur)], chosen = operator.ways[way].items(), np.flatnonzero(parameters["way"] == way)
            kernels = one_kernel_each(blur, of(parameters[way][name], chosen))
            if kernels is None:
                return None
            parts.append((chosen, kernels))
        return framed(len(parameters["way"]), parts)
    return None


def framed(count: int, parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(count, 1, k, k) float32: each part's kernels at its places, with zeros around them; elsewhere what changes nothing."""
    size = max(kernels.shape[-1] for _, kernels in parts)
    whole = np.zeros((count, 1, size, size), dtype=np.float32)
    whole[..., size // 2, size // 2] = 1
    for places, kernels in parts:
        margin = (size - kernels.shape[-1]) // 2
        inner = slice(margin, size - margin)
        whole[places] = 0
        whole[places, :, inner, inner] = kernels
    return whole


@applied.register
def sharpened(operator: UsmSharpening, canvas: Canvas, parameters: Parameters) -> Canvas:
    photo, kernel = canvas.image, canvas.sent(operator.kernel.astype(np.float32)[None, None])
    rest = photo - filtered(canvas, kernel).image
    edges = (rest.abs() * 255 > operator.threshold_255).float()
    soft = filtered(replace(canvas, image=edges), kernel).image
    sharp = (photo + operator.weight * rest).clamp(0, 1)
    return replace(canvas, image=soft * sharp + (1 - soft) * photo)


# Size


def triangle(distance: Tensor) -> Tensor:
    """The weight of a pixel at a distance of at most 1."""
    return 1 - distance


def keys(distance: Tensor) -> Tensor:
    """The same for cubic convolution with a = -0.75, at a distance of at most 2 (Keys 1981, eq. 15)."""
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = ((3.75 - 0.75 * distance) * distance - 6) * distance + 3
    return torch.where(distance <= 1, near, far)


WEIGHTS = {"bilinear": (2, triangle), "bicubic": (4, keys)}  # how many neighbours an axis has, and how they weigh


def resized(canvas: Canvas, sizes: np.ndarray, filter: str, steps: np.ndarray | None = None) -> Canvas:  # noqa: A002
    """See degradations.operators.resize.resized.

    Args:    sizes: (b, 2), height and width. steps: (b, 2) float64, how far apart, in old pixels, the new ones stand along each
                 axis; from the sizes if not given. area knows none.
    """
    target = laid(canvas.image.new_empty(0), sizes)
    image = canvas.image
    for axis in (3, 2):
        count = int(sizes[:, axis - 2].max())
        if filter == "area":
            image = averaged(image, axis, canvas.lengths(axis), target.lengths(axis), count)
        else:
            step = canvas.sent((canvas.sizes / sizes if steps is None else steps)[:, axis - 2])
            image = interpolated(image, axis, canvas.lengths(axis), step, count, filter)
    return replace(target, image=image)


def interpolated(image: Tensor, axis: int, lengths: Tensor, step: Tensor, count: int, filter: str) -> Tensor:  # noqa: A002
    """One axis, read at (i + 0.5) * step - 0.5. lengths: (b, 1), the samples' old ones. step: (b,) float64."""
    neighbours, weigh = WEIGHTS[filter]
    place = (torch.arange(count, device=image.device) + 0.5) * step[:, None] - 0.5
    lowest = place.floor() - (neighbours // 2 - 1)
    total = torch.zeros((), device=image.device)
    for offset in range(neighbours):
        weight = weigh((lowest + offset - place).abs()).float()[:, None].unsqueeze(5 - axis)
        read = along(image, axis, (lowest + offset).long().clamp(min=0).minimum(lengths - 1)[:, None])
        total = read.mul_(weight) if offset == 0 else total.addcmul_(read, weight)
    return total


def averaged(image: Tensor, axis: int, lengths: Tensor, new_lengths: Tensor, count: int) -> Tensor:
    """One axis, adaptive average pooling. lengths, new_lengths: (b, 1)."""
    place = torch.arange(count, device=image.device).minimum(new_lengths - 1)
    start = place * lengths // new_lengths
    end = ((place + 1) * lengths + new_lengths - 1) // new_lengths
    # Differences of running sums need no step for each pixel of a mean; of whole numbers they are exact in any order.
    sums = (image * 2**30).long().cumsum(axis)
    sums = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums], dim=axis)
    total = along(sums, axis, end[:, None]) - along(sums, axis, start[:, None])
    return (total / (end - start)[:, None].unsqueeze(5 - axis).double() / 2**30).float()


def new_sizes(parameters: Parameters) -> np.ndarray:
    """(b, 2) int64 from height and width."""
    return np.stack([parameters["height"], parameters["width"]], axis=1)


@applied.register
def shrunk(operator: Downsample, canvas: Canvas, parameters: Parameters) -> Canvas:
    return resized(canvas, new_sizes(parameters), operator.filter)


@applied.register
def back(operator: ResizeBack, canvas: Canvas, parameters: Parameters) -> Canvas:
    return resized(canvas, new_sizes(parameters), operator.filter)


@applied.register
def randomly_resized(operator: RandomResize, canvas: Canvas, parameters: Parameters) -> Canvas:
    def work(filter_: str, samples: Canvas, chosen: Chosen) -> Canvas:
        drawn = of(parameters, chosen)
        sizes, scales = new_sizes(drawn), drawn["scale"][:, None]
        stays, follows = (samples.sizes == sizes, (samples.sizes * scales).astype(np.int64) == sizes)
        if stays.all():
            return samples
        # A sample whose size stays is left as it is, also where a scale such as 0.999 was drawn for it.
        by_scale = operator.by_scale & follows.all(axis=1) & ~stays.all(axis=1)
        return resized(samples, sizes, filter_, np.where(by_scale[:, None], 1 / scales, samples.sizes / sizes))

    return in_groups(canvas, parameters["filter"], work)


# Noise


def signed(value: int) -> int:
    """An integer below 2 ** 64 as the int64 of the same bits."""
    return value - 2**64 if value >= 2**63 else value


def bits(seeds: Tensor, places: Tensor) -> Tensor:
    """degradations.fields.bits in int64, which wraps as uint64 does. seeds: (b, 1, 1, 1). places: (b, c, h, w), from 0."""
    state = (places + 1).mul_(signed(GOLDEN)).add_(seeds)
    for shift, factor in MIX:
        state = state.bitwise_xor_(without_sign(state, shift)).mul_(signed(factor))
    return state.bitwise_xor_(without_sign(state, 31))


def without_sign(state: Tensor, shift: int) -> Tensor:
    """state >> shift of uint64, where int64 would copy its sign into the free bits."""
    return (state >> shift).bitwise_and_((1 << (64 - shift)) - 1)


def places(canvas: Canvas, colours: np.ndarray) -> Tensor:
    """(b, 3, h, w) int64: a pixel's place in its own sample, of shape (colours, height, width). colours: (b,), 3 or 1."""
    height, width = canvas.sizes_there.T[..., None, None, None]
    channel = torch.arange(canvas.image.shape[1], device=canvas.image.device)[:, None, None]
    channel = channel.minimum(canvas.sent(colours - 1)[:, None, None, None])
    return (channel * height + canvas.line(2)[:, None]) * width + canvas.line(3)


def uniforms(canvas: Canvas, seeds: np.ndarray, colours: np.ndarray) -> Tensor:
    """degradations.fields.uniforms of each sample, (b, 3, h, w)."""
    upper = without_sign(bits(canvas.sent(seeds[:, None, None, None]), places(canvas, colours)), 41)
    return upper.float().add_(0.5).mul_(2**-23)


def normals(canvas: Canvas, seeds: np.ndarray, colours: np.ndarray) -> Tensor:
    """degradations.fields.normals of each sample, (b, 3, h, w)."""
    place = places(canvas, colours)
    half = canvas.sent((colours * canvas.sizes.prod(axis=1) + 1) // 2)[:, None, None, None]
    in_second = place >= half
    state = bits(canvas.sent(seeds[:, None, None, None]), torch.where(in_second, place - half, place))
    angle = ((state & 0xFFFFFFFF) >> 8).float().mul_(float(np.float32(2 * np.pi) * RESOLUTION))
    radius = without_sign(state, 40).float().add_(1).mul_(float(RESOLUTION)).log_().mul_(-2).sqrt_()
    return torch.where(in_second, angle.sin(), angle.cos()).mul_(radius)


@applied.register
def gaussian_noise(operator: noise.GaussianNoise, canvas: Canvas, parameters: Parameters) -> Canvas:
    field = normals(canvas, parameters["field_seed"], np.where(parameters["grey"], 1, 3))
    image = (canvas.image + field.mul_(canvas.column(parameters["sigma_255"] / 255))).clamp_(0, 1)
    return replace(canvas, image=image)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def poisson_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """degradations.operators.noise.poisson_table for 1, 2, 4 ... 256 values in one line, and (9, 256), where each level starts.

    The entries of table e lie 256 * e higher than there.
    """
    lines, starts = zip(*(noise.poisson_table(1 << exponent) for exponent in range(9)), strict=True)
    before = np.cumsum([0, *(len(line) for line in lines[:-1])])
    line = np.concatenate([line + 256 * exponent for exponent, line in enumerate(lines)])
    return torch.from_numpy(line).to(device), torch.from_numpy(np.stack(starts) + before[:, None]).to(device)


def exponents(canvas: Canvas, levels: Tensor) -> Tensor:
    """(b,) int64: the least e so that no sample has more than 2 ** e distinct levels. levels: (b, 3, h, w), 0 to 255."""
    seen = levels.new_zeros(len(levels), 257)
    seen.scatter_(1, torch.where(canvas.inside(), levels, 256).flatten(1), 1)
    return torch.bucketize(seen[:, :256].sum(1), 2 ** torch.arange(9, device=levels.device))


@applied.register
def poisson_noise(operator: noise.PoissonNoise, canvas: Canvas, parameters: Parameters) -> Canvas:
    grey = canvas.sent(parameters["grey"] != 0)[:, None, None, None]
    lit = torch.where(grey, colour.grey(canvas.image), canvas.image)
    levels = torch.round(lit.clamp(0, 1) * 255).long()
    exponent = exponents(canvas, levels)[:, None, None, None]
    line, starts = poisson_tables(levels.device)
    chance = uniforms(canvas, parameters["field_seed"], np.where(parameters["grey"], 1, 3))
    row = 256 * exponent + levels
    drawn = torch.searchsorted(line, row + chance.double()) - starts.flatten()[row]
    field = (drawn / (2.0**exponent).double() - levels / 255.0).float()
    return replace(canvas, image=(canvas.image + canvas.column(parameters["scale"]) * field).clamp(0, 1))


# JPEG


@applied.register
def jpeg(operator: Jpeg, canvas: Canvas, parameters: Parameters) -> Canvas:
    quality = canvas.sent(parameters["quality"])
    if operator.codec == "libjpeg":
        return replace(canvas, image=libjpeg(canvas.image, quality, canvas.sizes_there))
    image = torch.where(canvas.inside(), canvas.image.clamp(0, 1), 0)  # diffjpeg continues images with zeros
    return replace(canvas, image=diffjpeg(image, quality.float()))


# Colour


def plain(image: Tensor) -> Tensor:
    """(b, 3, h, w) to (b, 1, h, w): degradations.operators.colour.plain."""
    red, green, blue = image.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def contrast(canvas: Canvas, factor: Tensor) -> Tensor:
    """degradations.operators.colour.adjust_contrast, where the mean is that of each sample's own area. factor: (b,)."""
    light = torch.where(canvas.inside(), colour.grey(canvas.image), 0).sum((1, 2, 3))
    mean = (light / canvas.sizes_there.prod(1))[:, None, None, None]
    return (mean + (canvas.image - mean) * factor[:, None, None, None]).clamp(0, 1)


@applied.register
def jittered(operator: colour.ColourJitter, canvas: Canvas, parameters: Parameters) -> Canvas:
    def work(order: str, samples: Canvas, chosen: Chosen) -> Canvas:
        for letter in order:
            factor = samples.sent(parameters[colour.NAMES[letter]][chosen].astype(np.float32))
            image = contrast(samples, factor) if letter == "c" else colour.ADJUST[letter](samples.image, factor)
            samples = replace(samples, image=image)
        return samples

    return in_groups(canvas, parameters["order"], work)


@applied.register
def shifted(operator: colour.ColourShift, canvas: Canvas, parameters: Parameters) -> Canvas:
    shifts = np.stack([parameters[name] / 255 for name in ("red_255", "green_255", "blue_255")], axis=1)
    shifts_there = canvas.sent(shifts.astype(np.float32)[..., None, None])
    return replace(canvas, image=(canvas.image + shifts_there).clamp(0, 1))


@applied.register
def displaced(operator: colour.ChannelShift, canvas: Canvas, parameters: Parameters) -> Canvas:
    image = canvas.image
    for axis, letter in ((3, "x"), (2, "y")):
        red, blue = (parameters[f"{name}_{letter}_px"] for name in ("red", "blue"))
        shifts = canvas.sent(np.stack([red, np.zeros_like(red), blue], axis=1)[..., None])
        place = canvas.line(axis) - shifts  # (b, 3, n) float64
        lower = place.floor()
        weight = (place - lower).float().unsqueeze(5 - axis)
        below, above = (along(image, axis, mirrored(each.long(), canvas.lengths(axis)[:, None])) for each in (lower, lower + 1))
        image = below + weight * (above - below)
    return replace(canvas, image=image)


@applied.register
def greyed(operator: colour.Grey, canvas: Canvas, parameters: Parameters) -> Canvas:
    return replace(canvas, image=plain(canvas.image).repeat(1, 3, 1, 1))


@applied.register
def darkened(operator: colour.LowLight, canvas: Canvas, parameters: Parameters) -> Canvas:
    lit = canvas.image.clamp(0, 1) ** canvas.column(parameters["gamma"])
    return replace(canvas, image=lit * canvas.column(parameters["gain"]))


@applied.register
def faded(operator: colour.ColourFade, canvas: Canvas, parameters: Parameters) -> Canvas:
    fade, black = canvas.column(parameters["fade"]), canvas.column(parameters["black"])
    sepia = torch.cat([plain(canvas.image) * part for part in colour.SEPIA], dim=1)
    return replace(canvas, image=black + (1 - black) * (canvas.image + fade * (sepia - canvas.image)))


# A camera's sensor


def mixed(image: Tensor, matrices: Tensor) -> Tensor:
    """(b, 3, h, w) with its three colours mixed by the rows of each sample's matrix. matrices: (b, 3, 3)."""
    red, green, blue = (image[:, channel, None] * matrices[:, :, channel, None, None] for channel in range(3))
    return red + green + blue


@applied.register
def raw_noise(operator: sensor.RawNoise, canvas: Canvas, parameters: Parameters) -> Canvas:
    """See sensor.RawNoise.apply. A raw picture lies in all three channels, of which each pixel has one value."""
    gains = np.stack([parameters["red_gain"], np.ones(len(canvas.sizes)), parameters["blue_gain"]], axis=1)
    develop = sensor.colour_matrix(parameters["mix"][:, None, None]) * gains[:, None]
    there, back_there = (canvas.sent(matrices.astype(np.float32)) for matrices in (develop, np.linalg.inv(develop)))
    camera = mixed(canvas.image.clamp(0, 1) ** operator.gamma, back_there).clamp(0, 1)
    canvas = resized(replace(canvas, image=camera), canvas.sizes // operator.factor, "area")
    where = canvas.sent(sensor.colours_at(*canvas.image.shape[2:]))
    raw = (canvas.image * where).sum(1, keepdim=True).expand_as(canvas.image)
    well = parameters["full_well_e"]
    spread = (raw / canvas.column(well) + canvas.column((parameters["read_noise_e"] / well) ** 2)).sqrt()
    field = normals(canvas, parameters["field_seed"], np.ones(len(well), dtype=np.int64))
    raw = (raw + spread * field).clamp(0, 1)
    kernels = canvas.sent(np.stack([sensor.BLUR_OTHER, sensor.BLUR_GREEN, sensor.BLUR_OTHER])[None])
    developed = mixed(filtered(replace(canvas, image=raw * where), kernels).image, there)
    return replace(canvas, image=developed.clamp(0, 1) ** (1 / operator.gamma))

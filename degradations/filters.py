"""Filtering a whole photo, or only where a bilinear downsampling reads it. Borders mirror without repeating the edge pixel.

The kernel is laid on as it is (correlation, as cv2.filter2D does). A wide kernel goes one of three ways, by what it costs:
separable passes (as few as its rank needs), the fast Fourier transform, or, where the result is wanted small, narrow matrix
products that compute nothing but the pixels asked for.
"""

from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

EXACT = 1e-7  # bounds the sum of what a lower rank leaves out of a kernel, and so the change of any value in [0, 1]
CLOSE = 4e-3  # a bound too, and a loose one: seen, no value changes by more than 1e-3, a quarter of a grey level of 255
COLUMN_BLOCK = 16
DIRECT_PX = 9  # up to this size cv2.filter2D is the fastest
# Seconds on one core, fitted on a 512x512 photo: they only choose the way, and a wrong guess costs time alone.
FOURIER_S_A_VALUE, PASSES_S_A_VALUE, PRODUCT_S_A_MAC, PRODUCTS_S = 5.8e-9, 3.9e-9, 3.3e-11, 5e-4


def filtered(photo: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(c, h, w) float32 to the same shape; kernel: (k, k), k odd. Equal to cv2.filter2D to 1e-6."""
    kernel = trimmed(kernel)
    size = len(kernel)
    if min(photo.shape[1:]) <= size // 2 or size <= DIRECT_PX:  # cv2 mirrors more than once where it has to
        return np.stack([cv2.filter2D(plane, -1, kernel, borderType=cv2.BORDER_REFLECT_101) for plane in photo])
    columns, rows = factors(kernel, EXACT)
    if len(columns) == 1:
        passes = {"kernelX": rows[0], "kernelY": columns[0], "borderType": cv2.BORDER_REFLECT_101}
        return np.stack([cv2.sepFilter2D(plane, -1, **passes) for plane in photo])
    return _by_fourier(photo, kernel, photo.shape[1:])


def filtered_and_shrunk(photo: np.ndarray, kernel: np.ndarray, height: int, width: int) -> np.ndarray:
    """resize_bilinear(filtered(photo, kernel)) to (c, height, width), computed only where it is read. Equal to 1e-3.

    Args:    photo: (c, h, w) float32. kernel: (k, k), k odd. height, width: at least 1.
    """
    kernel = trimmed(kernel)
    size, whole = len(kernel), photo.shape
    columns, rows = factors(kernel, CLOSE)
    row_block = 8 if len(columns) == 1 else 4  # measured: small ones waste less, large ones run closer to the machine's peak
    macs = len(columns) * _band_macs(whole[1], height, row_block, size) * whole[0] * whole[2]
    macs += len(columns) * _band_macs(whole[2], width, COLUMN_BLOCK, size) * whole[0] * height
    elsewhere_s = photo.size * (PASSES_S_A_VALUE if len(columns) == 1 else FOURIER_S_A_VALUE)
    if min(whole[1:]) > size and macs * PRODUCT_S_A_MAC + PRODUCTS_S <= elsewhere_s:
        return _by_products(photo, columns, rows, (height, width), row_block)
    if min(whole[1:]) > size > DIRECT_PX and len(columns) > 1:
        return _by_fourier(photo, kernel, (height, width))
    return np.stack([cv2.resize(plane, (width, height)) for plane in filtered(photo, kernel)])


def trimmed(kernel: np.ndarray) -> np.ndarray:
    """The middle of a kernel, without the rings that together weigh less than EXACT; at least 1x1."""
    weights, half = np.abs(kernel), len(kernel) // 2
    lines = np.maximum(weights.sum(axis=0), weights.sum(axis=1))
    rings = (lines + lines[::-1])[:half] * 2  # no less than what each ring weighs, outermost first
    cut = int((np.cumsum(rings) <= EXACT).sum())
    return np.ascontiguousarray(kernel[cut : len(kernel) - cut, cut : len(kernel) - cut])


def factors(kernel: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """columns and rows, (rank, k) each: the sum of their outer products is the kernel, up to a rest whose |sum| is bounded."""
    column, row = kernel.sum(axis=1), kernel.sum(axis=0) / kernel.sum()
    if np.abs(kernel - np.outer(column, row)).sum() <= tolerance:
        # Sums over the kernel keep its symmetry, for which cv2's passes are several times faster.
        return _symmetric(column)[None], _symmetric(row)[None]
    # torch's: numpy's wakes all cores for so small a matrix, and a data worker has one to itself
    left, singular, right = (part.numpy() for part in torch.linalg.svd(torch.from_numpy(kernel)))
    rest = len(kernel) * np.sqrt(np.cumsum(singular[::-1] ** 2)[::-1])  # bounds the rest's sum if this and all after go
    rank = max(1, int((rest > tolerance).sum()))
    return (left[:, :rank] * singular[:rank]).T, right[:rank]


def _symmetric(window: np.ndarray) -> np.ndarray:
    mean = (window + window[::-1]) / 2
    return mean if np.allclose(window, mean, rtol=0, atol=1e-12) else window


@lru_cache(maxsize=64)
def reads(count_in: int, count_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Which two neighbours bilinear resizing (cv2.INTER_LINEAR) reads: the lower one's index and the upper one's weight.

    Position i reads (i + 0.5) * count_in / count_out - 0.5; beyond the border the edge pixel alone is read.
    """
    position = np.clip((np.arange(count_out) + 0.5) * (count_in / count_out) - 0.5, 0, count_in - 1)
    lower = np.floor(position).astype(np.int64)
    return lower, position - lower


def _band_macs(count_in: int, count_out: int, block: int, size: int) -> float:
    return count_out * (block * count_in / count_out + size + 1)


def _by_fourier(photo: np.ndarray, kernel: np.ndarray, size_out: tuple[int, ...]) -> np.ndarray:
    """One colour after the other, so that the data stays in the processor's cache; rows are shrunk before the last pass."""
    half, (height, width) = len(kernel) // 2, photo.shape[1:]
    down, right = (_fast_length(side + 2 * half) - side - half for side in (height, width))
    padded = torch.empty(half + height + down, half + width + right)
    rows = torch.zeros(len(kernel), padded.shape[1])
    rows[:, : len(kernel)] = torch.from_numpy(kernel)
    response = torch.fft.fft(torch.fft.rfft(rows).T.contiguous(), n=len(padded)).conj().resolve_conj()
    lower, upper_weight = reads(height, size_out[0])
    upper, weight = np.minimum(lower + 1, height - 1), torch.from_numpy(upper_weight.astype(np.float32))[:, None]
    result = np.empty((len(photo), *size_out), dtype=np.float32)
    for plane, target in zip(photo, result, strict=True):
        cv2.copyMakeBorder(plane, half, down, half, right, cv2.BORDER_REFLECT_101, dst=padded.numpy())
        # Both passes over columns run on transposed data: in memory order they are several times faster.
        spectrum = torch.fft.rfft2(padded).T.contiguous()
        spectrum *= response
        waves = torch.fft.ifft(spectrum)[:, :height].T.contiguous()
        if size_out[0] != height:
            waves = waves[lower].addcmul_(waves[upper] - waves[lower], weight)
        lines = torch.fft.irfft(waves, n=padded.shape[1])[:, :width].numpy()
        cv2.resize(lines, size_out[::-1], dst=target) if size_out[1] != width else np.copyto(target, lines)
    return result


@lru_cache(maxsize=64)
def _fast_length(least: int) -> int:
    """The next multiple of 4 without a prime factor above 7, which Fourier transforms are fast for."""
    length = least + -least % 4
    while True:
        rest = length
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 4


def _by_products(
    photo: np.ndarray, columns: np.ndarray, rows: np.ndarray, size_out: tuple[int, int], row_block: int
) -> np.ndarray:
    """Rows of the result in blocks, each a product of a narrow matrix with the stretch of the photo that it reads."""
    (count, whole_height, whole_width), rank, image = photo.shape, len(columns), torch.from_numpy(photo)
    bands = _bands(columns, whole_height, size_out[0], row_block)
    passed = torch.empty(len(bands), count, rank * row_block, whole_width)
    for (start, band), into in zip(bands, passed, strict=True):
        torch.bmm(band.flatten(0, 1).expand(count, -1, -1), image[:, start : start + band.shape[2]], out=into)
    # (rank, rows, width), the rows block by block and in a block colour by colour
    passed = passed.unflatten(2, (rank, row_block)).movedim(2, 0).flatten(1, 3)
    bands = _bands(rows, whole_width, size_out[1], COLUMN_BLOCK)
    shrunk = torch.empty(passed.shape[1], len(bands), COLUMN_BLOCK)
    for number, (start, band) in enumerate(bands):
        shrunk[:, number] = (passed[:, :, start : start + band.shape[2]] @ band.mT).sum(0)
    shrunk = shrunk.view(-1, count, row_block, shrunk[0].numel()).movedim(1, 0).flatten(1, 2)
    return shrunk[:, : size_out[0], : size_out[1]].contiguous().numpy()


def _bands(windows: np.ndarray, count_in: int, count_out: int, block: int) -> list[tuple[int, Tensor]]:
    """The matrix of blur and bilinear reading together, in blocks of rows, without the zeros around its diagonal.

    Args:    windows: (rank, k), k below count_in.
    Returns: for each block where the stretch of the line that it reads starts, and (rank, block, length of the stretch).
    """
    (rank, size), half = windows.shape, windows.shape[1] // 2
    lower, upper_weight = reads(count_in, count_out)
    surplus = -count_out % block  # the last block repeats its last row
    lower, upper_weight = (np.concatenate([values, np.repeat(values[-1:], surplus)]) for values in (lower, upper_weight))
    first = lower[::block]
    offsets = lower - np.repeat(first, block)
    most = int(offsets.max())
    stretch = most + size + 2
    line = np.zeros((rank, most + size + stretch), dtype=np.float32)
    line[:, most + 1 : most + 1 + size] = windows
    moved = np.lib.stride_tricks.sliding_window_view(line, stretch, axis=1)  # [:, most + 1 - n]: the windows, n pixels later
    weight = upper_weight.astype(np.float32)[:, None]
    bands = moved[:, most + 1 - offsets] * (1 - weight) + moved[:, most - offsets] * weight
    blocks = torch.from_numpy(bands).view(rank, len(first), block, -1).unbind(1)
    return [_folded(band, start - half, count_in) for band, start in zip(blocks, first.tolist(), strict=True)]


def _folded(band: Tensor, start: int, count_in: int) -> tuple[int, Tensor]:
    """A band that reads the line from start on, with what it reads beyond the line's ends added where these mirror it."""
    before, beyond = max(0, -start), max(0, start + band.shape[2] - count_in)
    if before:
        band[..., before + 1 : 2 * before + 1] += band[..., :before].flip(2)
    if beyond:
        end = band.shape[2] - beyond
        reach = min(beyond, end - 1)  # further out all weights are 0
        band[..., end - 1 - reach : end - 1] += band[..., end : end + reach].flip(2)
        band = band[..., :end]
    return start + before, band[..., before:]

"""Inference on images of any size by overlapping tiles; the network's memory follows the tile."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Tileable(Protocol):
    """A network that can restore an image tile by tile, such as SwinIR, ELAN and RRDBNet."""

    multiple: int  # tiles start at multiples of it, so that windows of attention lie where they lie in the whole image


def restore_tiled(restore: Callable[[Tensor], Tensor], lq: Tensor, *, tile_px: int, overlap_px: int, multiple: int) -> Tensor:
    """An image restored tile by tile, in float32 on the CPU; one that a tile can hold goes through whole.

    Neighbours overlap by overlap_px (the last of a row by more). Of the overlap a tile's outer quarter is thrown away, where
    it sees its cut edge, and over the middle half it is blended with its neighbour. So every pixel comes from tiles that see
    at least overlap_px / 4 around it: with a network that sees no further, the result is that of the whole image.

    Args:    restore: (b, 3, h, w) to (b, 3, s * h, s * w) with a whole number s, on any device.
             lq: (b, 3, h, w) in [0, 1].
             tile_px: side of a tile in LQ pixels; it and overlap_px are rounded up to multiples of the next.
             multiple: tiles start at multiples of it, so that windows of attention lie where they lie in the whole image.
    Raises:  ValueError: what `rounded` says.
    """
    tile, overlap = rounded(tile_px, overlap_px, multiple)
    height, width = lq.shape[-2:]
    total = weights = torch.empty(0)
    for top, bottom in spans(height, tile, overlap, multiple):
        for left, right in spans(width, tile, overlap, multiple):
            part = restore(lq[..., top:bottom, left:right]).float().cpu()
            scale = part.shape[-1] // (right - left)
            if not total.numel():
                total = torch.zeros(*lq.shape[:2], scale * height, scale * width)
                weights = torch.zeros(scale * height, scale * width)
            weight = ramp(top, bottom, height, overlap, scale)[:, None] * ramp(left, right, width, overlap, scale)
            rows, columns = slice(scale * top, scale * bottom), slice(scale * left, scale * right)
            total[..., rows, columns] += part * weight
            weights[rows, columns] += weight
    return total.div_(weights)


def rounded(tile_px: int, overlap_px: int, multiple: int) -> tuple[int, int]:
    """Both as multiples. Raises ValueError: no pixel in a tile, or an overlap that is negative or more than half a tile."""
    if tile_px < 1 or overlap_px < 0:
        raise ValueError(
            f"tile_px={tile_px} with overlap_px={overlap_px}: give a tile of 1 or more, and an overlap of 0 or more"
        )
    tile, overlap = (-(-px // multiple) * multiple for px in (tile_px, overlap_px))
    if 2 * overlap > tile:
        raise ValueError(
            f"tile_px={tile_px} with overlap_px={overlap_px} ({tile} with {overlap} as multiples of the network's {multiple}): "
            f"the overlap is more than half a tile: give an overlap_px of at most {tile // 2 // multiple * multiple}, "
            f"or a tile_px of at least {2 * overlap}"
        )
    return tile, overlap


def spans(length: int, tile: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """Starts and stops of the tiles along a side; the last reaches its end, and may be up to multiple - 1 longer."""
    last = max(length - tile, 0) // multiple * multiple
    return [*((start, start + tile) for start in range(0, last, tile - overlap)), (last, length)]


def ramp(start: int, stop: int, length: int, overlap: int, scale: int) -> Tensor:
    """((stop - start) * scale,) weights of a tile's pixels along a side, which fall to 0 towards cut edges alone."""
    at = (torch.arange((stop - start) * scale) + 0.5) / scale
    from_start = at if start else torch.full_like(at, torch.inf)
    from_stop = at.flip(0) if stop < length else torch.full_like(at, torch.inf)
    inner = torch.minimum(from_start, from_stop) - overlap / 4
    return (inner / (overlap / 2)).clamp(0, 1) if overlap else torch.ones_like(at)

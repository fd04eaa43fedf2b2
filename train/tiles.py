"""Inference on images of any size by overlapping tiles: memory follows the tile, and no seam shows."""

from collections.abc import Callable

import torch
from torch import Tensor


def restore_tiled(restore: Callable[[Tensor], Tensor], lq: Tensor, *, tile_px: int, overlap_px: int, multiple: int) -> Tensor:
    """An image restored tile by tile; one that a tile can hold goes through whole.

    Neighbours overlap by overlap_px (the last of a row by more). Of the overlap a tile's outer quarter is thrown away, where
    it sees its cut edge, and over the middle half it is blended with its neighbour. So every pixel comes from tiles that see
    at least overlap_px / 4 around it: with a network that sees no further, the result is that of the whole image.

    Args:    restore: (b, 3, h, w) to (b, 3, s * h, s * w) with a whole number s, on any device.
             lq: (b, 3, h, w) in [0, 1].
             tile_px: side of a tile in LQ pixels; it and overlap_px are rounded up to multiples of the next.
             multiple: tiles start at multiples of it, so that windows of attention lie where they lie in the whole image.
    Raises:  ValueError: the overlap is negative, or more than half a tile.
    """
    tile_px, overlap_px = (-(-px // multiple) * multiple for px in (tile_px, overlap_px))
    if not 0 <= 2 * overlap_px <= tile_px:
        raise ValueError(
            f"tile_px={tile_px} and overlap_px={overlap_px} (multiples of {multiple}): the overlap must be 0 to half a tile"
        )
    height, width = lq.shape[-2:]
    if max(height, width) <= tile_px:
        return restore(lq)
    total = weights = torch.empty(0)
    for top in starts(height, tile_px, overlap_px, multiple):
        for left in starts(width, tile_px, overlap_px, multiple):
            bottom, right = min(top + tile_px, height), min(left + tile_px, width)
            part = restore(lq[..., top:bottom, left:right])
            scale = part.shape[-1] // (right - left)
            if not total.numel():
                total = part.new_zeros(*lq.shape[:2], scale * height, scale * width)
                weights = part.new_zeros(1, 1, scale * height, scale * width)
            rows = ramp(top, bottom, height, overlap_px, scale).to(part)
            weight = rows[:, None] * ramp(left, right, width, overlap_px, scale).to(part)
            place = (..., slice(scale * top, scale * bottom), slice(scale * left, scale * right))
            total[place] += part * weight
            weights[place] += weight
    return total / weights


def starts(length: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """Where tiles start along a side; the last reaches its end, and is as long as the others or up to `multiple` shorter."""
    if length <= tile:
        return [0]
    last = -((tile - length) // multiple) * multiple  # rounded up: a tile may be shorter, not longer
    return [*range(0, last, tile - overlap), last]


def ramp(start: int, stop: int, length: int, overlap: int, scale: int) -> Tensor:
    """((stop - start) * scale,) weights of a tile's pixels along a side, which fall to 0 towards cut edges alone."""
    at = (torch.arange((stop - start) * scale) + 0.5) / scale
    from_start = at if start else torch.full_like(at, torch.inf)
    from_stop = at.flip(0) if stop < length else torch.full_like(at, torch.inf)
    inner = torch.minimum(from_start, from_stop) - overlap / 4
    return (inner / (overlap / 2)).clamp(0, 1) if overlap else torch.ones_like(at)

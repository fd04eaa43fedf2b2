"""Large latents in tiles: at each step the outputs of overlapping tiles are averaged, and the middle of a tile counts most."""

import torch
from torch import Tensor

from models.diffusion.guidance import Model


def tiled(model: Model, *, size: int, stride: int) -> Model:
    """The model, applied to tiles of `size` x `size` every `stride`, both in latent pixels, of which one is 8 of the image's.

    The published values are 64 and 32. A side that is no longer than a tile is not cut.

    Raises:  ValueError: a stride that leaves gaps.
    """
    if not 0 < stride <= size:
        raise ValueError(f"tile stride {stride}: 1 to the tile's size, {size}, or there are gaps")

    def predict(latent: Tensor, timesteps: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        h, w = latent.shape[-2:]
        rows, columns = min(size, h), min(size, w)
        weights = gaussian_weights(rows, columns).to(latent)
        total, weight = torch.zeros_like(latent), torch.zeros_like(latent[:1, :1])
        for top in starts(h, rows, stride):
            for left in starts(w, columns, stride):
                tile = (..., slice(top, top + rows), slice(left, left + columns))
                total[tile] += weights * model(latent[tile], timesteps, text, condition[tile])
                weight[tile] += weights
        return total / weight

    return predict


def starts(length: int, tile: int, stride: int) -> list[int]:
    """Where the tiles start along one side: every `stride`, and one more that ends where the side ends."""
    regular = list(range(0, length - tile + 1, stride))
    return regular if regular[-1] == length - tile else [*regular, length - tile]


def gaussian_weights(h: int, w: int) -> Tensor:
    """(h, w) float64: a normal density with a deviation of a tenth of each side.

    Its peak lies half a pixel below the middle, as in the reference, whose results it must reproduce.
    """
    return torch.outer(_density(h, h / 2), _density(w, (w - 1) / 2))


def _density(side: int, middle: float) -> Tensor:
    variance = 0.01  # of a side of length 1
    places = (torch.arange(side, dtype=torch.float64) - middle) / side
    return torch.exp(-places.square() / (2 * variance)) / (2 * torch.pi * variance) ** 0.5

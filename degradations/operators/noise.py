"""Sensor-like noise, colour or grey (classical face degradation, step 3). Its fields come from a seed: degradations.fields."""

from functools import lru_cache
from typing import Annotated

import numpy as np
from annotated_types import Ge

from degradations.draws import Parameters, Probability, checked_prob, checked_range, field_seed
from degradations.fields import normals, uniforms

NonNegative = Annotated[float, Ge(0)]


def luminance(photo: np.ndarray) -> np.ndarray:
    """(3, h, w) to (1, h, w), with the weights of torchvision's rgb_to_grayscale."""
    red, green, blue = photo
    return (np.float32(0.2989) * red + np.float32(0.587) * green + np.float32(0.114) * blue)[None]


def add_noise(photo: np.ndarray, field: np.ndarray, sigma_255: float) -> np.ndarray:
    """photo + sigma * field, clipped to [0, 1] and not rounded.

    Args:    photo: (3, h, w) float32. field: (3 or 1, h, w) float32 of standard deviation 1.
             sigma_255: standard deviation in grey levels of 255.
    """
    noisy = field * np.float32(sigma_255 / 255)
    noisy = noisy + photo
    return np.clip(noisy, 0, 1, out=noisy)


class GaussianNoise:
    """White Gaussian noise of one standard deviation per image, independent in every pixel.

    Args:    sigma_255: [low, high] of the uniform standard deviation, in grey levels of 255.
             grey_prob: how often the three colours get the same noise; else it is independent in each.
    Raises:  ValueError: a range that is none.
    """

    def __init__(self, *, sigma_255: tuple[NonNegative, NonNegative], grey_prob: Probability) -> None:
        self.sigma_255 = checked_range("sigma_255", sigma_255, 0)
        self.grey_prob = checked_prob("grey_prob", grey_prob)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """sigma_255, grey (0 or 1), and field_seed."""
        drawn = {"sigma_255": rng.uniform(*self.sigma_255), "grey": int(rng.random() < self.grey_prob)}
        return {**drawn, "field_seed": field_seed(rng)}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns the same shape, in [0, 1]."""
        colours = 1 if parameters["grey"] else len(photo)
        return add_noise(photo, normals(parameters["field_seed"], (colours, *photo.shape[1:])), parameters["sigma_255"])


class PoissonNoise:
    """Shot noise, stronger or weaker than that of the counted levels (BasicSR basicsr/data/degradations.py add_poisson_noise).

    The photo on the 8-bit grid, x, has n distinct values; with v = 2^ceil(log2 n) the noise is Poisson(x v) / v - x, times
    scale. It is added to the photo itself.

    Args:    scale: [low, high] of the uniform factor.
             grey_prob: how often the noise is that of the luminance, the same in the three colours.
    Raises:  ValueError: a range that is none.
    """

    def __init__(self, *, scale: tuple[NonNegative, NonNegative], grey_prob: Probability) -> None:
        self.scale = checked_range("scale", scale, 0)
        self.grey_prob = checked_prob("grey_prob", grey_prob)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """scale, grey (0 or 1), and field_seed."""
        drawn = {"scale": rng.uniform(*self.scale), "grey": int(rng.random() < self.grey_prob)}
        return {**drawn, "field_seed": field_seed(rng)}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns the same shape, in [0, 1]."""
        lit = luminance(photo) if parameters["grey"] else photo
        levels = np.rint(np.clip(lit, 0, 1) * 255).astype(np.int64)
        values = 1 << int(np.count_nonzero(np.bincount(levels.ravel())) - 1).bit_length()
        table, starts = poisson_table(values)
        drawn = np.searchsorted(table, levels + uniforms(parameters["field_seed"], levels.shape)) - starts[levels]
        noise = (drawn / values - levels / 255).astype(np.float32)
        return np.clip(photo + np.float32(parameters["scale"]) * noise, 0, 1)


@lru_cache(maxsize=9)
def poisson_table(values: int) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative probabilities of Poisson(level / 255 * values) for the levels 0 .. 255, one sorted line.

    The entry for n events at a level is level + P(at most n), cut off where less than 1e-9 is left. So the number of events at
    a level for a uniform u is searchsorted(line, level + u) - starts[level].

    Args:    values: a power of 2 up to 256.
    Returns: the line, float64; starts, (256,) int64.
    """
    from scipy.special import pdtr  # its import takes long, and few pipelines need it

    rows, starts = [], [0]
    for level in range(256):
        mean = level / 255 * values
        most = int(mean + 7 * mean**0.5 + 12)  # less than 1e-9 lies beyond, at every mean
        cumulative = pdtr(np.arange(most + 1), mean)
        cumulative[-1] = 1
        rows.append(level + cumulative)
        starts.append(starts[-1] + most + 1)
    return np.concatenate(rows), np.array(starts[:-1], dtype=np.int64)

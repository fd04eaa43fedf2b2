"""How sure a number is: intervals by drawing the images anew (Efron 1979), and two folders compared image by image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
WITHIN = (2.5, 97.5)  # percentiles of the 95 % interval


@dataclass(frozen=True)
class Interval:
    """A mean, and the interval that holds it in 95 of 100 draws of the images."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Of the mean. The same for the same values in the same order."""
    of = np.asarray(values, dtype=float)
    means = of[drawn(len(of), seed)].mean(axis=1)
    return Interval(float(of.mean()), *map(float, np.percentile(means, WITHIN)))


def interval_of(
    number: Callable[[np.ndarray], float], groups: Sequence[str], seed: int = 0, draws: int = 200
) -> tuple[float, float]:
    """Of a number that is computed of chosen images. groups: each image's set; as many are drawn of each as it has."""
    of = np.asarray(groups)
    rng = np.random.default_rng(seed)
    places = [np.flatnonzero(of == name) for name in dict.fromkeys(groups)]
    found = [number(np.concatenate([rng.choice(each, len(each)) for each in places])) for _ in range(draws)]
    low, high = np.percentile(found, WITHIN)
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """How much better B is than A, positive where it is, whatever the metric's direction."""

    difference: Interval
    won: float  # share of the images that are better in B; a tie counts half
    order: list[int]  # images from the largest loss to the largest gain


def compared(a: Sequence[float], b: Sequence[float], *, higher_is_better: bool, seed: int = 0) -> Comparison:
    """Image by image."""
    gains = (np.asarray(b, dtype=float) - np.asarray(a, dtype=float)) * (1 if higher_is_better else -1)
    won = float((gains > 0).mean() + (gains == 0).mean() / 2)
    return Comparison(interval(gains.tolist(), seed), won, np.argsort(gains, kind="stable").tolist())


def drawn(count: int, seed: int) -> np.ndarray:
    """(DRAWS, count) numbers of images."""
    return np.random.default_rng(seed).integers(count, size=(DRAWS, count))

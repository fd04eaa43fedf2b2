"""Random numbers as a function of where they are used, so that no process, worker or restart changes a sample."""

import zlib
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

Parameters = dict[str, Any]  # name -> number or word; the same names in every draw of an operator
Probability = Annotated[float, Ge(0), Le(1)]


def generator(seed: int, position: int, stream: str) -> np.random.Generator:
    """The random numbers of one stream (an operator's name) at one sample position: a pure function of its arguments.

    Philox 4x64 (Salmon et al. 2011): the key is (seed, position), the highest counter word is crc32(stream). A generator
    counts in the lower words, so streams never overlap.

    Args:    seed, position: 0 up to 2 ** 64 - 1.
    Raises:  ValueError: seed or position is outside of that range.
    """
    for name, value in (("seed", seed), ("position", position)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name}={value} is out of range: it must lie in 0 .. 2**64 - 1")
    key = np.array([seed, position], dtype=np.uint64)
    counter = np.array([0, 0, 0, zlib.crc32(stream.encode())], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def field_seed(rng: np.random.Generator) -> int:
    """A drawn seed for degradations.fields: 0 up to 2 ** 63 - 1, so that it fits an int64 tensor."""
    return int(rng.integers(2**63))


def checked_range(name: str, bounds: tuple[float, float], least: float, most: float = float("inf")) -> tuple[float, float]:
    """bounds as a (low, high) tuple, if least <= low <= high <= most.

    Raises:  ValueError: it isn't; the message names the key, its value and the allowed range.
    """
    if len(bounds) != 2:
        raise ValueError(f"{name}={list(bounds)} has {len(bounds)} entries: give two, [low, high]")
    low, high = bounds
    if low > high:
        raise ValueError(f"{name}=[{low}, {high}] has low > high: give [{high}, {low}]")
    if not (low >= least and high <= most):
        raise ValueError(f"{name}=[{low}, {high}] is out of range: both ends must lie in {least} .. {most}")
    return low, high


def checked_prob(name: str, prob: float) -> float:
    """prob, if it is a probability. Raises ValueError if not."""
    if not 0 <= prob <= 1:
        raise ValueError(f"{name}={prob} is no probability: give a value in 0 .. 1")
    return prob

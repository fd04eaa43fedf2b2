"""Which image stands at a position of the run, and which positions a process reads: pure functions of a few numbers."""

import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def draws(seed: int, position: int, stream: str) -> np.random.Generator:
    """Random numbers of one stream at one position (Philox; the same rule as in degradations.draws, where it is explained)."""
    counter = np.array([0, 0, 0, zlib.crc32(stream.encode())], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, position], dtype=np.uint64)))


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, run_through: int) -> np.ndarray:
    return draws(seed, run_through, "data.order").permutation(count)


def image_at(position: int, count: int, seed: int) -> int:
    """The number of the image at a position: each pass over the data is a fresh permutation, so it sees every image once.

    Args:    position: 0, 1, 2, … over the whole run. count: images there are.
    """
    run_through, place = divmod(position, count)
    return int(_permutation(count, seed, run_through)[place])


class PositionSampler:
    """Endless batches of positions. In step s rank r of w reads start + (s * w + r) * batch_size + 0 .. batch_size - 1.

    So any number of ranks with the same product w * batch_size sees the same samples in a step, and a run goes on where another
    stopped when start is the number of samples that one consumed.

    Args:    start: first position. batch_size: samples a step and rank. rank: 0 .. world - 1.
    """

    def __init__(self, *, start: int, batch_size: int, rank: int, world: int) -> None:
        self.first = start + rank * batch_size
        self.batch_size = batch_size
        self.stride = world * batch_size

    def __iter__(self) -> Iterator[list[int]]:
        first = self.first
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.stride

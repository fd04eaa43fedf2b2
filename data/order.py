"""Which image stands at a position of the run, and which positions a process reads: pure functions of a few numbers."""

import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np


def draws(seed: int, position: int, stream: str) -> np.random.Generator:
    """Random numbers of one stream at one position (Philox; the same rule as in degradations.draws, where it is explained)."""
    counter = np.array([0, 0, 0, zlib.crc32(stream.encode())], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, position], dtype=np.uint64)))


class Draws(NamedTuple):
    """The random numbers of one position of a run: a generator for each stream."""

    seed: int
    position: int

    def of(self, stream: str) -> np.random.Generator:
        """A generator that begins anew with each call."""
        return draws(self.seed, self.position, stream)


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, run_through: int) -> np.ndarray:
    return draws(seed, run_through, "data.order").permutation(count)


def image_at(position: int, count: int, seed: int) -> int:
    """The number of the image at a position: each pass over the data is a fresh permutation, so it sees every image once.

    Args:    position: 0, 1, 2, … over the whole run. count: images there are.
    """
    run_through, place = divmod(position, count)
    return int(_permutation(count, seed, run_through)[place])


class BlockOrder:
    """As image_at, for images in blocks: each pass takes the blocks in a fresh order, and the images of each in a fresh order.

    So what is read in a row lies together, and a source needs no more than a block at hand.

    Args:    lengths: images in each block; none is left out.
    """

    def __init__(self, *, lengths: Sequence[int], seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.seed = seed
        self._pass: tuple[int, np.ndarray, np.ndarray] | None = None  # its number, the blocks in order, where each ends

    def image_at(self, position: int) -> int:
        """The number of the image at a position."""
        run_through, place = divmod(position, int(self.lengths.sum()))
        order, ends = self._blocks(run_through)
        nth = int(np.searchsorted(ends, place, side="right"))
        block = int(order[nth])
        row = place - int(ends[nth] - self.lengths[block])
        return int(self.starts[block]) + int(_rows(int(self.lengths[block]), self.seed, run_through, block)[row])

    def _blocks(self, run_through: int) -> tuple[np.ndarray, np.ndarray]:
        if self._pass is None or self._pass[0] != run_through:
            order = draws(self.seed, run_through, "data.order").permutation(len(self.lengths))
            self._pass = run_through, order, np.cumsum(self.lengths[order])
        return self._pass[1:]


@lru_cache(maxsize=4)
def _rows(length: int, seed: int, run_through: int, block: int) -> np.ndarray:
    return draws(seed, run_through, f"data.order.{block}").permutation(length)


class Order:
    """Which image stands at a position, and what is drawn there.

    Args:    count: images there are. blocks: images in each block of a source that is read in blocks; empty: it is not.
    """

    def __init__(self, *, count: int, blocks: Sequence[int], seed: int) -> None:
        self.count, self.seed = count, seed
        self.blocks = BlockOrder(lengths=blocks, seed=seed) if blocks else None

    def at(self, position: int) -> tuple[Iterator[int], Draws]:
        """The number of the image at a position, followed by those that may stand in for it; and the position's draws.

        Those that follow stand at the next positions: any stretch of 2 * count positions holds a whole pass.
        """
        ahead = range(position, position + 2 * self.count)
        return (self.image_at(each) for each in ahead), Draws(self.seed, position)

    def image_at(self, position: int) -> int:
        """The number of the image at a position."""
        return self.blocks.image_at(position) if self.blocks else image_at(position, self.count, self.seed)


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

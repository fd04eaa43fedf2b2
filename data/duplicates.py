"""Images that look the same: a hash of 256 bits, and pairs of near hashes among many without comparing all with all."""

from collections.abc import Iterator

import cv2
import numpy as np

BITS = 256
BANDS = 16  # two hashes that differ in fewer bits than there are bands agree in a whole band
MAX_DISTANCE_BITS = BANDS - 1
SIDE_PX, FREQUENCIES = 32, 16
BLOCK = 4096  # rows compared with a band's others at once: bounds memory


def perceptual_hash(grey: np.ndarray) -> str:
    """64 hexadecimal digits: which of the 16x16 lowest DCT coefficients of the image at 32x32 lie above their median.

    JPEG at quality 50, half the size, blur or 10 % more light change at most 10 bits of a portrait; two people's portraits
    differ in 86 or more (41 of them measured).

    Args:    grey: (h, w) uint8.
    """
    small = cv2.resize(grey, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    lowest = cv2.dct(small)[:FREQUENCIES, :FREQUENCIES].ravel()
    return np.packbits(lowest > np.median(lowest)).tobytes().hex()


def near_duplicates(hashes: list[str], max_distance_bits: int) -> dict[int, tuple[int, int]]:
    """For each place whose hash an earlier place nearly has: the nearest such place (the first of equals), and the distance.

    Equal hashes are taken together. Of the others only those are compared that agree in one of 16 bands of 16 bits, which finds
    every pair up to 15 bits apart.

    Raises:  ValueError: max_distance_bits is above 15.
    """
    if not 0 <= max_distance_bits <= MAX_DISTANCE_BITS:
        raise ValueError(f"max_distance_bits={max_distance_bits}: give 0 to {MAX_DISTANCE_BITS}")
    first: dict[str, int] = {}
    found: dict[int, tuple[int, int]] = {}
    for place, text in enumerate(hashes):
        if first.setdefault(text, place) != place:
            found[place] = (first[text], 0)
    places = list(first.values())
    for earlier, later, distance in _pairs([hashes[place] for place in places], max_distance_bits):
        one, other = places[earlier], places[later]
        nearest = found.get(other)
        if nearest is None or (distance, one) < (nearest[1], nearest[0]):
            found[other] = (one, distance)
    return found


def _pairs(hashes: list[str], max_distance_bits: int) -> Iterator[tuple[int, int, int]]:
    """(earlier, later, distance) of all near pairs, some more than once."""
    if not hashes:
        return
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(len(hashes), BITS // 8)
    words = packed.view(np.uint64)
    for band in _bands(packed).T:
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            if stop - start > 1:
                yield from _within(words, order[start:stop], max_distance_bits)


def _bands(packed: np.ndarray) -> np.ndarray:
    """(n, 16) integers of 16 bits each. Neighbouring frequencies are spread, so that no band says the same of all images."""
    bits = np.unpackbits(packed, axis=1)[:, np.random.default_rng(0).permutation(BITS)]
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint16).astype(np.int64)


def _within(words: np.ndarray, members: np.ndarray, max_distance_bits: int) -> Iterator[tuple[int, int, int]]:
    """Near pairs among members, which are in rising order."""
    for place, member in enumerate(members[:-1]):
        others = members[place + 1 :]
        for begin in range(0, len(others), BLOCK):
            some = others[begin : begin + BLOCK]
            distances = np.bitwise_count(words[some] ^ words[member]).sum(axis=1)
            for near in np.flatnonzero(distances <= max_distance_bits):
                yield int(member), int(some[near]), int(distances[near])

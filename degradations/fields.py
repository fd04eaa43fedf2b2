"""Random fields as a pure function of a seed: counter-based, so that every processor gives the same numbers.

Value n comes from the n-th output of splitmix64 (Steele et al. 2014), of which one half gives a radius and the other an angle
(Box and Muller 1958). degradations.batched holds the same arithmetic for torch tensors on any device.
"""

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # (shift, factor) of each round; a last shift of 31
RESOLUTION = np.float32(2**-24)  # a float32 holds 24 bits


def bits(seed: int, count: int) -> np.ndarray:
    """(count,) uint64: the outputs 1 .. count of splitmix64 from a state of seed (0 up to 2 ** 64 - 1)."""
    state = np.arange(1, count + 1, dtype=np.uint64)
    state *= np.uint64(GOLDEN)
    state += np.uint64(seed)
    for shift, factor in MIX:
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> np.uint64(31)
    return state


def uniforms(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in (0, 1), never an end: the upper 23 bits of each output and a half."""
    upper = (bits(seed, int(np.prod(shape))) >> np.uint64(41)).astype(np.float32)
    upper += np.float32(0.5)
    upper *= np.float32(2**-23)
    return upper.reshape(shape)


def normals(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of mean 0 and standard deviation 1, at most 5.8. Of n values the first n / 2 are cosines, the others sines."""
    count = int(np.prod(shape))
    halves = bits(seed, (count + 1) // 2).view(np.uint32).reshape(-1, 2)
    low, high = (0, 1) if np.little_endian else (1, 0)
    radius = (halves[:, high] >> np.uint32(8)).astype(np.float32)
    radius += np.float32(1)
    radius *= RESOLUTION
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = (halves[:, low] >> np.uint32(8)).astype(np.float32)
    angle *= np.float32(2 * np.pi) * RESOLUTION
    field = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return field[:count].reshape(shape)

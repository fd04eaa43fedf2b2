"""Weights and inputs made from a name alone, so that no weight file has to travel with a stored case.

The makers of the cases used the same rules: equal key names and shapes give equal networks.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def tensor(name: str, shape: Sequence[int], *, kind: str = "normal") -> Tensor:
    """float32 draws of PCG64 seeded with crc32(name): "normal" (mean 0, std 1) or "uniform" ([0, 1))."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    draw = {"normal": generator.standard_normal, "uniform": generator.random}[kind]
    return torch.from_numpy(np.asarray(draw(tuple(shape)), dtype=np.float32))


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """A parameter or float buffer by its key: variances positive, norm scales about 1, matrices by fan-in, the rest / 10."""
    x = tensor(name, shape)
    if name.endswith("running_var"):
        return 0.5 + x.abs() / 2
    if x.ndim >= 2:
        fan_in = max(1, x.numel() // x.shape[0])
        return x / math.sqrt(fan_in)
    return 1 + x / 10 if x.ndim == 1 and name.endswith("weight") else x / 10


def state_dict(shapes: Mapping[str, Sequence[int]], *, scale: float = 1.0, leave_out: Sequence[str] = ()) -> dict[str, Tensor]:
    """{key: weight} of every key but `leave_out` (derived buffers); `scale` multiplies those with two or more axes."""
    state = {key: weight(key, shape) for key, shape in shapes.items() if key not in set(leave_out)}
    return {key: value * scale if value.ndim >= 2 else value for key, value in state.items()}

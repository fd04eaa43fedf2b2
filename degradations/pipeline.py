"""Operators in a row: HQ in, LQ out."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from degradations.draws import generator


@runtime_checkable
class Operator(Protocol):
    """One step of a degradation; what it draws and what it does are separate."""

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> dict[str, float | int]:
        """Plain numbers that fix the step for an HQ of size (h, w)."""

    def apply(self, photo: np.ndarray, parameters: dict[str, float | int]) -> np.ndarray:
        """photo: (h, w, 3) float32 RGB; a pure function of its arguments. The size may change."""


class Pipeline:
    """Operators applied in the order of the mapping; each draws from its own stream, named as it is in the mapping.

    So changing, adding or leaving out one operator leaves the draws of all others as they are.

    Args:    operators: name -> operator.
             quantize: round the result half to even to the grid of k / 255 (CodeFormer, GFPGAN: yes; DiffBIR: no).
    """

    def __init__(self, *, operators: dict[str, Operator], quantize: bool) -> None:
        self.operators = dict(operators)
        self.quantize = quantize

    def sample(self, seed: int, position: int, size: tuple[int, int]) -> dict[str, dict[str, float | int]]:
        """The parameters of every operator for the HQ of size (h, w) at a position: JSON-able, a pure function."""
        return {name: each.sample(generator(seed, position, name), size) for name, each in self.operators.items()}

    def apply(self, hq: Tensor, parameters: dict[str, dict[str, float | int]]) -> Tensor:
        """hq: (3, h, w) in [0, 1]; returns the LQ, float32 in [0, 1].

        Raises:  ValueError: the parameters aren't those of these operators.
        """
        if parameters.keys() != self.operators.keys():
            raise ValueError(f"parameters of {sorted(parameters)} were given to a pipeline of {sorted(self.operators)}")
        photo = np.ascontiguousarray(hq.permute(1, 2, 0).numpy(), dtype=np.float32)
        for name, operator in self.operators.items():
            photo = operator.apply(photo, parameters[name])
        photo = np.clip(photo, 0, 1)
        if self.quantize:
            photo = (np.rint(photo * 255) / 255).astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1)))

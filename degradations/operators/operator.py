"""What an operator is."""

from typing import Protocol, runtime_checkable

import numpy as np

from degradations.draws import Parameters


@runtime_checkable
class Operator(Protocol):
    """One step of a degradation; what it draws and what it does are separate."""

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Numbers and words that fix the step for an HQ of size (h, w): JSON-able, the same names every time."""

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32 RGB, left as it is; a pure function of its arguments. The size may change."""

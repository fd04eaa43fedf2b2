"""Sensor-like noise (classical face degradation, step 3)."""

from typing import Annotated

import numpy as np
from annotated_types import Ge

from degradations.draws import checked_range

Sigma255 = Annotated[float, Ge(0)]


def add_noise(photo: np.ndarray, field: np.ndarray, sigma_255: float) -> np.ndarray:
    """photo + sigma * field, clipped to [0, 1] and not rounded.

    Args:    photo: (h, w, 3) float32. field: (h, w, 3) float32 of standard deviation 1.
             sigma_255: standard deviation in grey levels of 255.
    """
    return np.clip(photo + field * np.float32(sigma_255 / 255), 0, 1)


class GaussianNoise:
    """White Gaussian noise, independent in every pixel and colour; one standard deviation per image.

    Args:    sigma_255: [low, high] of the uniform standard deviation, in grey levels of 255.
    Raises:  ValueError: a range that is none.
    """

    def __init__(self, *, sigma_255: tuple[Sigma255, Sigma255]) -> None:
        self.sigma_255 = checked_range("sigma_255", sigma_255, 0)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> dict[str, float | int]:
        """sigma_255, and the 63-bit seed from which the field is made."""
        return {"sigma_255": rng.uniform(*self.sigma_255), "field_seed": int(rng.integers(2**63))}

    def apply(self, photo: np.ndarray, parameters: dict[str, float | int]) -> np.ndarray:
        """photo: (h, w, 3) float32; returns the same shape, in [0, 1]."""
        rng = np.random.Generator(np.random.Philox(key=int(parameters["field_seed"])))
        field = rng.standard_normal(photo.shape, dtype=np.float32)
        return add_noise(photo, field, parameters["sigma_255"])

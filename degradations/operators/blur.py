"""Blurs by a drawn kernel: the Gaussian family, sinc and motion (classical face degradation, step 1)."""

from abc import ABC, abstractmethod
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from degradations import kernels
from degradations.draws import Parameters, Probability, checked_prob, checked_range
from degradations.filters import filtered

KernelSize = Annotated[int, Ge(1)] | tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]]
Sigma = Annotated[float, Gt(0)]
Cutoff = Annotated[float, Gt(0)]
Length = Annotated[float, Ge(0)]


class Blur(ABC):
    """A kernel of drawn size and shape, laid on every colour; the border mirrors without repeating the edge pixel.

    Args:    kernel_size_px: side of the window, odd, or [low, high] of which each odd size is equally likely.
    Raises:  ValueError: an even size, or low > high.
    """

    def __init__(self, kernel_size_px: int | tuple[int, int]) -> None:
        low, high = (kernel_size_px, kernel_size_px) if isinstance(kernel_size_px, int) else kernel_size_px
        for size in (low, high):
            if size < 1 or size % 2 == 0:
                raise ValueError(f"kernel_size_px={size} has no centre: give an odd size such as {size + 1}")
        checked_range("kernel_size_px", (low, high), 1)
        self.kernel_size_px = (low, high)

    def _size(self, rng: np.random.Generator) -> int:
        low, high = self.kernel_size_px
        return low if low == high else low + 2 * int(rng.integers((high - low) // 2 + 1))

    @abstractmethod
    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """kernel_size_px, and what the kernel is made from."""

    @abstractmethod
    def kernel(self, parameters: Parameters) -> np.ndarray:
        """(..., k, k) float64 with sum 1, k = kernel_size_px; the other parameters may be arrays of shape (...)."""

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns the same shape."""
        return filtered(photo, self.kernel(parameters))


class GaussianBlur(Blur):
    """exp(-r² / 2). With isotropic_prob both sigmas are equal; else they are independent and turned by U(-pi, pi).

    Args:    kernel_size_px: 41 truncates wide kernels (sigma 15 acts as 10.4), as published.
             sigma_px: [low, high] of the uniform standard deviations, above 0.
             isotropic_prob: 0 to 1.
    Raises:  ValueError: an even window, or a range that is none.
    """

    def __init__(self, *, kernel_size_px: KernelSize, sigma_px: tuple[Sigma, Sigma], isotropic_prob: Probability) -> None:
        super().__init__(kernel_size_px)
        if min(sigma_px) <= 0:
            raise ValueError(f"sigma_px={list(sigma_px)} is out of range: both ends must lie above 0 (0.1 changes nothing)")
        self.sigma_px = checked_range("sigma_px", sigma_px, 0)
        self.isotropic_prob = checked_prob("isotropic_prob", isotropic_prob)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """kernel_size_px, sigma_x_px, sigma_y_px and angle_rad; equal sigmas mean isotropic."""
        isotropic = rng.random() < self.isotropic_prob
        sigma_x = sigma_y = rng.uniform(*self.sigma_px)
        angle = 0.0
        if not isotropic:
            sigma_y, angle = rng.uniform(*self.sigma_px), rng.uniform(-np.pi, np.pi)
        return {"sigma_x_px": sigma_x, "sigma_y_px": sigma_y, "angle_rad": angle, "kernel_size_px": self._size(rng)}

    def kernel(self, parameters: Parameters) -> np.ndarray:
        """See Blur."""
        sigmas = (parameters["sigma_x_px"], parameters["sigma_y_px"])
        return kernels.gaussian(parameters["kernel_size_px"], *sigmas, parameters["angle_rad"])


class GeneralizedBlur(GaussianBlur):
    """exp(-(r²)^beta / 2), with beta drawn U(low, 1) or U(1, high), each half of the time.

    Args:    kernel_size_px, sigma_px, isotropic_prob: as in GaussianBlur.
             beta: [low, high] around 1, above 0.
    Raises:  ValueError: as in GaussianBlur, or beta doesn't hold 1.
    """

    def __init__(
        self,
        *,
        kernel_size_px: KernelSize,
        sigma_px: tuple[Sigma, Sigma],
        isotropic_prob: Probability,
        beta: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]],
    ) -> None:
        super().__init__(kernel_size_px=kernel_size_px, sigma_px=sigma_px, isotropic_prob=isotropic_prob)
        low, high = checked_range("beta", beta, 0)
        if not low <= 1 <= high:
            raise ValueError(f"beta=[{low}, {high}] does not hold 1, at which it is drawn in two halves: give [0.5, 4]")
        self.beta = (low, high)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """As GaussianBlur, and beta."""
        drawn = super().sample(rng, size)
        low, high = self.beta
        return {**drawn, "beta": rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)}

    def kernel(self, parameters: Parameters) -> np.ndarray:
        """See Blur."""
        sigmas = (parameters["sigma_x_px"], parameters["sigma_y_px"])
        return kernels.generalized(parameters["kernel_size_px"], *sigmas, parameters["angle_rad"], parameters["beta"])


class PlateauBlur(GeneralizedBlur):
    """1 / ((r²)^beta + 1), drawn as in GeneralizedBlur: with beta=[1, 2] half of the kernels have exactly beta 1."""

    def kernel(self, parameters: Parameters) -> np.ndarray:
        """See Blur."""
        sigmas = (parameters["sigma_x_px"], parameters["sigma_y_px"])
        return kernels.plateau(parameters["kernel_size_px"], *sigmas, parameters["angle_rad"], parameters["beta"])


class SincBlur(Blur):
    """Circular low-pass filter with a drawn cutoff: rings and overshoots, so the result may leave [0, 1].

    Args:    cutoff_rad: [low, high] of the uniform cutoff in radians a pixel, above 0; pi keeps all but the corners.
    Raises:  ValueError: an even window, or a range that is none.
    """

    def __init__(self, *, kernel_size_px: KernelSize, cutoff_rad: tuple[Cutoff, Cutoff]) -> None:
        super().__init__(kernel_size_px)
        if min(cutoff_rad) <= 0:
            raise ValueError(f"cutoff_rad={list(cutoff_rad)} is out of range: both ends must lie above 0")
        self.cutoff_rad = checked_range("cutoff_rad", cutoff_rad, 0)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """kernel_size_px and cutoff_rad."""
        return {"cutoff_rad": rng.uniform(*self.cutoff_rad), "kernel_size_px": self._size(rng)}

    def kernel(self, parameters: Parameters) -> np.ndarray:
        """See Blur."""
        return kernels.sinc(parameters["kernel_size_px"], parameters["cutoff_rad"])


class MotionBlur(Blur):
    """A straight stroke of drawn length in a drawn direction.

    Args:    kernel_size_px: longer strokes are cut off at the window.
             length_px: [low, high] of the uniform length; 0 changes nothing.
    Raises:  ValueError: an even window, or a range that is none.
    """

    def __init__(self, *, kernel_size_px: KernelSize, length_px: tuple[Length, Length]) -> None:
        super().__init__(kernel_size_px)
        self.length_px = checked_range("length_px", length_px, 0)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """kernel_size_px, length_px and angle_rad, which is U(0, pi)."""
        drawn = {"length_px": rng.uniform(*self.length_px), "angle_rad": rng.uniform(0, np.pi)}
        return {**drawn, "kernel_size_px": self._size(rng)}

    def kernel(self, parameters: Parameters) -> np.ndarray:
        """See Blur."""
        return kernels.motion(parameters["kernel_size_px"], parameters["length_px"], parameters["angle_rad"])

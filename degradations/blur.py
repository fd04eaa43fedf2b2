"""Blur by a drawn Gaussian, isotropic or turned and stretched (classical face degradation, step 1)."""

from typing import Annotated

import cv2
import numpy as np
from annotated_types import Ge, Gt, Le

from degradations.draws import checked_range

Sigma = Annotated[float, Gt(0)]


def gaussian_kernel(size_px: int, sigma_x_px: float, sigma_y_px: float, angle_rad: float) -> np.ndarray:
    """A (size, size) float64 kernel with sum 1 (BasicSR basicsr/data/degradations.py bivariate_Gaussian).

    exp(-pᵀ S⁻¹ p / 2) with S = R diag(sigma_x², sigma_y²) Rᵀ, x to the right, y down, R a turn by angle_rad.
    """
    span = np.arange(size_px, dtype=np.float64) - (size_px - 1) / 2
    x, y = np.meshgrid(span, span)
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    along, across = cos * x + sin * y, cos * y - sin * x
    kernel = np.exp(-0.5 * ((along / sigma_x_px) ** 2 + (across / sigma_y_px) ** 2))
    return kernel / kernel.sum()


def gaussian_window(size_px: int, sigma_px: float) -> np.ndarray:
    """A (size,) float64 window with sum 1; its outer product with itself is the isotropic gaussian_kernel."""
    span = np.arange(size_px, dtype=np.float64) - (size_px - 1) / 2
    window = np.exp(-0.5 * (span / sigma_px) ** 2)
    return window / window.sum()


class GaussianBlur:
    """Gaussian blur with a drawn kernel; the border mirrors without repeating the edge pixel (cv2 REFLECT_101).

    With isotropic_prob both sigmas are equal; else they are independent and the kernel is turned by U(-pi, pi).

    Args:    kernel_size_px: side of the window, odd; 41 truncates wide kernels (sigma 15 acts as 10.4), as published.
             sigma_px: [low, high] of the uniform standard deviations, above 0.
             isotropic_prob: 0 to 1.
    Raises:  ValueError: an even window, or a range that is none.
    """

    def __init__(
        self,
        *,
        kernel_size_px: Annotated[int, Ge(1)],
        sigma_px: tuple[Sigma, Sigma],
        isotropic_prob: Annotated[float, Ge(0), Le(1)],
    ) -> None:
        if kernel_size_px < 1 or kernel_size_px % 2 == 0:
            raise ValueError(f"kernel_size_px={kernel_size_px} has no centre: give an odd size such as {kernel_size_px + 1}")
        if not 0 <= isotropic_prob <= 1:
            raise ValueError(f"isotropic_prob={isotropic_prob} is no probability: give a value in 0 .. 1")
        if min(sigma_px) <= 0:
            raise ValueError(f"sigma_px={list(sigma_px)} is out of range: both ends must lie above 0 (0.1 changes nothing)")
        self.kernel_size_px = kernel_size_px
        self.sigma_px = checked_range("sigma_px", sigma_px, 0)
        self.isotropic_prob = isotropic_prob

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> dict[str, float | int]:
        """sigma_x_px, sigma_y_px and angle_rad; equal sigmas mean isotropic."""
        isotropic = rng.random() < self.isotropic_prob
        sigma_x = rng.uniform(*self.sigma_px)
        if isotropic:
            return {"sigma_x_px": sigma_x, "sigma_y_px": sigma_x, "angle_rad": 0.0}
        return {"sigma_x_px": sigma_x, "sigma_y_px": rng.uniform(*self.sigma_px), "angle_rad": rng.uniform(-np.pi, np.pi)}

    def apply(self, photo: np.ndarray, parameters: dict[str, float | int]) -> np.ndarray:
        """photo: (h, w, 3) float32; returns the same shape. An isotropic kernel runs as two passes (equal to 1e-6)."""
        sigma_x, sigma_y = parameters["sigma_x_px"], parameters["sigma_y_px"]
        if sigma_x == sigma_y:
            window = gaussian_window(self.kernel_size_px, sigma_x)
            return cv2.sepFilter2D(photo, -1, window, window, borderType=cv2.BORDER_REFLECT_101)
        kernel = gaussian_kernel(self.kernel_size_px, sigma_x, sigma_y, parameters["angle_rad"])
        return cv2.filter2D(photo, -1, kernel, borderType=cv2.BORDER_REFLECT_101)

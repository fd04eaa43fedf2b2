"""Blur kernels: (..., size, size) float64 with sum 1, x to the right, y down.

Parameters may be arrays of any shape (...), so that one call makes the kernels of a whole batch. The Gaussian family is that of
BasicSR basicsr/data/degradations.py: with p = (x, y), S = R diag(sigma_x², sigma_y²) Rᵀ and R a turn by the angle, all are
functions of r² = pᵀ S⁻¹ p.
"""

import numpy as np
from numpy.typing import ArrayLike


def _grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    span = np.arange(size_px, dtype=np.float64) - (size_px - 1) / 2
    return span[None, :], span[:, None]


def _column(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)[..., None, None]


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum(axis=(-2, -1), keepdims=True)


def _turned(size_px: int, angle_rad: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across an axis that is turned from x towards y."""
    x, y = _grid(size_px)
    cos, sin = np.cos(_column(angle_rad)), np.sin(_column(angle_rad))
    return cos * x + sin * y, cos * y - sin * x


def _squared_distance(size_px: int, sigma_x_px: ArrayLike, sigma_y_px: ArrayLike, angle_rad: ArrayLike) -> np.ndarray:
    along, across = _turned(size_px, angle_rad)
    return (along / _column(sigma_x_px)) ** 2 + (across / _column(sigma_y_px)) ** 2


def gaussian(size_px: int, sigma_x_px: ArrayLike, sigma_y_px: ArrayLike, angle_rad: ArrayLike) -> np.ndarray:
    """exp(-r² / 2)."""
    return _normalised(np.exp(-0.5 * _squared_distance(size_px, sigma_x_px, sigma_y_px, angle_rad)))


def generalized(
    size_px: int, sigma_x_px: ArrayLike, sigma_y_px: ArrayLike, angle_rad: ArrayLike, beta: ArrayLike
) -> np.ndarray:
    """exp(-(r²)^beta / 2): beta 1 is the Gaussian, above it flatter in the middle, below it more pointed."""
    distance = _squared_distance(size_px, sigma_x_px, sigma_y_px, angle_rad)
    return _normalised(np.exp(-0.5 * distance ** _column(beta)))


def plateau(size_px: int, sigma_x_px: ArrayLike, sigma_y_px: ArrayLike, angle_rad: ArrayLike, beta: ArrayLike) -> np.ndarray:
    """1 / ((r²)^beta + 1)."""
    distance = _squared_distance(size_px, sigma_x_px, sigma_y_px, angle_rad)
    return _normalised(1 / (distance ** _column(beta) + 1))


def sinc(size_px: int, cutoff_rad: ArrayLike) -> np.ndarray:
    """The circular low-pass filter: w J1(w d) / (2 pi d) at distance d, w the cutoff in radians a pixel; rings."""
    x, y = _grid(size_px)
    distance, cutoff = np.hypot(x, y), _column(cutoff_rad)
    with np.errstate(divide="ignore", invalid="ignore"):
        kernel = np.where(
            distance == 0, cutoff**2 / (4 * np.pi), cutoff * _bessel_j1(cutoff * distance) / (2 * np.pi * distance)
        )
    return _normalised(kernel)


def motion(size_px: int, length_px: ArrayLike, angle_rad: ArrayLike) -> np.ndarray:
    """A straight stroke through the middle, one pixel wide, with soft edges."""
    along, across = _turned(size_px, angle_rad)
    lengthwise = np.clip(_column(length_px) / 2 + 0.5 - np.abs(along), 0, 1)
    return _normalised(lengthwise * np.clip(1 - np.abs(across), 0, 1))


def _bessel_j1(x: np.ndarray) -> np.ndarray:
    from scipy.special import j1  # its import takes long, and only sinc needs it

    return np.asarray(j1(x))

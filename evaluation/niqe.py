"""NIQE (Mittal, Soundararajan and Bovik 2013): how far the statistics of an image lie from those of good photographs.

Lower is better; good photographs have about 2 to 4. No reference is needed. The parameters are the published ones
(niqe_parameters.npz: the mean and covariance of the authors' pristine photographs, and the window).
"""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from scipy.special import gamma

PARAMETERS = Path(__file__).with_name("niqe_parameters.npz")
BLOCK_PX = 96
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
SHAPES = np.arange(0.2, 10.001, 0.001)  # of generalised Gaussians, searched for the moments that fit
RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))


def niqe(image_u8: np.ndarray) -> float:
    """Args:    image_u8: (h, w, 3) RGB or (h, w) grey, uint8, at least 96 x 96.
    Raises:  ValueError: an image that no block fits into, or without any variation, which has no statistics.
    """
    height, width = image_u8.shape[:2]
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    if not rows * columns:
        raise ValueError(f"NIQE needs {BLOCK_PX}x{BLOCK_PX} pixels, and this image has {width}x{height}")
    luma = image_u8.astype(np.float64)
    if image_u8.ndim == 3:  # in float32, as halves then round as they do in other programs
        luma = np.rint(255 * (np.float32(image_u8) / np.float32(255) @ LUMA)).astype(np.float64)
    luma = luma[: rows * BLOCK_PX, : columns * BLOCK_PX]
    features = [_features(luma, BLOCK_PX), _features(255 * halved(luma / 255), BLOCK_PX // 2)]
    blocks = np.concatenate(features, axis=1)  # (blocks, 36)
    mean, covariance, _ = parameters()
    if np.isnan(blocks).all(axis=0).any():
        raise ValueError("NIQE is not defined for an image without variation")
    whole = blocks[~np.isnan(blocks).any(axis=1)]
    difference = mean - np.nanmean(blocks, axis=0)
    spread = (covariance + np.cov(whole, rowvar=False)) / 2 if len(whole) > 1 else covariance / 2
    return float(np.sqrt(difference @ np.linalg.pinv(spread) @ difference))


@lru_cache(maxsize=1)
def parameters() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(36,), (36, 36) and the (7, 7) Gaussian window."""
    with np.load(PARAMETERS, allow_pickle=False) as stored:
        return stored["mu_pris_param"].ravel(), stored["cov_pris_param"], stored["gaussian_window"]


def halved(image: np.ndarray) -> np.ndarray:
    """(h, w) at half the size, as MATLAB's imresize(image, 0.5): bicubic, antialiased, symmetric at the edges."""
    taps = np.arange(-3, 5) - 0.5  # from the middle of each pair of pixels
    near = np.abs(taps) / 2
    inner, outer = 1.5 * near**3 - 2.5 * near**2 + 1, -0.5 * near**3 + 2.5 * near**2 - 4 * near + 2
    weights = np.where(near <= 1, inner, np.where(near <= 2, outer, 0.0))
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(image, [(3, 4) if each == axis else (0, 0) for each in (0, 1)], mode="symmetric")
        length = (image.shape[axis] + 1) // 2
        picks = [np.take(padded, 2 * np.arange(length) + tap, axis=axis) for tap in range(8)]
        image = np.tensordot(weights, np.stack(picks), axes=1)
    return image


def _features(luma: np.ndarray, block_px: int) -> np.ndarray:
    """(blocks, 18) of (h, w) in 0 to 255."""
    _, _, window = parameters()
    mean = cv2.filter2D(luma, -1, window, borderType=cv2.BORDER_REPLICATE)
    variance = np.abs(cv2.filter2D(luma**2, -1, window, borderType=cv2.BORDER_REPLICATE) - mean**2)
    normalised = (luma - mean) / (np.sqrt(variance) + 1)
    rows, columns = (side // block_px for side in luma.shape)
    blocks = normalised.reshape(rows, block_px, columns, block_px).swapaxes(1, 2).reshape(-1, block_px, block_px)
    found = []
    alpha, left, right = _asymmetric(blocks)
    found += [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = _asymmetric(blocks * np.roll(blocks, shift, axis=(1, 2)))
        mean_of = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        found += [shape, mean_of, left, right]
    return np.stack(found, axis=1)


def _asymmetric(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape and both scales of the asymmetric generalised Gaussian that fits each block, by its moments (Lasmar 2009)."""
    flat = blocks.reshape(len(blocks), -1)
    below, above = (np.where(side, flat, 0.0) for side in (flat < 0, flat > 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.sqrt((below**2).sum(axis=1) / (flat < 0).sum(axis=1))
        right = np.sqrt((above**2).sum(axis=1) / (flat > 0).sum(axis=1))
        ratio = left / right
        flatness = np.abs(flat).mean(axis=1) ** 2 / (flat**2).mean(axis=1)
        wanted = flatness * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = SHAPES[np.abs(RATIOS[None] - wanted[:, None]).argmin(axis=1)]
    shape = np.where(np.isnan(wanted), np.nan, shape)
    factor = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * factor, right * factor

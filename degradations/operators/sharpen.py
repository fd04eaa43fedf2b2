"""Unsharp masking of a target (Real-ESRGAN; DiffBIR v2.1 trains on the sharpened image)."""

from typing import Annotated

import numpy as np
from annotated_types import Ge

from degradations import kernels
from degradations.draws import Parameters
from degradations.filters import filtered


class UsmSharpening:
    """Sharpens edges alone (BasicSR basicsr/utils/img_process_util.py USMSharp).

    Where image and blurred image differ by more than the threshold, and softly around it, weight times their difference is
    added; clipped to [0, 1] there. Each colour has its own mask.

    Args:    kernel_size_px: odd; the Gaussian's sigma follows by cv2's rule, 0.3 ((k - 1) / 2 - 1) + 0.8, 8 for 51.
             weight: 0 changes nothing. threshold_255: in grey levels of 255.
    Raises:  ValueError: an even size.
    """

    def __init__(
        self,
        *,
        kernel_size_px: Annotated[int, Ge(1)],
        weight: Annotated[float, Ge(0)],
        threshold_255: Annotated[float, Ge(0)],
    ) -> None:
        if kernel_size_px % 2 == 0:
            raise ValueError(f"kernel_size_px={kernel_size_px} has no centre: give an odd size such as {kernel_size_px + 1}")
        sigma = 0.3 * ((kernel_size_px - 1) / 2 - 1) + 0.8
        self.kernel = kernels.gaussian(kernel_size_px, sigma, sigma, 0.0)
        self.weight, self.threshold_255 = weight, threshold_255

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Nothing."""
        return {}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32 in [0, 1]; returns the same."""
        rest = photo - filtered(photo, self.kernel)
        edges = (np.abs(rest) * 255 > self.threshold_255).astype(np.float32)
        soft = filtered(edges, self.kernel)
        sharp = np.clip(photo + np.float32(self.weight) * rest, 0, 1)
        return soft * sharp + (1 - soft) * photo

"""JPEG there and back (classical face degradation, step 4)."""

from typing import Annotated

import cv2
import numpy as np
from annotated_types import Ge, Le

from degradations.draws import checked_range

Quality = Annotated[int, Ge(1), Le(100)]


class Jpeg:
    """libjpeg at a drawn quality, colour at half resolution (4:2:0).

    The input is clipped and rounded half to even to 8 bit. The quality is U(low, high) truncated to an integer, as in
    CodeFormer and DiffBIR: low .. high - 1 are reached, high itself only when low == high.

    Args:    quality: [low, high], 1 to 100.
    Raises:  ValueError: a range that is none.
    """

    def __init__(self, *, quality: tuple[Quality, Quality]) -> None:
        self.quality = checked_range("quality", quality, 1, 100)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> dict[str, float | int]:
        """quality, an integer."""
        return {"quality": int(rng.uniform(*self.quality))}

    def apply(self, photo: np.ndarray, parameters: dict[str, float | int]) -> np.ndarray:
        """photo: (h, w, 3) float32; returns the same shape on the grid of k / 255."""
        photo_u8_bgr = np.rint(np.clip(photo, 0, 1) * 255).astype(np.uint8)[..., ::-1]
        options = [cv2.IMWRITE_JPEG_QUALITY, int(parameters["quality"])]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
        done, encoded = cv2.imencode(".jpg", photo_u8_bgr, options)
        assert done, "cv2 encodes every uint8 image"
        decoded_bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert decoded_bgr is not None, "cv2 decodes what it encoded"
        return decoded_bgr[..., ::-1].astype(np.float32) / np.float32(255)

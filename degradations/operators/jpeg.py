"""JPEG there and back (classical face degradation, step 4)."""

from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from annotated_types import Ge, Le

from degradations.dct import diffjpeg
from degradations.draws import Parameters, checked_range

Quality = Annotated[float, Ge(1), Le(100)]


class Jpeg:
    """JPEG at a drawn quality, colour at half resolution (4:2:0).

    Args:    quality: [low, high], 1 to 100.
             codec: libjpeg: what cameras and files do; the input is clipped and rounded half to even to 8 bit, the quality
                 truncated to an integer (CodeFormer, DiffBIR stage 1), so that high is reached only when low == high.
                 diffjpeg: the differentiable approximation of BasicSR and DiffBIR, for going on with a recipe trained with it:
                 luminance table transposed, tables and result not rounded, quality not truncated.
    Raises:  ValueError: a range that is none, or that diffjpeg has no tables for.
    """

    def __init__(self, *, quality: tuple[Quality, Quality], codec: Literal["libjpeg", "diffjpeg"]) -> None:
        self.quality = checked_range("quality", quality, 1, 100)
        self.codec = codec
        if codec == "diffjpeg" and quality[0] > 99:
            raise ValueError(f"quality={list(quality)} with codec=diffjpeg: its tables are 0 at 100, so begin at 99 at most")

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """quality, an integer with libjpeg."""
        drawn = rng.uniform(*self.quality)
        return {"quality": int(drawn) if self.codec == "libjpeg" else min(drawn, 99.99)}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns the same shape, in [0, 1]; with libjpeg on the grid of k / 255."""
        if self.codec == "diffjpeg":
            image = torch.from_numpy(np.clip(photo, 0, 1))[None]
            return diffjpeg(image, torch.tensor([parameters["quality"]], dtype=torch.float32))[0].numpy()
        return libjpeg(photo, parameters["quality"])


def libjpeg(photo: np.ndarray, quality: int) -> np.ndarray:
    """(3, h, w) float32 to the same shape on the grid of k / 255."""
    photo_u8_hwc_bgr = np.rint(np.clip(photo, 0, 1) * 255).astype(np.uint8)[::-1].transpose(1, 2, 0)
    options = [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    done, encoded = cv2.imencode(".jpg", np.ascontiguousarray(photo_u8_hwc_bgr), options)
    assert done, "cv2 encodes every uint8 image"
    decoded_bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded_bgr is not None, "cv2 decodes what it encoded"
    return np.divide(decoded_bgr.transpose(2, 0, 1)[::-1], np.float32(255), dtype=np.float32, order="C")

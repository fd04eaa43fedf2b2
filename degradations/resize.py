"""Shrink by a drawn factor, and enlarge back to the HQ size (classical face degradation, steps 2 and 5)."""

from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Gt

from degradations.draws import checked_range

Filter = Literal["area", "bilinear", "bicubic"]
Factor = Annotated[float, Gt(0)]

FLAGS = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


class Downsample:
    """Resize to (int(h // s), int(w // s)) with s ~ U(factor), as the published face pipelines do.

    Args:    factor: [low, high] of s = HQ size / LQ size, the downsampling factor; below 1 enlarges.
             filter: bilinear reads two pixels per axis and does NOT antialias (cv2.INTER_LINEAR), as published.
                 bicubic may leave [0, 1].
    Raises:  ValueError: a range that is none.
    """

    def __init__(self, *, factor: tuple[Factor, Factor], filter: Filter) -> None:  # noqa: A002
        if min(factor) <= 0:
            raise ValueError(f"factor={list(factor)} is out of range: HQ size / LQ size must lie above 0, such as [1, 12]")
        self.factor = checked_range("factor", factor, 0)
        self.flag = FLAGS[filter]

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> dict[str, float | int]:
        """factor, and the height and width in pixels that follow from it.

        Raises:  ValueError: the largest factor would leave less than one pixel.
        """
        if min(size) < self.factor[1]:
            raise ValueError(
                f"factor=[{self.factor[0]}, {self.factor[1]}] can shrink {size[0]}x{size[1]} to less than one pixel: "
                f"give a high end of at most {min(size)}, or larger images"
            )
        factor = rng.uniform(*self.factor)
        return {"factor": factor, "height": int(size[0] // factor), "width": int(size[1] // factor)}

    def apply(self, photo: np.ndarray, parameters: dict[str, float | int]) -> np.ndarray:
        """photo: (h, w, 3) float32; returns (height, width, 3)."""
        return cv2.resize(photo, (int(parameters["width"]), int(parameters["height"])), interpolation=self.flag)


class ResizeBack:
    """Resize to the size that the HQ had when the parameters were drawn.

    Args:    filter: as in Downsample.
    """

    def __init__(self, *, filter: Filter) -> None:  # noqa: A002
        self.flag = FLAGS[filter]

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> dict[str, float | int]:
        """height and width of the HQ; nothing is drawn."""
        return {"height": size[0], "width": size[1]}

    def apply(self, photo: np.ndarray, parameters: dict[str, float | int]) -> np.ndarray:
        """photo: (h, w, 3) float32; returns (height, width, 3)."""
        return cv2.resize(photo, (int(parameters["width"]), int(parameters["height"])), interpolation=self.flag)

"""Shrink by a drawn factor, resize as Real-ESRGAN does, and enlarge back to the HQ size (classical steps 2 and 5)."""

from typing import Annotated, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le

from degradations.draws import Parameters, Probability, checked_range

Filter = Literal["area", "bilinear", "bicubic"]
Factor = Annotated[float, Gt(0)]


def resized(photo: np.ndarray, height: int, width: int, filter: str, scale: float = 0.0) -> np.ndarray:  # noqa: A002
    """(3, h, w) float32 to (3, height, width).

    Args:    filter: bilinear reads two pixels per axis, bicubic four (Keys, a = -0.75), neither antialiases when it shrinks;
                 bicubic may leave [0, 1]. area averages the pixels that an output pixel touches (adaptive average pooling).
             scale: above 0: pixel i stands at (i + 0.5) / scale - 0.5, also where the size was rounded, as in
                 torch.nn.functional.interpolate(scale_factor=scale); 0: at (i + 0.5) * h / height - 0.5. area knows no scale.
    """
    if filter == "bilinear" and scale == 0:
        target = np.empty((len(photo), height, width), dtype=np.float32)
        for plane, into in zip(photo, target, strict=True):
            cv2.resize(plane, (width, height), dst=into, interpolation=cv2.INTER_LINEAR)
        return target
    image = torch.from_numpy(photo)[None]
    options = {} if filter == "area" else {"align_corners": False}
    if scale == 0 or filter == "area":
        return F.interpolate(image, size=(height, width), mode=filter, **options)[0].numpy()
    return F.interpolate(image, scale_factor=scale, mode=filter, **options)[0].numpy()


class Downsample:
    """Resize to (int(h // s), int(w // s)) with s ~ U(factor), as the published face pipelines do.

    Args:    factor: [low, high] of s = HQ size / LQ size, the downsampling factor; below 1 enlarges.
             filter: see `resized`; bilinear, without antialiasing, as published.
    Raises:  ValueError: a range that is none.
    """

    def __init__(self, *, factor: tuple[Factor, Factor], filter: Filter) -> None:  # noqa: A002
        if min(factor) <= 0:
            raise ValueError(f"factor={list(factor)} is out of range: HQ size / LQ size must lie above 0, such as [1, 12]")
        self.factor = checked_range("factor", factor, 0)
        self.filter = filter

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
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

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns (3, height, width)."""
        return resized(photo, parameters["height"], parameters["width"], self.filter)


class ResizeBack:
    """Resize to the size that the HQ had when the parameters were drawn.

    Args:    filter: see `resized`.
    """

    def __init__(self, *, filter: Filter) -> None:  # noqa: A002
        self.filter = filter

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """height and width of the HQ; nothing is drawn."""
        return {"height": size[0], "width": size[1]}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns (3, height, width)."""
        return resized(photo, parameters["height"], parameters["width"], self.filter)


class RandomResize:
    """Up, down or as it is, with a drawn scale and filter (Real-ESRGAN; DiffBIR diffbir/dataset/batch_transform.py).

    Args:    up_prob, down_prob: the rest of 1 keeps the size.
             up, down: [low, high] of the uniform scale, output size / input size.
             of_hq: the size that is scaled, as a part of the HQ's: 1, or 0.25 for a x4 target; rounded down.
             filters: each is equally likely.
             positions: scale: pixels stand where the drawn scale puts them, so rounding the size moves the picture by up to a
                 pixel (the first resize of the reference); size: where the sizes put them, borders on borders (its others).
    Raises:  ValueError: probabilities above 1 together, no filter, or a range that is none.
    """

    def __init__(
        self,
        *,
        up_prob: Probability,
        down_prob: Probability,
        up: tuple[Annotated[float, Ge(1)], Annotated[float, Ge(1)]],
        down: tuple[Factor, Annotated[float, Gt(0), Le(1)]],
        of_hq: Annotated[float, Gt(0)],
        filters: list[Filter],
        positions: Literal["scale", "size"],
    ) -> None:
        if up_prob < 0 or down_prob < 0 or up_prob + down_prob > 1 + 1e-9:
            raise ValueError(f"up_prob={up_prob} and down_prob={down_prob} are no probabilities together: at most 1 in sum")
        if not filters:
            raise ValueError("filters is empty: give at least one of area, bilinear, bicubic")
        self.up_prob, self.down_prob = up_prob, down_prob
        self.up, self.down = checked_range("up", up, 1), checked_range("down", down, 1e-6, 1)
        self.of_hq, self.filters, self.by_scale = of_hq, list(filters), positions == "scale"

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """scale, filter, and the height and width that follow from them (at least 1)."""
        kind = rng.random()
        scale = 1.0
        if kind < self.up_prob:
            scale = rng.uniform(*self.up)
        elif kind < self.up_prob + self.down_prob:
            scale = rng.uniform(*self.down)
        filter_ = self.filters[int(rng.integers(len(self.filters)))]
        height, width = (max(1, int(int(side * self.of_hq) * scale)) for side in size)
        return {"scale": scale, "filter": filter_, "height": height, "width": width}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns (3, height, width)."""
        height, width, scale = parameters["height"], parameters["width"], parameters["scale"]
        if photo.shape[1:] == (height, width):
            return photo
        by_scale = (
            self.by_scale and scale != 1 and (int(photo.shape[1] * scale), int(photo.shape[2] * scale)) == (height, width)
        )
        return resized(photo, height, width, parameters["filter"], scale if by_scale else 0.0)

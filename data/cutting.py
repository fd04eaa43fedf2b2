"""How an image becomes a square of the training size: cropped, and mirrored at random."""

from dataclasses import replace
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Ge, Le
from PIL import Image

from data.order import Draws
from data.reading import Picture


class Cut:
    """Crops a picture and mirrors it at random, what belongs to it alike.

    Args:    size: side of the HQ in pixels; of the LQ too, unless it came smaller.
             crop: center: scaled and cut as DiffBIR does; random: cut at the photograph's own scale.
             hflip_prob: that all are mirrored.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Ge(1)],
        crop: Literal["center", "random"],
        hflip_prob: Annotated[float, Ge(0), Le(1)],
    ) -> None:
        self.size, self.crop, self.hflip_prob = size, crop, hflip_prob

    def __call__(self, picture: Picture, draws: Draws, stream: str = "data") -> Picture:
        """The picture cut, by the draws of a stream. Raises ValueError: it is too small, or the crop of an LQ isn't whole."""
        photos, name = picture.photos, picture.name
        check_size(photos[-1], self.size, name, "data.size")
        if self.crop == "center":
            photos = center_crops(photos, self.size, name)
        else:
            photos = random_crops(photos, self.size, draws.of(f"{stream}.crop"), name)
        mirrored = bool(draws.of(f"{stream}.flip").random() < self.hflip_prob)
        return replace(picture, photos=[cv2.flip(photo, 1) for photo in photos] if mirrored else photos, mirrored=mirrored)


def center_crop(photo: np.ndarray, size: int) -> np.ndarray:
    """The middle (size, size) of a photo whose short side was brought to size (DiffBIR, center_crop_arr).

    Halved by box averages while the short side is at least 2 * size, then bicubic. (size, size) comes back as it is.

    Args:    photo: (h, w, 3) uint8, neither side below size.
    """
    if photo.shape[:2] != (size, size):
        image = Image.fromarray(photo)
        while min(image.size) >= 2 * size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        photo = np.asarray(image)
    top, left = (photo.shape[0] - size) // 2, (photo.shape[1] - size) // 2
    return photo[top : top + size, left : left + size]


def center_crops(photos: list[np.ndarray], size: int, name: str) -> list[np.ndarray]:
    """A photo and what belongs to it, so that the last is (size, size).

    Photos of one size are scaled as center_crop does; a smaller LQ and its target are cut from their middle and never scaled.
    """
    if photos[0].shape == photos[-1].shape:
        return [center_crop(photo, size) for photo in photos]
    part = part_of_crop(photos, size, name)
    top, left = ((side - part) // 2 for side in photos[0].shape[:2])
    return cut_alike(photos, top, left, part)


def random_crops(photos: list[np.ndarray], size: int, rng: np.random.Generator, name: str) -> list[np.ndarray]:
    """A photo and what belongs to it, cut at one drawn place so that the last is (size, size).

    Every place in the first is equally likely.
    """
    part = part_of_crop(photos, size, name)
    top, left = (int(rng.integers(side - part + 1)) for side in photos[0].shape[:2])
    return cut_alike(photos, top, left, part)


def part_of_crop(photos: list[np.ndarray], size: int, name: str) -> int:
    """Side of the crop in the first photo when the last one's is size. Raises ValueError: it isn't whole."""
    scale = photos[-1].shape[0] // photos[0].shape[0]
    if size % scale:
        raise ValueError(
            f"{name} is {scale} times smaller than its target, so the crop of {size} px must be a multiple of {scale}"
        )
    return size // scale


def cut_alike(photos: list[np.ndarray], top: int, left: int, part: int) -> list[np.ndarray]:
    """(part, part) of the first photo, and the same region of the others, which may be larger by a whole number."""
    scales = [photo.shape[0] // photos[0].shape[0] for photo in photos]
    return [photo[top * s : (top + part) * s, left * s : (left + part) * s] for photo, s in zip(photos, scales, strict=True)]


def check_size(photo: np.ndarray, size: int, name: str, key: str) -> None:
    """Raises ValueError when a side is below size; the message names the file and the config key."""
    height, width = photo.shape[:2]
    if min(height, width) < size:
        raise ValueError(
            f"{name} is {width}x{height}, smaller than {key}={size}: "
            f"set {key} to {min(height, width)} or less, or take this file out of the folder"
        )

"""Augmentation of the photographs by albumentations, before the degradation: what the HQ gets, the LQ is made of."""

import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for a newer version otherwise

# Transforms of albumentations that do the same to an LQ and to its larger HQ: they know no pixels.
SIZELESS = ("D4", "HorizontalFlip", "VerticalFlip", "Transpose", "RandomRotate90")


class Augmentation:
    """Transforms of albumentations, one after the other; all that they draw comes from the generator given to apply.

    Args:    transforms: name -> transform; (h, w, 3) uint8 must come out.
    """

    def __init__(self, *, transforms: Mapping[str, Any]) -> None:
        self.transforms = dict(transforms)
        self._compose: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compose": None}

    def apply(self, photos: Sequence[np.ndarray], rng: np.random.Generator, name: str) -> list[np.ndarray]:
        """Each photo under the same transforms.

        Args:    photos: one to three, (h, w, 3) uint8, of one size unless all transforms are SIZELESS. name: for the message.
        Raises:  ValueError: sizes differ, a transform refuses a photo, or something else than (h, w, 3) uint8 comes out.
        """
        if not self.transforms:
            return list(photos)
        if len({photo.shape for photo in photos}) > 1 and not all(
            type(t).__name__ in SIZELESS for t in self.transforms.values()
        ):
            raise ValueError(
                f"{name} and its target differ in size, and augmentation can't keep them aligned: set augmentation=none, or "
                f"use {', '.join(SIZELESS)} alone (data.crop and data.hflip_prob can, too)"
            )
        compose = self._composed()
        compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        keys = ["image", "image1", "image2"][: len(photos)]
        try:
            made = compose(**dict(zip(keys, photos, strict=True)))
        except Exception as error:  # its own exceptions have no common class
            raise ValueError(f"augmentation of {name} failed: {error}; change augmentation.transforms") from error
        done = [made[key] for key in keys]
        if any(photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 for photo in done):
            raise ValueError(
                f"augmentation made {done[0].shape} {done[0].dtype} of {name} where (h, w, 3) uint8 is needed: "
                "take the transform that does this out of augmentation.transforms"
            )
        return done

    def _composed(self) -> Any:
        if self._compose is None:
            import albumentations  # three seconds, so only when it is used

            transforms = list(self.transforms.values())
            others = {"image1": "image", "image2": "image"}  # target and negative
            self._compose = albumentations.Compose(transforms, additional_targets=others, is_check_shapes=False)
        return self._compose

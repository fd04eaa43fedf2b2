"""Position to sample: read, crop, flip, degrade. Every draw is a function of (seed, position)."""

import warnings
from typing import Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from data.batch import Degradation, Sample
from data.images import UnreadableImage, decode, to_tensor
from data.order import draws, image_at
from data.sources import Source


def read_image(source: Source, index: int) -> np.ndarray:
    """(h, w, 3) uint8 RGB. Raises UnreadableImage, which names the file."""
    try:
        contents = source.read(index)
    except OSError as error:
        raise UnreadableImage(f"{source.name(index)} can't be read: {error}") from error
    return decode(contents, source.name(index))


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


def random_crop(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A (size, size) cut at a drawn place; every place is equally likely.

    Args:    photo: (h, w, 3) uint8, neither side below size.
    """
    top, left = (int(rng.integers(side - size + 1)) for side in photo.shape[:2])
    return photo[top : top + size, left : left + size]


def check_size(photo: np.ndarray, size: int, name: str, key: str) -> None:
    """Raises ValueError when a side is below size; the message names the file and the config key."""
    height, width = photo.shape[:2]
    if min(height, width) < size:
        raise ValueError(
            f"{name} is {width}x{height}, smaller than {key}={size}: "
            f"set {key} to {min(height, width)} or less, or take this file out of the folder"
        )


class FaceDataset(Dataset[Sample]):
    """Training samples by position 0, 1, 2, …, without end; PositionSampler says which positions to ask for.

    Args:    size: side of HQ and LQ in pixels.
             crop: center: scaled and cut as DiffBIR does; random: cut at the photograph's own scale.
             hflip_prob: HQ and LQ are mirrored together, before the degradation.
             on_error: skip: the next readable image of the order stands in for an unreadable one, under the position's own
                 draws, and is counted; raise: stop. An image below size is an error with both.
             keep_decoded: decoded images stay in memory (of each worker): for a few images that are read again and again.
    """

    def __init__(
        self,
        *,
        source: Source,
        degradation: Degradation,
        size: int,
        crop: Literal["center", "random"],
        hflip_prob: float,
        seed: int,
        on_error: Literal["raise", "skip"],
        keep_decoded: bool,
    ) -> None:
        self.source = source
        self.decoded: dict[int, np.ndarray] | None = {} if keep_decoded else None
        self.degradation = degradation
        self.size = size
        self.crop = crop
        self.hflip_prob = hflip_prob
        self.seed = seed
        self.on_error = on_error

    def __getitem__(self, position: int) -> Sample:
        """Raises UnreadableImage: the file, or with on_error=skip every file. ValueError: the image is too small."""
        photo, name, unreadable = self._photo(position)
        check_size(photo, self.size, name, "data.size")
        if self.crop == "center":
            photo = center_crop(photo, self.size)
        else:
            photo = random_crop(photo, self.size, draws(self.seed, position, "data.crop"))
        if draws(self.seed, position, "data.flip").random() < self.hflip_prob:
            photo = photo[:, ::-1]
        hq = to_tensor(photo)
        lq = self.degradation.apply(hq, self.degradation.sample(self.seed, position, (self.size, self.size)))
        return {"lq": lq, "hq": hq, "position": position, "unreadable": unreadable}

    def _photo(self, position: int) -> tuple[np.ndarray, str, int]:
        """The photo at a position, its name, and how many files before it were passed over."""
        count = len(self.source)
        for passed_over in range(2 * count):  # any stretch of 2 * count positions holds a whole pass
            index = image_at(position + passed_over, count, self.seed)
            try:
                return self._read(index), self.source.name(index), passed_over
            except UnreadableImage as error:
                if self.on_error == "raise":
                    raise
                warnings.warn(f"data.on_error=skip passes over {error}", stacklevel=2)  # Python shows each file once
        raise UnreadableImage(f"none of the {count} images can be read, the first is {self.source.name(0)}: check data.root")

    def _read(self, index: int) -> np.ndarray:
        if self.decoded is None:
            return read_image(self.source, index)
        if index not in self.decoded:
            self.decoded[index] = read_image(self.source, index)
        return self.decoded[index]


class FixedFaces(Dataset[Sample]):
    """The validation set: the same images under the same degradations, whenever and wherever it is read.

    Position i is image i // degradations_per_image under the degradation drawn from (seed, i). Nothing is flipped, and an
    unreadable image is always an error.

    Args:    size: side of the centre crop in pixels; None leaves images as they are.
             seed: of the validation alone, so that runs with other training seeds are compared on the same pictures.
    """

    def __init__(
        self, *, source: Source, degradation: Degradation, degradations_per_image: int, size: int | None, seed: int
    ) -> None:
        self.source = source
        self.degradation = degradation
        self.degradations_per_image = degradations_per_image
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source) * self.degradations_per_image

    def __getitem__(self, position: int) -> Sample:
        """Raises UnreadableImage, or ValueError: the image is below size."""
        index = position // self.degradations_per_image
        photo = read_image(self.source, index)
        if self.size is not None:
            check_size(photo, self.size, self.source.name(index), "data.val_size")
            photo = center_crop(photo, self.size)
        hq = to_tensor(photo)
        lq = self.degradation.apply(hq, self.degradation.sample(self.seed, position, (hq.shape[1], hq.shape[2])))
        return {"lq": lq, "hq": hq, "position": position, "unreadable": 0}

"""From the number of an image to its pixels, and those of what belongs to it: its target and its negative."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from data.images import UnreadableImage, decode
from data.order import Draws
from data.pairs import check_pair
from data.sources.source import Blocked, Choices, Part, Source

File = tuple[Source, int]  # a source, and the number of a file in it


class Images(NamedTuple):
    """Images, and their targets and negatives where they have some."""

    source: Source
    targets: Source | Choices | None  # of each image, or several to draw from; None: an image is its own
    negatives: Choices | None  # an image without any stands in for its negative; None: samples have no negative

    @property
    def blocks(self) -> tuple[int, ...]:
        """Lengths of the blocks that the images are read in; empty: they are not."""
        return self.source.blocks if isinstance(self.source, Blocked) else ()

    def part(self, start: int, stop: int) -> "Images":
        """The images start .. stop - 1."""
        targets = self.targets.part(start, stop) if isinstance(self.targets, Choices) else self.targets
        if targets is not None and not isinstance(targets, Choices):
            targets = Part(whole=targets, start=start, stop=stop)
        negatives = None if self.negatives is None else self.negatives.part(start, stop)
        return Images(Part(whole=self.source, start=start, stop=stop), targets, negatives)

    def fixed(self) -> "Images":
        """The same with one target each, the first of several, and without negatives: nothing is drawn."""
        return Images(self.source, self.targets.first() if isinstance(self.targets, Choices) else self.targets, None)

    def files(self, index: int, draws: Draws) -> list[File]:
        """The image of that number, then the target and the negative that are drawn for it, as far as it has them."""
        target = belonging(self.targets, index, draws, "data.target")
        return [(self.source, index), *target, *belonging(self.negatives, index, draws, "data.negative")]


@dataclass(frozen=True)
class Picture:
    """An image on its way from a file to a sample, with what belongs to it."""

    index: int  # of the image in its source
    name: str  # of its file, for messages
    photos: list[np.ndarray]  # (h, w, 3) uint8: the image, then its target and its negative as far as it has them
    sizes: list[tuple[int, int]]  # (h, w) of each as it was read
    passed_over: int = 0  # unreadable files before it, in place of which it stands
    mirrored: bool = False


class Reader:
    """Reads images with what belongs to them.

    Args:    is_degraded: the LQ is made of the image, so that a target must be of its size.
             on_error: skip: the next readable image of the order stands in for an unreadable one, under the position's own
                 draws, and is counted; raise: stop.
             key: of the configuration that gives the images' root, for messages.
             keep_decoded: decoded images stay in memory (of each worker): for a few images that are read again and again.
    """

    def __init__(
        self, *, images: Images, is_degraded: bool, on_error: Literal["raise", "skip"], key: str, keep_decoded: bool
    ) -> None:
        self.images, self.is_degraded, self.on_error, self.key = images, is_degraded, on_error, key
        self.decoded: dict[tuple[int, ...], list[np.ndarray]] | None = {} if keep_decoded else None

    def read(self, indices: Iterator[int], draws: Draws) -> Picture:
        """The first image that can be read. Raises UnreadableImage, which names the file, or ValueError: sizes differ."""
        source = self.images.source
        for passed_over, index in enumerate(indices):
            try:
                photos = self._photos(self.images.files(index, draws))
            except UnreadableImage as error:
                if self.on_error == "raise":
                    raise
                warnings.warn(f"data.on_error=skip passes over {error}", stacklevel=2)  # Python shows each file once
            else:
                return Picture(index, source.name(index), photos, sizes(photos), passed_over)
        raise UnreadableImage(f"none of the {len(source)} images can be read, the first is {source.name(0)}: check {self.key}")

    def _photos(self, files: list[File]) -> list[np.ndarray]:
        if self.decoded is None:
            return read_photos(files, self.is_degraded)
        numbers = tuple(index for _, index in files)
        if numbers not in self.decoded:
            self.decoded[numbers] = read_photos(files, self.is_degraded)
        return self.decoded[numbers]


def read_image(source: Source, index: int) -> np.ndarray:
    """(h, w, 3) uint8 RGB. Raises UnreadableImage, which names the file."""
    try:
        contents = source.read(index)
    except OSError as error:
        raise UnreadableImage(f"{source.name(index)} can't be read: {error}") from error
    return decode(contents, source.name(index))


def read_photos(files: list[File], is_degraded: bool) -> list[np.ndarray]:
    """A photo, then its target and its negative as far as it has them. Raises UnreadableImage, or ValueError: sizes differ."""
    photos = [read_image(source, index) for source, index in files]
    source, index = files[0]
    if len(photos) > 1:
        check_pair(photos[0], photos[1], source.name(index), is_degraded, "target")
    if len(photos) > 2:
        check_pair(photos[0], photos[2], source.name(index), is_degraded, "negative")
    return photos


def sizes(photos: list[np.ndarray]) -> list[tuple[int, int]]:
    """(h, w) of each."""
    return [(photo.shape[0], photo.shape[1]) for photo in photos]


def belonging(others: Source | Choices | None, index: int, draws: Draws, stream: str) -> list[File]:
    """The file of others that belongs to the photo of that number, each of several being equally likely; empty: none does."""
    if others is None:
        return []
    if not isinstance(others, Choices):
        return [(others, index)]
    numbers = others.of_photo[index]
    return [(others.whole, numbers[int(draws.of(stream).integers(len(numbers)))])] if numbers else []

"""Position to sample: read, augment, cut, degrade. Every draw is a function of (seed, position)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch.utils.data import Dataset

from data.augmentation import Augmentation
from data.batch import Degradation, Sample, finished
from data.columns.column import Column
from data.cutting import Cut, center_crops, check_size
from data.images import to_tensor
from data.order import Draws, Order
from data.reading import Images, Picture, Reader, read_photos, sizes


class TrainingFaces(Dataset[Sample]):
    """Training samples by position 0, 1, 2, …, without end; PositionSampler says which positions to ask for.

    Args:    images: to train on, with their targets and negatives where they have some.
             columns: what was made of the images before training; each adds its tensor to the samples.
             degradation: makes the LQ of an image; None: the images are LQs, and targets are given.
             augmentation: of an image and what belongs to it alike, before everything else.
             cut: to the training size. An image below it is an error, whatever on_error says.
             on_error, keep_decoded: see data.reading.Reader.
    """

    def __init__(
        self,
        *,
        images: Images,
        columns: Sequence[Column],
        degradation: Degradation | None,
        augmentation: Augmentation,
        cut: Cut,
        seed: int,
        on_error: Literal["raise", "skip"],
        keep_decoded: bool,
    ) -> None:
        self.images = images
        self.order = Order(count=len(images.source), blocks=images.blocks, seed=seed)
        is_degraded = degradation is not None
        self.reader = Reader(
            images=images, is_degraded=is_degraded, on_error=on_error, key="data.root", keep_decoded=keep_decoded
        )
        self.columns = list(columns)
        self.degradation = degradation
        self.augmentation = augmentation
        self.cut = cut

    def __getitem__(self, position: int) -> Sample:
        """Raises UnreadableImage: the file, or with on_error=skip every file. ValueError: the image can't be cut as asked."""
        indices, draws = self.order.at(position)
        picture = self.reader.read(indices, draws)
        picture = augmented(picture, self.augmentation, draws)
        picture = self.cut(picture, draws)
        sample = degraded(picture, self.degradation, draws)
        found = {column.tensor: column.read(picture, draws) for column in self.columns}
        columns = {name: tensor for name, (tensor, _) in found.items()}
        unreadable = picture.passed_over + sum(passed_over for _, passed_over in found.values())
        negative = {} if self.images.negatives is None else negative_of(picture)
        counts = {"position": position, "unreadable": unreadable}
        return cast(Sample, {**sample, **columns, **negative, **counts})


def augmented(picture: Picture, augmentation: Augmentation, draws: Draws) -> Picture:
    """Under the transforms that the position draws."""
    return replace(picture, photos=augmentation.apply(picture.photos, draws.of("data.augmentation"), picture.name))


def degraded(picture: Picture, degradation: Degradation | None, draws: Draws) -> Sample:
    """What training sees of an image, or of an image and its target; see data.batch.Sample."""
    image, *targets = (to_tensor(photo) for photo in picture.photos[:2])
    if degradation is None:
        return {"lq": image, "hq": targets[0] if targets else image}
    parameters = degradation.sample(draws.seed, draws.position, (image.shape[1], image.shape[2]))
    target: Sample = {"target": targets[0]} if targets else {}
    if degradation.batched:
        return {"hq": image, "parameters": parameters, **target}
    return cast(Sample, finished({"hq": image, **degradation.apply(image, parameters), **target}))


def negative_of(picture: Picture) -> dict[str, Any]:
    """negative and has_negative; the image stands in for a negative that it does not have."""
    has_negative = len(picture.photos) > 2
    return {"negative": to_tensor(picture.photos[2 if has_negative else 0]), "has_negative": torch.tensor(float(has_negative))}


class ValidationFaces(Dataset[Sample]):
    """The validation set: the same images under the same degradations, whenever and wherever it is read.

    Position i is image i // degradations_per_image under the degradation drawn from (seed, i). Nothing is augmented, and an
    unreadable image is always an error.

    Args:    images: of which the first target counts. degradation: see TrainingFaces.
             size: side of the centre crop in pixels; None leaves images as they are.
             seed: of the validation alone, so that runs with other training seeds are compared on the same pictures.
    """

    def __init__(
        self,
        *,
        images: Images,
        degradation: Degradation | None,
        degradations_per_image: int,
        size: int | None,
        seed: int,
    ) -> None:
        self.images = images.fixed()
        self.degradation = degradation
        self.degradations_per_image = degradations_per_image
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images.source) * self.degradations_per_image

    def name(self, position: int) -> str:
        """What to call the file that the sample is made of."""
        return self.images.source.name(position // self.degradations_per_image)

    def __getitem__(self, position: int) -> Sample:
        """Raises UnreadableImage, or ValueError: the image is below size."""
        index, draws = position // self.degradations_per_image, Draws(self.seed, position)
        photos = read_photos(self.images.files(index, draws), self.degradation is not None)
        picture = Picture(index, self.images.source.name(index), photos, sizes(photos))
        if self.size is not None:
            check_size(photos[-1], self.size, picture.name, "data.val_size")
            picture = replace(picture, photos=center_crops(photos, self.size, picture.name))
        return {**degraded(picture, self.degradation, draws), "position": position, "unreadable": 0}

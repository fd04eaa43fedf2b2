"""Position to sample: read, crop, flip, degrade. Every draw is a function of (seed, position)."""

import warnings
from typing import Literal, cast

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.augmentation import Augmentation
from data.batch import Degradation, Sample, finished
from data.columns.codes import Codes
from data.columns.components import Components
from data.columns.latents import Latents
from data.images import UnreadableImage, decode, to_tensor
from data.order import BlockOrder, draws, image_at
from data.pairs import check_pair
from data.sources.files import Blocked, Choices, Source

File = tuple[Source, int]  # a source, and the number of a file in it


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


def belonging(others: Source | Choices | None, index: int, rng: np.random.Generator) -> list[File]:
    """The file of others that belongs to the photo of that number, each of several being equally likely; empty: none does."""
    if others is None:
        return []
    if not isinstance(others, Choices):
        return [(others, index)]
    numbers = others.of_photo[index]
    return [(others.whole, numbers[int(rng.integers(len(numbers)))])] if numbers else []


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


def degraded(photos: list[np.ndarray], degradation: Degradation | None, seed: int, position: int) -> Sample:
    """What training sees of a photo, or of a photo and its target; see data.batch.Sample."""
    first, last = to_tensor(photos[0]), to_tensor(photos[-1])
    if degradation is None:
        return {"lq": first, "hq": last}
    parameters = degradation.sample(seed, position, (first.shape[1], first.shape[2]))
    target: Sample = {"target": last} if len(photos) > 1 else {}
    if degradation.batched:
        return {"hq": first, "parameters": parameters, **target}
    return cast(Sample, finished({"hq": first, **degradation.apply(first, parameters), **target}))


def check_size(photo: np.ndarray, size: int, name: str, key: str) -> None:
    """Raises ValueError when a side is below size; the message names the file and the config key."""
    height, width = photo.shape[:2]
    if min(height, width) < size:
        raise ValueError(
            f"{name} is {width}x{height}, smaller than {key}={size}: "
            f"set {key} to {min(height, width)} or less, or take this file out of the folder"
        )


def moving(crop: str, augmentation: Augmentation, targets: Source | Choices | None) -> list[str]:
    """Every setting under which an HQ is not always cut of one image in one way, in words."""
    wrong = [] if crop == "center" else [f"data.crop={crop}, where center is needed"]
    if augmentation.transforms:
        wrong.append(f"augmentation={', '.join(augmentation.transforms)}, where none is needed")
    if isinstance(targets, Choices):
        wrong.append("targets that are drawn (data=hggt)")
    return wrong


def check_fixed(file: str, moved: list[str], degradation: Degradation | None, targets: Source | Choices | None) -> None:
    """Raises ValueError, which names every setting under which an HQ is not always the image that codes were made of."""
    changing = getattr(degradation, "hq_too", ()) if targets is None else ()
    if wrong := [*moved, *([f"degradation.hq_too={list(changing)}, where [] is needed"] if changing else [])]:
        raise ValueError(
            f"data.codes={file} are of images cut in one way, which HQs are not with {'; '.join(wrong)}: change that, or set "
            "data.codes=null to compute codes anew for each sample"
        )


def check_unmoved(file: str, moved: list[str]) -> None:
    """Raises ValueError, which names every setting under which components would be in another place."""
    if moved:
        raise ValueError(
            f"data.components={file} tells places in whole images, which HQs are not with {'; '.join(moved)}: change that, or "
            "set data.components=null"
        )


def check_unmirrored(latents: Latents, moved: list[str], hflip_prob: float, degradation: Degradation | None) -> None:
    """Raises ValueError, which names every setting under which an image is not always that of which latents were made."""
    changing = getattr(degradation, "hq_too", ())
    wrong = [*moved, *([f"data.hflip_prob={hflip_prob}, where 0 is needed"] if hflip_prob else [])]
    if wrong := [*wrong, *([f"degradation.hq_too={list(changing)}, where [] is needed"] if changing else [])]:
        raise ValueError(
            f"{latents.given} are of images cut in one way, which training's are not with {'; '.join(wrong)}: change that, or "
            f"set {latents.key}=null to compute latents anew for each sample"
        )


def check_given(latents: Latents, degradation: Degradation | None) -> None:
    """Raises ValueError: LQs are made anew for each sample, so that nothing can have been made of them before."""
    if degradation is not None:
        raise ValueError(
            f"{latents.given} are of LQs that are given, and the degradation makes others for each sample: choose data=pairs, "
            f"or set {latents.key}=null"
        )


def check_whole(photos: list[np.ndarray], size: int, name: str) -> None:
    """Raises ValueError: the HQ, the last of the photos, isn't the whole image scaled to size, so components are elsewhere."""
    height, width = photos[-1].shape[:2]
    if height != width:
        raise ValueError(
            f"{name} is {width}x{height}, and data.components are of square images: align its face (python -m data.prepare "
            "align), take it out of data.root, or set data.components=null"
        )
    if photos[0].shape != photos[-1].shape and height != size:
        raise ValueError(
            f"{name} has an HQ of {width}x{height}, larger than itself, of which data.size={size} is the middle, where "
            f"data.components don't hold: set data.size={height}, or data.components=null"
        )


class FaceDataset(Dataset[Sample]):
    """Training samples by position 0, 1, 2, …, without end; PositionSampler says which positions to ask for.

    Args:    targets: of the images of source, in their order (data.pairs), or several for each (data.hggt); None: an image is
                 its own.
             negatives: of the images, where samples have a negative; an image without any stands in for it.
             codes: of the HQs, where they were made before (data.codes).
             components: of the HQs: where their eyes and mouths are (data.components).
             latents: of the HQs in an autoencoder, where they were made before (data.latents).
             condition_latents: of the restorations of given LQs, likewise.
             real: clean faces that a discriminator sees instead of the HQs; cut and mirrored as these are, each by itself.
             degradation: makes the LQ of an image; None: the images are LQs, and targets are given.
             augmentation: of an image and what belongs to it alike, before everything else.
             size: side of the HQ in pixels; of the LQ too, unless it came smaller.
             crop: center: scaled and cut as DiffBIR does; random: cut at the photograph's own scale.
             hflip_prob: HQ and LQ are mirrored together, before the degradation.
             on_error: skip: the next readable image of the order stands in for an unreadable one, under the position's own
                 draws, and is counted; raise: stop. An image below size is an error with both.
             keep_decoded: decoded images stay in memory (of each worker): for a few images that are read again and again.
    Raises:  ValueError: codes, components or latents are given, and the HQ or LQ is not always the image that they are of.
    """

    def __init__(
        self,
        *,
        source: Source,
        targets: Source | Choices | None,
        negatives: Choices | None,
        codes: Codes | None,
        components: Components | None,
        latents: Latents | None,
        condition_latents: Latents | None,
        real: Source | None,
        degradation: Degradation | None,
        augmentation: Augmentation,
        size: int,
        crop: Literal["center", "random"],
        hflip_prob: float,
        seed: int,
        on_error: Literal["raise", "skip"],
        keep_decoded: bool,
    ) -> None:
        moved = moving(crop, augmentation, targets)
        if codes is not None:
            check_fixed(codes.file, moved, degradation, targets)
        if components is not None:
            check_unmoved(components.file, moved)
        if latents is not None:
            check_unmirrored(latents, moved, hflip_prob, degradation if targets is None else None)
        if condition_latents is not None:
            check_given(condition_latents, degradation)
            check_unmirrored(condition_latents, moved, hflip_prob, None)
        self.source = source
        self.targets = targets
        self.negatives = negatives
        self.codes = codes
        self.components = components
        self.latents = latents
        self.condition_latents = condition_latents
        self.real = real
        self.decoded: dict[tuple[int, ...], list[np.ndarray]] | None = {} if keep_decoded else None
        self.degradation = degradation
        self.augmentation = augmentation
        self.size = size
        self.crop = crop
        self.hflip_prob = hflip_prob
        self.seed = seed
        self.on_error = on_error
        blocks = source.blocks if isinstance(source, Blocked) else ()
        self.block_order = BlockOrder(lengths=blocks, seed=seed) if blocks else None

    def __getitem__(self, position: int) -> Sample:
        """Raises UnreadableImage: the file, or with on_error=skip every file. ValueError: the image can't be cut as asked."""
        photos, index, unreadable = self._photos(position)
        name = self.source.name(index)
        if self.components is not None:
            check_whole(photos, self.size, name)
        photos = self.augmentation.apply(photos, draws(self.seed, position, "data.augmentation"), name)
        photos = self._cut(photos, position, name, "data")
        made = degraded(photos[:2], self.degradation, self.seed, position)
        if self.codes is not None:
            made["target_codes"] = self.codes.of(index, self._mirrored(position, "data"), photos[-1], name)
        if self.components is not None:
            made["components"] = self.components.of(index, self._mirrored(position, "data"))
        if self.latents is not None:
            made["hq_moments"] = self.latents.of(index, photos[-1], name)
        if self.condition_latents is not None:
            made["condition_moments"] = self.condition_latents.of(index, photos[0], name)
        real: Sample = {} if self.real is None else {"real": self._real(self.real, position)}
        return {**made, **self._negative(photos), **real, "position": position, "unreadable": unreadable}

    def _mirrored(self, position: int, stream: str) -> bool:
        return bool(draws(self.seed, position, f"{stream}.flip").random() < self.hflip_prob)

    def _cut(self, photos: list[np.ndarray], position: int, name: str, stream: str) -> list[np.ndarray]:
        """Cropped and mirrored alike by the draws of a stream."""
        check_size(photos[-1], self.size, name, "data.size")
        if self.crop == "center":
            photos = center_crops(photos, self.size, name)
        else:
            photos = random_crops(photos, self.size, draws(self.seed, position, f"{stream}.crop"), name)
        if self._mirrored(position, stream):
            photos = [cv2.flip(photo, 1) for photo in photos]
        return photos

    def _negative(self, photos: list[np.ndarray]) -> Sample:
        """negative and has_negative, where samples have them."""
        if self.negatives is None:
            return {}
        has_negative = len(photos) > 2
        return {"negative": to_tensor(photos[2 if has_negative else 0]), "has_negative": torch.tensor(float(has_negative))}

    def _real(self, source: Source, position: int) -> Tensor:
        """(3, size, size): the clean face at a position of its own order. Raises UnreadableImage, or ValueError: too small."""
        index = image_at(position, len(source), self.seed + 1)  # another seed: else equal counts would pair the two
        return to_tensor(self._cut([read_image(source, index)], position, source.name(index), "data.real")[0])

    def _photos(self, position: int) -> tuple[list[np.ndarray], int, int]:
        """The photo at a position and what belongs to it; its number, and how many files before it were passed over."""
        count = len(self.source)
        for passed_over in range(2 * count):  # any stretch of 2 * count positions holds a whole pass
            index = self._image_at(position + passed_over)
            try:
                return self._read(self._files(index, position)), index, passed_over
            except UnreadableImage as error:
                if self.on_error == "raise":
                    raise
                warnings.warn(f"data.on_error=skip passes over {error}", stacklevel=2)  # Python shows each file once
        raise UnreadableImage(f"none of the {count} images can be read, the first is {self.source.name(0)}: check data.root")

    def _image_at(self, position: int) -> int:
        if self.block_order is not None:
            return self.block_order.image_at(position)
        return image_at(position, len(self.source), self.seed)

    def _files(self, index: int, position: int) -> list[File]:
        """The photo of that number, then the target and the negative that the position draws."""
        target = belonging(self.targets, index, draws(self.seed, position, "data.target"))
        return [(self.source, index), *target, *belonging(self.negatives, index, draws(self.seed, position, "data.negative"))]

    def _read(self, files: list[File]) -> list[np.ndarray]:
        if self.decoded is None:
            return read_photos(files, self.degradation is not None)
        numbers = tuple(index for _, index in files)
        if numbers not in self.decoded:
            self.decoded[numbers] = read_photos(files, self.degradation is not None)
        return self.decoded[numbers]


class FixedFaces(Dataset[Sample]):
    """The validation set: the same images under the same degradations, whenever and wherever it is read.

    Position i is image i // degradations_per_image under the degradation drawn from (seed, i). Nothing is augmented, and an
    unreadable image is always an error.

    Args:    targets, degradation: see FaceDataset.
             size: side of the centre crop in pixels; None leaves images as they are.
             seed: of the validation alone, so that runs with other training seeds are compared on the same pictures.
    """

    def __init__(
        self,
        *,
        source: Source,
        targets: Source | None,
        degradation: Degradation | None,
        degradations_per_image: int,
        size: int | None,
        seed: int,
    ) -> None:
        self.source = source
        self.targets = targets
        self.degradation = degradation
        self.degradations_per_image = degradations_per_image
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source) * self.degradations_per_image

    def __getitem__(self, position: int) -> Sample:
        """Raises UnreadableImage, or ValueError: the image is below size."""
        index = position // self.degradations_per_image
        target = [] if self.targets is None else [(self.targets, index)]
        photos = read_photos([(self.source, index), *target], self.degradation is not None)
        if self.size is not None:
            name = self.source.name(index)
            check_size(photos[-1], self.size, name, "data.val_size")
            photos = center_crops(photos, self.size, name)
        return {**degraded(photos, self.degradation, self.seed, position), "position": position, "unreadable": 0}

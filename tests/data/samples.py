"""Data sets as a run makes them of its configuration, with the settings of small tests; a test names what it changes."""

from functools import partial

import numpy as np

from data.augmentation import Augmentation
from data.columns.codes import Codes
from data.columns.column import Setting
from data.columns.components import Components
from data.columns.latents import ConditionLatents, Latents
from data.columns.real import RealFaces
from data.cutting import Cut
from data.faces import TrainingFaces, ValidationFaces
from data.module import FaceData
from data.order import Draws
from data.reading import Images, Picture
from data.roots import Roots
from data.sources.files import ImageFolder

DRAWS = Draws(seed=0, position=0)  # for columns that draw nothing
COLUMNS = {
    "codes": partial(Codes, key="data.codes"),
    "components": partial(Components, key="data.components"),
    "latents": partial(Latents, key="data.latents"),
    "condition_latents": partial(ConditionLatents, key="data.condition_latents"),
    "real": partial(RealFaces, key="data.real_root"),
}


def bound(
    column,
    source,
    *,
    size=16,
    crop="center",
    hflip_prob=0.0,
    targets=None,
    degradation=None,
    augmentation=None,
    on_error="raise",
):
    """The column, ready to be asked for the images of a source."""
    setting = Setting(
        source=source,
        targets=targets,
        degradation=degradation,
        augmentation=augmentation or Augmentation(transforms={}),
        cut=Cut(size=size, crop=crop, hflip_prob=hflip_prob),
        on_error=on_error,
        open=lambda key, root: ImageFolder(root=root),
    )
    column.bind(setting)
    return column


def picture(index, photo=None, *, mirrored=False, name="it", size=16):
    """An image of the training size, as a column is shown it."""
    photo = np.zeros((size, size, 3), np.uint8) if photo is None else photo
    return Picture(index, name, [photo], [photo.shape[:2]], mirrored=mirrored)


def training_faces(
    source,
    degradation,
    *,
    targets=None,
    negatives=None,
    columns=(),
    augmentation=None,
    size=16,
    crop="center",
    hflip_prob=0.0,
    seed=5,
    on_error="raise",
    keep_decoded=False,
):
    """Columns are bound to the source."""
    shown = {"size": size, "crop": crop, "hflip_prob": hflip_prob}
    augmentation = augmentation or Augmentation(transforms={})
    for column in columns:
        bound(column, source, targets=targets, degradation=degradation, augmentation=augmentation, on_error=on_error, **shown)
    return TrainingFaces(
        images=Images(source, targets, negatives),
        columns=columns,
        degradation=degradation,
        augmentation=augmentation,
        cut=Cut(**shown),
        seed=seed,
        on_error=on_error,
        keep_decoded=keep_decoded,
    )


def validation_faces(source, degradation, *, targets=None, **settings):
    return ValidationFaces(images=Images(source, targets, None), degradation=degradation, **settings)


ROOTS = {
    "val_root": None,
    "paired": False,
    "target_root": None,
    "val_target_root": None,
    "val_images": 2,
    "first": None,
    "source": partial(ImageFolder),
    "expects": "A folder of test faces is expected.",
}
SHOWN = {"size": 16, "crop": "random", "hflip_prob": 0.5}
OTHERS = {
    "batch_size": 4,
    "num_workers": 0,
    "on_error": "raise",
    "keep_decoded": False,
    "val_size": 16,
    "val_degradations": 2,
    "val_batch_size": 1,
    "seed": 3,
    "val_seed": 0,
}


def face_data(root, degradation, **changes):
    """As a configuration makes it, whose keys changes are; columns are named as in data.columns, by their paths."""
    groups = [{key: changes.pop(key, value) for key, value in group.items()} for group in (ROOTS, SHOWN, OTHERS)]
    roots, shown, others = groups
    columns = {name: make(path=changes.pop(name, None)) for name, make in COLUMNS.items()}
    return FaceData(
        roots=Roots(root=None if root is None else str(root), **roots),
        columns=columns,
        degradation=degradation,
        augmentation=changes.pop("augmentation", Augmentation(transforms={})),
        cut=Cut(**shown),
        **others,
        **changes,
    )

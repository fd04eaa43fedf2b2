"""Photos with a given target: which belong together, and how they stay aligned.

`data=pairs`: LQ and HQ are given. `data=ffhqr`: the LQ is made of FFHQ's photo, and the target is the retouched one of FFHQR
(Shafaei et al. 2021, https://github.com/skylab-tech/ffhqr-dataset).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from data.sources.shown import first_few
from data.sources.source import Named, Picked, Source


def targets_of(photos: Source, targets: Source, key: str) -> Source:
    """The target of each photo, in the photos' order.

    Their names must be the same but for suffixes, and their subfolders too, unless no two files of a side share a name. Where
    all photos end in one scale, as DIV2K's LRs (0001x4.png), it does not count.

    Args:    key: config key of the targets' root, for messages.
    Raises:  ValueError: photos without a target, targets without a photo, two files for one name, or a source without names.
    """
    if not isinstance(photos, Named) or not isinstance(targets, Named):
        raise ValueError(
            f"{key} and the photos are paired by name, which rows of a table lack: give folders, lists or archives"
        )
    ours, theirs = _without_scale([_stem(path) for path in photos.paths]), [_stem(path) for path in targets.paths]
    if not _twice(_last(ours)) and not _twice(_last(theirs)):
        ours, theirs = _last(ours), _last(theirs)
    if twice := _twice(ours) or _twice(theirs):
        raise ValueError(f"{key}: several files are named {twice}, suffixes aside, so which belong together is open: keep one")
    number = {stem: index for index, stem in enumerate(theirs)}
    known = set(ours)
    lonely = [path for path, stem in zip(photos.paths, ours, strict=True) if stem not in number]
    unused = [path for path, stem in zip(targets.paths, theirs, strict=True) if stem not in known]
    if lonely or unused:
        raise ValueError(
            f"{key} must hold images of the same names as the photos' root, but "
            f"{len(lonely)} of {len(ours)} photos have no target{_listed(lonely)} and "
            f"{len(unused)} of {len(theirs)} targets have no photo{_listed(unused)}"
        )
    return Picked(whole=targets, indices=[number[stem] for stem in ours])


def _stem(path: str) -> str:
    return PurePosixPath(path).with_suffix("").as_posix()


def _without_scale(stems: list[str]) -> list[str]:
    endings = {stem[-2:] for stem in stems}
    return [stem[:-2] for stem in stems] if len(endings) == 1 and endings <= {"x2", "x3", "x4", "x8"} else stems


def _last(stems: list[str]) -> list[str]:
    return [stem.rpartition("/")[2] for stem in stems]


def _twice(stems: list[str]) -> str:
    name, count = Counter(stems).most_common(1)[0]
    return name if count > 1 else ""


def _listed(paths: Sequence[str]) -> str:
    return f" ({first_few(paths)})" if paths else ""


def check_pair(photo: np.ndarray, target: np.ndarray, name: str, degraded: bool, what: Literal["target", "negative"]) -> None:
    """Whether a photo can be trained towards its target, or away from its negative.

    Args:    photo: (h, w, 3). target: (s * h, s * w, 3) with a whole number s, which must be 1 if degraded.
             degraded: the LQ is made of the photo.
    Raises:  ValueError: the sizes don't fit; the message gives both.
    """
    (height, width), (target_height, target_width) = photo.shape[:2], target.shape[:2]
    scale = target_height // height
    if scale < 1 or (target_height, target_width) != (scale * height, scale * width) or (degraded and scale > 1):
        whole = "" if degraded else ", or be a whole number of times larger"
        raise ValueError(
            f"{name} is {width}x{height} and its {what} {target_width}x{target_height}: "
            f"a {what} must be of the photo's size{whole}"
        )

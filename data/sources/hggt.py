"""HGGT: photographs whose enhanced versions people have graded (Chen et al. 2023, https://github.com/ChrisDud0257/HGGT).

A group is a photograph, four enhanced versions of it, and a file of labels of each of three annotators:
images/SET/original/NAME.png, images/SET/01/NAME_01.png to 04/NAME_04.png, and labels/SET/A/NAME.json, B and C. The level SET
may be missing, as it is in the test set. See PosNegGTSR/datasets/README.md there, and posneggtposneg_dataset.py for the labels.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data.sources.files import Files, existing
from data.sources.listing import entries_of
from data.sources.shown import first_few
from data.sources.source import Choices

IMAGES = {"original": ".png", "01": "_01.png", "02": "_02.png", "03": "_03.png", "04": "_04.png"}  # folder -> end of its names
ANNOTATORS = {"A": ".json", "B": ".json", "C": ".json"}
PICTURES = ("Picture_2", "Picture_3", "Picture_4", "Picture_5")  # what the labels call 01 to 04
LABELS = ("Positive", "Similar", "Negative")

Group = tuple[list[str], list[str]]  # paths of the original and of its versions; labels of the versions


class Groups(Files):
    """The originals of the groups to train on. A target is a Positive version, or the original where there is none.

    A version is what two of the three annotators call it, and Similar when each says something else.

    Args:    root: the folder that holds images and labels.
             negatives: False: groups with a Positive ('Pos' of the paper). True: groups with a Positive or a Negative
                 ('Pos+Neg'), and the Negative versions are the negatives.
    Raises:  ValueError: folders or files are missing, a file of labels doesn't hold what it should, or no group is left.
    """

    def __init__(self, *, root: str, negatives: bool) -> None:
        folder = existing(root, "the folder that holds HGGT's images and labels")
        found = [group for each in _sets(folder) for group in _groups(folder, each)]
        wanted = {"Positive", "Negative"} if negatives else {"Positive"}
        kept = [(images, labels) for images, labels in found if wanted & set(labels)]
        if not kept:
            raise ValueError(
                f"{root} holds {len(found)} groups, and none has a version that is {' or '.join(sorted(wanted, reverse=True))} "
                f"to two annotators: check the labels{'' if negatives else ', or set data.source.negatives=true'}"
            )
        super().__init__(root=folder, paths=[images[0] for images, _ in kept])
        whole = Files(root=folder, paths=[path for images, _ in kept for path in images])
        positive, negative = (
            [_numbers(labels, label, group * len(IMAGES)) for group, (_, labels) in enumerate(kept)]
            for label in ("Positive", "Negative")
        )
        originals = range(0, len(whole), len(IMAGES))
        targets = [numbers or [original] for numbers, original in zip(positive, originals, strict=True)]
        self.targets = Choices(whole=whole, of_photo=targets)
        self.negatives = Choices(whole=whole, of_photo=negative) if negatives else None


def _numbers(labels: Sequence[str], wanted: str, original: int) -> list[int]:
    """Where the versions of that label stand among all images, given where their original stands."""
    return [original + number for number, label in enumerate(labels, start=1) if label == wanted]


def _sets(root: Path) -> list[str]:
    """Names of the folders in images that hold groups; '' when images does so itself, or is empty."""
    images = root / "images"
    inside = [entry.name for entry in entries_of(images) if entry.is_dir()] if images.is_dir() else []
    return inside if inside and not IMAGES.keys() & set(inside) else [""]


def _groups(root: Path, of_set: str) -> list[Group]:
    """The groups of a set by name. Raises ValueError, see Groups."""
    images, labels = (
        {PurePosixPath(kind, of_set, folder).as_posix(): end for folder, end in folders.items()}
        for kind, folders in (("images", IMAGES), ("labels", ANNOTATORS))
    )
    if missing := [folder for folder in (*images, *labels) if not (root / folder).is_dir()]:
        raise ValueError(f"{root} lacks the folders {first_few(missing)}: give the folder that holds HGGT's images and labels")
    groups = []
    for name in _names(root, {**images, **labels}):
        of_each = [read_labels(root / folder / f"{name}{end}") for folder, end in labels.items()]
        paths = [f"{folder}/{name}{end}" for folder, end in images.items()]
        groups.append((paths, [majority(votes) for votes in zip(*of_each, strict=True)]))
    return groups


def _names(root: Path, folders: dict[str, str]) -> list[str]:
    """Names of the groups, sorted, from what lies in the folders. Raises ValueError: a group has no file in one of them."""
    there = {
        folder: {entry.name.removesuffix(end) for entry in entries_of(root / folder) if entry.name.endswith(end)}
        for folder, end in folders.items()
    }
    names = sorted(set().union(*there.values()))
    missing = [f"{folder}/{name}{end}" for name in names for folder, end in folders.items() if name not in there[folder]]
    if missing:
        incomplete = sum(any(name not in found for found in there.values()) for name in names)
        raise ValueError(
            f"{root}: {len(missing)} files of {incomplete} of the {len(names)} groups are missing ({first_few(missing)}): "
            "each needs an original, its versions 01 to 04, and labels of A, B and C; add these, or take the group out"
        )
    return names


def read_labels(file: Path) -> list[str]:
    """What one annotator calls the versions 01 to 04. Raises ValueError, which names the file."""
    try:
        pictures: Any = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}): fetch it again, or take its group out") from error
    pictures = pictures if isinstance(pictures, dict) else {}
    if lacking := [each for each in PICTURES if not isinstance(pictures.get(each), dict) or "Label" not in pictures[each]]:
        raise ValueError(f"{file} has no Label of {', '.join(lacking)}: fetch it again, or take its group out")
    labels = {each: pictures[each]["Label"] for each in PICTURES}
    if unknown := {each: label for each, label in labels.items() if label not in LABELS}:
        listed = ", ".join(f"{each} {label!r}" for each, label in unknown.items())
        raise ValueError(f"{file} calls {listed}: a label is {', '.join(LABELS[:-1])} or {LABELS[-1]}; correct it")
    return list(labels.values())


def majority(votes: Sequence[str]) -> str:
    """The label of a version from those of the three annotators."""
    ((label, count),) = Counter(votes).most_common(1)
    return label if count > 1 else "Similar"

"""Where the eyes and the mouth of each training image are, for networks that judge these by themselves (GFPGAN)."""

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from data.columns.column import Column, Setting
from data.columns.names import lacking, paths_of, rows_of
from data.columns.pickles import load
from data.duplicates import perceptual_hash
from data.images import UnreadableImage, decode
from data.order import Draws
from data.reading import Picture
from data.sources.files import existing
from data.sources.shown import first_few, of_cell
from data.sources.source import Source

PARTS = ("left_eye", "right_eye", "mouth")  # left and right in the picture
COLUMNS = ("path", "side_px", *(f"{part}_{what}" for part in PARTS for what in ("x", "y", "half")))
HASH = "hash"  # a column more: perceptual, so that it is that of the image at any size
OFFICIAL_SIDE_PX = 512
LOOKED_AT = 5  # images of data.root whose hash is compared
# Of 256. Portraits at another size differ in 4 at most, retouched ones in few, LQs of them in 6 to 22 (medians of the published
# degradations), those of two people in 86 or more.
MAX_DISTANCE_BITS = 64


@dataclass(frozen=True)
class ComponentFile:
    """What a file of components holds, of n images."""

    names: list[str]
    side_px: np.ndarray  # (n,) float64: the image is square
    components: np.ndarray  # (n, 3, 3) float64: of each of PARTS the centre's x and y and half a side, in pixels of that image
    hashes: list[int | None]  # hash_of each image; None: the file doesn't say

    def impossible(self) -> list[str]:
        """Names of the images whose components are no numbers, or lie out of the image."""
        side, centre, half = self.side_px[:, None], self.components[..., :2], self.components[..., 2]
        inside = ((centre >= 0) & (centre <= side[..., None])).all(axis=2) & (half > 0) & (half <= side / 2)
        good = inside.all(axis=1) & np.isfinite(self.side_px)
        return [name for name, is_good in zip(self.names, good, strict=True) if not is_good]


def hash_of(photo: np.ndarray) -> str:
    """64 hexadecimal digits that tell a photo, (h, w, 3) uint8 RGB, at any size."""
    return perceptual_hash(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY))


def read(file: str) -> ComponentFile:
    """A file of `python -m data.prepare landmarks`, or GFPGAN's FFHQ_eye_mouth_landmarks_512.pth; no code of it is ever run.

    Raises:  ValueError: there is no such file, it holds something else, or places that are none.
    """
    path = existing(file, "a file of python -m data.prepare landmarks")
    try:
        contents = _official(path) if path.suffix == ".pth" else _ours(path)
    except Exception as error:  # damaged bytes raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"data.components={file} is damaged or no file of components ({reason:.120}): give components.csv as python -m "
            "data.prepare landmarks writes it, or GFPGAN's FFHQ_eye_mouth_landmarks_512.pth"
        ) from error
    if wrong := contents.impossible():
        raise ValueError(
            f"data.components={file}: the components of {len(wrong)} images are no numbers, or lie out of the image "
            f"({first_few(wrong)}): correct these lines, or make the file again with python -m data.prepare landmarks"
        )
    return contents


def _ours(path: Path) -> ComponentFile:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        if missing := set(COLUMNS) - set(reader.fieldnames or ()):
            raise ValueError(f"it lacks the columns {first_few(sorted(missing))}")
        rows = list(reader)
    numbers = np.array([[float(row[column]) for column in COLUMNS[1:]] for row in rows]).reshape(-1, 10)
    hashes = [int(row[HASH], 16) if row.get(HASH) else None for row in rows]
    return ComponentFile([of_cell(row["path"]) for row in rows], numbers[:, 0], numbers[:, 1:].reshape(-1, 3, 3), hashes)


def _official(path: Path) -> ComponentFile:
    """'00000000', '00000001', … as FFHQ counts -> part -> x, y and half a side in pixels of 512 (scripts/parse_landmark.py)."""
    content = load(path)
    numbers = [[[float(number) for number in of_image[part]] for part in PARTS] for of_image in content.values()]
    components = np.array(numbers).reshape(-1, 3, 3)
    return ComponentFile(list(content), np.full(len(content), float(OFFICIAL_SIDE_PX)), components, [None] * len(content))


class Components(Column):
    """Where the parts of the HQs are, and of their mirror images.

    Args:    path: a file, see `read`.
    """

    tensor = "components"

    def bind(self, setting: Setting) -> None:
        """Raises ValueError: the file is of other images of the same names, or components would be in another place."""
        assert self.path is not None
        contents, source, self.size = read(self.path), setting.source, setting.cut.size
        rows = self._rows(source, contents.names)
        self._check_faces(source, [contents.hashes[row] for row in rows[:LOOKED_AT]])
        at_size = contents.components * (self.size / contents.side_px)[:, None, None]
        self.places = torch.from_numpy(at_size[rows].astype(np.float32))
        if moved := setting.moved():
            raise ValueError(
                f"{self.given} tells places in whole images, which HQs are not with {'; '.join(moved)}: change that, or set "
                f"{self.key}=null"
            )

    def _rows(self, source: Source, names: list[str]) -> np.ndarray:
        """(n,): the place in the file of each image."""
        paths = paths_of(source)
        if paths is None and len(names) > len(source):
            raise ValueError(
                f"{self.given} is of {len(names)} images and data.root holds {len(source)}, which have no "
                "names: make another one with python -m data.prepare landmarks"
            )
        paths = paths or [str(index) for index in range(len(source))]
        rows = rows_of(paths, names)
        if rows is None:
            lonely = lacking(paths, names)
            listed = (
                f"lacks {len(lonely)} of the {len(paths)} images of data.root ({first_few(lonely)}): take them out of there"
            )
            raise ValueError(
                f"{self.given} {listed if lonely else 'has several images of one name: rename them'}, or run "
                "python -m data.prepare landmarks on data.root, which with missing=template gives images in which it finds no "
                "face the places of FFHQ's mean face"
            )
        return rows

    def _check_faces(self, source: Source, hashes: list[int | None]) -> None:
        """Raises ValueError: most of the source's first images don't look like those of these hashes."""
        others, looked_at = [], 0
        for index, wanted in enumerate(hashes):
            if wanted is None:
                continue
            try:
                found = int(hash_of(decode(source.read(index), source.name(index))), 16)
            except (OSError, UnreadableImage):  # data.on_error says what becomes of it
                continue
            looked_at += 1
            if (found ^ wanted).bit_count() > MAX_DISTANCE_BITS:
                others.append(source.name(index))
        if 2 * len(others) > looked_at:
            raise ValueError(
                f"{self.given} is of other images of these names: {len(others)} of the first {looked_at} of "
                f"data.root don't look like them ({first_few(others)}): give the file that was made of data.root, or make "
                "another one with python -m data.prepare landmarks"
            )

    def of(self, picture: Picture, draws: Draws) -> Tensor:
        """(3, 3) float32: of left eye, right eye and mouth the centre's x and y and half a side.

        They are in pixels of the HQ at size. Mirrored, x becomes size - x, as in the reference, and the eyes change places.

        Raises:  ValueError: the HQ isn't the whole image scaled to size, so that components are elsewhere.
        """
        height, width = picture.sizes[-1]
        if height != width:
            raise ValueError(
                f"{picture.name} is {width}x{height}, and {self.key} are of square images: align its face (python -m "
                f"data.prepare align), take it out of data.root, or set {self.key}=null"
            )
        if picture.sizes[0] != picture.sizes[-1] and height != self.size:
            raise ValueError(
                f"{picture.name} has an HQ of {width}x{height}, larger than itself, of which data.size={self.size} is the "
                f"middle, where {self.key} don't hold: set data.size={height}, or {self.key}=null"
            )
        places = self.places[picture.index]
        if not picture.mirrored:
            return places.clone()
        return torch.cat([self.size - places[[1, 0, 2], :1], places[[1, 0, 2], 1:]], dim=1)

    def check_precision(self, precision: str | None) -> None:
        """Raises ValueError: pixels of half precision are coarse."""
        if precision == "bf16-true":
            raise ValueError(f"trainer.precision=bf16-true would round {self.key} to 2 px: set bf16-mixed, or {self.key}=null")

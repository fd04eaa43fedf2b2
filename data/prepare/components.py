"""Where the eyes and the mouth of each aligned face are, found once, for GFPGAN's training (data/columns/components.py)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from data.columns.components import COLUMNS, HASH, hash_of
from data.columns.names import paths_of
from data.landmarks import PRELOAD, TEMPLATE, TEMPLATE_SIDE
from data.looks import middle_512, template_face
from data.prepare.jobs.files import Unusable, write_csv
from data.prepare.jobs.records import Record, Shard
from data.prepare.jobs.work import run, store
from data.reading import read_image
from data.sources.files import Files
from data.sources.opening import open_images
from data.sources.shown import printable
from data.sources.source import Source

FILE = "components.csv"
MIN_HALF_PX = 16.0  # at 512, as in the reference
EYE = 0.2  # half an eye, corner to corner, over the distance of the eyes: what the reference takes of more landmarks


def landmarks(
    *,
    root: Path,
    out: Path,
    missing: Literal["leave_out", "template"] = "leave_out",
    min_confidence: Annotated[float, Ge(0), Le(1)] = 0.9,
    max_offset_px: Annotated[float, Gt(0)] = 40,
    workers: Annotated[int, Ge(0)] = 0,
    shard: str = "",
) -> int:
    """Find the eyes and the mouth of aligned faces, which GFPGAN's training judges by themselves.

    OUT/components.csv has for each image the centre and half a side of the squares around left eye, right eye and mouth; train
    on them with data.components=OUT/components.csv. An image without a face where an aligned one has it is named and left out,
    and so is one that can't be read or isn't square. With other limits a second run only reads what the first one found.

    Args:
        root: aligned faces: whatever data.root may be (folder, list, zip, tar, LMDB, shards, parquet)
        out: folder for the file
        missing: an image without such a face is left out, and training refuses it; or it gets the places of FFHQ's mean face
        min_confidence: the face detector's, 0 to 1
        max_offset_px: the landmarks' mean lies at most so far from the template's, in pixels of the image brought to 512
        workers: processes; 0 means one for each core
        shard: part i of n of the work as i/n; by default the task's place in a SLURM job array
    """
    place = Shard.parse(shard)
    source = open_images(root=str(root))
    paths = paths_of(source) or [str(index) for index in range(len(source))]
    work = run(
        name="landmarks",
        root=source.root if isinstance(source, Files) else root,
        out=out,
        paths=paths,
        measure=Found(source, {path: number for number, path in enumerate(paths)}),
        settings={"store": store(source, root)},
        workers=workers,
        shard=place,
        preload=PRELOAD,
    )
    unusable = work.unusable()
    faceless = {path: why for path, record in work.own.items() if (why := reason(record, min_confidence, max_offset_px))}
    for path, why in faceless.items():
        print(f"{printable(path)}: {why}{': the places of the mean face' if missing == 'template' else ''}")
    print(f"{len(work.own)} images, {len(faceless)} without an aligned face, {unusable} not usable")
    if work.complete(FILE):
        write_csv(out / FILE, (*COLUMNS, HASH), rows(work.records, min_confidence, max_offset_px, missing == "template"))
        print(f"train on them with data.components={out / FILE}")
    return 1 if unusable or (faceless and missing == "leave_out") else 0


def reason(record: Record, min_confidence: float, max_offset_px: float) -> str:
    """Why the landmarks on record are not those of an aligned face, or an empty text."""
    if "error" in record:
        return ""
    sure = record["confidence"]
    if sure < min_confidence or not sure:
        return f"no face was found with confidence {min_confidence:g} (best {sure:g})"
    offset = float(np.hypot(*(np.array(record["points_512"]).mean(axis=0) - TEMPLATE.mean(axis=0))))
    if offset > max_offset_px:
        return f"the face lies {offset:.0f} px beside an aligned face's place (at most {max_offset_px:g} px, at 512)"
    return ""


def rows(records: dict[str, Record], min_confidence: float, max_offset_px: float, template: bool) -> Iterator[Record]:
    """The lines of components.csv. template: images without an aligned face get the places of the template, else no line."""
    for path, record in records.items():
        faceless = bool(reason(record, min_confidence, max_offset_px))
        if "error" not in record and (template or not faceless):
            points = TEMPLATE if faceless else np.array(record["points_512"])
            numbers = (components(points) * (record["side_px"] / TEMPLATE_SIDE)).round(3).ravel().tolist()
            hashed = record.get("hash", "")  # of records from before there was one
            yield dict(zip((*COLUMNS, HASH), [path, record["side_px"], *numbers, hashed], strict=True))


def components(points: np.ndarray) -> np.ndarray:
    """Five landmarks at 512, (5, 2) as in the template, to (3, 3): x, y and half a side for left eye, right eye and mouth.

    The reference takes half the larger side of the box around an eye's or the mouth's landmarks (scripts/parse_landmark.py).
    """
    left, right, _, *corners = points
    eye = EYE * float(np.linalg.norm(right - left))
    mouth = float(np.linalg.norm(corners[1] - corners[0])) / 2
    halves = np.maximum([eye, eye, mouth], MIN_HALF_PX)
    return np.column_stack([[left, right, np.mean(corners, axis=0)], halves])


@dataclass(frozen=True)
class Found:
    """One image to the landmarks of its face, in pixels of the image at 512. numbers: path -> number in the source."""

    source: Source
    numbers: dict[str, int]

    def __call__(self, path: str) -> Record:
        number = self.numbers[path]
        photo = read_image(self.source, number)
        height, width = photo.shape[:2]
        if height != width:
            raise Unusable(f"{self.source.name(number)} is {width}x{height}, not square: align its face (align)")
        about: Record = {"side_px": width, "hash": hash_of(photo)}
        face = template_face(middle_512(photo))
        if face is None:
            return {**about, "confidence": 0.0}
        return {**about, "confidence": round(face.confidence, 4), "points_512": face.points.round(3).tolist()}

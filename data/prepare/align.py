"""Faces in photographs to crops that lie as in FFHQ."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from data.landmarks import (
    POINTS,
    PRELOAD,
    TEMPLATE,
    TEMPLATE_SIDE,
    Border,
    DetectorName,
    Face,
    detector,
    scale_of,
    share_outside,
    similarity,
    warp,
)
from data.prepare.jobs.files import encode, output_stems, read_photo, write_bytes, write_csv
from data.prepare.jobs.following import tell_next
from data.prepare.jobs.names import check_files
from data.prepare.jobs.records import Record, Shard
from data.prepare.jobs.work import listing, run

COLUMNS = (
    *("file", "source", "face", "confidence", "left", "top", "right", "bottom", "face_px", "crop_px", "outside"),
    *("spread_px", "source_width", "source_height", *(f"{point}_{axis}" for point in POINTS for axis in "xy")),
)


def align(
    *,
    root: Path,
    out: Path,
    size: Annotated[int, Ge(16)] = 512,
    largest: bool = False,
    detector: DetectorName = "mobile",
    weights: Path | None = None,
    min_face_px: Annotated[float, Gt(0)] = 32,
    min_confidence: Annotated[float, Ge(0), Le(1)] = 0.9,
    longest_side_px: Annotated[int, Ge(64)] = 2048,
    border: Border = "grey",
    workers: Annotated[int, Ge(0)] = 0,
    shard: str = "",
) -> int:
    """Cut out the faces of photographs, turned and scaled to the FFHQ template.

    A face a file: OUT/name_00.png is the largest of root's name.jpg, name_01.png the next. OUT/faces.csv has for each its
    source, box, landmarks, confidence and size there; OUT/without_faces.txt names the photographs in which none was found. The
    transform is the similarity that brings five landmarks nearest to the 512 template of facexlib and GFPGAN.

    Args:
        root: folder of photographs, subfolders too
        out: folder for the crops, with the same subfolders
        size: side of a crop in pixels
        largest: only the largest face of a photograph
        detector: mobile (a small RetinaFace) and the slow mtcnn come with their weights; retinaface needs facexlib and weights=
        weights: RetinaFace's file, such as detection_Resnet50_Final.pth
        min_face_px: smaller faces are left out; height of the face in the photograph in pixels
        min_confidence: less certain faces are left out; 0 to 1
        longest_side_px: a larger photograph is reduced to this for the search; more finds smaller faces and takes memory
        border: what a crop shows beyond the photograph: grey (132, 133, 135), or the photograph mirrored
        workers: processes; 0 means one for each core
        shard: part i of n of the work as i/n; by default the task's place in a SLURM job array
    """
    place = Shard.parse(shard)
    if detector == "retinaface":
        find_detector(detector, weights, longest_side_px)  # what is missing is said before the work
    paths = listing(root, out)
    stems = output_stems(paths)
    check_files({path: f"{stem}_00.png" for path, stem in stems.items()}, out)
    cut = Cut(root, out, stems, size, largest, detector, weights, min_face_px, min_confidence, longest_side_px, border)
    settings: Record = {"size": size, "largest": largest, "detector": detector, "weights": str(weights), "border": border}
    settings |= {"min_face_px": min_face_px, "min_confidence": min_confidence, "longest_side_px": longest_side_px}
    work = run(
        name="align",
        root=root,
        out=out,
        paths=paths,
        measure=cut,
        settings=settings,
        workers=workers,
        shard=place,
        preload=PRELOAD,
    )
    unusable = work.unusable()
    print(f"{counted(list(work.own.values()))}, {unusable} not usable")
    if work.complete("faces.csv"):
        write_lists(out, work.records)
        print(f"where each face comes from: {out / 'faces.csv'}")
        tell_next(out, sum(len(record.get("faces", ())) for record in work.records.values()), size)
    return 1 if unusable else 0


def counted(records: list[Record]) -> str:
    """How many photographs there are, and how many faces in them, in words."""
    faces = sum(len(record.get("faces", ())) for record in records)
    without = sum(record.get("faces") == [] for record in records)
    return f"{len(records)} photographs, {faces} faces, {without} photographs without a face"


find_detector = detector  # the command's own key has this name


def write_lists(out: Path, records: dict[str, Record]) -> None:
    """faces.csv and without_faces.txt of all shards."""
    write_csv(out / "faces.csv", COLUMNS, (row for record in records.values() for row in record.get("faces", ())))
    without = [f"{path}\n" for path, record in records.items() if record.get("faces") == []]
    write_bytes(out / "without_faces.txt", "".join(without).encode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class Cut:
    """One photograph to its crops; the fields are the command's keys."""

    root: Path
    out: Path
    stems: dict[str, str]
    size: int
    largest: bool
    detector: DetectorName
    weights: Path | None
    min_face_px: float
    min_confidence: float
    longest_side_px: int
    border: Border

    def __call__(self, path: str) -> Record:
        photo = read_photo(self.root / path)
        find = find_detector(self.detector, self.weights, self.longest_side_px)
        faces = [face for face in find(photo, self.min_face_px) if face.confidence >= self.min_confidence]
        rows = []
        for number, face in enumerate(faces[:1] if self.largest else faces):
            file = f"{self.stems[path]}_{number:02}.png"
            matrix = similarity(face.points, TEMPLATE * (self.size / TEMPLATE_SIDE))
            write_bytes(self.out / file, encode(warp(photo, matrix, self.size, self.border), ".png"))
            outside = share_outside(matrix, self.size, *photo.shape[:2])
            sizes = {"source_width": photo.shape[1], "source_height": photo.shape[0]}
            figures = {"crop_px": round(self.size / scale_of(matrix), 1), "outside": round(outside, 4)}
            rows.append({"file": file, "source": path, "face": number} | row_of(face) | figures | sizes)
        return {"faces": rows, "outputs": [row["file"] for row in rows]}


def row_of(face: Face) -> dict[str, Any]:
    """The columns that describe the face in its photograph."""
    box = dict(zip(("left", "top", "right", "bottom"), face.box.round(2).tolist(), strict=True))
    names = (f"{point}_{axis}" for point in POINTS for axis in "xy")
    points = dict(zip(names, face.points.round(2).ravel().tolist(), strict=True))
    spread = {} if math.isnan(face.spread_px) else {"spread_px": round(face.spread_px, 2)}
    return {"confidence": round(face.confidence, 4), "face_px": round(face.height_px, 1)} | spread | box | points

"""The faces of photographs as a table: what was found, which are restored, and what a user corrects by hand."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np

from data.landmarks import POINTS, Face
from data.photographs import Format
from data.sources.files import first_few
from data.sources.shown import in_cell, of_cell
from data.writing import write_bytes

BOX = ("left", "top", "right", "bottom")
LANDMARKS = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")
COLUMNS = ("file", "face", "score", "eye_px", *BOX, *LANDMARKS, "aligned", "skipped")


@dataclass
class Placed:
    """One face, in pixels of its photograph."""

    points: list[float]  # x and y of five landmarks, in the order of LANDMARKS
    box: list[float] = field(default_factory=lambda: [math.nan] * 4)
    score: float = 1.0
    aligned: bool = False  # the photograph as a whole is the face
    skipped: str = ""  # why it is not restored

    @classmethod
    def of(cls, face: Face, *, aligned: bool = False) -> "Placed":
        return cls(face.points.ravel().tolist(), face.box.tolist(), face.confidence, aligned)

    @property
    def landmarks(self) -> np.ndarray:
        """(5, 2)."""
        return np.array(self.points).reshape(5, 2)

    @property
    def eye_px(self) -> float:
        """Distance of the eyes."""
        return float(np.linalg.norm(self.landmarks[1] - self.landmarks[0]))


def write(path: Path, faces: Sequence[Placed]) -> None:
    """The faces of one photograph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps([asdict(face) for face in faces]).encode())


def write_table(folder: Path, table: Path, photographs: Sequence[str]) -> None:
    """faces.csv of what `write` left in a folder, by the photographs' names.

    Args:    photographs: those that are restored now. Others count where their output lies beside the table: what was only
             looked at, by a command that was killed, is passed over.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    known = set(photographs)
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix().removesuffix(".json")
        if name not in known and not any((table.parent / name).with_suffix(f".{form}").exists() for form in get_args(Format)):
            continue
        for number, face in enumerate(json.loads(path.read_text(encoding="utf-8"))):
            writer.writerow(_row(name, number, Placed(**face)))
    write_bytes(table, text.getvalue().encode("utf-8", "surrogateescape"))


def read_table(table: Path, photographs: Sequence[str]) -> dict[str, list[Placed]]:
    """Photograph -> its faces, of a table such as faces.csv; `file` and the landmarks are enough.

    Raises: ValueError: it can't be read, lacks a column, has a landmark that is no number, or names no photograph of these.
    """
    found: dict[str, list[Placed]] = {}
    try:
        rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8", errors="surrogateescape"))))
    except (OSError, csv.Error) as error:
        raise ValueError(f"faces_from={table} can't be read: {error}") from error
    if rows and (lacking := [column for column in ("file", *LANDMARKS) if column not in rows[0]]):
        raise ValueError(f"faces_from={table} lacks the column {lacking[0]}: give a table like faces.csv beside the outputs")
    for line, row in enumerate(rows, start=2):
        try:
            points = [float(row[column]) for column in LANDMARKS]
            box = [float(row.get(side) or math.nan) for side in BOX]
            score = float(row.get("score") or 1)
            if not np.isfinite(points).all() or len({*zip(points[::2], points[1::2], strict=True)}) < 2:
                raise ValueError("its landmarks are not five places")
        except (TypeError, ValueError) as error:
            raise ValueError(f"faces_from={table}, line {line}: {error}") from error
        face = Placed(points, box, score, (row.get("aligned") or "") == "true", row.get("skipped") or "")
        found.setdefault(of_cell(row["file"]), []).append(face)
    if unknown := [name for name in found if name not in set(photographs)]:
        raise ValueError(f"faces_from={table} names photographs that input does not hold: {first_few(unknown)}")
    return found


def _row(file: str, number: int, face: Placed) -> dict[str, object]:
    sides = dict(zip(BOX, ("" if math.isnan(side) else round(side, 2) for side in face.box), strict=True))
    points = dict(zip(LANDMARKS, (round(value, 2) for value in face.points), strict=True))
    about = {"file": in_cell(file), "face": number, "score": round(face.score, 4), "eye_px": round(face.eye_px, 1)}
    return about | sides | points | {"aligned": "true" if face.aligned else "", "skipped": face.skipped}

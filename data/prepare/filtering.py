"""Which images of a folder of aligned faces are good enough to train on."""

import csv
import difflib
import importlib.util
import os
import urllib.error
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
from annotated_types import Ge, Le

from data.landmarks import PRELOAD, TEMPLATE_SIDE
from data.looks import FACE, middle_512, template_face
from data.prepare.jobs.files import read_photo, write_csv, write_text
from data.prepare.jobs.following import tell_next
from data.prepare.jobs.names import judge, of_listed
from data.prepare.jobs.records import Record, Shard
from data.prepare.jobs.report import Chart, Tile, page
from data.prepare.jobs.work import Work, listing, run
from data.sources.files import START
from data.sources.shown import of_cell

FIGURES = ("face_px", "sharpness", "confidence", "spread_px", "quality")
WORDS = {
    "face_px": "height of the face in pixels",
    "sharpness": "sharpness: variance of the Laplacian",
    "confidence": "confidence of the face detector",
    "spread_px": "spread of the landmarks in pixels",
}


@dataclass(frozen=True)
class Bound:
    """A figure's least or greatest value that is kept."""

    figure: str
    value: float
    least: bool

    def fails(self, figures: Record) -> str:
        """Why these figures don't pass, or an empty text. A figure that could not be measured doesn't pass."""
        measured = figures.get(self.figure)
        if measured is None:
            return f"{self.figure} could not be measured"
        if measured < self.value if self.least else measured > self.value:
            return f"{self.figure} {measured:g} is {'below' if self.least else 'above'} {self.value:g}"
        return ""


def filter_faces(
    *,
    root: Path,
    out: Path,
    min_face_px: Annotated[float, Ge(0)] = 0,
    min_sharpness: Annotated[float, Ge(0)] = 50,
    min_confidence: Annotated[float, Ge(0), Le(1)] = 0.95,
    max_spread_px: Annotated[float, Ge(0)] = 6,
    quality: str = "",
    quality_limit: float | None = None,
    device: str = "cpu",
    thumbnails: Annotated[int, Ge(0)] = 200,
    workers: Annotated[int, Ge(0)] = 0,
    shard: str = "",
) -> int:
    """Choose the images that are good enough to train on, by size, sharpness, quality and how plainly the face is seen.

    OUT/kept.txt lists them, a path relative to root a line, and trains as it is: data.root=OUT/kept.txt; OUT/figures.csv has every file's figures and the reasons for which
    it was dropped; OUT/report.html shows both with thumbnails. With other limits a second run only reads what the first one
    measured. No image is copied, moved or changed.

    Args:
        root: folder of aligned faces, subfolders too
        out: folder for the lists and for what was measured
        min_face_px: height of the face in pixels: in the photograph it was cut from where root holds align's faces.csv, else in the file; 0 keeps all
        min_sharpness: variance of the Laplacian of luma (0 to 255) between eyes and mouth, of the file brought to 512; 0 keeps all
        min_confidence: of the face detector, 0 to 1; 0 keeps all, also files without a face
        max_spread_px: 30 readings of the landmarks lie this far apart at most (r.m.s., at 512): they do where a face is covered, turned away or blurred; 0 keeps all
        quality: a metric of the package pyiqa that needs no reference, such as musiq, clipiqa or niqe; none by default
        quality_limit: least value of quality that is kept (greatest, where lower is better); by default quality is only reported
        device: for quality: cpu or cuda; each worker holds the metric once
        thumbnails: the report shows at most so many kept and so many dropped images
        workers: processes; 0 means one for each core
        shard: part i of n of the work as i/n; by default the task's place in a SLURM job array
    """  # noqa: E501
    place = Shard.parse(shard)
    if quality_limit is not None and not quality:
        raise ValueError(f"quality_limit={quality_limit:g} needs quality=, such as quality=musiq")
    lower_better = bool(quality) and metric(quality, device).lower_better  # what is missing is said before the work
    paths = listing(root, out)
    check_names(paths)
    bounds = [Bound("sharpness", min_sharpness, True), Bound("confidence", min_confidence, True)]
    bounds += [Bound("face_px", min_face_px, True), Bound("spread_px", max_spread_px, False)]
    bounds = [bound for bound in bounds if bound.value]
    bounds += [] if quality_limit is None else [Bound("quality", quality_limit, not lower_better)]
    name = f"filter-{quality}" if quality else "filter"
    measure = Figures(root, quality, device)
    work = run(
        name=name, root=root, out=out, paths=paths, measure=measure, settings={}, workers=workers, shard=place, preload=PRELOAD
    )
    unusable = work.unusable()
    if work.complete("kept.txt, figures.csv and report.html"):
        write_choice(root, out, work, bounds, quality, thumbnails)
    return 1 if unusable else 0


def check_names(paths: list[str]) -> None:
    """Raises ValueError: a list with a path a line can't hold one."""
    judge({path: path for path in paths}, of_listed, "a list of paths")


def write_choice(root: Path, out: Path, work: Work, bounds: list[Bound], quality: str, thumbnails: int) -> None:
    """The three files, and a summary on stdout."""
    figures, source = _with_photographs(root, work.records)
    reasons = {path: _reasons(record, bounds) for path, record in figures.items()}
    kept = [path for path, why in reasons.items() if not why]
    counts = Counter(bound.figure for record in figures.values() for bound in bounds if bound.fails(record))
    rows = {"folder": str(root), "files": str(len(reasons)), "kept": str(len(kept)), "size of faces": source}
    rows |= {f"limit of {one.figure}": f"{one.value:g}: {counts[one.figure]} do not pass" for one in bounds}
    named = (name for name in FIGURES if name != "quality" or quality)
    words = WORDS | {"quality": f"quality: {quality}"}
    limits = {bound.figure: bound.value for bound in bounds}
    charts = [Chart(words[name], _values(figures, name), limits.get(name)) for name in named]
    tiles = [Tile(path, _words(record), tuple(reasons[path])) for path, record in figures.items()]
    html = page(title="Faces kept and dropped", root=root, rows=rows, tiles=tiles, charts=charts, most=thumbnails)
    columns = ("path", "kept", *FIGURES, "reasons")
    lines = ({"path": p, "kept": int(not reasons[p]), "reasons": "; ".join(reasons[p])} | _only(figures[p]) for p in figures)
    write_csv(out / "figures.csv", columns, lines)
    write_text(out / "report.html", html)
    start = os.path.relpath(root.resolve(), out.resolve())
    write_text(out / "kept.txt", f"{START}{start}\n" + "".join(f"{path}\n" for path in kept))
    print(f"{len(kept)} of {len(reasons)} files kept; not passed: {', '.join(f'{n} {k}' for k, n in counts.items()) or 'none'}")
    print(f"why, with pictures: {out / 'report.html'}")
    sides = [min(figures[path]["width"], figures[path]["height"]) for path in kept if "width" in figures[path]]
    tell_next(out / "kept.txt", len(kept), min(sides, default=TEMPLATE_SIDE))


def _reasons(record: Record, bounds: list[Bound]) -> list[str]:
    if "error" in record:
        return [record["error"]]
    return [why for bound in bounds if (why := bound.fails(record))]


def _only(record: Record) -> Record:
    return {name: record[name] for name in FIGURES if record.get(name) is not None}


def _words(record: Record) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in _only(record).items())


def _values(figures: dict[str, Record], name: str) -> list[float]:
    return [record[name] for record in figures.values() if record.get(name) is not None]


def _with_photographs(root: Path, records: dict[str, Record]) -> tuple[dict[str, Record], str]:
    """Records whose face_px is that of the photograph where align's faces.csv tells it, and where it is from, in words."""
    table = root / "faces.csv"
    if not table.is_file():
        return records, "in the files themselves"
    with table.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        heights = {of_cell(row["file"]): float(row["face_px"]) for row in csv.DictReader(file)}
    known = {path: record | ({"face_px": heights[path]} if path in heights else {}) for path, record in records.items()}
    return known, f"in the photographs ({table}; {sum(path not in heights for path in records)} files are not in it)"


@dataclass(frozen=True)
class Figures:
    """One file to its figures; the fields are the command's keys."""

    root: Path
    quality: str
    device: str

    def __call__(self, path: str) -> Record:
        photo = read_photo(self.root / path)
        crop = middle_512(photo)
        luma = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[FACE]
        figures: Record = {"width": photo.shape[1], "height": photo.shape[0]}
        figures |= {"sharpness": round(float(cv2.Laplacian(luma, cv2.CV_64F).var()), 2), "confidence": 0.0}
        face = template_face(crop)
        if face is not None:
            figures["confidence"] = round(face.confidence, 4)
            figures["face_px"] = round(face.height_px * min(photo.shape[:2]) / crop.shape[0], 1)
            if not np.isnan(face.spread_px):
                figures["spread_px"] = round(face.spread_px, 2)
        if self.quality:
            figures["quality"] = round(score(crop, self.quality, self.device), 4)
        return figures


@torch.no_grad()
def score(crop: np.ndarray, quality: str, device: str) -> float:
    """A pyiqa metric of (512, 512, 3) uint8."""
    image = torch.from_numpy(crop.transpose(2, 0, 1).copy())[None].float() / 255
    return float(metric(quality, device)(image.to(device)).item())


@lru_cache(maxsize=1)
def metric(quality: str, device: str) -> Any:
    """A metric of pyiqa, once a process.

    Raises:  ValueError: the package, the metric or its weights are missing, or the metric needs a reference.
    """
    if importlib.util.find_spec("pyiqa") is None:
        raise ValueError(f"quality={quality} needs the package pyiqa: uv pip install pyiqa, or leave out quality=")
    import pyiqa

    names = pyiqa.list_models(metric_mode="NR")
    if quality not in names:
        near = difflib.get_close_matches(quality, names, n=3, cutoff=0.3) or names[:3]
        raise ValueError(f"quality={quality} is no metric of pyiqa that works without reference: give {', '.join(near)}, …")
    try:
        return pyiqa.create_metric(quality, device=device)
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(
            f"quality={quality}: pyiqa has not got its weights and can't fetch them ({error}): call it once where there is a "
            "network, and copy ~/.cache/torch/hub/pyiqa here"
        ) from error

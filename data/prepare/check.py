"""What is wrong with a folder of aligned faces, file by file."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Ge, Gt, Le

from data.duplicates import MAX_DISTANCE_BITS, near_duplicates, perceptual_hash
from data.images import decode
from data.landmarks import PRELOAD, TEMPLATE, TEMPLATE_SIDE, scale_of, similarity
from data.looks import FEW_PX, MIN_DETAIL, detail, middle_512, template_face
from data.prepare.jobs.files import read_bytes, write_csv, write_text
from data.prepare.jobs.records import Record, Shard
from data.prepare.jobs.work import Work, listing, run
from data.sources.shown import printable

Kind = Literal["corrupt", "small", "grey", "enlarged", "duplicate", "no_face", "off_centre", "misaligned"]
KINDS: tuple[Kind, ...] = ("corrupt", "small", "grey", "enlarged", "duplicate", "no_face", "off_centre", "misaligned")
OF_FACES = {"no_face", "off_centre", "misaligned"}


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one file: the figure measured, the limit that it passes, and both in words."""

    path: str
    kind: Kind
    figure: float | None
    limit: float | None
    unit: str
    reason: str


@dataclass(frozen=True)
class Limits:
    """The command's keys of these names."""

    min_side_px: int
    max_grey_spread_255: float
    max_distance_bits: int
    min_confidence: float
    max_offset_px: float
    max_rotation_deg: float
    max_scale: float
    min_detail: float = MIN_DETAIL


def check(
    *,
    root: Path,
    out: Path,
    kinds: tuple[Kind, ...] = KINDS,
    min_side_px: Annotated[int, Ge(1)] = 512,
    max_grey_spread_255: Annotated[float, Ge(0), Le(255)] = 8,
    max_distance_bits: Annotated[int, Ge(0), Le(MAX_DISTANCE_BITS)] = 12,
    min_detail: Annotated[float, Ge(0)] = MIN_DETAIL,
    min_confidence: Annotated[float, Ge(0), Le(1)] = 0.9,
    max_offset_px: Annotated[float, Gt(0)] = 40,
    max_rotation_deg: Annotated[float, Gt(0)] = 10,
    max_scale: Annotated[float, Gt(1)] = 1.25,
    workers: Annotated[int, Ge(0)] = 0,
    shard: str = "",
) -> int:
    """Name every file of a folder of aligned faces that is corrupt, too small, grey, enlarged, a duplicate, off-centre or misaligned.

    One line each on stdout with the reason and the measured figure, and the same in OUT/report.csv and OUT/report.json.
    Exit code 0 when nothing was found, else 1. With other limits a second run only reads what the first one measured.

    Args:
        root: folder of images, subfolders too
        out: folder for the report and for what was measured
        kinds: what to look for; no_face, off_centre and misaligned need a face detector and take most of the time. A file that can't be decoded is always named
        min_side_px: small: the shorter side is below this
        max_grey_spread_255: grey: in 99 of 100 pixels the largest and smallest colour channel differ by no more, 0 to 255
        max_distance_bits: duplicate: so many of 256 bits of a perceptual hash differ, at most, from those of an earlier file
        min_detail: enlarged: what is lost when the face is brought to 128 px and back is below this, in percent of its contrast
        min_confidence: no_face: no face is found with at least this confidence, 0 to 1
        max_offset_px: off_centre: the landmarks' mean lies farther from the template's, in pixels of the file brought to 512
        max_rotation_deg: misaligned: the face is turned by more against the template, in degrees
        max_scale: misaligned: the face is larger or smaller than the template's by more than this factor
        workers: processes; 0 means one for each core
        shard: part i of n of the work as i/n; by default the task's place in a SLURM job array
    """  # noqa: E501
    place = Shard.parse(shard)
    limits = Limits(
        min_side_px,
        max_grey_spread_255,
        max_distance_bits,
        min_confidence,
        max_offset_px,
        max_rotation_deg,
        max_scale,
        min_detail,
    )
    faces = bool(OF_FACES & set(kinds))
    name = "check-faces" if faces else "check"
    paths = listing(root, out)
    work = run(
        name=name,
        root=root,
        out=out,
        paths=paths,
        measure=Look(root, faces),
        settings={},
        workers=workers,
        shard=place,
        preload=PRELOAD if faces else ("torch", "cv2"),
    )
    whole = work.complete("report.csv")
    found = findings(work.records if whole else work.own, kinds, limits)
    for finding in found:
        print(printable(f"{finding.path}: {finding.kind}: {finding.reason}"))
    if whole:
        write_report(out, work, found, kinds, limits)
    print(summary(found, len(work.records if whole else work.own)))
    return 1 if found else 0


def summary(found: list[Finding], files: int) -> str:
    counts = Counter(finding.kind for finding in found)
    named = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
    return f"{files} files, {len({finding.path for finding in found})} with something wrong{f': {named}' if named else ''}"


def write_report(out: Path, work: Work, found: list[Finding], kinds: tuple[Kind, ...], limits: Limits) -> None:
    rows = [asdict(finding) for finding in found]
    write_csv(out / "report.csv", list(Finding.__dataclass_fields__), rows)
    counts = Counter(finding.kind for finding in found)
    report = {"files": len(work.records), "kinds": kinds, "limits": asdict(limits), "counts": counts, "found": rows}
    write_text(out / "report.json", json.dumps(report, indent=1))


def findings(records: dict[str, Record], kinds: tuple[Kind, ...], limits: Limits) -> list[Finding]:
    """Everything of these kinds, by path; corrupt files always."""
    found = [finding for path, record in records.items() for finding in _of_file(path, record, limits)]
    if "duplicate" in kinds:
        found += _duplicates(records, limits.max_distance_bits)
    wanted = {"corrupt", *kinds}
    return sorted((one for one in found if one.kind in wanted), key=lambda one: (one.path, KINDS.index(one.kind)))


def _of_file(path: str, record: Record, limits: Limits) -> Iterator[Finding]:
    if "error" in record:
        yield Finding(path, "corrupt", record["bytes"], None, "bytes", record["error"])
        return
    side, spread = min(record["width"], record["height"]), record["grey_spread_255"]
    if side < limits.min_side_px:
        reason = f"{record['width']}x{record['height']}, the shorter side is below {limits.min_side_px} px"
        yield Finding(path, "small", side, limits.min_side_px, "px", reason)
    if spread <= limits.max_grey_spread_255:
        reason = f"the colour channels differ by {spread:g} (at most {limits.max_grey_spread_255:g} of 255 counts as grey)"
        yield Finding(path, "grey", spread, limits.max_grey_spread_255, "of 255", reason)
    if record.get("detail", limits.min_detail) < limits.min_detail:
        reason = (
            f"no more detail than {FEW_PX} px enlarged: {record['detail']:g} % of its contrast, below {limits.min_detail:g}"
        )
        yield Finding(path, "enlarged", record["detail"], limits.min_detail, "percent", reason)
    if "confidence" in record:
        yield from _of_face(path, record, limits)


def _of_face(path: str, record: Record, limits: Limits) -> Iterator[Finding]:
    sure = record["confidence"]
    if sure < limits.min_confidence:
        reason = f"no face was found with confidence {limits.min_confidence:g} (best {sure:g})"
        yield Finding(path, "no_face", sure, limits.min_confidence, "confidence", reason)
        return
    offset, turned, scale = record["offset_px"], record["rotation_deg"], record["scale"]
    if offset > limits.max_offset_px:
        reason = f"the face lies {offset:.0f} px beside the template (at most {limits.max_offset_px:g} px, at 512)"
        yield Finding(path, "off_centre", offset, limits.max_offset_px, "px", reason)
    if abs(turned) > limits.max_rotation_deg:
        reason = f"the face is turned by {turned:.1f} degrees, clockwise above 0 (at most {limits.max_rotation_deg:g})"
        yield Finding(path, "misaligned", turned, limits.max_rotation_deg, "degrees", reason)
    if max(scale, 1 / scale) > limits.max_scale:
        reason = f"the face is {scale:.2f} times the template's size (at most {limits.max_scale:g} times larger or smaller)"
        yield Finding(path, "misaligned", scale, limits.max_scale, "times", reason)


def _duplicates(records: dict[str, Record], max_distance_bits: int) -> Iterator[Finding]:
    hashed = {path: record for path, record in records.items() if "hash" in record}
    paths = list(hashed)
    same: dict[str, str] = {}
    near = near_duplicates([record["hash"] for record in hashed.values()], max_distance_bits)
    for place, path in enumerate(paths):
        first = same.setdefault(hashed[path]["sha256"], path)
        if first != path:
            yield Finding(path, "duplicate", 0, max_distance_bits, "bits of 256", f"the same bytes as {first}")
        elif place in near:
            like, distance = paths[near[place][0]], near[place][1]
            reason = f"looks like {like}: {distance} of 256 bits differ (at most {max_distance_bits} count as the same)"
            yield Finding(path, "duplicate", distance, max_distance_bits, "bits of 256", reason)


@dataclass(frozen=True)
class Look:
    """One file to its figures.

    Args:    faces: find the face too.
    """

    root: Path
    faces: bool

    def __call__(self, path: str) -> Record:
        contents = read_bytes(self.root / path)
        photo = decode(contents, str(self.root / path))
        height, width = photo.shape[:2]
        red, green, blue = cv2.split(photo)
        spread = np.percentile(cv2.max(cv2.max(red, green), blue) - cv2.min(cv2.min(red, green), blue), 99)
        figures: Record = {"width": width, "height": height, "grey_spread_255": float(spread)}
        figures["hash"] = perceptual_hash(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY))
        figures["sha256"] = hashlib.sha256(contents).hexdigest()
        crop = middle_512(photo)
        if min(height, width) >= TEMPLATE_SIDE:  # a smaller one is small, and would be enlarged here
            figures["detail"] = round(detail(crop), 2)
        return figures | (face_figures(crop) if self.faces else {})


def face_figures(crop: np.ndarray) -> Record:
    """How the face lies against the template, in a (512, 512, 3) crop."""
    face = template_face(crop)
    if face is None:
        return {"confidence": 0.0}
    to_template = similarity(face.points, TEMPLATE)  # as align would move it
    offset = face.points.mean(axis=0) - TEMPLATE.mean(axis=0)
    return {
        "confidence": round(face.confidence, 4),
        "offset_px": round(float(np.hypot(*offset)), 2),
        "rotation_deg": round(-math.degrees(math.atan2(to_template[1, 0], to_template[0, 0])), 2),
        "scale": round(1 / scale_of(to_template), 4),
    }

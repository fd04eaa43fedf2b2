"""Photographs in and out of files: read whole, written whole, named without collisions."""

import csv
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from data import writing
from data.images import UnreadableImage, decode
from data.sources.shown import in_cell


class Unusable(ValueError):
    """A file that can be read but not used as asked; the message names it and says why."""


def read_bytes(path: Path) -> bytes:
    """Raises UnreadableImage, which names the file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path} can't be read: {error.strerror or error}") from error


def read_photo(path: Path) -> np.ndarray:
    """(h, w, 3) uint8 RGB. Raises UnreadableImage, which names the file."""
    return decode(read_bytes(path), str(path))


def write_bytes(path: Path, contents: bytes) -> None:
    """A reader, or a process that is killed, never leaves or sees half a file. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write_bytes(path, contents)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    """Rows may lack columns: these stay empty. Texts are harmless to a spreadsheet (data.sources.shown.in_cell)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    harmless = ({key: in_cell(cell) if isinstance(cell, str) else cell for key, cell in row.items()} for row in rows)
    writer.writerows(harmless)
    write_text(path, text.getvalue())


def encode(photo: np.ndarray, suffix: str, jpeg_quality: int = 95) -> bytes:
    """8-bit PNG, or JPEG with full colour resolution, of (h, w, 3) uint8 RGB."""
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, contents = cv2.imencode(suffix, photo[..., ::-1], jpeg if suffix == ".jpg" else [])
    if not done:
        raise RuntimeError(f"OpenCV could not encode {photo.shape} as {suffix}")
    return contents.tobytes()


def output_stems(paths: list[str]) -> dict[str, str]:
    """Each path without its suffix; a.jpg and a.png beside each other keep theirs, so that both can be written as PNG.

    Args:    paths: relative, with forward slashes.
    Raises:  ValueError: two files would still become one.
    """
    plain = {path: PurePosixPath(path).with_suffix("").as_posix() for path in paths}
    shared = Counter(plain.values())
    stems = {path: path if shared[stem] > 1 else stem for path, stem in plain.items()}
    taken: dict[str, str] = {}
    for path, stem in stems.items():
        if stem in taken:
            raise ValueError(f"{taken[stem]} and {path} would be written as one file: rename one of them")
        taken[stem] = path
    return stems

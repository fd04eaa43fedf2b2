"""What is an image, by its name, and what is left aside: the same for folders, archives and data sets."""

import errno
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal

from data.sources.shown import printable

# What is listed is what can be opened (data/images.py): suffix -> the format as Pillow calls it.
FORMATS = {
    **{".bmp": "BMP", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"},
    **{".avif": "AVIF", ".gif": "GIF", ".jfif": "JPEG"},
}
SUFFIXES = tuple(FORMATS)
LEFT_ASIDE = (
    *(".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx", ".jxl", ".jxr", ".jpe", ".mpo", ".apng", ".dib", ".pcx"),
    *(".psd", ".psb", ".xcf", ".kra", ".tga", ".pbm", ".pgm", ".pnm", ".ppm", ".exr", ".hdr", ".dds", ".ico", ".svg", ".eps"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".qoi", ".raf", ".raw", ".rw2", ".srw"),
)
# Folders in which a system keeps what is its own: thumbnails, attributes, what was deleted.
OF_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
LEADS_NOWHERE = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)  # what else is wrong with a link than that nothing is there


def is_hidden(path: str) -> bool:
    """Whether a part of a path with forward slashes begins with a dot, as .ipynb_checkpoints, or is a system's own."""
    return any(part in OF_SYSTEMS or (part.startswith(".") and part not in (".", "..")) for part in path.split("/"))


def is_image(path: str) -> bool:
    """Whether a path with forward slashes, relative to what is listed, names an image that is not hidden."""
    return path.lower().endswith(SUFFIXES) and not is_hidden(path)


def images_among(paths: Iterable[str], root: str) -> list[str]:
    """The images, in the order given. Warns of what looks like a picture and is none of them, by suffix."""
    paths = list(paths)
    tell_left_aside(paths, root)
    return [path for path in paths if is_image(path)]


def tell_left_aside(paths: Iterable[str], root: str) -> None:
    """Warns of pictures that are not read, by suffix; Python shows each sentence once."""
    aside = Counter(
        suffix for path in paths if (suffix := PurePosixPath(path).suffix.lower()) in LEFT_ASIDE and not is_hidden(path)
    )
    if aside:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(aside.items()))
        warnings.warn(f"{printable(root)}: left aside are {counts}, which are not read: make PNG or JPEG of them", stacklevel=2)


def files_below(root: Path) -> list[str]:
    """All files below a folder that are not hidden, relative to it and sorted; links are followed.

    Each real folder counts once: under its own path where it lies below root, else under the first link to it. A link to a
    folder that root lies in is a loop, and is passed over.

    Raises:  ValueError: a folder can't be read, or what is called an image is a pipe or a device.
    """
    found: list[str] = []
    seen = {_real(folder) for folder in root.resolve().parents}
    starts = [""]
    for start in starts:  # which grows by the links that are found
        folders = [start]
        for folder in folders:  # which grows by the folders that are found
            real = _real(root / folder)
            if start and real in seen:
                continue
            seen.add(real)
            for entry in entries_of(root / folder):
                path, kind = f"{folder}/{entry.name}" if folder else entry.name, _kind(entry)
                if kind == "folder":
                    (starts if entry.is_symlink() else folders).append(path)
                elif kind == "file":
                    found.append(path)
                elif is_image(path):
                    raise ValueError(f"{printable(entry.path)} is a pipe or a device, no file: take it out")
    return sorted(found)


def _real(folder: Path) -> tuple[int, int]:
    """By what a folder is the same under all its names."""
    with _named(folder):
        state = folder.stat()
    return state.st_dev, state.st_ino


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder and is not hidden, by name. Raises ValueError: it can't be read."""
    with _named(folder), os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "other"]:
    """A link is what it leads to; one that leads nowhere counts as a file, and whoever reads that names it."""
    with _named(entry.path):
        try:
            if entry.is_dir():
                return "folder"
            return "file" if entry.is_file() or not os.path.exists(entry.path) else "other"
        except OSError as error:
            if error.errno in LEADS_NOWHERE:
                return "file"
            raise


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Raises ValueError, which names the path, for an OSError."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{printable(str(path))} can't be read ({error.strerror}): make it readable, or take it out"
        ) from error

"""Where bytes come from: names and contents, nothing about faces."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@runtime_checkable
class Source(Protocol):
    """Files under numbers 0 .. len - 1, in an order that is the same on every machine."""

    def __len__(self) -> int:
        """Number of files."""

    def name(self, index: int) -> str:
        """What to call the file in a message."""

    def read(self, index: int) -> bytes:
        """The file's contents. Raises OSError when it can't be read."""


@runtime_checkable
class Named(Source, Protocol):
    """A source whose files have names of their own, so that they can be told apart and paired (data/pairs.py)."""

    paths: list[str]  # relative to the root, with forward slashes


@runtime_checkable
class Blocked(Source, Protocol):
    """A source that is read in blocks of neighbours; data/order.py keeps to a block while it lasts."""

    blocks: tuple[int, ...]  # lengths, in order; their sum is the source's length


def is_image(path: str) -> bool:
    """Whether a path with forward slashes names an image that is not hidden."""
    name = path.rpartition("/")[2]
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def existing(root: str, what: str) -> Path:
    """root as a path. Raises ValueError, which says what was wanted, when nothing is there."""
    path = Path(root).expanduser()
    if not path.exists():
        raise ValueError(f"{root} does not exist (looked in {Path.cwd()}): give {what}")
    return path


def first_few(names: Sequence[str]) -> str:
    """Three names for a message, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Files:
    """Files below a folder.

    Args:    paths: relative to root, with forward slashes.
    """

    def __init__(self, *, root: Path, paths: list[str]) -> None:
        self.root = root
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The full path."""
        return str(self.root / self.paths[index])

    def read(self, index: int) -> bytes:
        """The file's contents."""
        return (self.root / self.paths[index]).read_bytes()


class ImageFolder(Files):
    """All images below a folder, links followed, sorted by their path relative to it; dot files are left out.

    Args:    root: the folder.
    Raises:  ValueError: it doesn't exist, is no folder, or holds no image.
    """

    def __init__(self, *, root: str) -> None:
        folder = existing(root, "a folder of images")
        if not folder.is_dir():
            raise ValueError(f"{root} is a file: give the folder that holds the images")
        super().__init__(root=folder, paths=sorted(_walk(folder)))
        if not self.paths:
            raise ValueError(
                f"{root} holds no image, in subfolders neither: files that end in {', '.join(SUFFIXES)} are looked for"
            )


def _walk(root: Path) -> list[str]:
    """Paths of the images below root relative to it, with forward slashes."""
    found = []
    for folder, _, names in os.walk(root, followlinks=True):
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names if is_image(name)]
    return found


class FileList(Files):
    """The files that a text file lists, one path a line, in its order; blank lines and lines that start with # are skipped.

    Args:    root: the text file, UTF-8.
             relative_to: folder that the paths start from; None: the one the list lies in.
    Raises:  ValueError: the list doesn't exist or is empty, or files that it lists don't exist.
    """

    def __init__(self, *, root: str, relative_to: str | None) -> None:
        file = existing(root, "a text file that lists images")
        if not file.is_file():
            raise ValueError(f"{root} is a folder: give the text file that lists images, or data/source=folder")
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{root} is no text file ({error}): give one path of an image a line") from error
        paths = [line for line in lines if line and not line.startswith("#")]
        super().__init__(root=Path(relative_to).expanduser() if relative_to else file.parent, paths=paths)
        if not self.paths:
            raise ValueError(f"{root} lists no image: give one path a line")
        missing = [path for path in self.paths if not (self.root / path).is_file()]
        if missing:
            raise ValueError(
                f"{root} lists {len(self.paths)} files, {len(missing)} of which don't exist in {self.root}: "
                f"{first_few(missing)}; correct it, or give the folder its paths start from as data.source.relative_to=DIR "
                "with data/source=list"
            )


class Picked:
    """Some files of another source, in another order.

    Args:    indices: of the whole.
    """

    def __init__(self, *, whole: Source, indices: Sequence[int]) -> None:
        self.whole = whole
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """As the whole names it."""
        return self.whole.name(self.indices[index])

    def read(self, index: int) -> bytes:
        """As the whole reads it."""
        return self.whole.read(self.indices[index])


class Part(Picked):
    """A stretch of another source, such as the images held out for validation; its blocks are those of the whole.

    Args:    start, stop: the numbers start .. stop - 1 of the whole.
    """

    def __init__(self, *, whole: Source, start: int, stop: int) -> None:
        super().__init__(whole=whole, indices=range(start, stop))
        self.blocks = tuple(_cut(whole.blocks, start, stop)) if isinstance(whole, Blocked) else ()


class Choices:
    """Files of a source of which several belong to a photo, or none; one of a photo's is drawn (data/faces.py).

    Args:    of_photo: photo -> numbers of its files in the whole.
    """

    def __init__(self, *, whole: Source, of_photo: Sequence[Sequence[int]]) -> None:
        self.whole = whole
        self.of_photo = of_photo

    def part(self, start: int, stop: int) -> "Choices":
        """Those of the photos start .. stop - 1."""
        return Choices(whole=self.whole, of_photo=self.of_photo[start:stop])

    def first(self) -> Picked:
        """The first file of each photo, of which none may be without."""
        return Picked(whole=self.whole, indices=[numbers[0] for numbers in self.of_photo])


@runtime_checkable
class Graded(Source, Protocol):
    """A source of photos that brings targets, and negatives where these are wanted (data/sources/hggt.py)."""

    targets: Choices  # at least one for each photo
    negatives: Choices | None


def _cut(lengths: Sequence[int], start: int, stop: int) -> Iterator[int]:
    """Lengths of the blocks within start .. stop - 1, those at both ends shortened."""
    begin = 0
    for length in lengths:
        inside = min(begin + length, stop) - max(begin, start)
        if inside > 0:
            yield inside
        begin += length

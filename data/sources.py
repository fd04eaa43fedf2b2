"""Where bytes come from: names and contents, nothing about faces."""

import os
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


class ImageFolder:
    """All images below a folder, links followed, sorted by their path relative to it; dot files are left out.

    Args:    root: the folder.
    Raises:  ValueError: it doesn't exist, is no folder, or holds no image.
    """

    def __init__(self, *, root: str) -> None:
        self.root = Path(root).expanduser()
        if not self.root.exists():
            raise ValueError(f"{root} does not exist (looked in {Path.cwd()}): give a folder of images")
        if not self.root.is_dir():
            raise ValueError(f"{root} is a file: give the folder that holds the images")
        self.paths = sorted(self._walk())
        if not self.paths:
            raise ValueError(
                f"{root} holds no image, in subfolders neither: files that end in {', '.join(SUFFIXES)} are looked for"
            )

    def _walk(self) -> list[str]:
        """Paths relative to root, with forward slashes."""
        found = []
        for folder, _, names in os.walk(self.root, followlinks=True):
            images = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
            found += [(Path(folder) / name).relative_to(self.root).as_posix() for name in images]
        return found

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The full path."""
        return str(self.root / self.paths[index])

    def read(self, index: int) -> bytes:
        """The file's contents."""
        return (self.root / self.paths[index]).read_bytes()


class Part:
    """A stretch of another source, such as the images held out for validation.

    Args:    start, stop: the numbers start .. stop - 1 of the whole.
    """

    def __init__(self, *, whole: Source, start: int, stop: int) -> None:
        self.whole = whole
        self.indices = range(start, stop)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """As the whole names it."""
        return self.whole.name(self.indices[index])

    def read(self, index: int) -> bytes:
        """As the whole reads it."""
        return self.whole.read(self.indices[index])

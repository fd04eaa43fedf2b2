"""Images that are files: a folder of them, or a list of paths."""

import os
from pathlib import Path

from data.sources.listing import SUFFIXES, files_below, images_among
from data.sources.shown import first_few, printable


def existing(root: str, what: str) -> Path:
    """root as a path. Raises ValueError, which says what was wanted, when nothing is there."""
    path = Path(root).expanduser()
    if not path.exists():
        raise ValueError(f"{root} does not exist (looked in {Path.cwd()}): give {what}")
    return path


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
        return printable(str(self.root / self.paths[index]))

    def read(self, index: int) -> bytes:
        """The file's contents."""
        return (self.root / self.paths[index]).read_bytes()


class ImageFolder(Files):
    """All images below a folder, sorted by their path relative to it; data/sources/listing.py says what is one.

    Args:    root: the folder.
    Raises:  ValueError: it doesn't exist, is no folder, holds no image, or can't be read to its end.
    """

    def __init__(self, *, root: str) -> None:
        folder = existing(root, "a folder of images")
        if not folder.is_dir():
            raise ValueError(f"{root} is a file: give the folder that holds the images")
        super().__init__(root=folder, paths=images_among(files_below(folder), root))
        if not self.paths:
            raise ValueError(
                f"{root} holds no image, in subfolders neither: files that end in {', '.join(SUFFIXES)} are looked for"
            )


START = "# paths start from "  # data.prepare filter writes such a line


class FileList(Files):
    """The files that a text file lists, one path a line, in its order; blank lines are skipped, and lines that start with #
    unless they name a file. A first line `# paths start from DIR` says where the paths start, itself from the list's folder.

    Args:    root: the text file, UTF-8.
             relative_to: folder that the paths start from; None: the one that the first line names, else the list's own.
    Raises:  ValueError: the list doesn't exist or is empty, or files that it lists don't exist.
    """

    def __init__(self, *, root: str, relative_to: str | None) -> None:
        file = existing(root, "a text file that lists images")
        if not file.is_file():
            raise ValueError(f"{root} is a folder: give the text file that lists images, or data/source=folder")
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
        except UnicodeDecodeError as error:
            raise ValueError(f"{root} is no text file ({error}): give one path of an image a line") from error
        named = lines[0].removeprefix(START) if lines[0].startswith(START) else ""
        folder = Path(relative_to).expanduser() if relative_to else file.parent / named
        paths = [line for line in lines if line and (not line.startswith("#") or os.path.isfile(folder / line))]
        super().__init__(root=folder, paths=paths)
        if not self.paths:
            raise ValueError(f"{root} lists no image: give one path a line")
        missing = [path for path in self.paths if not os.path.isfile(self.root / path)]
        if missing:
            raise ValueError(
                f"{root} lists {len(self.paths)} files, {len(missing)} of which don't exist in {self.root}: "
                f"{first_few(missing)}; correct it, or give the folder its paths start from as data.source.relative_to=DIR "
                "with data/source=list"
            )

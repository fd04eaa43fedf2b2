"""Images in an LMDB, laid out as BasicSR's scripts do."""

import os
import re
from pathlib import Path

import lmdb

from data.sources.files import existing
from data.sources.listing import is_hidden
from data.sources.shown import printable

_opened: dict[str, tuple[int, lmdb.Environment]] = {}  # path -> the process that opened it, and what it opened


def environment(folder: Path) -> lmdb.Environment:
    """The LMDB of a folder, opened once in each process: LMDB allows neither two in one nor one in two.

    Raises:  lmdb.Error: it can't be opened.
    """
    key = os.path.realpath(folder)
    process, opened = _opened.get(key, (0, None))
    if opened is not None and process != os.getpid():
        opened.close()  # inherited over a fork; the parent keeps its own
        opened = None
    if opened is None:
        opened = lmdb.open(key, readonly=True, lock=False, readahead=False, meminit=False)
        _opened[key] = os.getpid(), opened
    return opened


def close(folder: Path) -> None:
    """Gives up what `environment` opened, so that the folder may be moved or replaced."""
    _, opened = _opened.pop(os.path.realpath(folder), (0, None))
    if opened is not None:
        opened.close()


class LmdbImages:
    """The images of an LMDB in BasicSR's layout, in the order of its meta_info.txt.

    A line there is `NAME.png (h,w,c) LEVEL`; the key is the name without suffix, the value an encoded image.

    Args:    root: the folder, with data.mdb and meta_info.txt.
    Raises:  ValueError: it doesn't exist, is damaged, or isn't laid out so.
    """

    def __init__(self, *, root: str) -> None:
        self.folder = existing(root, "an LMDB folder")
        for part in ("data.mdb", "meta_info.txt"):
            if not (self.folder / part).is_file():
                raise ValueError(
                    f"{root} has no {part}, so it is no LMDB as BasicSR lays it out: "
                    "make one with python -m data.prepare pack root=DIR out=FILE.lmdb"
                )
        lines = (self.folder / "meta_info.txt").read_text(encoding="utf-8").split("\n")
        names = [re.sub(r" \(\d+, ?\d+, ?\d+\)( \d+)?$", "", line) for line in lines if line.strip()]
        self.paths = [name for name in names if not is_hidden(name)]
        if not self.paths:
            raise ValueError(f"{root}/meta_info.txt lists no image: pack the LMDB again")
        try:
            self.read(0)
        except OSError as error:
            raise ValueError(f"{error}: copy or pack the LMDB again") from error

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The folder and the name in meta_info.txt."""
        return printable(f"{self.folder}/{self.paths[index]}")

    def read(self, index: int) -> bytes:
        """The value of the key."""
        key = os.path.splitext(self.paths[index])[0]
        try:
            with environment(self.folder).begin() as transaction:
                contents: bytes | None = transaction.get(key.encode())
        except lmdb.Error as error:
            raise OSError(f"{self.folder} can't be read as an LMDB: {error}") from error
        if contents is None:
            raise OSError(f"{self.folder} has no key {key}, which its meta_info.txt lists")
        return contents

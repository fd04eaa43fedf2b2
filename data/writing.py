"""Files that are written whole or not at all, and never through a link that somebody left in the folder.

A folder that was handed on may hold links. A fresh name, made exclusively, is none of them; the rename that follows replaces a
link and does not follow it.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, *, synced: bool = False) -> Iterator[IO[bytes]]:
    """A file that becomes `path` when the block ends well: a reader, or a process that is killed, never sees or leaves half.

    Args:   synced: it is on the disk before it gets its name, so that a power cut leaves the old or the new one.
    Raises: OSError.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short, whatever path's own name; nothing of TensorBoard's in it
    try:
        with partial.open("xb") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, synced: bool = False) -> None:
    """See `replacing`."""
    with replacing(path, synced=synced) as file:
        file.write(content)


def open_own(path: Path) -> IO[bytes]:
    """A file to read and append to, made where there is none. Raises OSError: also where a link stands in its place."""
    return open(path, "ab+", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def refuse_links_out(folder: Path, but: str = "") -> None:
    """Before anything is written into a folder that others may have filled; one that is not there yet is fine.

    Args:   but: a folder in it that is not looked into, as another program keeps links there.
    Raises: ValueError: a link in it leads out of it.
    """
    inside, left = Path(os.path.realpath(folder)), [folder]
    while left:
        here = left.pop()
        if not here.is_dir():
            continue
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.is_symlink() and not (place := Path(os.path.realpath(entry.path))).is_relative_to(inside):
                    raise ValueError(
                        f"{entry.path} is a link that leads out of {folder}, to {place}: nothing is written there; remove the "
                        "link, or give another folder"
                    )
                if entry.is_dir(follow_symlinks=False) and not (here == folder and entry.name == but):
                    left.append(Path(entry.path))

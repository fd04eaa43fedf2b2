"""Pretrained weights of frozen networks: where they lie, where they come from, and how they are loaded.

    python -m models.weights list                 what there is, and what of it is here
    python -m models.weights fetch NAME …         download it, going on where a download broke off
    python -m models.weights verify [NAME …]      compare what is here with its publisher's hash

All are in weights/catalog.yaml.
"""

import argparse
import difflib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import shlex
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import yaml
from torch import Tensor, nn
from tqdm import tqdm

from models.files import official
from models.files.family import CheckpointError
from models.files.official import Parser

CATALOG = Path(__file__).parents[2] / "weights" / "catalog.yaml"
ATTEMPTS = 5  # in a row without progress, after which a download is given up
PASSING = (408, 425, 429)  # with these and 5xx a server says that it may answer later
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file of the catalog."""

    name: str
    file: str
    url: str | None
    sha256: str | None  # all digits, or the first ones if its publisher states no more
    licence: str
    used_by: str
    page: str | None = None


def catalog() -> dict[str, Entry]:
    entries = yaml.safe_load(CATALOG.read_text(encoding="utf-8"))
    return {name: Entry(name=name, **{**of, "sha256": of["sha256"] and str(of["sha256"])}) for name, of in entries.items()}


def entry_of(name: str) -> Entry:
    """Raises ValueError for a name that the catalog doesn't have."""
    entries = catalog()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        raise ValueError(
            f"no weights are named {name}{f'; did you mean {near[0]}?' if near else ''} (there are {', '.join(entries)})"
        )
    return entries[name]


def default_dir() -> str:
    return os.environ.get("FACEWRIGHT_WEIGHTS") or "weights"


def find(*, name: str, folder: str, file: str | None = None) -> Path:
    """Where the weights of this name lie: in `folder` under the catalog's file name, or `file`.

    Raises: ValueError for an unknown name; FileNotFoundError with the command that fetches them.
    """
    entry = entry_of(name)
    path = Path(file) if file else Path(folder) / entry.file
    if path.is_file():
        return path
    if file:
        raise FileNotFoundError(f"{path}, given as the weights {name}, does not exist")
    where = "" if folder == default_dir() else f" --dir {shlex.quote(folder)}"
    raise FileNotFoundError(
        f"{path} does not exist ({name}: {entry.used_by}): fetch it with `python -m models.weights fetch {name}{where}`, or "
        "name a copy of yours as `file`"
    )


def state_dict(*, name: str, folder: str, file: str | None, prefix: str = "") -> dict[str, Tensor]:
    """The bare weights.

    Args:   prefix: only keys that begin with it count, and lose it (AdaFace's files: `model.`).
    Raises: what `find` and official.read raise; ValueError: no such keys, or a value that is not finite.
    """
    path = find(name=name, folder=folder, file=file)
    state = {k.removeprefix(prefix): v for k, v in official.read(path).state.items() if k.startswith(prefix)}
    if not state:
        raise CheckpointError(f"{path} has no keys that begin with {prefix}: is it the file {entry_of(name).file}?")
    official.check_finite(state, str(path))
    return state


def pretrained(
    *, network: nn.Module, name: str, folder: str, file: str | None, prefix: str = "", unused: Sequence[str] = ()
) -> nn.Module:
    """The network with all of these weights, frozen: in eval mode, and without gradients of its parameters.

    Args:   unused: beginnings of keys for which the network has no part (torchvision's VGG19: `classifier.`).
    Raises: what `state_dict` raises; ValueError: the file is of another network.
    """
    path = find(name=name, folder=folder, file=file)
    state = state_dict(name=name, folder=folder, file=file, prefix=prefix)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(unused))}
    try:
        report = official.load_into(network, state, strict=False)
    except CheckpointError as error:  # no key fits
        raise CheckpointError(f"{path}: {error}") from error
    if not report.complete:
        raise CheckpointError(
            f"{path} does not fit {type(network).__name__}: {report}: is it the file {entry_of(name).file}, and are the "
            f"network's arguments those that it was trained with? `python -m models.weights verify {name}` says if it is sound"
        )
    network.weights_from = str(path)  # type: ignore[assignment]  # losses/frozen.py runs no network without it
    return network.eval().requires_grad_(False)


# Fetching ---------------------------------------------------------------------------------------------------------------


def fetch(entry: Entry, directory: Path) -> str:
    """Downloads a file unless it is here, and says what was done. A part stays as FILE.part, from which the next call goes on.

    Raises: ValueError: it can't be fetched, or it is another file; OSError: the server or the disk failed, or another
            process fetches it now.
    """
    path = directory / entry.file
    if path.exists():
        good, words = verdict(entry, path)
        if not good:
            raise ValueError(f"{path} is here, but {words}")
        return f"{path} is here already: {words}"
    if entry.url is None:
        raise ValueError(f"{entry.name} has no address for programs: get {entry.file} from {entry.page} and put it at {path}")
    directory.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with _open_part(part) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"another process is fetching {path}: wait for it") from error
        if path.exists():  # that process has just put it in place
            return fetch(entry, directory)
        try:
            _download(entry.url, part, file)
        finally:
            if not _size(file):
                part.unlink()
        good, words = verdict(entry, part)
        if not good:
            part.unlink()
            by_hand = f"; or get it by hand from {entry.page} and put it at {path}" if entry.page else ""
            raise ValueError(f"{entry.url} gave another file: {words.replace(str(part), 'it')}. It was removed{by_hand}")
        os.fsync(file.fileno())
        os.replace(part, path)
    return f"{path}: {path.stat().st_size:,} bytes, {words}; licence: {entry.licence}"


def _open_part(part: Path) -> BinaryIO:
    """The part to go on with, or a new one; unbuffered, so that the write itself fails on a full disk.

    Raises: ValueError: it is a link, or no file, so that what is downloaded would go elsewhere.
    """

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)

    refusal = f"{part} is a link or no file, so that what is downloaded would go elsewhere: remove it"
    try:
        file = open(part, "ab", buffering=0, opener=opener)  # noqa: SIM115  # the caller closes it
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise ValueError(refusal) from error
        raise
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        file.close()
        raise ValueError(refusal)
    return file


def _download(url: str, part: Path, file: BinaryIO) -> None:
    """All of url into file. After an interruption it goes on, until ATTEMPTS in a row have brought nothing."""
    failures, furthest = 0, _size(file)
    while True:
        try:
            if _transfer(url, part, file):
                return
            reason = "it ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in PASSING:
                raise OSError(f"{url}: {error.code} {error.reason}: look at the address in {CATALOG}") from error
            reason = f"{error.code} {error.reason}"
        except (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as error:
            reason = f"{error}"
        failures = 0 if _size(file) > furthest else failures + 1
        furthest = max(furthest, _size(file))
        if failures >= ATTEMPTS:
            kept = f"; {part} keeps {_size(file):,} bytes, and the same command goes on from there" if _size(file) else ""
            raise OSError(f"{url}: {reason}, {ATTEMPTS} times{kept}")
        time.sleep(2**failures - 1)


def _transfer(url: str, part: Path, file: BinaryIO) -> bool:
    """One request for what follows the end of file. True when the file is whole."""
    start = _size(file)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return True  # nothing is missing
        file.truncate(0)  # the part belongs to another file
        return False
    with response:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not span or int(span[1]) != start:
                file.truncate(0)
                return False
            total = None if span[2] == "*" else int(span[2])
        else:  # the server sends the whole file, so it starts again
            file.truncate(0)
        with tqdm(
            total=total, initial=_size(file), unit="B", unit_scale=True, desc=part.stem, leave=False, disable=None
        ) as bar:  # None: only on a terminal
            while chunk := response.read(CHUNK):
                _write(file, chunk, part)
                bar.update(len(chunk))
        return total is None or _size(file) == total


def _write(file: BinaryIO, chunk: bytes, part: Path) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise OSError(
            f"{part} could not be written beyond {_size(file):,} bytes ({error.strerror}): make room, then give the same "
            "command, which goes on from there"
        ) from error


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong(entry: Entry, path: Path) -> str | None:
    """In words how the file's hash differs from the publisher's, or None."""
    if entry.sha256 is None or (found := sha256_of(path)).startswith(entry.sha256):
        return None
    return f"its SHA-256 is {found[: len(entry.sha256)]}… and not {entry.sha256}"


def verdict(entry: Entry, path: Path) -> tuple[bool, str]:
    """Whether a file that is here is good, and why."""
    if reason := wrong(entry, path):
        return False, f"wrong: {reason}; remove it and fetch it again"
    if entry.sha256:
        return True, "right"
    with path.open("rb") as file:
        if file.read(64).lstrip().lower().startswith((b"<!doctype", b"<html")):  # in place of a large file
            return False, "wrong: it is a web page; remove it and fetch it again"
    try:
        state = official.read(path).state
    except (OSError, ValueError) as error:
        return False, f"wrong: {error}"
    return True, f"opens, {len(state)} tensors; its publisher states no hash"


def listing(directory: Path) -> str:
    rows = [("name", "file", "here", "licence", "used by")]
    for entry in catalog().values():
        path = directory / entry.file
        here = f"{path.stat().st_size / 1e6:.1f} MB" if path.exists() else "by hand" if entry.url is None else "no"
        rows.append((entry.name, entry.file, here, entry.licence, entry.used_by))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([f"weights in {directory}:", *lines])


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m models.weights", description="Pretrained weights of frozen networks.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing_ = commands.add_parser("list", help="what there is, and what of it is here")
    fetching = commands.add_parser("fetch", help="download")
    verifying = commands.add_parser("verify", help="compare with the publisher's hash")
    fetching.add_argument("names", nargs="+", metavar="NAME")
    verifying.add_argument("names", nargs="*", metavar="NAME", help="otherwise all that are here")
    for command in (listing_, fetching, verifying):
        command.add_argument("--dir", type=Path, default=Path(default_dir()), help="where they lie (now %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            print(listing(options.dir))
            return
        entries = [entry_of(name) for name in options.names]
        if options.command == "fetch":
            for entry in entries:
                print(fetch(entry, options.dir))
            return
        sys.exit(_verify(entries, options))
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {' '.join(str(error).split())}")


def _verify(named: list[Entry], options: argparse.Namespace) -> int:
    bad = 0
    for entry in named or catalog().values():
        path = options.dir / entry.file
        if path.exists():
            good, words = verdict(entry, path)
            print(f"{entry.name}: {path}: {words}")
            bad += not good
        elif named:
            print(f"{entry.name}: {path}: missing")
            bad += 1
    return min(bad, 1)

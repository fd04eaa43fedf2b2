"""Images in archives: zip, tar, and the shards of WebDataset. Indexed once, then read at random.

No file stays open: a worker opens the archive for each image, which takes a hundredth of what decoding does, so nothing is
shared between processes.
"""

import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import dirname, normpath

from isal import isal_zlib

from data.sources.files import existing
from data.sources.listing import SUFFIXES, entries_of, is_image, tell_left_aside
from data.sources.shown import first_few, printable

LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: signature, length of its name, length of the extra field
# What zipfile and tarfile raise on damaged files.
DAMAGE = (
    *(OSError, EOFError, MemoryError, NotImplementedError, OverflowError, ValueError, IndexError, struct.error),
    *(zipfile.BadZipFile, tarfile.TarError),
)
MOST_SWOLLEN = 50  # deflate takes photographs to half at best, and zeros to a thousandth
ALWAYS_UNPACKED = 2**26  # bytes
MOST_LINKS = 40  # to follow from one path, as Linux does
Stretch = tuple[str, int, int]  # path of a file in a tar, offset in bytes, size in bytes


@dataclass(frozen=True, slots=True)
class Member:
    """Where an image lies in a tar file."""

    archive: int
    path: str
    offset: int
    size: int


def read_stretch(file: Path, offset: int, size: int) -> bytes:
    """Raises OSError: the file ends before."""
    with file.open("rb") as archive:
        if offset + size <= os.fstat(archive.fileno()).st_size:  # else a size that is only declared would be allocated
            archive.seek(offset)
            contents = archive.read(size)
            if len(contents) == size:
                return contents
    raise OSError(f"{file} ends before byte {offset + size}: it was cut off or replaced since the run began")


def swells(packed: int, size: int) -> bool:
    """Whether that many bytes unpack to so many that they were made to fill the memory."""
    return size > ALWAYS_UNPACKED and size > MOST_SWOLLEN * packed


class ZipImages:
    """All images in a zip file, sorted by path; stored or deflated, of any size. Of several under one name the last counts.

    Args:    root: the zip file.
    Raises:  ValueError: it doesn't exist, is no zip file, holds no image, or holds images packed in another way.
    """

    def __init__(self, *, root: str) -> None:
        self.file = existing(root, "a zip file of images")
        try:
            with zipfile.ZipFile(self.file) as archive:
                inside = [each for each in archive.infolist() if not each.is_dir()]
        except DAMAGE as error:
            raise ValueError(f"{root} can't be read as a zip file ({error}): is it whole? Copy or pack it again") from error
        tell_left_aside((each.filename for each in inside), root)
        found = list({each.filename: each for each in inside if is_image(each.filename)}.values())  # of one name the last
        if not found:
            raise ValueError(f"{root} holds no image: files that end in {', '.join(SUFFIXES)} are looked for")
        odd = [each.filename for each in found if each.compress_type not in (0, 8) or each.flag_bits & 1]
        if odd:
            raise ValueError(
                f"{root} holds images that are encrypted or not deflated ({first_few(odd)}): pack it again as usual"
            )
        bombs = [each.filename for each in found if swells(each.compress_size, each.file_size)]
        if bombs:
            raise ValueError(
                f"{root} holds files that unpack to more than {MOST_SWOLLEN} times their size, as no photograph does "
                f"({first_few(bombs)}): take them out"
            )
        found.sort(key=lambda each: each.filename)
        self.paths = [each.filename for each in found]
        self.places = [(each.header_offset, each.compress_size, each.file_size, each.compress_type, each.CRC) for each in found]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The zip file and the path within."""
        return printable(f"{self.file}/{self.paths[index]}")

    def read(self, index: int) -> bytes:
        """The file's contents."""
        offset, packed_size, size, method, checksum = self.places[index]
        header = read_stretch(self.file, offset, LOCAL_HEADER.size)
        signature, name, extra = LOCAL_HEADER.unpack(header)
        if signature != b"PK\x03\x04":
            raise OSError(f"{self.file} is damaged at byte {offset}")
        packed = read_stretch(self.file, offset + LOCAL_HEADER.size + name + extra, packed_size)
        try:  # one byte more than declared, so that a file which inflates to more is noticed and not unpacked
            contents = packed if method == 0 else isal_zlib.decompressobj(-15).decompress(packed, size + 1)
        except isal_zlib.error as error:  # type: ignore[misc]  # its stub calls the class an instance
            raise OSError(f"{self.file} is damaged after byte {offset}: {error}") from error
        if len(contents) != size or zlib.crc32(contents) != checksum:
            raise OSError(f"{self.file} is damaged after byte {offset}: its size or the checksum is another")
        return contents


class TarImages:
    """All images in a tar file that is not compressed, sorted by path.

    Args:    root: the tar file.
    Raises:  ValueError: it doesn't exist, is no such tar file, or holds no image.
    """

    def __init__(self, *, root: str) -> None:
        self.file = existing(root, "a tar file of images")
        inside = files_in_tar(self.file)
        tell_left_aside((path for path, _, _ in inside), root)
        found = sorted(each for each in inside if is_image(each[0]))
        if not found:
            raise ValueError(f"{root} holds no image: files that end in {', '.join(SUFFIXES)} are looked for")
        self.paths = [path for path, _, _ in found]
        self.places = [(offset, size) for _, offset, size in found]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The tar file and the path within."""
        return printable(f"{self.file}/{self.paths[index]}")

    def read(self, index: int) -> bytes:
        """The file's contents."""
        return read_stretch(self.file, *self.places[index])


class Shards:
    """The images of WebDataset shards, in the order of the shards and of the samples in each.

    Files of a tar whose paths are the same up to the first dot of the name are one sample, of which the image is taken.

    Args:    root: a folder of tar files, one tar file, or several in braces: DIR/{000000..000012}.tar.
             member: which file of a sample is its image, by what follows the first dot (jpg); None: the only one.
    Raises:  ValueError: a shard is missing or can't be read, no image is in them, or a sample has several.
    """

    def __init__(self, *, root: str, member: str | None) -> None:
        self.files = shard_files(root)
        inside = [files_in_tar(file) for file in self.files]
        tell_left_aside((path for shard in inside for path, _, _ in shard), root)
        self.members = [each for number, shard in enumerate(inside) for each in self._samples(number, shard, member)]
        if not self.members:
            wanted = f".{member}" if member else ", ".join(SUFFIXES)
            raise ValueError(f"{root} holds no image: samples with a file that ends in {wanted} are looked for")
        self.paths = [each.path for each in self.members]

    def _samples(self, number: int, inside: Sequence[Stretch], member: str | None) -> Iterator[Member]:
        seen: dict[str, str] = {}
        for path, offset, size in inside:
            key, extension = sample_of(path)
            if not is_image(path) or (member is not None and extension != member):
                continue
            if key in seen:
                raise ValueError(
                    f"sample {key} of {self.files[number]} holds {seen[key]} and {path}: "
                    f"say which is the image as data.source.member={extension}, with data/source=shards"
                )
            seen[key] = path
            yield Member(number, path, offset, size)

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        """The shard and the path within."""
        return printable(f"{self.files[self.members[index].archive]}/{self.paths[index]}")

    def read(self, index: int) -> bytes:
        """The file's contents."""
        member = self.members[index]
        return read_stretch(self.files[member.archive], member.offset, member.size)


def sample_of(path: str) -> tuple[str, str]:
    """Key and extension of a file in a shard: a/b.seg.png is (a/b, seg.png)."""
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    return folder + slash + stem, extension


def shard_files(root: str) -> list[Path]:
    """The tar files that root means. Raises ValueError naming those that are missing."""
    folder = Path(root).expanduser()
    if folder.is_dir():
        found = [Path(entry.path) for entry in entries_of(folder) if entry.name.endswith(".tar")]
        if not found:
            raise ValueError(f"{root} holds no .tar file: give the folder of the shards")
        return found
    files = [Path(path).expanduser() for path in expand_braces(root)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(files)} shards don't exist: {first_few(missing)}; correct data.root")
    return files


def expand_braces(pattern: str) -> list[str]:
    """a{08..11}.tar to a08.tar .. a11.tar: numbers as wide as the first."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [done for number in numbers for done in expand_braces(pattern[: found.start()] + number + pattern[found.end() :])]


def files_in_tar(file: Path) -> Sequence[Stretch]:
    """Every file, as unpacking would leave them: of several under one name the last, and links as what they lead to.

    Raises:  ValueError: the tar file can't be read to its end, or an image in it is a link to nothing there or has holes.
    """
    found: dict[str, tuple[int, int] | str] = {}  # path -> its stretch, or the path that it links to
    whole = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as archive:
            for each in archive:
                if each.size < 0:  # would lead back to where it stands, for ever
                    raise tarfile.ReadError(f"the size of what begins at byte {each.offset} is below 0")
                path, target = each.name.removeprefix("./"), each.linkname.removeprefix("./")
                if each.isreg() or each.islnk() or each.issym():
                    found.pop(path, None)
                if each.isreg() and each.offset_data + each.size > whole:
                    raise tarfile.ReadError("it ends within a file")
                if each.isreg():
                    found[path] = "" if each.issparse() else (each.offset_data, each.size)
                elif each.islnk():
                    found[path] = found.get(target, target)
                elif each.issym():
                    found[path] = normpath(f"{dirname(path)}/{each.linkname}" if dirname(path) else each.linkname)
    except DAMAGE as error:
        raise ValueError(
            f"{file} can't be read as a tar file without compression ({error}): is it whole? Pack a .tar.gz again as .tar"
        ) from error
    places = {path: _followed(path, found) for path in found}
    if lost := [path for path, place in places.items() if place is None and is_image(path)]:
        raise ValueError(
            f"{file} holds images that are links to what is not in it, or are stored with holes ({first_few(lost)}): pack it "
            "again with tar --dereference --hard-dereference, and without --sparse"
        )
    return [(path, *place) for path, place in places.items() if place]


def _followed(path: str, found: Mapping[str, tuple[int, int] | str]) -> tuple[int, int] | None:
    """The stretch that a path of a tar leads to; None: to nothing there, or in a circle."""
    for _ in range(MOST_LINKS):
        place = found.get(path)
        if not isinstance(place, str):
            return place
        path = place
    return None

"""A folder of images to one LMDB, to tar shards, or to parquet, so that reading them costs less."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge, Le

from data.cutting import center_crop
from data.images import decode
from data.prepare.jobs import files
from data.prepare.jobs.files import Unusable, output_stems, read_bytes, write_bytes
from data.prepare.jobs.names import Rule, check_files, judge, of_line, of_text
from data.prepare.jobs.records import Record, Shard
from data.prepare.jobs.work import Progress, Stopped, listing, run, signals
from data.sources import lmdb_images
from data.sources.opening import open_images
from data.sources.source import Named

SUFFIXES = {"png": ".png", "bmp": ".bmp", "jpeg": ".jpg"}
IMAGES = "images"  # folder of what is encoded again
LONGEST_KEY = 511  # bytes, of an LMDB
ROW_GROUP = 100  # rows of parquet that are read at once, as `datasets` writes them
FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}  # tells `datasets` that the column holds images


def pack(
    *,
    root: Path,
    out: Path,
    to: Literal["lmdb", "tar", "parquet"] = "lmdb",
    encode: Literal["keep", "png", "bmp", "jpeg"] = "keep",
    size: Annotated[int, Ge(0)] = 0,
    jpeg_quality: Annotated[int, Ge(1), Le(100)] = 95,
    shard_mb: Annotated[int, Ge(1)] = 512,
    workers: Annotated[int, Ge(0)] = 0,
) -> int:
    """Pack a folder of images into one LMDB, tar shards or parquet, which training reads as data.root=OUT.

    An image that can't be read, or is smaller than `size`, is named and left out. OUT appears once it is whole; until then the
    work lies beside it in .OUT.packing and takes as much space again, and the same command goes on where it was stopped.

    Args:
        root: folder of images, subfolders too
        out: what is written, a folder; it must not exist
        to: lmdb (in BasicSR's layout), tar (WebDataset shards) or parquet (a Hugging Face data set)
        encode: keep copies the files; png, or jpeg with full colour resolution, encode again; bmp takes 3 bytes a pixel and a
            twentieth of a PNG's time to read
        size: side in pixels that images are scaled and cut to, as training does with data.crop=center; 0 leaves them alone
        jpeg_quality: of encode=jpeg, 1 to 100
        shard_mb: size of a tar or parquet file
        workers: processes; 0 means one for each core
    """
    if out.exists():
        raise ValueError(f"out={out} exists: remove it, or give another out=")
    if size and encode == "keep":
        raise ValueError(f"size={size} makes new images: say how to write them as encode=png, bmp or jpeg")
    out, paths = out.absolute(), listing(root, out)
    place = out.with_name(f".{out.name}.packing")
    names = names_in_store(paths, to, SUFFIXES.get(encode))
    judge(names, STORES[to].rule, STORES[to].title)
    if encode != "keep":
        check_files(names, place / IMAGES)
    settings: Record = {"encode": encode, "size": size, "jpeg_quality": jpeg_quality, "to": to}
    convert = Converted(root, place, names, encode, size, jpeg_quality)
    work = run(
        name="pack", root=root, out=place, paths=paths, measure=convert, settings=settings, workers=workers, shard=Shard(1, 1)
    )
    unusable = work.unusable()
    packed = [convert.packed(path, record) for path, record in work.records.items() if "error" not in record]
    if not packed:
        raise ValueError(f"no image of root={root} could be used, so there is nothing to pack")
    result = place / "result"
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    STORES[to].write(packed, result, shard_mb)
    check_store(result, packed)
    os.replace(result, out)
    shutil.rmtree(place)
    print(f"{len(packed)} of {len(paths)} images are in {out}, {unusable} not usable; train on them with data.root={out}")
    return 1 if unusable else 0


@dataclass(frozen=True)
class Packed:
    """An image on its way into a store: its name there, the file to copy, its size in pixels and its length in bytes."""

    name: str
    file: Path
    height: int
    width: int
    length: int


@dataclass(frozen=True)
class Converted:
    """One image checked, and encoded again where that is asked; the fields are the command's keys."""

    root: Path
    place: Path
    names: dict[str, str]
    encode: str
    size: int
    jpeg_quality: int

    def __call__(self, path: str) -> Record:
        contents = read_bytes(self.root / path)
        photo = decode(contents, str(self.root / path))
        if self.encode == "keep":
            return {"outputs": [], "shape": photo.shape[:2], "length": len(contents)}
        if self.size:
            if min(photo.shape[:2]) < self.size:
                raise Unusable(f"{self.root / path} is {photo.shape[1]}x{photo.shape[0]}, smaller than size={self.size}")
            photo = center_crop(photo, self.size)
        contents = files.encode(photo, SUFFIXES[self.encode], self.jpeg_quality)
        output = f"{IMAGES}/{self.names[path]}"
        write_bytes(self.place / output, contents)
        return {"outputs": [output], "shape": photo.shape[:2], "length": len(contents)}

    def packed(self, path: str, record: Record) -> Packed:
        """What a record of this says."""
        file = self.place / record["outputs"][0] if record["outputs"] else self.root / path
        height, width = record["shape"]
        return Packed(self.names[path], file, height, width, record["length"])


def names_in_store(paths: list[str], to: str, suffix: str | None) -> dict[str, str]:
    """Each path's name in the store.

    A shard's sample ends at the first dot of its name, so there dots within become underscores.

    Args:    suffix: of all images; None: each keeps its own.
    Raises:  ValueError: two names would be one.
    """
    names = {}
    for path, stem in output_stems(paths).items():
        folder, slash, name = stem.rpartition("/")
        name = name.replace(".", "_") if to == "tar" else name
        names[path] = folder + slash + name + (suffix or os.path.splitext(path)[1])
    taken: dict[str, str] = {}
    for path, name in names.items():
        key = os.path.splitext(name)[0]
        if key in taken:
            raise ValueError(f"{taken[key]} and {path} would both be {key}: rename one of them")
        taken[key] = path
    return names


def of_key(name: str) -> str:
    """Of an LMDB in BasicSR's layout, which lists its keys line by line."""
    key = os.path.splitext(name)[0]
    return of_line(name) or (f"are longer than {LONGEST_KEY} bytes" if len(key.encode()) > LONGEST_KEY else "")


def check_store(result: Path, packed: list[Packed]) -> None:
    """Opens the store as training will. Raises ValueError: not every image is found in it again, or it can't be read."""
    try:
        source = open_images(root=str(result))
        found = sorted(source.paths) if isinstance(source, Named) else [each.name for each in packed][: len(source)]
        if len(source) != len(packed) or found != sorted(each.name for each in packed):
            raise ValueError(f"{len(source)} images are in it, not the {len(packed)} that were written, or under other names")
        for number in {0, len(source) - 1}:
            decode(source.read(number), source.name(number))
    except (OSError, ValueError) as error:
        raise ValueError(f"{result} was written and is not whole: {error}; is the disk sound? Try the same again") from error
    finally:
        lmdb_images.close(result)


def told(packed: list[Packed]) -> Iterator[Packed]:
    """Each image in turn, with progress. Raises Stopped after a signal."""
    progress = Progress("write", len(packed), 0)
    with signals() as received:
        for each in packed:
            if received:
                raise Stopped(received[0])
            yield each
            progress.step(False)
        progress.end()


def shards(packed: list[Packed], shard_mb: int) -> list[list[Packed]]:
    """Stretches of at most shard_mb each, or of one image."""
    parts: list[list[Packed]] = [[]]
    filled = 0
    for each in packed:
        if parts[-1] and filled + each.length > shard_mb * 2**20:
            parts.append([])
            filled = 0
        parts[-1].append(each)
        filled += each.length
    return parts


def write_lmdb(packed: list[Packed], result: Path, shard_mb: int) -> None:
    """BasicSR's layout: keys are names without suffix, meta_info.txt lists them all."""
    room = sum(each.length + 3 * 4096 for each in packed) + 2**24  # whole pages, and the tree above them
    with lmdb.open(str(result), map_size=room) as environment:
        transaction = environment.begin(write=True)
        try:
            for number, each in enumerate(told(packed), start=1):
                transaction.put(os.path.splitext(each.name)[0].encode(), read_bytes(each.file))
                if number % 1000 == 0:
                    transaction.commit()
                    transaction = environment.begin(write=True)
        except BaseException:
            transaction.abort()
            raise
        transaction.commit()
    (result / "lock.mdb").unlink(missing_ok=True)
    lines = (f"{each.name} ({each.height},{each.width},3) 1\n" for each in packed)
    (result / "meta_info.txt").write_text("".join(lines), encoding="utf-8")


def write_tar(packed: list[Packed], result: Path, shard_mb: int) -> None:
    """DIR/000000.tar, 000001.tar, …: each image is a sample."""
    images = told(packed)
    for number, part in enumerate(shards(packed, shard_mb)):
        with tarfile.open(result / f"{number:06}.tar", "w") as archive:
            for _ in part:
                each = next(images)
                contents = read_bytes(each.file)
                member = tarfile.TarInfo(each.name)
                member.size = len(contents)
                archive.addfile(member, io.BytesIO(contents))
    next(images, None)


def write_parquet(packed: list[Packed], result: Path, shard_mb: int) -> None:
    """DIR/train-00000-of-00003.parquet, …: a column image of {bytes, path}, as `datasets` writes it."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": kind}, metadata={"huggingface": json.dumps(FEATURES)})
    images, parts = told(packed), shards(packed, shard_mb)
    for number, part in enumerate(parts):
        file = result / f"train-{number:05}-of-{len(parts):05}.parquet"
        with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
            for start in range(0, len(part), ROW_GROUP):
                group = [next(images) for _ in part[start : start + ROW_GROUP]]
                rows = [{"bytes": read_bytes(each.file), "path": each.name} for each in group]
                writer.write_table(pa.table({"image": pa.array(rows, kind)}, schema=schema))
    next(images, None)


class Store(NamedTuple):
    """A kind of store: what it is called, which names it can hold, and what writes it (images, folder, MB of a file)."""

    title: str
    rule: Rule
    write: Callable[[list[Packed], Path, int], None]


STORES = {
    "lmdb": Store("an LMDB", of_key, write_lmdb),
    "tar": Store("tar shards", lambda name: "", write_tar),
    "parquet": Store("parquet", of_text, write_parquet),
}

"""Images of Hugging Face data sets: parquet, arrow or plain files, in a local folder or on the hub.

`datasets` says which files a data set is made of; they are read here. Its own streaming shuffles a buffer, so what comes next
depends on what was read before, on the number of workers and on where a run was stopped. Here a row has a number and can be
asked for at any time, and the order stays a function of (seed, position). So that a row doesn't cost a file, parquet is read by
row group (`blocks`), and data/order.py keeps to a few of them for a while.
"""

import os
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge

from data.sources.archives import MOST_SWOLLEN, swells
from data.sources.cards import belongs, check_cards
from data.sources.listing import files_below, is_image, tell_left_aside
from data.sources.shown import first_few, printable
from data.sources.source import Source

PAUSES_S = (1, 4, 15, 60)  # before a read over the network is tried again
T = TypeVar("T")


def hugging_face(
    *,
    root: str,
    subset: str | None,
    split: str,
    column: str,
    revision: str | None,
    groups_mixed: Annotated[int, Ge(1)],
) -> Source:
    """The images of a split.

    Args:    root: id on the hub (USER/NAME), a local folder as `datasets` reads or saves it, or a parquet file or its address.
             subset: configuration of the data set; None: the default one. column: of the images, in parquet and arrow.
             revision: branch, tag or commit on the hub; None: main.
             groups_mixed: see ParquetImages.
    Raises:  ValueError: there is no such data set, subset, split or column, or none of its files is parquet, arrow or an image.
    """
    is_file = root.endswith(".parquet") and not Path(root).expanduser().is_dir()
    files = [root] if is_file else split_files(root, subset, split, revision)
    if all(file.endswith(".parquet") for file in files):
        return ParquetImages(files=files, column=column, groups_mixed=groups_mixed)
    if all(file.endswith(".arrow") for file in files):
        return ArrowImages(files=files, column=column)
    folder = Path(root).expanduser()
    below = {file: os.path.relpath(file, folder.resolve()) if folder.is_dir() else file for file in files}
    tell_left_aside(files_below(folder) if folder.is_dir() else files, root)  # `datasets` lists what it knows itself
    images = [file for file, path in below.items() if is_image(path)]
    if not images:
        raise ValueError(
            f"split {split} of {root} consists of {first_few(files)}, neither parquet, arrow nor image files: try "
            "data.source.revision=refs/convert/parquet with data/source=hf, where the hub keeps data sets as parquet"
        )
    return FileImages(files=images)


def split_files(root: str, subset: str | None, split: str, revision: str | None) -> list[str]:
    """Paths or addresses of a split's files.

    Raises:  ValueError: there is no such data set, subset or split (it names those there are), or files are not its own.
    """
    import datasets  # two seconds, so only when it is used

    folder = Path(root).expanduser()
    try:
        if folder.is_dir():
            check_cards(folder)
        place = str(folder) if folder.exists() else root
        found = datasets.load_dataset_builder(place, name=subset, revision=revision).config.data_files
    except (OSError, ValueError) as error:  # a hub that can't be reached, no such data set or subset
        raise ValueError(f"{root} can't be opened as a Hugging Face data set: {error}") from error
    if not found:
        raise ValueError(f"{root} has no data files that can be listed: give data.source.revision=refs/convert/parquet")
    if split not in found:
        raise ValueError(
            f"{root} has no split {split}, only {', '.join(map(str, found))}: give data/source=hf data.source.split=NAME"
        )
    files = [str(file) for file in found[split]]
    if foreign := [file for file in files if not belongs(file, root)]:
        raise ValueError(f"{root} names files that are not its own ({first_few(foreign)}): take them out of its README.md")
    return files


class ParquetImages:
    """Rows of parquet files, local or remote. A block is `groups_mixed` row groups; each process keeps those it reads in.

    Args:    files: paths, or addresses that fsspec opens (hf://, https://, s3://).
             column: image bytes, or a struct with a field `bytes` as `datasets` writes it.
             groups_mixed: more mix the order better and need more memory in each worker; a row group is often 100 rows.
    Raises:  ValueError: a file can't be read as parquet, or its column isn't there or holds no images.
    """

    def __init__(self, *, files: Sequence[str], column: str, groups_mixed: int) -> None:
        self.files, self.column, self.groups_mixed = list(files), column, groups_mixed
        with ThreadPoolExecutor(16) as pool:
            self.footers: list[pq.FileMetaData] = list(pool.map(read_footer, self.files))
        check_column(self.files[0], self.footers[0].schema.to_arrow_schema(), column)
        self.groups = [(number, group) for number, each in enumerate(self.footers) for group in range(each.num_row_groups)]
        self._check_sizes()
        rows = [self.footers[number].row_group(group).num_rows for number, group in self.groups]
        self.starts = [0, *accumulate(rows)]  # the first row of each group, over all files
        self.blocks = tuple(sum(rows[first : first + groups_mixed]) for first in range(0, len(rows), groups_mixed))
        if not self.starts[-1]:
            raise ValueError(f"{first_few(self.files)} hold no rows: give a data set with images")
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, index: int) -> str:
        """The file, and the row counted over all files."""
        return printable(f"{self.files[self.groups[self._group_of(index)][0]]} (row {index})")

    def read(self, index: int) -> bytes:
        """The image of a row; reads its row group if it isn't at hand."""
        group = self._group_of(index)
        if group not in self._kept:
            self._kept[group] = self._read_group(group)
            if len(self._kept) > self.groups_mixed:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return image_bytes(self._kept[group][index - self.starts[group]], self.name(index))

    def _check_sizes(self) -> None:
        """Raises ValueError: images declare to unpack to more than photographs do."""
        for number, group in self.groups:
            about = self.footers[number].row_group(group)
            chunks = [about.column(place) for place in range(about.num_columns)]
            images = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == self.column]
            if any(swells(chunk.total_compressed_size, chunk.total_uncompressed_size) for chunk in images):
                raise ValueError(
                    f"{self.files[number]} unpacks to more than {MOST_SWOLLEN} times its size, as no photo does: leave it out"
                )

    def _group_of(self, index: int) -> int:
        return bisect_right(self.starts, index) - 1

    def _read_group(self, group: int) -> pa.ChunkedArray:
        number, within = self.groups[group]

        def read() -> pa.ChunkedArray:
            with open_file(self.files[number]) as file:
                table = pq.ParquetFile(file, metadata=self.footers[number], pre_buffer=True)
                return table.read_row_group(within, columns=[self.column], use_threads=False).column(self.column)

        return patiently(read, self.files[number])


class ArrowImages:
    """Rows of arrow files as `datasets` saves them (save_to_disk), mapped into memory: any row at any time.

    Args:    column: see ParquetImages.
    Raises:  ValueError: as ParquetImages.
    """

    def __init__(self, *, files: Sequence[str], column: str) -> None:
        self.files, self.column = list(files), column
        self._columns: list[pa.ChunkedArray] | None = None
        self.starts = [0, *accumulate(len(each) for each in self._opened())]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": None}

    def _opened(self) -> list[pa.ChunkedArray]:
        if self._columns is None:
            self._columns = [self._open(file) for file in self.files]
        return self._columns

    def _open(self, file: str) -> pa.ChunkedArray:
        try:
            table = pa.ipc.open_stream(pa.memory_map(file)).read_all()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{file} can't be read as an arrow file: {error}; save the data set again") from error
        check_column(file, table.schema, self.column)
        return table.column(self.column)

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, index: int) -> str:
        """The file, and the row counted over all files."""
        return printable(f"{self.files[bisect_right(self.starts, index) - 1]} (row {index})")

    def read(self, index: int) -> bytes:
        """The image of a row."""
        number = bisect_right(self.starts, index) - 1
        return image_bytes(self._opened()[number][index - self.starts[number]], self.name(index))


class FileImages:
    """Image files, local or remote, one by one.

    Args:    files: see ParquetImages.
    """

    def __init__(self, *, files: Sequence[str]) -> None:
        self.paths = list(files)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path or address."""
        return printable(self.paths[index])

    def read(self, index: int) -> bytes:
        """The file's contents."""

        def read() -> bytes:
            with open_file(self.paths[index]) as file:
                return bytes(file.read())

        return patiently(read, self.paths[index])


def open_file(file: str) -> Any:
    """A file opened for reading; each read of a remote one is one request, for what is read is whole column chunks."""
    if "://" not in file:
        return Path(file).expanduser().open("rb")
    filesystem, path = fsspec.core.url_to_fs(file)
    return filesystem.open(path, "rb", cache_type="none")


def read_footer(file: str) -> pq.FileMetaData:
    """Raises ValueError: it can't be read as parquet."""

    def read() -> pq.FileMetaData:
        with open_file(file) as opened:
            return pq.read_metadata(opened)

    try:
        return patiently(read, file)
    except OSError as error:
        raise ValueError(f"{error}; is data.root right, and the file whole?") from error


def patiently(read: Callable[[], T], file: str) -> T:
    """What read returns; a remote file is tried again after PAUSES_S. Raises OSError, which names the file."""
    for pause in (*(PAUSES_S if "://" in file else ()), None):
        try:
            return read()
        except Exception as error:  # fsspec's file systems and pyarrow raise what their libraries raise
            if pause is None or isinstance(error, FileNotFoundError | pa.ArrowInvalid):
                raise OSError(f"{file} can't be read: {error}") from error
            time.sleep(pause)
    raise AssertionError


def check_column(file: str, schema: pa.Schema, column: str) -> None:
    """Raises ValueError, which names the columns there are, when column isn't there or holds no images."""
    there = f"its columns are {', '.join(schema.names)}; give data.source.column=NAME with data/source=hf"
    if column not in schema.names:
        raise ValueError(f"{file} has no column {column}: {there}")
    kind = schema.field(column).type
    if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0) and not _is_binary(kind):
        raise ValueError(f"column {column} of {file} holds {kind}, which is no image: {there}")


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def image_bytes(value: pa.Scalar, name: str) -> bytes:
    """The image in a row. Raises OSError: there is none."""
    contents = value.as_py()
    if isinstance(contents, dict):
        contents = contents["bytes"]
    if contents is None:
        raise OSError("the row holds no image, or only the path of one")
    return bytes(contents)

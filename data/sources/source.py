"""What a source of images is: numbered files with contents and mostly names, nothing about faces; and parts of one."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Source(Protocol):
    """Files under numbers 0 .. len - 1, in an order that is the same on every machine."""

    def __len__(self) -> int:
        """Number of files."""

    def name(self, index: int) -> str:
        """What to call the file in a message, printable; not to open it by."""

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

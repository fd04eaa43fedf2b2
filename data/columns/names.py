"""By which name what was made of an image before training is found again."""

from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np

from data.sources.shown import first_few
from data.sources.source import Named, Source


def paths_of(source: Source) -> list[str] | None:
    """The images' names by which what was made of them is found; None: rows of a table, which have a number alone."""
    return [str(path) for path in source.paths] if isinstance(source, Named) else None


# Ways to call an image, the first that finds all of them counts: a packed copy has other suffixes, another root other folders,
# and FFHQ's 00001.png is 00000001 to CodeFormer and GFPGAN.
WAYS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: PurePosixPath(name).with_suffix("").as_posix(),
    lambda name: PurePosixPath(name).stem,
    lambda name: PurePosixPath(name).stem.lstrip("0"),
)


def rows_of(paths: list[str], names: list[str]) -> np.ndarray | None:
    """(n,): the place of each path among the names; None: not all are found in a way that tells all apart."""
    for call in WAYS:
        row = {call(name): number for number, name in enumerate(names)}
        ours = [call(path) for path in paths]
        if len(row) == len(set(names)) and len(set(ours)) == len(set(paths)) and row.keys() >= set(ours):
            return np.array([row[each] for each in ours])
    return None


def lacking(paths: list[str], names: list[str]) -> list[str]:
    """The paths that are among the names in no way."""
    known = {WAYS[-1](name) for name in names}
    return [path for path in paths if WAYS[-1](path) not in known]


def places_of(source: Source, names: list[str] | None, *, count: int, given: str, command: str) -> np.ndarray:
    """(n,): for each image of the source its place among the `count` that something was made of.

    Args:    names: of these; None: they have none, as the rows of a table. given: key and value, such as data.codes=FILE.
             command: what makes it, for the message.
    Raises:  ValueError: images lack, or can't be told apart.
    """
    paths, way_out = paths_of(source), f"make another one with python -m data.prepare {command}"
    if paths is None or names is None:
        if len(source) != count:
            raise ValueError(f"{given} is of {count} images and data.root holds {len(source)}, which have no names: {way_out}")
        return np.arange(count)
    rows = rows_of(paths, names)
    if rows is None:
        lonely = lacking(paths, names)
        said = f"{len(lonely)} are not in it ({first_few(lonely)})" if lonely else "several share a name"
        raise ValueError(
            f"{given} is of {count} other images than the {len(paths)} of data.root: {said}; {way_out}, or set "
            f"{given.partition('=')[0]}=null"
        )
    return rows

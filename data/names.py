"""By which name what was made of an image before training is found again."""

from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np

from data.sources import Named, Source


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

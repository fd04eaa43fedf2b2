"""A sheet over several folders, as a user asks for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from restoration.sheet import main

Command = Callable[..., tuple[int, str]]


def write(file: Path, value: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file)


def test_rows_by_common_names_and_what_is_missing(command: Command, tmp_path: Path) -> None:
    for folder, value in (("lq", 50), ("a", 90), ("b", 110), ("hq", 100)):
        for name in ("x.png", "y.png"):
            write(tmp_path / folder / name, value)
    (tmp_path / "b" / "y.png").unlink()
    code, printed = command(main, "lq=lq", "a", "b", "hq=hq", "output=sheet.png", "side=64")
    assert code == 0, printed
    assert printed == "sheet.png: 1 of 1 rows, LQ | a | b | HQ\nleft out: b lacks 1 (y)\n"
    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert page.shape == (18 + 64 + 2 * 18 + 4, 4 * 68, 3)
    assert [int(page[60, 34 + 68 * column, 0]) for column in range(4)] == [50, 90, 110, 100]


def test_mistakes(command: Command, tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.png", 1)
    write(tmp_path / "b" / "y.png", 1)
    assert command(main, "a", "b", "output=sheet.png") == (
        1,
        "error: no name is in all folders: a lacks 1 (y); b lacks 1 (x)\n",
    )
    assert "output=FILE.png" in command(main, "a", "b")[1]
    assert "rows=0: give a whole number from 1" in command(main, "a", "output=s.png", "rows=0")[1]

"""A sheet over several folders, as a user asks for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.files.families import full_state
from restoration import cli
from restoration.sheet import main, told_apart
from tests.restoration.test_run import TINY, tiny_elan
from tests.toy import write_photographs

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


@torch.no_grad()
def test_runs_and_files_restore_what_is_shown(command: Command, tmp_path: Path) -> None:
    write_photographs(tmp_path / "lq" / "deep", count=3, size=32)
    torch.save({"params": full_state(tiny_elan(1))}, tmp_path / "elan.pth")
    state = {f"network.{key}": value for key, value in tiny_elan(2).state_dict().items()}
    config = {"network": {"_target_": "models.elan.ELAN", "scale": 1, **TINY}}
    (tmp_path / "runs" / "a" / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": state, "config": config}, tmp_path / "runs" / "a" / "checkpoints" / "last.ckpt")
    for weights, output in (("elan.pth", "b"), ("runs/a", "a")):
        assert command(cli.main, f"ckpt={weights}", "input=lq", f"output={output}", "device=cpu")[0] == 0
    said = "sheet.png: 2 of 3 rows, LQ | elan.pth | runs/a | b | a\n"
    compared = ("elan.pth", "runs/a", "b", "a")
    assert command(main, "lq=lq", *compared, "output=sheet.png", "rows=2", "side=32") == (0, said)
    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    for row in range(2):
        cells = [page[36 + 72 * row : 68 + 72 * row, 36 * column : 36 * column + 32] for column in range(5)]
        np.testing.assert_array_equal(cells[1], cells[3])
        np.testing.assert_array_equal(cells[2], cells[4])
        assert (cells[1] != cells[2]).any()
    assert not (tmp_path / "restored").exists(), "nothing but the sheet is left"
    assert "runs/a has nothing to restore: give lq=DIR" in command(main, "runs/a", "output=sheet.png")[1]
    (tmp_path / "lq" / "deep" / "00.png").write_bytes(b"no image")
    assert command(main, "lq=lq", "runs/a", "output=sheet.png")[0] == 1


def test_folders_of_one_name_are_columns_of_their_own(command: Command, tmp_path: Path) -> None:
    for folder, value in (("a/out", 90), ("b/out", 110), ("LQ", 50), ("rows=3", 60)):
        write(tmp_path / folder / "x.png", value)
    code, printed = command(main, "lq=LQ", "a/out", "b/out", "LQ", "rows=3", "output=sheet.png", "side=64")
    assert (code, printed) == (0, "sheet.png: 1 of 1 rows, LQ | a/out | b/out | ./LQ | rows=3\n")
    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert [int(page[60, 34 + 68 * column, 0]) for column in range(5)] == [50, 90, 110, 50, 60]
    assert command(main, "a/out", "b/out", "output=sheet.png")[1] == "sheet.png: 1 of 1 rows, a | b\n"
    assert f"{tmp_path}/a/out is given twice" in command(main, "a/out", "a/../a/out", "output=sheet.png")[1]
    assert told_apart(["runs/a/restored", "runs/b/restored"]) == ["a", "b"]
    assert told_apart(["runs/a", "runs/a/restored"]) == ["a", "a/restored"]


def test_mistakes(command: Command, tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.png", 1)
    write(tmp_path / "b" / "y.png", 1)
    assert command(main, "a", "b", "output=sheet.png") == (
        1,
        "error: no name is in all folders: a lacks 1 (y); b lacks 1 (x)\n",
    )
    assert "output=FILE.png" in command(main, "a", "b")[1]
    assert (
        "colums: there is no such key, and no such folder; the keys are lq, hq, output, rows, side\n"
        in (command(main, "a", "output=s.png", "colums=2")[1])
    )
    assert "rows is given twice" in command(main, "a", "output=s.png", "rows=2", "rows=3")[1]
    assert "rows=0: give a whole number from 1" in command(main, "a", "output=s.png", "rows=0")[1]

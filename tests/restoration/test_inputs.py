"""Which images of a folder restore.py takes: those of its listing (data/sources/listing.py), each once."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import data.sources.listing
from models.files.families import full_state
from restoration.cli import main
from tests.restoration.test_run import Cli, tiny_elan
from tests.toy import write_photographs


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    torch.save({"params": full_state(tiny_elan())}, tmp_path / "elan.pth")
    write_photographs(tmp_path / "in", count=3, size=32)
    return ["ckpt=elan.pth", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "device=cpu"]


@torch.no_grad()
def test_links_to_a_parent_restore_each_image_once(arguments: list[str], tmp_path: Path, command: Cli) -> None:
    (tmp_path / "in" / "sub").mkdir()
    for link, target in (("up", ".."), ("itself", "."), ("sub/up", "..")):
        (tmp_path / "in" / link).symlink_to(target)
    code, printed = command(main, *arguments)
    assert (code, printed.partition(" restored")[0]) == (0, "3 of 3 images"), printed
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def test_a_subfolder_that_can_not_be_read_stops_it_by_name(
    arguments: list[str],
    tmp_path: Path,
    command: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As root reads everything, the system's answer is made here."""
    write_photographs(tmp_path / "in" / "private", count=1, size=32)
    scandir = os.scandir

    def refused(path: Path) -> object:
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(data.sources.listing.os, "scandir", refused)
    code, printed = command(main, *arguments)
    assert code == 1
    assert printed.startswith(
        f"error: {tmp_path}/in/private can't be read (Permission denied): make it readable, or take it out"
    )
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_other_pictures_are_told_and_hidden_ones_are_not_restored(
    arguments: list[str],
    tmp_path: Path,
    command: Cli,
) -> None:
    photo = Image.open(tmp_path / "in" / "00.png")
    (tmp_path / "in" / ".ipynb_checkpoints").mkdir()
    for name in ("a.gif", "b.avif", "c.jp2", ".ipynb_checkpoints/00-checkpoint.png"):
        photo.save(tmp_path / "in" / name)
    with pytest.warns(UserWarning, match=r"in: left aside are 1 \.jp2, which are not read: make PNG or JPEG of them"):
        code, printed = command(main, *arguments)
    assert (code, printed.partition(" restored")[0]) == (0, "5 of 5 images"), printed
    code, printed = command(main, arguments[0], f"input={tmp_path / 'in' / 'c.jp2'}", *arguments[2:])
    assert code == 1
    assert "c.jp2 can't be read as an image" in printed

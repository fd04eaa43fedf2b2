"""Folders with links in them, as a run or a folder of outputs that was handed on may have: nothing is written through one."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.images import write_png
from data.photographs import Photograph, write_photograph
from data.prepare.jobs import files
from data.writing import open_own, refuse_links_out, replacing
from restoration import faces, photo
from restoration.record import Record
from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from train.runs.checkpoint import AtomicFiles, link, newest_whole
from train.runs.rundir import lock, write_text

Cli = Callable[..., tuple[int, str]]
IMAGE = torch.rand(3, 8, 8)
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_text(path, "x"),
    "checkpoint": lambda path: AtomicFiles().save_checkpoint({}, path.with_suffix(".ckpt")),
    "png": lambda path: write_png(path, IMAGE),
    "photograph": lambda path: write_photograph(path, Photograph(np.zeros((8, 8, 3), np.uint8), None, None, None), "png"),
    "deep photograph": lambda path: write_photograph(path, Photograph(np.zeros((8, 8, 3), np.uint16), None, None, None), "png"),
    "work of a stage": lambda path: photo.save(path, IMAGE),
    "faces": lambda path: faces.write(path, []),
    "record": lambda path: Record({}, {}, "in", path.parent).write(),
    "prepare": lambda path: files.write_text(path, "x"),
}


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A file beside the folder, which must stay as it is."""
    file = tmp_path / "private"
    file.write_text("mine")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "theirs").mkdir()
    return tmp_path / "theirs"


@pytest.mark.parametrize("kind", WRITERS)
def test_a_link_in_place_of_a_file_is_replaced(kind: str, folder: Path, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: 7)
    for name in ("out", "out.ckpt", "out.ckpt.sha256", "out.tmp", ".writing.tmp", ".7.partial", ".out.7", "restore.json"):
        (folder / name).symlink_to(private)
    WRITERS[kind](folder / "out")
    assert private.read_text() == "mine"
    assert any(not path.is_symlink() for path in folder.iterdir()), "it was written"
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp" and not path.is_symlink()], "nothing is left"


def test_what_fails_leaves_the_old_file_and_nothing_else(folder: Path) -> None:
    (folder / "out").write_text("old")
    with pytest.raises(TypeError), replacing(folder / "out") as file:
        file.writelines([b"half", 0])  # type: ignore[list-item]  # what fails
    assert (folder / "out").read_text() == "old"
    assert list(folder.iterdir()) == [folder / "out"]


def test_nothing_is_appended_through_a_link(folder: Path, private: Path) -> None:
    (folder / "metrics.csv").symlink_to(private)
    (folder / ".run.lock").symlink_to(private)
    for opening in (lambda: open_own(folder / "metrics.csv"), lambda: lock(folder / "run")):
        with pytest.raises(OSError, match="symbolic link"):
            opening()
    assert private.read_text() == "mine"


def test_a_second_name_of_a_checkpoint_is_no_link_of_theirs(folder: Path, private: Path) -> None:
    (folder / "step_0000001.ckpt").write_text("x")
    (folder / "last.ckpt.tmp").symlink_to(private)
    (folder / ".last.ckpt.tmp").symlink_to(private)
    link(folder / "step_0000001.ckpt", "last.ckpt")
    assert (folder / "last.ckpt").samefile(folder / "step_0000001.ckpt")
    newest_whole(folder)
    assert private.read_text() == "mine"


def test_links_that_lead_out(folder: Path, private: Path, tmp_path: Path) -> None:
    (folder / "deep").mkdir()
    refuse_links_out(tmp_path / "not there yet")
    (folder / "deep" / "within").symlink_to("..")
    (folder / "ring").symlink_to("ring")
    (tmp_path / "place").symlink_to(folder)
    refuse_links_out(tmp_path / "place")  # the folder itself may be one: the user's
    leading_out = {"file": private, "nothing": tmp_path / "not yet", "folder": tmp_path, "deep/up": Path("../..")}
    for name, target in leading_out.items():
        (folder / name).symlink_to(target)
        with pytest.raises(ValueError, match=rf"theirs/{name} is a link that leads out of .*: nothing is written there"):
            refuse_links_out(folder)
        (folder / name).unlink()
    (folder / "wandb").mkdir()
    (folder / "wandb" / "debug.log").symlink_to(private)
    refuse_links_out(folder, but="wandb")


def test_a_run(cli: Cli, tmp_path: Path, private: Path) -> None:
    """Its own links stay, one that leads out is named, and nothing is read into or written through it."""
    photographs = write_photographs(tmp_path / "photographs", count=4)
    run = ["experiment=demo", "data=folder", f"data.root={photographs}", "trainer=cpu", *TINY_RUN, *TINY_NETWORK, *TINY_DATA]
    run += ["validation.lpips=null", "schedule=constant", "logger=csv"]
    code, printed = cli(*run)
    assert code == 0, printed
    folder = tmp_path / "runs" / "demo"
    (tmp_path / "outside").mkdir()
    for name in (".config.yaml.tmp", "curves.png", "times.csv", "checkpoints/step_0000003.ckpt", "tensorboard", "samples"):
        place, kept = folder / name, folder.with_name("kept")
        if place.exists():
            place.rename(kept)
        place.symlink_to(tmp_path / "outside" if not place.suffix else private)
        code, printed = cli(*run, "trainer.max_steps=3")
        assert code == 1
        assert printed.startswith(f"error: runs/demo/{name} is a link that leads out of runs/demo, to {tmp_path}")
        place.unlink()
        if kept.exists():
            kept.rename(place)
    assert private.read_text() == "mine"
    assert not any((tmp_path / "outside").iterdir())
    (folder / ".0123456789abcdef.tmp").write_text("an attempt was killed while it wrote")
    code, printed = cli(*run, "trainer.max_steps=3")
    assert code == 0, printed
    assert not list(folder.rglob("*.tmp"))


def test_outputs(tmp_path: Path, private: Path, command: Callable[..., tuple[int, str]]) -> None:
    from restoration.cli import main
    from tests.models.test_elan import tiny

    torch.save({"params": tiny().state_dict()}, tmp_path / "elan.pth")
    write_photographs(tmp_path / "in", count=1, size=16)
    (tmp_path / "out").mkdir()
    (tmp_path / "outside").mkdir()
    for name, target in ((".stages", tmp_path / "outside"), ("restore.json", private), ("00.png", tmp_path / "not there")):
        (tmp_path / "out" / name).symlink_to(target)
        code, printed = command(main, "elan.pth", "in", "out")
        assert code == 1
        assert printed == (
            f"error: out/{name} is a link that leads out of out, to {target}: nothing is written there; remove the link, or "
            "give another folder\n"
        )
        (tmp_path / "out" / name).unlink()
    assert private.read_text() == "mine"
    assert not any((tmp_path / "outside").iterdir())
    assert not (tmp_path / "not there").exists()


def test_prepared_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from data.prepare.__main__ import COMMANDS
    from data.prepare.jobs.arguments import main

    write_photographs(tmp_path / "in", count=1)
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".resize").symlink_to(tmp_path / "outside")
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(COMMANDS, ["resize", f"root={tmp_path / 'in'}", f"out={tmp_path / 'out'}", "size=32"]))
    assert ended.value.code not in (0, None)
    assert ".resize is a link that leads out" in f"{ended.value.code}{capsys.readouterr().err}"
    assert not any((tmp_path / "outside").iterdir())

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train.checkpoint import Checkpoints, last_checkpoint


class Trainer(SimpleNamespace):
    """What the callback asks a Trainer for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(default_root_dir=str(folder), global_step=0, is_global_zero=True)

    def save_checkpoint(self, path: Path) -> None:
        path.write_text(f"update {self.global_step}")


def advance(checkpoints: Checkpoints, trainer: Any, step: int) -> None:
    trainer.global_step = step
    checkpoints.on_train_batch_end(trainer)


def test_every_n_updates_and_the_newest_kept(tmp_path: Path) -> None:
    trainer: Any = Trainer(tmp_path)
    checkpoints = Checkpoints(every_n_steps=2, keep=2)
    checkpoints.on_train_start(trainer)
    for step in (1, 2, 2, 3, 4, 5, 6, 7):  # a step that comes twice: two accumulated batches
        advance(checkpoints, trainer, step)
    checkpoints.on_train_end(trainer)
    folder = tmp_path / "checkpoints"
    assert sorted(file.name for file in folder.iterdir()) == ["last.ckpt", "step_0000006.ckpt", "step_0000007.ckpt"]
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert last.read_text() == "update 7"


def test_a_failed_write_names_the_file_and_costs_nothing(tmp_path: Path) -> None:
    trainer: Any = Trainer(tmp_path)
    checkpoints = Checkpoints(every_n_steps=1, keep=3)
    checkpoints.on_train_start(trainer)
    advance(checkpoints, trainer, 1)

    def full_disk(path: Path) -> None:
        path.write_text("upd")
        raise OSError(28, "No space left on device")

    trainer.save_checkpoint = full_disk
    with pytest.raises(
        OSError, match=r"step_0000002.ckpt \(.*No space left on device\): the checkpoints before it are untouched"
    ):
        advance(checkpoints, trainer, 2)
    assert (tmp_path / "checkpoints" / "last.ckpt").read_text() == "update 1"
    assert not list(tmp_path.rglob("*.tmp"))

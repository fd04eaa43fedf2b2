"""Files of a run: when they are written, that a name stands for a whole file, and which one a run goes on from."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from train.runs.checkpoint import AtomicFiles, Checkpoints, checksum_file, damage, newest_whole, step_files
from train.runs.nonfinite import Diverged
from train.signals import Interrupted, Signals


class Trainer(SimpleNamespace):
    """What the callback asks a Trainer for; writes real files."""

    def __init__(self, folder: Path) -> None:
        device = SimpleNamespace(root_device=torch.device("cpu"))
        super().__init__(default_root_dir=str(folder), global_step=0, is_global_zero=True, strategy=device)

    def save_checkpoint(self, path: Path) -> None:
        write(path, self.global_step)


class Task(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(validated_step=-1, validated={}, weight=torch.ones(2), saving_s=0.0)

    def parameters(self) -> Iterator[torch.Tensor]:
        yield self.weight


def write(path: Path, step: int) -> Path:
    contents = {
        "global_step": step,
        "config": {"network": {}},
        "effective_batch": 1,
        "slurm_job": None,
        "state_dict": {"w": torch.full((20_000,), step)},
    }
    AtomicFiles().save_checkpoint(contents, path)
    return path


def saved(path: Path) -> float:
    """What every weight of a file that `write` made is: its step."""
    (value,) = torch.load(path, weights_only=True)["state_dict"]["w"].unique().tolist()
    return value


def checkpoints(**changes: Any) -> Checkpoints:
    options = {"every_n_steps": 2, "every_s": None, "keep": 2, "keep_best": 0, "monitor": "psnr", "mode": "maximize"}
    return Checkpoints(**(options | changes))


def advance(callback: Checkpoints, trainer: Any, step: int, task: Any = None, psnr: float | None = None) -> None:
    """The first batch after `step` updates begins."""
    task = task or Task()
    trainer.global_step = step
    if psnr is not None:
        task.validated_step, task.validated = step, {"psnr": psnr}
    callback.on_train_batch_start(trainer, task)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "checkpoints").iterdir() if file.suffix == ".ckpt")


def test_every_n_updates_and_the_newest_kept(tmp_path: Path) -> None:
    trainer, callback = Trainer(tmp_path), checkpoints()
    callback.on_train_start(trainer)
    for step in (0, 1, 2, 2, 3, 4, 5, 6, 7):  # a step that comes twice: two accumulated batches
        advance(callback, trainer, step)
    trainer.global_step = 8
    callback.on_train_end(trainer, Task())
    assert names(tmp_path) == ["last.ckpt", "step_0000006.ckpt", "step_0000008.ckpt"]
    files = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert files == {*names(tmp_path), "step_0000006.ckpt.sha256", "step_0000008.ckpt.sha256"}, "no stray files"
    assert (tmp_path / "checkpoints/last.ckpt").samefile(tmp_path / "checkpoints/step_0000008.ckpt")
    assert saved(tmp_path / "checkpoints/last.ckpt") == 8.0
    assert saved(tmp_path / "checkpoints/step_0000006.ckpt") == 6.0
    done = subprocess.run(["sha256sum", "-c", "step_0000008.ckpt.sha256"], cwd=tmp_path / "checkpoints", capture_output=True)
    assert done.returncode == 0


def test_the_best_stay_and_come_back_with_the_state(tmp_path: Path) -> None:
    trainer, callback = Trainer(tmp_path), checkpoints(every_n_steps=100, keep=1, keep_best=2)
    callback.on_train_start(trainer)
    for step, psnr in ((1, 20.0), (2, 25.0), (3, 21.0), (4, float("nan")), (5, 19.0)):
        advance(callback, trainer, step, psnr=psnr)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "step_0000002.ckpt", "step_0000003.ckpt"]
    assert (tmp_path / "checkpoints/best.ckpt").samefile(tmp_path / "checkpoints/step_0000002.ckpt")
    assert saved(tmp_path / "checkpoints/best.ckpt") == 2.0, "of update 2, with 25 dB"
    again = checkpoints(every_n_steps=100, keep=1, keep_best=2)
    again.load_state_dict(callback.state_dict())
    again.on_train_start(trainer)
    advance(again, trainer, 6, psnr=20.5)  # worse than both that are kept
    advance(again, trainer, 7, psnr=26.0)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "step_0000002.ckpt", "step_0000007.ckpt"]
    low = checkpoints(keep_best=1, mode="minimize", monitor="lpips")
    task = Task()
    task.validated_step, task.validated = 9, {"lpips": 0.3}
    assert low._is_best(task, 9)
    task.validated_step, task.validated = 10, {"lpips": 0.4}
    assert not low._is_best(task, 10)


def test_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("train.runs.checkpoint.time.monotonic", lambda: now)
    trainer, callback = Trainer(tmp_path), checkpoints(every_n_steps=100, every_s=60.0, keep=9)
    callback.on_train_start(trainer)
    for step, now in ((1, 30.0), (2, 61.0), (3, 100.0), (4, 122.0)):  # noqa: B007 # the clock reads it
        advance(callback, trainer, step)
    assert [path.name for path in step_files(tmp_path / "checkpoints")] == ["step_0000002.ckpt", "step_0000004.ckpt"]


def test_a_signal_is_answered_between_two_updates(tmp_path: Path) -> None:
    trainer, callback = Trainer(tmp_path), checkpoints(every_n_steps=100)
    with Signals():
        callback.on_train_start(trainer)
        advance(callback, trainer, 3)
        os.kill(os.getpid(), 15)
        advance(callback, trainer, 3)  # the second batch of the same update: not yet
        assert not (tmp_path / "checkpoints").exists()
        with pytest.raises(Interrupted, match="SIGTERM: everything up to update 4 is saved") as raised:
            advance(callback, trainer, 4)
    assert raised.value.exit_code == 75
    assert "step_0000004.ckpt" in names(tmp_path)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer, callback, task = Trainer(tmp_path), checkpoints(), Task()
    callback.on_train_start(trainer)
    task.weight[0] = float("nan")
    with pytest.raises(Diverged, match="update 2: the weights are not finite"):
        advance(callback, trainer, 2, task)
    assert not (tmp_path / "checkpoints").exists()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing beyond it fails as it does on a full disk: with an OSError in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_names_the_file_and_costs_nothing(tmp_path: Path) -> None:
    trainer, callback = Trainer(tmp_path), checkpoints(every_n_steps=1)
    callback.on_train_start(trainer)
    advance(callback, trainer, 1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    expected = r"could not write .*step_0000002.ckpt \(.*\): the checkpoints before it are untouched; free space there"
    with file_size_limit(50_000), pytest.raises(OSError, match=expected):
        advance(callback, trainer, 2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before


@pytest.mark.parametrize("harm", ["truncated", "flipped", "emptied"])
def test_a_broken_newest_file_is_named_set_aside_and_the_one_before_used(tmp_path: Path, harm: str) -> None:
    first, second = (write(tmp_path / f"step_000000{step}.ckpt", step) for step in (1, 2))
    os.link(second, tmp_path / "last.ckpt")
    (tmp_path / "step_0000003.tmp").write_bytes(b"an attempt was killed while it wrote")
    whole = bytearray(second.read_bytes())
    whole[len(whole) // 2] ^= 1
    second.write_bytes({"truncated": bytes(whole[:-100]), "flipped": bytes(whole), "emptied": b""}[harm])
    found, news = newest_whole(tmp_path)
    assert found == first
    assert saved(found) == 1.0
    assert len(news) == 1
    assert "step_0000002.ckpt is broken (its SHA-256 is not the one beside it" in news[0]
    assert (tmp_path / "step_0000002.ckpt.broken1").exists(), "nothing is deleted"
    assert (tmp_path / "last.ckpt").samefile(first)
    assert newest_whole(tmp_path) == (first, []), "said once"
    assert not list(tmp_path.glob("*.tmp"))


def test_files_without_a_checksum_are_opened_to_see(tmp_path: Path) -> None:
    path = write(tmp_path / "step_0000001.ckpt", 1)
    checksum_file(path).unlink()
    assert damage(path) is None
    path.write_bytes(path.read_bytes()[:1000])
    assert "is not a whole checkpoint of a run" in str(damage(path))


def test_last_alone_is_enough(tmp_path: Path) -> None:
    write(tmp_path / "step_0000001.ckpt", 1).rename(tmp_path / "last.ckpt")
    assert newest_whole(tmp_path) == (tmp_path / "last.ckpt", [])
    (tmp_path / "last.ckpt").write_bytes(b"no")
    found, news = newest_whole(tmp_path)
    assert found is None
    assert "last.ckpt is broken" in news[0]
    assert newest_whole(tmp_path / "no folder") == (None, [])

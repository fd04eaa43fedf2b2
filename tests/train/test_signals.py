"""Signals and the lock: who is told, what is remembered, who may go on."""

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from tests import warm
from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from train.runs.rundir import lock, release
from train.signals import Signals, stop_signal


def test_what_is_remembered() -> None:
    with Signals():
        assert stop_signal() == 0
        os.kill(os.getpid(), signal.SIGUSR2)
        with Signals():  # a run within a launch
            assert stop_signal() == signal.SIGUSR2
            os.kill(os.getpid(), signal.SIGTERM)  # the limit itself, after it was announced
        assert stop_signal() == signal.SIGUSR2, "the job goes back into the queue"
    with Signals():
        assert stop_signal() == 0
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_to_the_whole_process_group_with_data_workers(tmp_path: Path) -> None:
    """As SLURM and `timeout` send it: the workers must not die of it."""
    root = f"data.root={write_photographs(tmp_path / 'photographs')}"
    tiny = [*TINY_NETWORK, *TINY_DATA, *TINY_RUN, "validation.lpips=null", "schedule=constant", "data.num_workers=2"]
    long = ["trainer.max_steps=100000", "trainer.val_check_interval=100000", "checkpoint.every_n_steps=20", "name=run"]
    command, printed, errors = ["experiment=demo", "data=folder", *tiny, root, *long], tmp_path / "printed", tmp_path / "errors"
    run = warm.start(command, cwd=tmp_path, stdout=printed, stderr=errors, environment={})
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/run/checkpoints/step_*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.pid is not None
    os.killpg(run.pid, signal.SIGTERM)
    run.join(60)
    assert run.exitcode == 75, errors.read_text()
    assert "SIGTERM: everything up to update" in printed.read_text()
    assert "Traceback" not in errors.read_text()


def test_the_lock_has_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the file was removed by the one that had it while another waited for it."""
    run, calls = tmp_path / "runs" / "run", []
    (tmp_path / "other").touch()  # so that only runs/ is empty afterwards
    first = lock(run)
    whole = fcntl.lockf

    def lockf(file: object, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:  # in between, the first gives up and takes its file with it
            release(first, run)
        whole(file, how)

    monkeypatch.setattr("train.runs.rundir.fcntl.lockf", lockf)
    second = lock(run)
    assert len(calls) == 2
    assert os.fstat(second.fileno()).st_ino == (tmp_path / "runs" / ".run.lock").stat().st_ino
    release(second, run)


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(file: object, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("train.runs.rundir.fcntl.lockf", lockf)
    with pytest.raises(OSError, match="Function not implemented"):
        lock(tmp_path / "runs" / "run")

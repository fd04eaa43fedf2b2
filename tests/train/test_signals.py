"""Signals and the lock: who is told, what is remembered, who may go on."""

import fcntl
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import warm
from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from train.runs.rundir import lock, release
from train.signals import TIME_IS_UP, Interrupted, Signals, exit_code, stop_signal
from train.tasks.task import RestorationTask

Cli = Callable[..., tuple[int, str]]


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


def test_a_deadline_asks_as_a_signal_does(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("train.signals.time.monotonic", lambda: now)
    with Signals(), Signals(within_s=60):
        now = 159.0
        assert stop_signal() == 0
        now = 160.0
        assert stop_signal() == TIME_IS_UP
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop_signal() == signal.SIGUSR1
    assert stop_signal() == 0
    assert exit_code(TIME_IS_UP) == 75
    assert str(Interrupted(TIME_IS_UP, 7)).startswith("trainer.max_time: everything up to update 7 is saved; the same command")


def test_a_run_has_its_time_and_goes_on(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is moved by half an hour an update."""
    root = f"data.root={write_photographs(tmp_path / 'photographs')}"
    own = [*TINY_NETWORK, *TINY_DATA, *TINY_RUN, "validation.lpips=null", "schedule=constant", root, "name=run"]
    command = ["experiment=demo", "data=folder", *own, "trainer.max_steps=4", "trainer.max_time=00:01:00:00"]
    updates = Counter[str]()
    done = RestorationTask.on_train_batch_end

    def counted(task: RestorationTask, *arguments: object) -> None:
        updates["all"] += 1
        done(task, *arguments)

    monkeypatch.setattr(RestorationTask, "on_train_batch_end", counted)
    monkeypatch.setattr("train.signals.time", SimpleNamespace(monotonic=lambda: 1800.0 * updates["all"]))
    code, printed = cli(*command)
    assert (code, updates["all"]) == (75, 2), printed
    assert "trainer.max_time: everything up to update 2 is saved; the same command" in printed
    code, printed = cli(*command)
    assert code == 0, printed
    assert "step_0000002.ckpt, ends at update 4" in printed


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

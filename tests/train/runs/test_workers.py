"""What a run says where its data workers can't live: one sentence that holds the way out."""

import ctypes
import errno
import os
import signal
from collections.abc import Callable
from multiprocessing.synchronize import SemLock
from pathlib import Path

import pytest

import data.module
from tests import warm
from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN
from train.runs.workers import SHARED, worker_advice

Cli = Callable[..., tuple[int, str]]
RUN = ["experiment=demo", *TINY_NETWORK, *TINY_DATA, *TINY_RUN, "validation.lpips=null", "data.val_degradations=1"]
NEW_MOUNTS = 0x00020000  # CLONE_NEWNS of unshare(2)


def with_little_shared_memory() -> None:
    """This process alone gets a /dev/shm of 64 KiB. Raises OSError: only root may do so."""
    libc = ctypes.CDLL(None, use_errno=True)
    private = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC
    for done in (
        libc.unshare(NEW_MOUNTS),
        libc.mount(b"none", b"/", None, private, None),
        libc.mount(b"tmpfs", bytes(SHARED), b"tmpfs", 0, b"size=64k"),
    ):
        if done:
            raise OSError(ctypes.get_errno(), "mount")


def may_mount() -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            with_little_shared_memory()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def words_of_errors(printed: str) -> list[str]:
    assert "Traceback" not in printed, printed
    return [line for line in printed.splitlines() if line.startswith("error: ")]


@pytest.mark.skipif(not may_mount(), reason="a small /dev/shm takes root")
def test_a_small_shared_memory_is_one_sentence_and_its_advice_helps(tmp_path: Path) -> None:
    printed = []
    for workers in (1, 0):
        output = tmp_path / f"{workers}.txt"
        arguments = [*RUN, f"data.num_workers={workers}"]
        process = warm.start(
            arguments, cwd=tmp_path, stdout=output, stderr=output, environment={}, before=with_little_shared_memory
        )
        process.join(120)
        printed.append((process.exitcode, output.read_text()))
    (code, said), (code_without, _) = printed
    (words,) = words_of_errors(said)
    assert code == 1
    assert "data.num_workers=1: /dev/shm (0 MiB), through which data workers hand over their batches, is too small" in words
    assert "set data.num_workers=0, which reads in the training process" in words
    assert "docker run --shm-size=8g" in words
    assert code_without == 0, printed[1]


def dies_of(signum: int) -> Callable[[object], None]:
    """In place of putting a batch together."""
    return lambda _: os.kill(os.getpid(), signum)


@pytest.mark.parametrize(
    ("signum", "expected"),
    [(signal.SIGBUS, "/dev/shm ("), (signal.SIGKILL, "a data worker was killed from outside")],
)
def test_a_worker_that_a_signal_ends(cli: Cli, monkeypatch: pytest.MonkeyPatch, signum: int, expected: str) -> None:
    monkeypatch.setattr(data.module, "collated", dies_of(signum))
    code, printed = cli(*RUN, "data.num_workers=1")
    (words,) = words_of_errors(printed.replace("\0", ""))  # torch's handler of SIGBUS writes one
    assert code == 1
    assert expected in words
    assert "data.num_workers=0" in words


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "/dev/shm ("),
        (errno.EMFILE, "too many files are open (data.num_workers=1): give ulimit -n 65536 before the command"),
        (errno.ENOMEM, "memory ran out in "),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_workers_that_can_not_be_started(cli: Cli, monkeypatch: pytest.MonkeyPatch, number: int, expected: str) -> None:
    """Lightning clears away after them, fails at that, and would show this second error alone."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(SemLock, "__init__", refused)
    code, printed = cli(*RUN, "data.num_workers=1")
    (words, *advice) = words_of_errors(printed)
    assert code == 1
    assert expected in words
    assert ("data.num_workers=0" in " ".join([words, *advice])) == (number != errno.EACCES)


def test_a_full_disk_and_other_errors_are_not_the_workers() -> None:
    assert worker_advice(OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.csv"), 4) is None
    assert worker_advice(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 4) is None

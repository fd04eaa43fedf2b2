"""Starting the processes of a run: one for each local device, all given one resolved configuration, none left behind."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train.errors import ERROR_FILE
from train.signals import REQUEUE, Interrupted, Signals

SCRIPT = Path(__file__).parents[2] / "train.py"
PARENT = "FACEWRIGHT_PARENT"  # that one's id
# How long the other ranks have once one has ended badly: longer where it was asked to end, as rank 0 may still be saving.
GRACE_S = {True: 120.0, False: 3.0}


class Failed(Exception):
    """A process that was started here failed; the message is its own."""


def launch(config: dict[str, Any], local_ranks: int | None = None) -> None:
    """Runs a resolved configuration in fresh processes of this machine, and returns when all have ended well.

    When one fails the others are ended, as they may be waiting for it. Signals are passed on to all.

    Args:   local_ranks: how many of the run's ranks this machine has; None starts one process, which starts others if needed.
    Raises: Failed with the first error; Interrupted when they saved and ended as a signal asked.
    """
    with tempfile.TemporaryDirectory(prefix="facewright") as folder, Signals():
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        environments = _environments(local_ranks, config["trainer"]["num_nodes"]) if local_ranks else [{}]
        ranks = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), "--resolved", str(file)],
                env=os.environ | own | {ERROR_FILE: str(Path(folder) / f"error_{rank}"), PARENT: str(os.getpid())},
                start_new_session=True,  # a Ctrl-C reaches them from here, once
            )
            for rank, own in enumerate(environments)
        ]
        try:
            _wait(ranks, Path(folder))
            killed = [n for n, process in enumerate(ranks) if (process.returncode or 0) < 0]  # not by us, who kill below
        finally:
            for process in ranks:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.wait()
        _raise_first_failure([process.returncode for process in ranks], killed, Path(folder))


def _raise_first_failure(codes: list[int], killed: list[int], folder: Path) -> None:
    """Raises what `launch` raises; nothing where every rank ended with 0.

    Args: codes: exit codes by rank.     killed: ranks that a signal ended.     folder: of their error files.
    """
    signum = Signals.received
    errors = sorted(folder.glob("error_*"), key=lambda path: path.stat().st_mtime_ns)
    if not any(codes):
        return
    if killed and not signum:  # errors of other ranks follow from it
        name = signal.Signals(-codes[killed[0]]).name
        raise Failed(f"rank {killed[0]} was killed by {name} (SIGKILL is often the machine's memory running out)")
    if errors:
        raise Failed(errors[0].read_text(encoding="utf-8", errors="surrogateescape"))
    if signum or set(codes) <= {0, REQUEUE, 130}:
        raise Interrupted(signum or signal.SIGTERM, -1)
    rank = next(n for n, code in enumerate(codes) if code)
    raise Failed(f"rank {rank} ended with code {codes[rank]}")


def ranks_here(config: dict[str, Any]) -> int | None:
    """`local_ranks` for `launch`, as far as the configuration alone tells it: trainer.devices where it is a number above 1."""
    devices = config["trainer"]["devices"]
    return devices if isinstance(devices, int) and devices > 1 else None


def _environments(local_ranks: int, nodes: int) -> list[dict[str, str]]:
    """For each local rank, the environment variables in which Lightning looks for its rank and for the address of rank 0."""
    shared = {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or _free_port(),
        "NODE_RANK": os.environ.get("NODE_RANK", "0"),
        "WORLD_SIZE": str(local_ranks * nodes),
    }
    return [shared | {"LOCAL_RANK": str(rank)} for rank in range(local_ranks)]


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _wait(ranks: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Returns when all have ended, or some time after the first that failed."""
    passed_on, deadline = 0, float("inf")
    while any(process.poll() is None for process in ranks) and time.monotonic() < deadline:
        if Signals.received != passed_on:
            passed_on = Signals.received
            for process in ranks:
                process.send_signal(passed_on)
        ended = [process.returncode for process in ranks if process.returncode]
        if not ended and any(folder.glob("error_*")):
            ended = [1]  # it has written its error, but may hang before it ends
        if ended and deadline == float("inf"):
            deadline = time.monotonic() + GRACE_S[ended[0] in (REQUEUE, 130)]
        time.sleep(0.05)


def die_with_parent() -> None:
    """Has the kernel kill this process when the one that started it dies, however that happens (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(os.environ[PARENT]):  # the parent died before prctl
        os._exit(1)

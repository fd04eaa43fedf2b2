"""`python train.py …` in processes forked from a server that has imported torch and Lightning, and nothing of ours.

To import those takes a fresh process 8 s of a core, and a run of two ranks has three processes. tests/toy.py has the fresh one.
"""

import atexit
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace

from tests.toy import ROOT, draw_no_curves

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
PRELOADED = ["torch", "lightning", "torchmetrics", "torchvision", "hydra", "tensorboard", "matplotlib.pyplot", "cv2", "scipy"]
PRELOADED += ["pydantic", "lightning.pytorch.loggers", "torch.utils.tensorboard"]


def train(*arguments: str, cwd: Path, timeout_s: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python train.py ARGUMENTS` in this process's environment with the variables given; no curves.png is drawn.

    Raises: subprocess.TimeoutExpired: it was still running, and has been killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder) / "stdout", Path(folder) / "stderr"
        process = start(arguments, cwd=cwd, stdout=stdout, stderr=stderr, environment=environment)
        process.join(timeout_s)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]  # it was started
            raise subprocess.TimeoutExpired(["train.py", *arguments], timeout_s, stdout.read_text(), stderr.read_text())
        return subprocess.CompletedProcess(["train.py", *arguments], process.exitcode, stdout.read_text(), stderr.read_text())


def start(
    arguments: Sequence[str],
    *,
    cwd: Path,
    stdout: Path,
    stderr: Path,
    environment: dict[str, str],
    before: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """`python train.py ARGUMENTS`, begun: a session of its own, which appends to the two files (or to one).

    Args: environment: added to ENVIRONMENT, which is added to this process's.
          before: called in the new process before it becomes train.py; it is sent there, so it needs a name in a module.
    """
    whole = os.environ | ENVIRONMENT | environment
    whole.pop("WANDB_SERVICE", None)  # of this process: it would outlive the run, and hold its id
    process = _server().Process(target=_become_train_py, args=(list(arguments), cwd, stdout, stderr, whole, before))
    process.start()
    return process


@cache
def _server() -> multiprocessing.context.ForkServerContext:
    """What was imported counts threads in its environment; a server that other tests started is stopped first."""
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
    multiprocessing.set_forkserver_preload(PRELOADED)
    before = os.environ.copy()
    os.environ.update(ENVIRONMENT)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return multiprocessing.get_context("forkserver")


def _become_train_py(
    arguments: list[str],
    cwd: Path,
    stdout: Path,
    stderr: Path,
    environment: dict[str, str],
    before: Callable[[], None] | None,
) -> None:
    """In a fresh fork of the server."""
    import train.jobs.launch

    os.environ.clear()
    os.environ.update(environment)
    os.setsid()
    os.chdir(cwd)
    for descriptor, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), descriptor)
    multiprocessing.set_start_method("fork", force=True)  # of the data workers: else they would come from the server too
    train.jobs.launch.subprocess = SimpleNamespace(Popen=ForkedRank)  # type: ignore[attr-defined]
    draw_no_curves()
    if before:
        before()
    sys.exit(_main([str(ROOT / "train.py"), *arguments]))


def _main(argv: list[str]) -> int:
    """train.py in this process: its exit code."""
    from train.jobs.cli import main

    sys.argv = argv
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    atexit._run_exitfuncs()  # a fork ends without; W&B writes what is left there
    sys.stdout.flush()
    sys.stderr.flush()
    return code


class ForkedRank:
    """What train/jobs/launch.py needs of subprocess.Popen: a fork of the launching process, which has imported everything."""

    def __init__(self, command: list[str], *, env: dict[str, str], start_new_session: bool) -> None:
        assert start_new_session
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                    signal.signal(signum, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                atexit._clear()  # what the launching process has to do, such as removing its temporary folder
                os.setsid()
                os.environ.clear()
                os.environ.update(env)
                code = _main(command[1:])
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> None:
        while self.poll() is None:
            time.sleep(0.01)

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

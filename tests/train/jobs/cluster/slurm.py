"""A real SLURM cluster of this one host for the tests: munged, slurmctld and slurmd as root, without accounting.

Everything it writes lies in one folder, its ports are free ones, and it is stopped by the process ids that it started.
"""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

T = TypeVar("T")
DAEMONS = ("munged", "slurmctld", "slurmd")
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_s}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait={kill_wait_s}
OverTimeLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mib}
PartitionName=tests Nodes={host} Default=YES DefaultTime=2 MaxTime=10
"""


class Job(NamedTuple):
    """What `scontrol show job` says of a job: SLURM's words, (exit code, signal) and how often it was requeued."""

    state: str
    reason: str
    exit_code: tuple[int, int]
    restarts: int


class Cluster:
    """Runs inside `with`. A command that `run` does not start needs `environment` added to its own.

    Args: folder: made if missing; not deep, as a socket lies in it.
          cpus: what the node claims to have; more than there are is allowed, and its jobs share the real ones.
          memory_mib: what the node claims to have; nothing enforces it.
          kill_wait_s: from the SIGTERM of scancel or of the time limit to the SIGKILL.
          requeue_s: how long a requeued job is held back after its end; SLURM takes 120 for anything below 5.
    """

    def __init__(
        self, folder: Path, *, cpus: int = 4, memory_mib: int = 65536, kill_wait_s: int = 10, requeue_s: int = 5
    ) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        ports = dict(zip(("controller_port", "node_port"), free_ports(2), strict=True))
        host = socket.gethostname().split(".")[0]
        sizes = {"cpus": cpus, "memory_mib": memory_mib, "kill_wait_s": kill_wait_s, "requeue_s": requeue_s}
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, **ports, **sizes))
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)

    def __enter__(self) -> Self:
        with ExitStack() as started:
            files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
            options = [f"--{option}={self.folder}/munge.{name}" for option, name in files.items()]
            self._start(started, "munged", "--foreground", "--force", *options)
            until((self.folder / "munge.socket").exists, 10, self.log)
            self._start(started, "slurmctld", "-D")
            self._start(started, "slurmd", "-D")
            until(lambda: self.run("sinfo", "--noheader", "--format=%T").strip() == "idle", 20, self.log)
            started.callback(self._clear)
            self._started = started.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._started.close()

    def run(self, *command: str, **kwargs: Any) -> str:
        """Runs a command in the cluster's environment, with subprocess.run's kwargs, and returns its stdout.

        Raises: RuntimeError: it failed; the message has its stderr.
        """
        kwargs["env"] = {**kwargs.get("env", os.environ), **self.environment}
        done = subprocess.run(command, **{"capture_output": True, "text": True, **kwargs})
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return str(done.stdout)

    def state(self, job: int | str) -> Job:
        """Says where a job is: `7`, or `7_1` for one task of a job array. SLURM forgets a job 300 s after its end."""
        text = self.run("scontrol", "--oneliner", "show", "job", str(job))
        fields = dict(re.findall(r"\b(JobState|Reason|ExitCode|Restarts)=(\S+)", text))
        code, signal = fields["ExitCode"].split(":")
        return Job(fields["JobState"], fields["Reason"], (int(code), int(signal)), int(fields["Restarts"]))

    def wait(self, job: int | str, *states: str, timeout_s: float) -> Job:
        """Returns the job once it is in one of the states.

        Raises: TimeoutError: it wasn't within timeout_s; the message has the job's state and what the daemons wrote.
        """

        def reached() -> Job | None:
            now = self.state(job)
            return now if now.state in states else None

        return until(reached, timeout_s, lambda: f"job {job} is not {states} but {self.state(job)}\n{self.log()}")

    def log(self) -> str:
        """Returns the last lines of each daemon's output."""
        logs = (self.folder / f"{name}.out" for name in DAEMONS)
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in logs if path.exists())

    def _start(self, started: ExitStack, name: str, *options: str) -> None:
        executable = shutil.which(name, path=SEARCH_PATH) or name
        with (self.folder / f"{name}.out").open("w") as log:
            # Its own session: Ctrl-C on the tests doesn't end it before its jobs. setpriv: if the tests are killed, it ends.
            command = ["setpriv", "--pdeathsig", "TERM", executable, *options]
            environment = {**os.environ, **self.environment}
            daemon = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        started.callback(daemon.wait)
        started.callback(daemon.terminate)

    def _clear(self) -> None:
        with suppress(RuntimeError):  # no job is left
            self.run("scancel", "--user=root")
        until(lambda: not self.run("squeue", "--noheader"), 60, self.log)


def why_not() -> str | None:
    """Says why a cluster can't be started here; None means that it can."""
    if missing := [name for name in DAEMONS if shutil.which(name, path=SEARCH_PATH) is None]:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm munge"
    return "SLURM's daemons need root here" if os.geteuid() else None


def free_ports(count: int) -> list[int]:
    """Returns ports that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def until(condition: Callable[[], T | None], timeout_s: float, story: Callable[[], str]) -> T:
    """Returns what the condition gives once that is true; TimeoutError with the story if it isn't in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with suppress(RuntimeError):  # slurmctld does not answer yet
            if value := condition():
                return value
        time.sleep(0.2)
    raise TimeoutError(f"waited {timeout_s} s: {story()}")

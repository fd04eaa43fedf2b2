"""Runs as SLURM jobs: submitted with submitit, requeued before their time limit, waited for."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import submitit
import torch
from annotated_types import Ge, Gt
from omegaconf import DictConfig, open_dict
from pydantic.dataclasses import dataclass
from submitit.core.utils import FailedJobError

from data.writing import refuse_links_out
from train.jobs import cli
from train.jobs.config import ConfigError, plain
from train.jobs.results import Job
from train.jobs.sweep import Sweep
from train.runs.resume import is_finished
from train.runs.rundir import RUNS, write_text
from train.signals import NEAR_LIMIT, REQUEUE, Signals, stop_signal

ROOT = Path(__file__).parents[2]


@dataclass(kw_only=True)
class Resources:
    """What a job asks SLURM for: the keys of conf/hydra/launcher/slurm.yaml, where each is explained."""

    timeout_min: Annotated[int, Ge(1)]
    signal_delay_s: Annotated[int, Ge(1)]
    partition: str | None
    gpus_per_node: Annotated[int, Ge(0)] | Literal["auto"]
    cpus_per_task: Annotated[int, Ge(1)] | Literal["auto"]
    mem: str | None
    options: dict[str, Any]
    setup: list[str]
    poll_s: Annotated[float, Gt(0)]

    def sbatch(self, config: dict[str, Any]) -> dict[str, Any]:
        """What to ask of sbatch for this run, by submitit's names.

        Raises: ConfigError: the configuration does not say how many tasks there are.
        """
        trainer = config["trainer"]
        if not isinstance(trainer["devices"], int):
            raise ConfigError(f"trainer.devices={trainer['devices']!r}: a job needs a number, as in trainer.devices=4")
        gpus = trainer["devices"] if self.gpus_per_node == "auto" and trainer["accelerator"] != "cpu" else self.gpus_per_node
        return {
            "job_name": config["name"].replace("/", "."),
            "time": self.timeout_min,
            "signal_delay_s": self.signal_delay_s,
            "nodes": trainer["num_nodes"],
            "ntasks_per_node": trainer["devices"],
            "cpus_per_task": config["data"]["num_workers"] + 1 if self.cpus_per_task == "auto" else self.cpus_per_task,
            "setup": self.setup,
            "srun_args": ["--kill-on-bad-exit=1"],  # a rank that fails ends the others, which may be waiting for it
            "additional_parameters": {"requeue": True, **self.options},
            **({"gpus_per_node": gpus} if gpus not in (0, "auto") else {}),
            **({"partition": self.partition} if self.partition else {}),
            **({"mem": self.mem} if self.mem else {}),
        }


def run_jobs(
    sweep: Sweep, configs: list[DictConfig], make_current: Callable[[DictConfig], None], resources: Resources
) -> list[float | None]:
    """Submits every job that is neither finished nor in the queue already, waits for all, and returns their scores.

    Args: configs: composed, not yet resolved.
          make_current: makes one of them the configuration that Hydra's own interpolations and HydraConfig refer to.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    jobs: list[Job] = []
    submitted: dict[str, Job] = {}  # SLURM's number of the job ->
    for config in configs:
        make_current(config)
        raw = plain(config)["trainer"]
        with open_dict(config):
            del config["hydra"]
        job = sweep.prepare(config)
        jobs.append(job)
        if job.error or (job.config["resume"] != "never" and is_finished(job.config)):
            continue
        try:
            _check_settled(raw)
            submitted[_submitted_before(job) or _submit(job, resources)] = job
        except (ValueError, OSError, RuntimeError, subprocess.CalledProcessError, FailedJobError) as error:
            job.error = f"not submitted: {error}"
    _wait(submitted, resources.poll_s)
    for number, job in submitted.items():
        if not is_finished(job.config):
            job.cancelled = _is_cancelled(number)
            job.error = f"CANCELLED (SLURM job {number}): scancel ended it" if job.cancelled else _error(job, number)
    return [sweep.close(job) for job in jobs]


def _check_settled(trainer: dict[str, Any]) -> None:
    """Raises ConfigError where a value would be read from this machine, which is not the one that trains.

    Args: trainer: its node before interpolations are resolved.
    """
    if str(trainer["precision"]).startswith("${") and trainer["accelerator"] != "cpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.precision: there is no GPU here to ask; give bf16-mixed (or 32-true, 16-mixed)")
    if str(trainer["devices"]).startswith("${"):
        raise ConfigError("trainer=slurm reads the job it is in; with hydra/launcher=slurm give trainer=ddp trainer.devices=N")


def _folder(job: Job) -> Path:
    """For submitit's files and the logs; it lies beside the run's folder."""
    return (RUNS / job.config["name"]).with_name(f"{job.name}.slurm")


def _submit(job: Job, resources: Resources) -> str:
    refuse_links_out(_folder(job))
    # -P: the folder that a command was given in is no place to import from
    executor = submitit.SlurmExecutor(folder=_folder(job), python=f"{shlex.quote(sys.executable)} -P")
    executor.update_parameters(**resources.sbatch(job.config))
    number = executor.submit(slurm_task, job.config).job_id
    write_text(_folder(job) / "job", f"{number} {_digest(job)}")
    print(f"{job.config['name']}: submitted as SLURM job {number}; log: {_folder(job)}/{number}_0_log.out", flush=True)
    return number


def _submitted_before(job: Job) -> str | None:
    """The number of the job that an earlier command submitted for this run, if it has not ended.

    Raises: ConfigError: it has another configuration.
    """
    file = _folder(job) / "job"
    number, digest = file.read_text(encoding="utf-8").split() if file.exists() else ("", "")
    if number not in _jobs_in_queue():
        return None
    if digest != _digest(job):
        raise ConfigError(f"SLURM job {number} trains here with another configuration: scancel it, or give another name=…")
    print(f"{job.config['name']}: is SLURM job {number} already", flush=True)
    return number


def _digest(job: Job) -> str:
    return hashlib.sha256(json.dumps(job.config, sort_keys=True).encode()).hexdigest()


def _jobs_in_queue() -> dict[str, str]:
    """Number -> state of this user's jobs that have not ended. Works without accounting, which sacct would need."""
    command = ["squeue", "-h", "-u", str(os.getuid()), "-o", "%A %T %r"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    states = (line.split(maxsplit=2) for line in done.stdout.splitlines())
    return {number: state if reason == "None" else f"{state} ({reason})" for number, state, reason in states}


def _wait(submitted: dict[str, Job], poll_s: float) -> None:
    """Returns when none of the jobs is in the queue any more; prints every change of their states."""
    said = dict.fromkeys(submitted, "")
    while said:
        time.sleep(poll_s)
        if stop_signal():
            print("the jobs stay in the queue; the same command waits for them again, scancel ends them", flush=True)
            sys.exit(130)
        try:
            alive = _jobs_in_queue()
        except subprocess.CalledProcessError as error:  # the controller is busy or restarting
            print(f"squeue: {error.stderr.strip()}; asking again", file=sys.stderr, flush=True)
            continue
        for number, before in list(said.items()):
            if (now := alive.get(number, "ended")) != before:
                print(f"{submitted[number].config['name']}: SLURM job {number}: {now}", flush=True)
            said[number] = now
            if number not in alive:
                del said[number]


def _is_cancelled(number: str) -> bool:
    """Whether scancel ended a job. SLURM forgets it some minutes after its end."""
    done = subprocess.run(["scontrol", "--oneliner", "show", "job", number], capture_output=True, text=True, check=False)
    return "JobState=CANCELLED" in done.stdout


def _error(job: Job, number: str) -> str:
    """Why a job ended before its last update, as its log says it."""
    logs = sorted(_folder(job).glob(f"{number}_*_log.err"))
    errors = [line for log in logs for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("error: ")]
    reason = errors[-1].removeprefix("error: ") if errors else "it ended before its last update"
    return f"{reason} (SLURM job {number}, log in {_folder(job)})"


def slurm_task(config: dict[str, Any]) -> None:
    """What every task of a SLURM job runs: one rank of a run.

    After the signal that the time limit is near, rank 0 puts the job back into the queue. After SIGTERM it does not: after a
    preemption SLURM does so itself, and a cancelled job shall stay cancelled.
    """
    with Signals():  # in place of submitit's handlers
        try:
            cli.train(config)
        except SystemExit as ended:
            if ended.code == REQUEUE and Signals.received in NEAR_LIMIT and os.environ["SLURM_PROCID"] == "0":
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
            raise

"""Sweeps: a process and a folder for each combination of what varies, one after the other."""

import hashlib
import logging
import re
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from data.sources.shown import printable
from train.jobs.arguments import of_job, overrides_of, refuse_foreign_hydra
from train.jobs.config import ConfigError, check, plain
from train.jobs.launch import Failed, launch, ranks_here
from train.jobs.results import Job, write_results
from train.runs.resume import is_finished
from train.runs.rundir import RUNS, read_summary
from train.signals import Interrupted, stop_signal


def is_swept(argument: str) -> bool:
    """True for an override that stands for several values, such as optimizer.lr=1e-4,5e-5."""
    try:
        return OverridesParser.create().parse_override(argument).is_sweep_override()
    except HydraException:  # it stands for nothing
        return False


class Sweep:
    """The jobs of one `-m` command.

    Args: folder: of all their runs, below runs/.     keys: what varies; none where one run is submitted to a cluster.
          settings: KEY=VALUE of Hydra's own keys, to be added to the command.
    """

    def __init__(self, *, folder: str, keys: list[str], settings: list[str]) -> None:
        self.folder, self.keys, self.settings = folder, keys, settings
        self.jobs: list[Job] = []

    @classmethod
    def plan(cls, arguments: list[str], conf: Path) -> "Sweep":
        """What the command line varies, and the folder's name: that of the run, or `sweep` where the name varies too.

        Raises: ValueError, HydraException: nothing to train, or what is wrong with the arguments.
        """
        overrides = OverridesParser.create().parse_overrides(overrides_of(arguments))
        varied = [each.get_key_element().lstrip("+") for each in overrides if each.is_sweep_override()]
        fixed = [each.input_line for each in overrides if not each.is_sweep_override() and each.input_line]
        refuse_foreign_hydra(fixed, [each for each in overrides if each.is_sweep_override()])
        with hydra.initialize_config_dir(str(conf), version_base="1.3"):
            config = hydra.compose("train", overrides=fixed, return_hydra_config=True)
        keys = [*varied, *(config.hydra.sweeper.get("params") or {})]
        if config.name is None and not {"model", "experiment", "name"} & set(keys):
            raise ValueError("nothing to train: choose model=NAME or experiment=NAME (python train.py --help lists them)")
        name = "sweep" if "name" in keys or config.name is None else f"{config.name}.sweep"
        folder = name if keys else str(config.name)
        given = {each.key_or_group for each in overrides}
        left_open = [f"{key}={value}" for key, value in hydra_settings(config, folder).items() if key not in given]
        return cls(folder=folder, keys=list(dict.fromkeys(keys)), settings=left_open)

    def prepare(self, config: DictConfig) -> Job:
        """The job of a composed configuration: named by what varies, and checked. A mistake is noted in its `error`."""
        overrides = (override.partition("=") for override in HydraConfig.get().overrides.task)
        varied = {key.lstrip("+"): value for key, _, value in overrides if key.lstrip("+") in self.keys}
        if self.keys:  # else it is one run, submitted to a cluster
            with open_dict(config):
                config.name = f"{self.folder}/{job_name(varied)}"
        job = Job(plain(config), varied)
        self.jobs.append(job)
        try:
            job.config = {
                **check(config, HydraConfig.get().overrides.task),
                "arguments": of_job(list(HydraConfig.get().overrides.task)),
            }
            if looks := [key for key in ("preflight", "validate") if job.config[key]]:
                raise ConfigError(f"{looks[0]}=true looks at one configuration: leave out -m and what varies")
        except ConfigError as error:
            job.error = str(error)
        return job

    def run(self, config: DictConfig) -> float | None:
        """Runs one job in a process of its own and returns its score, which a search goes by; None if it failed."""
        if signum := stop_signal():
            sys.exit(Interrupted(signum, 0).exit_code)
        job = self.prepare(config)
        if not job.error and (job.config["resume"] == "never" or not is_finished(job.config)):
            print(f"\n{self.folder}, job {len(self.jobs)}: {job.name}", flush=True)
            try:
                launch(job.config, ranks_here(job.config))
            except Interrupted as ended:
                job.status = "interrupted"
                sys.exit(ended.exit_code)  # the whole sweep ends; the same command goes on with this job
            except Failed as error:
                job.error = str(error)
        return self.close(job)

    def close(self, job: Job) -> float | None:
        """Notes how a job ended and returns its score, or None where there is none."""
        monitor = job.config["checkpoint"]["monitor"]
        if not job.error and is_finished(job.config):
            summary = read_summary(RUNS / job.config["name"])
            assert summary is not None
            job.values = {name: value for name, value in summary["val"].items() if isinstance(value, int | float)}
            job.error = (
                "" if job.scored else f"checkpoint.monitor={monitor} is {job.values.get(monitor)} in the last validation"
            )
        elif not job.error:
            job.error = "it ended before its last update"
        job.status = "CANCELLED" if job.cancelled else "failed" if job.error else "finished"
        if job.error:
            print(f"error: {job.name}: {'; '.join(map(printable, job.error.splitlines()))}", file=sys.stderr, flush=True)
        return job.score if job.scored else None

    def report(self) -> list[Job]:
        """Writes and prints the table of all jobs, and returns those that failed."""
        if self.jobs and self.keys:
            text = write_results(self.jobs, self.keys, RUNS / self.folder)
            print(f"\n{text}\n  {RUNS / self.folder}/sweep.md, sweep.csv, sweep.png", flush=True)
        return [job for job in self.jobs if job.error]


def hydra_settings(config: DictConfig, folder: str) -> dict[str, Any]:
    """Keys of Hydra and its sweeper -> what they are to be where the command doesn't say.

    Optuna's sampler is seeded, so that the same command proposes the same trials; those that fail are named at the end.
    """
    settings: dict[str, Any] = {"hydra.sweep.dir": f"'{RUNS}/{folder}'"}
    if "OptunaSweeper" in config.hydra.sweeper._target_:
        logging.getLogger("optuna").setLevel(logging.WARNING)
        settings |= {"hydra.sweeper.direction": config.checkpoint.mode, "hydra.sweeper.max_failure_rate": 1.0}
        settings |= {"hydra.sweeper.n_jobs": 1}
        settings |= {"hydra.sweeper.sampler.seed": 0} if "seed" in config.hydra.sweeper.sampler else {}
    return settings


def job_name(varied: dict[str, str]) -> str:
    """`optimizer.lr=1e-4,degradation=light`, as the name of a folder. Where characters had to be replaced or cut off, a hash
    of the whole is added, so that no two jobs have one name."""
    full = ",".join(f"{key}={value}" for key, value in varied.items())
    safe = re.sub(r"[^A-Za-z0-9._=,+-]", "-", full)[:150]
    return safe if safe == full else f"{safe}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"

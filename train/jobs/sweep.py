"""Sweeps: one process and one folder for each combination, named by what varies, and a table of results at the end."""

import csv
import hashlib
import io
import logging
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from train.jobs.config import ConfigError, check, plain
from train.jobs.launch import Failed, launch, ranks_here
from train.runs.differences import differing_keys
from train.runs.rundir import RUNS, read_summary, saved_config, write_text
from train.signals import Interrupted, stop_signal


@dataclass
class Job:
    """One combination: its run's name, what varies, how it ended."""

    config: dict[str, Any]
    varied: dict[str, str]
    status: str = "not run"  # finished, failed, interrupted
    error: str = ""
    values: dict[str, float] = field(default_factory=dict)  # of the last validation

    @property
    def name(self) -> str:
        return Path(self.config["name"]).name

    @property
    def scored(self) -> bool:
        return math.isfinite(self.values.get(self.config["checkpoint"]["monitor"], math.nan))

    @property
    def score(self) -> float:
        return self.values[self.config["checkpoint"]["monitor"]]


def is_swept(argument: str) -> bool:
    """True for an override that stands for several values, such as optimizer.lr=1e-4,5e-5."""
    return OverridesParser.create().parse_override(argument).is_sweep_override()


class Sweep:
    """The jobs of one `-m` command.

    Args: folder: of all their runs, below runs/.     keys: what varies; none where one run is submitted to a cluster.
          settings: Hydra's own, which the command leaves open.
    """

    def __init__(self, *, folder: str, keys: list[str], settings: list[str]) -> None:
        self.folder, self.keys, self.settings = folder, keys, settings
        self.jobs: list[Job] = []

    @classmethod
    def plan(cls, arguments: list[str], conf: Path) -> "Sweep":
        """What the command line varies, and the folder's name: that of the run, or `sweep` where the name varies too."""
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if not a.startswith("-")])
        varied = [each.get_key_element().lstrip("+") for each in overrides if each.is_sweep_override()]
        fixed = [each.input_line for each in overrides if not each.is_sweep_override() and each.input_line]
        with hydra.initialize_config_dir(str(conf), version_base="1.3"):
            config = hydra.compose("train", overrides=fixed, return_hydra_config=True)
        keys = [*varied, *(config.hydra.sweeper.get("params") or {})]
        if config.name is None and not {"model", "experiment", "name"} & set(keys):
            raise ValueError("nothing to train: choose model=NAME or experiment=NAME (python train.py --help lists them)")
        name = "sweep" if "name" in keys or config.name is None else f"{config.name}.sweep"
        folder = name if keys else str(config.name)
        settings: dict[str, Any] = {"hydra.sweep.dir": f"'{RUNS}/{folder}'"}
        if "OptunaSweeper" in config.hydra.sweeper._target_:
            logging.getLogger("optuna").setLevel(logging.WARNING)
            # As its sampler is seeded, the same command proposes the same trials; failed ones are named at the end.
            settings |= {"hydra.sweeper.direction": config.checkpoint.mode, "hydra.sweeper.max_failure_rate": 1.0}
            settings |= {"hydra.sweeper.n_jobs": 1}
            settings |= {"hydra.sweeper.sampler.seed": 0} if "seed" in config.hydra.sweeper.sampler else {}
        given = {each.key_or_group for each in overrides}
        left_open = [f"{key}={value}" for key, value in settings.items() if key not in given]
        return cls(folder=folder, keys=list(dict.fromkeys(keys)), settings=left_open)

    def prepare(self, config: DictConfig) -> Job:
        """The job of a composed configuration, named and checked; what is wrong with it stands in its error."""
        overrides = (override.partition("=") for override in HydraConfig.get().overrides.task)
        varied = {key.lstrip("+"): value for key, _, value in overrides if key.lstrip("+") in self.keys}
        if self.keys:  # else it is one run, submitted to a cluster
            with open_dict(config):
                config.name = f"{self.folder}/{job_name(varied)}"
        job = Job(plain(config), varied)
        self.jobs.append(job)
        try:
            job.config = check(config)
            if job.config["preflight"]:
                raise ConfigError("preflight=true looks at one configuration: leave out -m and what varies")
        except ConfigError as error:
            job.error = str(error)
        return job

    def run(self, config: DictConfig) -> float | None:
        """Runs one job in a process of its own and returns what it reached, which a search goes by; None if it failed."""
        if signum := stop_signal():
            sys.exit(Interrupted(signum, 0).exit_code)
        job = self.prepare(config)
        if not job.error and (job.config["resume"] == "never" or not is_finished(job.config)):
            print(f"\n{self.folder}, job {len(self.jobs)}: {job.name}", flush=True)
            try:
                launch(job.config, ranks_here(job.config))
            except Interrupted as ended:
                job.status = "interrupted"
                sys.exit(ended.exit_code)  # the whole sweep ends; issued again it goes on here
            except Failed as error:
                job.error = str(error)
        return self.close(job)

    def close(self, job: Job) -> float | None:
        """Notes how a job ended and returns its score."""
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
        job.status = "failed" if job.error else "finished"
        if job.error:
            print(f"error: {job.name}: {job.error}", file=sys.stderr, flush=True)
        return job.score if job.scored else None

    def report(self) -> list[Job]:
        """Writes sweep.md, sweep.csv and sweep.png, prints the table, and returns the jobs that failed."""
        if not self.jobs or not self.keys:
            return [job for job in self.jobs if job.status == "failed"]
        folder = RUNS / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        sign = -1 if self.jobs[0].config["checkpoint"]["mode"] == "maximize" else 1
        jobs = sorted((job for job in self.jobs if job.scored), key=lambda job: sign * job.score)  # the best first
        jobs += [job for job in self.jobs if not job.scored]
        names = list(dict.fromkeys(name for job in jobs for name in job.values))
        header = ["job", *self.keys, "status", *names]
        rows = [
            [job.name, *(job.varied.get(key, "") for key in self.keys), job.status]
            + [f"{job.values[name]:.4f}" if name in job.values else "" for name in names]
            for job in jobs
        ]
        lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
        failed = [job for job in jobs if job.status == "failed"]
        lines += [""] + [f"- {job.name}: {job.error}" for job in failed]
        text = "\n".join(lines).rstrip() + "\n"
        write_text(folder / "sweep.md", text)
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([header, *rows])
        write_text(folder / "sweep.csv", table.getvalue())
        draw([job for job in jobs if job.scored], folder / "sweep.png")
        print(f"\n{text}\n  {folder}/sweep.md, sweep.csv, sweep.png", flush=True)
        return failed


def job_name(varied: dict[str, str]) -> str:
    """`optimizer.lr=1e-4,degradation=light`: fit for a folder; what had to be changed for that gets a hash behind it."""
    full = ",".join(f"{key}={value}" for key, value in varied.items())
    safe = re.sub(r"[^A-Za-z0-9._=,+-]", "-", full)[:150]
    return safe if safe == full else f"{safe}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def is_finished(config: dict[str, Any]) -> bool:
    """True when this very configuration has reached its last update and was summed up. (Whether another may go on from it
    is for the run to say.)"""
    directory = RUNS / config["name"]
    summary = read_summary(directory)
    if summary is None or summary["step"] != config["trainer"]["max_steps"]:
        return False
    saved = saved_config(directory)
    same = ("resume", "logger", "data.num_workers", "trainer.enable_progress_bar")
    return not differing_keys(saved, {**config, "task": saved["task"]}, may_differ=same)


def draw(jobs: list[Job], path: Path) -> None:
    """The score by the one number that varies, or by job."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    keys = list(dict.fromkeys(key for job in jobs for key in job.varied))
    try:
        (key,) = keys
        points = sorted((float(job.varied[key]), job.score) for job in jobs)
        axis.plot([x for x, _ in points], [y for _, y in points], marker="o")
        if len(points) > 1 and points[0][0] > 0 and points[-1][0] / points[0][0] >= 5:
            axis.set_xscale("log")
        axis.set_xlabel(key)
        axis.grid(alpha=0.3)
    except ValueError:  # several keys, or one that isn't a number
        axis.barh([job.name for job in jobs][::-1], [job.score for job in jobs][::-1])
        scores = [job.score for job in jobs]
        if jobs:
            margin = (max(scores) - min(scores)) * 0.1 or 0.5
            axis.set_xlim(min(scores) - margin, max(scores) + margin)
    if jobs:
        axis.set_title(f"val/{jobs[0].config['checkpoint']['monitor']} at the last update")
    figure.savefig(path, dpi=100)
    plt.close(figure)

"""The jobs of a sweep and what each reached: a table and a picture, the best job first."""

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.writing import replacing
from train.runs.rundir import write_text


@dataclass
class Job:
    """One combination of a sweep: its run's configuration, what varies, how it ended.

    Args: varied: key -> value, as the command line has it.     values: of the run's last validation.
    """

    config: dict[str, Any]
    varied: dict[str, str]
    status: str = "not run"  # finished, failed, interrupted, CANCELLED
    error: str = ""
    cancelled: bool = False
    values: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return Path(self.config["name"]).name

    @property
    def scored(self) -> bool:
        return math.isfinite(self.values.get(self.config["checkpoint"]["monitor"], math.nan))

    @property
    def score(self) -> float:
        return self.values[self.config["checkpoint"]["monitor"]]


def write_results(jobs: list[Job], keys: list[str], folder: Path) -> str:
    """Writes sweep.md, sweep.csv and sweep.png, and returns what sweep.md holds.

    Args: jobs: those of one sweep, at least one.     keys: what varies, a column each.
    """
    jobs = best_first(jobs)
    rows = table(jobs, keys)
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
    lines += [""] + [f"- {job.name}: {job.error}" for job in jobs if job.error]
    text = "\n".join(lines).rstrip() + "\n"
    cells = io.StringIO()
    csv.writer(cells, lineterminator="\n").writerows(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "sweep.md", text)
    write_text(folder / "sweep.csv", cells.getvalue())
    draw([job for job in jobs if job.scored], folder / "sweep.png")
    return text


def best_first(jobs: list[Job]) -> list[Job]:
    """By their score, those without one last."""
    sign = -1 if jobs[0].config["checkpoint"]["mode"] == "maximize" else 1
    scored = sorted((job for job in jobs if job.scored), key=lambda job: sign * job.score)
    return scored + [job for job in jobs if not job.scored]


def table(jobs: list[Job], keys: list[str]) -> list[list[str]]:
    """A header, and a row for each job: what varies, how it ended, and every metric of its last validation."""
    metrics = list(dict.fromkeys(name for job in jobs for name in job.values))
    rows = [
        [job.name, *(job.varied.get(key, "") for key in keys), job.status]
        + [f"{job.values[name]:.4f}" if name in job.values else "" for name in metrics]
        for job in jobs
    ]
    return [["job", *keys, "status", *metrics], *rows]


def draw(jobs: list[Job], path: Path) -> None:
    """A picture of the scores: over the number that varies where it is one, else a bar for each job."""
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
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=100)
    plt.close(figure)

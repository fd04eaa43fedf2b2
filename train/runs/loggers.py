"""Loggers that go on where the attempt before was cut off: over all attempts at a run, every value stands once.

An attempt may be killed at update M, and the next one goes on from a checkpoint of N < M. Before it trains, `cut_after(N)` of
each logger drops what stands after N (W&B can't, and is not sent it again), and what stands at N itself is not logged twice.
"""

import configparser
import csv
import io
import json
import os
import secrets
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from data.writing import open_own, write_bytes
from train.runs.curves import draw_curves, read_columns, read_rows
from train.runs.pictures import PICTURE, picture_path
from train.runs.rundir import write_text


class LogsOnce:
    """Leaves out `epoch`, which is always 0, and what stands already at the update that an attempt goes on from."""

    start = -1
    standing: frozenset[str] = frozenset()  # names of what is logged at `start` already: its validation may be repeated

    def news(self, values: Mapping[str, Any], step: int) -> dict[str, Any]:
        return {k: v for k, v in values.items() if k != "epoch" and not (step == self.start and k in self.standing)}


class CsvLogger(LogsOnce, Logger):
    """Every logged row in one file, `metrics.csv`. Lightning's own CSVLogger deletes the file of the attempt before."""

    def __init__(self, *, directory: str) -> None:
        super().__init__()
        self.path = Path(directory) / "metrics.csv"
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The resolved config lies beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:  # type: ignore[override] # Lightning gives it
        if not (values := self.news(metrics, step)):
            return
        row = {"step": step, **values}
        if not self.columns:
            self.columns, _ = read_columns(self.path)
        if new := [key for key in row if key not in self.columns]:
            self.columns += new
            self._rewrite(read_rows(self.path))
        line = io.StringIO(newline="")
        csv.DictWriter(line, self.columns, restval="").writerow(row)
        with open_own(self.path) as file:
            file.write(line.getvalue().encode())  # one system call: a kill leaves the whole row or none
        if "val/psnr" in row:
            draw_curves(self.path.parent)

    @rank_zero_only
    def cut_after(self, step: int) -> None:
        """Drops the rows of updates that will be done again, and a last row that is not whole."""
        if self.path.exists():
            self.columns, rows = read_columns(self.path)
            rows = [row for row in rows if int(row["step"]) <= step]
            self._rewrite(rows)
            self.start = step
            self.standing = frozenset(key for row in rows if int(row["step"]) == step for key in row if row[key])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


class TensorBoard(LogsOnce, TensorBoardLogger):
    """One events file for each attempt, in one folder; each is rid of what a later attempt did again."""

    def __init__(self, *, save_dir: str, name: str, version: str) -> None:
        super().__init__(save_dir, name, version)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The resolved config lies beside the folder; without metrics to compare Lightning would log hp_metric = -1."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:  # type: ignore[override] # Lightning gives it
        super().log_metrics(self.news(metrics, step), step)

    @rank_zero_only
    def log_picture(self, picture: Tensor, step: int) -> None:
        """picture: (3, h, w) in [0, 1]."""
        for name, value in self.news({PICTURE: picture}, step).items():
            self.experiment.add_image(name, value, step)

    @rank_zero_only
    def save(self) -> None:
        """After every row, so that a kill loses none. Lightning's would write an empty hparams.yaml too."""
        self.experiment.flush()

    @rank_zero_only
    def cut_after(self, step: int) -> None:
        """Rewrites the events files without the records of later steps (one without a step counts as 0), and without a last
        record that is not whole. Checksums are in Python: about 10 MB/s."""
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        standing: set[str] = set()
        for path in sorted(Path(self.log_dir).glob("events.out.tfevents.*")):
            records = [(Event.FromString(record), record) for record in RawEventFileLoader(str(path)).Load()]
            kept = [record for event, record in records if event.step <= step]
            standing |= {value.tag for event, _ in records if event.step == step for value in event.summary.value}
            if sum(len(record) + 16 for record in kept) == path.stat().st_size:  # 16 bytes of length and checksums
                continue
            content = io.BytesIO()
            for record in kept:
                RecordWriter(content).write(record)
            write_bytes(path, content.getvalue(), synced=True)
        self.start, self.standing = step, frozenset(standing)


def refuse_settings_of_others() -> None:
    """W&B reads wandb/settings in the folder that a command is given in, and sends the API key to the base_url named there.

    Raises: ValueError: such a file sets more than the names of entity and project, or whether anything is sent.
    """
    for file in (Path(os.environ.get("WANDB_DIR", ".")) / name / "settings" for name in ("wandb", ".wandb")):
        found = configparser.ConfigParser(interpolation=None)
        try:
            found.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{file} can't be read as settings of W&B: remove it") from error
        settings = {key: value for section in found.values() for key, value in section.items()}
        for key in settings.keys() - {"entity", "project", "mode", "disabled"}:
            raise ValueError(
                f"{file} sets {key} for W&B, which sends your API key by it: remove that line; where it is yours, keep it in "
                f"~/.config/wandb/settings, or in the environment as WANDB_{key.upper()}"
            )


class Wandb(WandbLogger):
    """One W&B run for all attempts, whose step is our update. What was sent can't be taken back, so it is not sent again.

    Offline, W&B writes its files from a process of its own, some seconds or 32 KiB late, and nothing in its API says how far it
    has come before that process has ended. So an attempt counts as a whole or not at all: `wandb_sent` in the run's folder
    names its offline folder before its first value is sent, and its last step after W&B has closed that folder. A folder that
    a killed attempt left open is renamed to `killed-…`, which `wandb sync` passes over, and its values are sent anew from
    metrics.csv, times.csv and samples/. (What was synced from it by hand before that comes twice.) Online, the server says
    which step arrived last.
    """

    def __init__(self, *, save_dir: str, project: str, name: str) -> None:
        super().__init__(name, save_dir, project=project)
        self.folder = Path(save_dir)
        self.arrived = -1  # the last step that stands at W&B
        self._row: dict[str, Any] = {}
        self._row_step = -1

    @property
    def run_id(self) -> str | None:
        """None before the first attempt."""
        path = self.folder / "wandb_id"
        return (path.read_text(encoding="utf-8").strip() or None) if path.exists() else None

    @run_id.setter
    def run_id(self, value: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "wandb_id", value)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's would make another axis of the step, beside W&B's own, and give each attempt another id."""
        import wandb

        if self._experiment is None:
            refuse_settings_of_others()
            if wandb.run is not None:
                wandb.finish()  # an earlier run in this process, such as a job of a sweep: init would return that one
            self.run_id = self.run_id or secrets.token_hex(5)
            self._id = self.run_id
            self._set_aside_open_folder()
            self._experiment = wandb.init(
                dir=self.save_dir, project=self._project, name=self._name, id=self._id, resume="allow"
            )
            folder = Path(self._experiment.sync_dir).name if self._experiment.offline else None
            self._note(self._noted()["step"], folder)
        return self._experiment

    def _noted(self) -> dict[str, Any]:
        """`step`: the last one of the attempts that were finished at W&B. `open`: the offline folder of one that was not, or
        null."""
        path = self.folder / "wandb_sent"
        noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"step": -1, "open": None}
        return noted

    def _note(self, step: int, open_folder: str | None) -> None:
        write_text(self.folder / "wandb_sent", json.dumps({"step": step, "open": open_folder}) + "\n")

    def _set_aside_open_folder(self) -> None:
        name = self._noted()["open"]
        if name and (folder := self.folder / "wandb" / name).exists():
            folder.rename(folder.with_name(f"killed-{name}"))

    @rank_zero_only
    def cut_after(self, step: int) -> None:
        """Finds out what arrived, and sends what did not of the updates that will not be done again."""
        run = self.experiment
        self.arrived = self._noted()["step"] if run.offline else run.starting_step - 1
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for file, prefix in (("metrics.csv", ""), ("times.csv", "time/")):
            for row in read_rows(self.folder / file):
                values = {f"{prefix}{key}": float(value) for key, value in row.items() if value and key != "step"}
                rows[int(row["step"])] |= values
        for at in sorted(at for at in rows if self.arrived < at <= step):
            self.log_metrics(rows[at], at)
            if (picture := picture_path(self.folder, at)).exists():
                self.log_image(PICTURE, [str(picture)], at)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:  # type: ignore[override] # Lightning gives it
        """W&B closes a step for good when it writes it, so a row is held back until all of its step is here."""
        if step <= self.arrived:
            return
        if step != self._row_step:
            self._send()
        self._row |= {key: value for key, value in metrics.items() if key != "epoch"}
        self._row_step = step

    @rank_zero_only
    def log_picture(self, picture: Tensor, step: int) -> None:
        """picture: (3, h, w) in [0, 1]."""
        self.log_image(PICTURE, [picture], step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Lightning calls it after the training, whose last row a validation may still complete, and after a failure, whose
        last row the next attempt has from metrics.csv."""
        if status != "success":
            self._row = {}
            self.close(exit_code=1)

    @rank_zero_only
    def close(self, *, exit_code: int = 0) -> None:
        """Sends the last row, finishes at W&B, and notes that everything up to it is written.

        Args: exit_code: of the attempt; any but 0 makes it a failed one at W&B.
        """
        import wandb

        if self._experiment is None:
            return
        self._send()
        self._experiment.finish(exit_code)
        wandb.teardown(exit_code)  # waits for the end of W&B's process: finish returns before an offline file is whole
        self._note(self.arrived, None)
        self._experiment = None

    def _send(self) -> None:
        if self._row:
            self.experiment.log(self._row, step=self._row_step, commit=True)
            self.arrived = self._row_step
        self._row = {}

"""Where the time of an update goes: waiting for data, forward and backward, optimizer."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from data.writing import open_own
from train.tasks.task import RestorationTask

PARTS = ("data_wait_s", "forward_backward_s", "optimizer_s")


class StepTimes(Callback):
    """Mean seconds of each part of an update since the last row, in a file of its own and as time/… in TensorBoard and W&B.

    They are not in metrics.csv, so that runs with the same results have the same rows there. Validation and saving are left
    out. On a GPU the optimizer's kernels count towards whatever waits for them next.

    Args: file: gets a row every log_every_n_steps updates; further attempts at a run append to it.
    """

    def __init__(self, *, file: Path) -> None:
        self.file = file
        self.row = dict.fromkeys(PARTS, 0.0)  # seconds since the last row
        self.run = dict.fromkeys(PARTS, 0.0)  # seconds of this attempt
        self.updates = 0  # of this attempt
        self._mark = 0.0
        self._batch_began = 0.0
        self._before_optimizer: float | None = None

    def _add(self, part: str, seconds: float) -> None:
        self.row[part] += seconds
        self.run[part] += seconds

    def on_train_start(self, *_: Any) -> None:
        self._mark = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, task: RestorationTask, *_: Any) -> None:  # type: ignore[override]
        self._batch_began = time.perf_counter()
        self._add("data_wait_s", self._batch_began - self._mark - task.saving_s)
        task.saving_s = 0.0

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._before_optimizer = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, task: RestorationTask, *_: Any) -> None:  # type: ignore[override]
        now = time.perf_counter()
        self._add("forward_backward_s", (self._before_optimizer or now) - self._batch_began)
        if self._before_optimizer:
            self._add("optimizer_s", now - self._before_optimizer)
            self._before_optimizer = None
            self.updates += 1
            if trainer.global_step % trainer.log_every_n_steps == 0 and trainer.is_global_zero:
                self._write(trainer, task)
        self._mark = time.perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        self._mark = time.perf_counter()

    def _write(self, trainer: Any, task: RestorationTask) -> None:
        updates = min(trainer.log_every_n_steps, self.updates)  # the first row of an attempt may have fewer
        means = {part: seconds / updates for part, seconds in self.row.items()}
        means["images_per_s"] = task.effective_batch / sum(means.values())
        new = not self.file.exists()
        head = ("step," + ",".join(means) + "\n") * new
        row = f"{trainer.global_step}," + ",".join(f"{value:.6g}" for value in means.values()) + "\n"
        with open_own(self.file) as file:
            file.write((head + row).encode())
        for logger in trainer.loggers[1:]:  # the first is metrics.csv
            logger.log_metrics({f"time/{name}": value for name, value in means.items()}, trainer.global_step)
        self.row = dict.fromkeys(PARTS, 0.0)

    def sentence(self) -> str:
        """How long an update took, mean over this attempt; empty before the first update."""
        if not self.updates:
            return ""
        wait, compute, optimizer = (self.run[part] / self.updates for part in PARTS)
        return (
            f"an update took {wait + compute + optimizer:.4g} s: {wait:.4g} s waiting for data, {compute:.4g} s forward and "
            f"backward, {optimizer:.4g} s optimizer"
        )

"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from train.ranks import say


class Progress(TQDMProgressBar):
    """A bar over the whole run in generator updates: it/s, time left, loss. Runs have no epochs."""

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {key: value for key, value in metrics.items() if key != "v_num"}

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(Path(trainer.default_root_dir).name)


class Lines(Logger):
    """A plain line for each logged update and each validation, for files and queues, where a bar's carriage returns are noise.

    The time left counts updates alone, at the speed of the last ones (train/runs/times.py tells it, before the row comes).

    Args: max_steps: of the run.
    """

    def __init__(self, *, max_steps: int) -> None:
        super().__init__()
        self.max_steps = max_steps
        self.update_s = self.images_per_s = 0.0

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The resolved config lies in the run's folder."""

    def cut_after(self, step: int) -> None:
        """What was printed stands."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:  # type: ignore[override] # Lightning gives it
        if "time/images_per_s" in metrics:
            self.images_per_s = metrics["time/images_per_s"]
            self.update_s = sum(value for name, value in metrics.items() if name.endswith("_s") and "_per_" not in name)
        if "train/loss" in metrics:
            speed = f", {self.images_per_s:.4g} images/s" if self.images_per_s else ""
            left = timedelta(seconds=round((self.max_steps - step) * self.update_s))
            say(f"update {step}/{self.max_steps}: loss {metrics['train/loss']:.4g}{speed}{f', ETA {left}' if speed else ''}")
        if "val/psnr" in metrics:
            say(f"update {step}/{self.max_steps}: PSNR {metrics['val/psnr']:.2f} dB (LQ {metrics['val/psnr_lq']:.2f})")

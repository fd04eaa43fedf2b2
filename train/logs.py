"""What a run leaves for people: metrics.csv, curves.png, sample pictures, and the progress bar."""

import csv
import os
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchvision.utils import save_image

matplotlib.use("Agg")
import matplotlib.pyplot as plt


class CsvLogger(Logger):
    """Every logged row in one file, `metrics.csv`; a continued run goes on after the step it continues from.

    Lightning's own CSVLogger deletes the file of the attempt before.
    """

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
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **{key: value for key, value in metrics.items() if key != "epoch"}}
        if not self.columns and self.path.exists():
            self.columns = self.path.read_text().partition("\n")[0].split(",")
        if new := [key for key in row if key not in self.columns]:
            self.columns += new
            self._rewrite(read_rows(self.path))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)
        if "val/psnr" in row:
            draw_curves(self.path.parent)

    @rank_zero_only
    def cut_after(self, step: int) -> None:
        """Drops the rows of updates that a continued run will do again."""
        if self.path.exists():
            self.columns = self.path.read_text().partition("\n")[0].split(",")
            self._rewrite([row for row in read_rows(self.path) if int(row["step"]) <= step])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def draw_curves(directory: Path) -> Path | None:
    """curves.png from metrics.csv: the loss, and PSNR and SSIM of the restored image against LQ, by generator update."""
    rows = read_rows(directory / "metrics.csv")

    def curve(key: str) -> tuple[list[int], list[float]]:
        points = [(int(row["step"]), float(row[key])) for row in rows if row.get(key)]
        return [step for step, _ in points], [value for _, value in points]

    if not rows:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(15, 4), constrained_layout=True)
    axes[0].plot(*curve("train/loss"))
    axes[0].set(title="train/loss", xlabel="update", yscale="log")
    for axis, metric, unit in ((axes[1], "psnr", " (dB)"), (axes[2], "ssim", "")):
        axis.plot(*curve(f"val/{metric}"), marker="o", label="restored")
        axis.plot(*curve(f"val/{metric}_lq"), linestyle="--", label="LQ")
        axis.set(title=f"val/{metric}{unit}", xlabel="update")
        axis.legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(directory / "curves.png", dpi=100)
    plt.close(figure)
    return directory / "curves.png"


def write_pictures(trainer: L.Trainer, strip: Tensor | None) -> None:
    """samples/step_N.png (LQ | restored | HQ) in the run's folder, and the same picture to each logger that shows some."""
    if strip is None:
        return
    step = trainer.global_step
    folder = Path(trainer.default_root_dir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    save_image(strip, folder / f"step_{step:07d}.png")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image("val/lq_restored_hq", strip, step)
        elif isinstance(logger, WandbLogger):
            logger.log_image("val/lq_restored_hq", [strip], step=step)


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

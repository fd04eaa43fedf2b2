"""What a run leaves for people beside the loggers' rows: curves.png, sample pictures, and the progress bar."""

from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from torchvision.utils import save_image

from train.runs.loggers import TensorBoard, Wandb, picture_path, read_rows

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_curves(directory: Path) -> Path | None:
    """curves.png from metrics.csv: the loss, and PSNR and SSIM of the restored image against LQ, by generator update."""
    rows = read_rows(directory / "metrics.csv")

    def curve(key: str) -> tuple[list[int], list[float]]:
        points = [(int(row["step"]), float(row[key])) for row in rows if row.get(key)]
        return [step for step, _ in points], [value for _, value in points]

    if not rows:
        return None
    margins = {"left": 0.05, "right": 0.99, "bottom": 0.13, "top": 0.92, "wspace": 0.16}  # measuring them takes half the time
    figure, axes = plt.subplots(1, 3, figsize=(15, 4), gridspec_kw=margins)
    steps, losses = curve("train/loss")
    axes[0].plot(steps, losses)
    axes[0].set(title="train/loss", xlabel="update", yscale="log" if min(losses, default=1) > 0 else "linear")
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
    path = picture_path(Path(trainer.default_root_dir), trainer.global_step)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(strip, path)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard | Wandb):
            logger.log_picture(strip, trainer.global_step)


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

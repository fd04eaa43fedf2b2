"""Pictures of a validation: samples/step_N.png in the run's folder, and in the loggers that show some."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchvision.utils import save_image

from train.tasks.task import RestorationTask

PICTURE = "val/lq_restored_hq"  # its name in the loggers


def picture_path(run: Path, step: int) -> Path:
    return run / "samples" / f"step_{step:07d}.png"


@runtime_checkable
class LogsPictures(Protocol):
    """A logger that shows pictures."""

    def log_picture(self, picture: Tensor, step: int) -> None:
        """picture: (3, h, w) in [0, 1]. step: the update after which it was made."""


class Pictures(Callback):
    """Writes the pictures of each validation, before its row is logged."""

    def on_validation_epoch_end(self, trainer: L.Trainer, task: RestorationTask) -> None:  # type: ignore[override]
        if trainer.is_global_zero:
            write_pictures(trainer, task)


def write_pictures(trainer: L.Trainer, task: RestorationTask) -> None:
    """samples/step_N.png (LQ | restored | HQ), and the same picture to each logger that shows some."""
    if (strip := task.pictures()) is None:
        return
    path = picture_path(Path(trainer.default_root_dir), trainer.global_step)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(strip, path)
    for logger in trainer.loggers:
        if isinstance(logger, LogsPictures):
            logger.log_picture(strip, trainer.global_step)

"""Pictures of a validation: samples/step_N.png in the run's folder, and in the loggers that show some."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from data.images import to_photo, to_tensor, write_png
from data.sheet import own_size, sheet
from train.tasks.task import RestorationTask

PICTURE = "val/lq_restored_hq"  # its name in the loggers


def picture_path(run: Path, step: int) -> Path:
    return run / "samples" / f"step_{step:07d}.png"


@runtime_checkable
class LogsPictures(Protocol):
    """A logger that shows pictures."""

    def log_picture(self, picture: Tensor, step: int) -> None:
        """picture: (3, h, w) in [0, 1]. step: the update after which it was made."""


@runtime_checkable
class NamesImages(Protocol):
    """Data that can tell which file a validation sample is made of."""

    def val_name(self, number: int) -> str:
        """number: of the sample among those that this rank sees."""


class Pictures(Callback):
    """Writes the pictures of each validation, before its row is logged."""

    def on_validation_epoch_end(self, trainer: L.Trainer, task: RestorationTask) -> None:  # type: ignore[override]
        if trainer.is_global_zero:
            write_pictures(trainer, task)


def write_pictures(trainer: L.Trainer, task: RestorationTask) -> None:
    """samples/step_N.png (LQ | restored | HQ, with names and PSNR), and the same picture to each logger that shows some."""
    if not (rows := [[to_photo(image) for image in row] for row in task.pictures()]):
        return
    data: Any = getattr(trainer, "datamodule", None)
    names = [data.val_name(number) if isinstance(data, NamesImages) else "" for number in range(len(rows))]
    picture = to_tensor(np.asarray(sheet(["LQ", "restored", "HQ"], rows, names, own_size(rows))))
    path = picture_path(Path(trainer.default_root_dir), trainer.global_step)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, picture)
    for logger in trainer.loggers:
        if isinstance(logger, LogsPictures):
            logger.log_picture(picture, trainer.global_step)

"""Checkpoints of a run: where they lie, how they are written, which one a run continues from."""

import os
from pathlib import Path
from typing import Annotated, Any

import lightning as L
from annotated_types import Ge
from lightning.pytorch.callbacks import Callback


class Checkpoints(Callback):
    """Writes checkpoints/step_N.ckpt every N generator updates and at the end; last.ckpt is the newest of them.

    Args: every_n_steps: generator updates between two checkpoints.
          keep: how many of the step_N.ckpt stay.
    """

    def __init__(self, *, every_n_steps: Annotated[int, Ge(1)], keep: Annotated[int, Ge(1)]) -> None:
        self.every_n_steps, self.keep = every_n_steps, keep
        self._saved_step = -1

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step != self._saved_step and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self._saved_step = trainer.global_step
        folder = Path(trainer.default_root_dir) / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        path, temporary = folder / f"step_{trainer.global_step:07d}.ckpt", folder / "writing.tmp"
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                _publish(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(
                f"could not write {path} ({error}): the checkpoints before it are untouched; free space there"
            ) from error
        if trainer.is_global_zero:
            for old in sorted(folder.glob("step_*.ckpt"))[: -self.keep]:
                old.unlink()


def _publish(temporary: Path, path: Path) -> None:
    """The file reaches the disk before it gets its name, and last.ckpt changes from one whole file to the next."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    link = path.with_name("last.tmp")
    link.unlink(missing_ok=True)
    os.link(path, link)
    os.replace(link, path.with_name("last.ckpt"))


def last_checkpoint(run: Path) -> Path | None:
    path = run / "checkpoints" / "last.ckpt"
    return path if path.exists() else None

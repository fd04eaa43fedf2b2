"""Checkpoints of a run: when they are written, how, and which one a run goes on from."""

import hashlib
import os
import time
from pathlib import Path
from typing import IO, Annotated, Any, Literal, cast

import lightning as L
import torch
from annotated_types import Ge, Gt
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback

from data.writing import replacing
from train import ranks
from train.runs.nonfinite import Diverged
from train.runs.rundir import set_aside, write_text
from train.sharding import local
from train.signals import Interrupted, stop_signal
from train.tasks.task import RestorationTask


class Checkpoints(Callback):
    """Writes checkpoints/step_N.ckpt when an update is over, its rows are logged and its validation, if due, is done.

    last.ckpt is the newest of them, best.ckpt the best (hard links). After SIGTERM, SIGUSR1 or Ctrl-C one is written at the
    next such moment, and the run ends with Interrupted.

    Args: every_n_steps: generator updates between two checkpoints.
          every_s: wall-clock seconds after which one is due too; null: none.
          keep: how many of the newest stay.     keep_best: how many of the best stay besides.
          monitor: metric of the validation that says which is best.     mode: which way is good.
    """

    def __init__(
        self,
        *,
        every_n_steps: Annotated[int, Ge(1)],
        every_s: Annotated[float, Gt(0)] | None,
        keep: Annotated[int, Ge(1)],
        keep_best: Annotated[int, Ge(0)],
        monitor: Literal["psnr", "ssim", "lpips"],
        mode: Literal["maximize", "minimize"],
    ) -> None:
        self.every_n_steps, self.every_s = every_n_steps, every_s
        self.keep, self.keep_best, self.monitor, self.mode = keep, keep_best, monitor, mode
        self.best: list[tuple[float, int]] = []  # (metric, step), the best first
        self._done_step = -1
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best": [list(pair) for pair in self.best]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = [(float(value), int(step)) for value, step in state_dict["best"]]

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:  # an attempt may have been killed before it did
            self._tidy(Path(trainer.default_root_dir) / "checkpoints")

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._done_step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_train_batch_start(self, trainer: L.Trainer, task: RestorationTask, *_: Any) -> None:  # type: ignore[override]
        """Saves what the previous update left. Only now is it over: Lightning logs and validates after on_train_batch_end."""
        if trainer.global_step != self._done_step:
            self._update_done(trainer, task)

    def on_train_end(self, trainer: L.Trainer, task: RestorationTask) -> None:  # type: ignore[override]
        if trainer.global_step != self._done_step:
            self._update_done(trainer, task, last=True)

    def _update_done(self, trainer: L.Trainer, task: RestorationTask, last: bool = False) -> None:
        step = self._done_step = trainer.global_step
        best = self._is_best(task, step)  # called in any case, as it keeps the list of the best
        due = best or last or step % self.every_n_steps == 0
        due = due or (self.every_s is not None and time.monotonic() - self._saved_at >= self.every_s)
        signum, save = ranks.highest([stop_signal(), int(due)], trainer.strategy.root_device)
        if save or signum:
            self._save(trainer, task)
        if signum and not last:
            interrupted = Interrupted(signum, step)
            if trainer.is_global_zero:
                print(f"\n{interrupted}", flush=True)
            raise interrupted

    def _is_best(self, task: RestorationTask, step: int) -> bool:
        """True when this update has a validation that is among the best; enters it into the list."""
        value = task.validated.get(self.monitor) if task.validated_step == step else None
        if not self.keep_best or value is None or value != value:
            return False
        sign = -1 if self.mode == "maximize" else 1
        self.best = sorted([*self.best, (value, step)], key=lambda pair: (sign * pair[0], pair[1]))[: self.keep_best]
        return (value, step) in self.best

    def _save(self, trainer: L.Trainer, task: RestorationTask) -> None:
        step = trainer.global_step
        broken = not all(torch.isfinite(local(p)).all() for p in task.parameters())
        if any(ranks.highest([int(broken)], trainer.strategy.root_device)):
            raise Diverged(step, "the weights are not finite")
        path = Path(trainer.default_root_dir) / "checkpoints" / f"step_{step:07d}.ckpt"
        began = time.monotonic()
        trainer.save_checkpoint(path)
        self._saved_at = time.monotonic()
        task.saving_s += self._saved_at - began
        if trainer.is_global_zero:
            link(path, "last.ckpt")
            self._tidy(path.parent)

    def _tidy(self, folder: Path) -> None:
        """Points best.ckpt at the best, and deletes checkpoints that are neither among the newest nor among the best."""
        files = {step_of(path): path for path in step_files(folder)}
        best = [files[step] for _, step in self.best if step in files]
        if best:
            link(best[0], "best.ckpt")
        else:
            (folder / "best.ckpt").unlink(missing_ok=True)  # the run went back to an update before all of them
        for path in list(files.values())[: -self.keep]:
            if path not in best:
                path.unlink()
                checksum_file(path).unlink(missing_ok=True)


def step_files(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest update first."""
    return sorted(folder.glob("step_*.ckpt"))


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def link(path: Path, name: str) -> None:
    """Makes `name` beside path a hard link to it. At any moment the name stands for one whole file."""
    target, temporary = path.with_name(name), path.with_name(f".{name}.tmp")
    if target.exists() and target.samefile(path):
        return  # a rename between two names of one file would leave both
    temporary.unlink(missing_ok=True)
    os.link(path, temporary)
    os.replace(temporary, target)


def checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def sha256_of(path: Path) -> str:
    """Of a checkpoint's file: the one noted beside it or beside another name of it, else computed."""
    for name in step_files(path.parent):
        if name.samefile(path) and checksum_file(name).exists():
            return checksum_file(name).read_text(encoding="utf-8").split()[0]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Hashed:
    """A file for torch.save that computes the SHA-256 of what is written, and keeps the OSError that torch would hide."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, chunk: Any) -> int:
        try:
            written = self.file.write(chunk)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(chunk)
        return written

    def flush(self) -> None:
        self.file.flush()


class AtomicFiles(CheckpointIO):
    """A checkpoint reaches the disk whole before it gets its name; its SHA-256 lies beside it (`sha256sum -c` reads it)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises OSError when the disk doesn't take it; the checkpoints before it are untouched."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        hashed = None
        try:
            with replacing(path, synced=True) as file:
                hashed = _Hashed(file)
                torch.save(checkpoint, cast(IO[bytes], hashed))
                path.unlink(missing_ok=True)  # saved again: the old file must not stand beside the new checksum
                write_text(checksum_file(path), f"{hashed.sha256.hexdigest()}  {path.name}\n")
            _sync(path.parent)
        except (OSError, RuntimeError) as error:
            reason = (hashed and hashed.error) or error
            if not isinstance(reason, OSError):
                raise
            raise OSError(
                f"could not write {path} ({reason}): the checkpoints before it are untouched; free space there and give the "
                "same command again to go on"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink()


def _sync(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint. Tensors stay on disk until they are read, and no code in the file is executed.

    Raises: ValueError: this is no whole checkpoint of a run.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        checkpoint["global_step"], checkpoint["config"]["network"], checkpoint["effective_batch"], checkpoint["slurm_job"]
    except OSError:
        raise
    except Exception as error:  # whatever torch's unpickler stumbles over in a damaged one
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"{path} is not a whole checkpoint of a run ({type(error).__name__}: {reason}): continue from another with "
            "resume=PATH, or take its weights alone with init.ckpt=FILE resume=never"
        ) from error
    return checkpoint


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's file, or None when it is whole."""
    checksum = checksum_file(path)
    if checksum.exists():
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() in checksum.read_text(encoding="utf-8")
        return None if same else "its SHA-256 is not the one beside it: it was cut off or changed"
    try:
        load(path)
    except ValueError as error:
        return str(error)
    return None


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and a sentence for each broken one, which is renamed to NAME.brokenN.

    It is the newest whole step_N.ckpt, or last.ckpt where there is no other file.
    """
    news = []
    for stray in folder.glob("*.tmp"):
        stray.unlink()  # an attempt was killed while it wrote
    last, newest = folder / "last.ckpt", None
    files = step_files(folder)
    lone = last.exists() and not any(path.samefile(last) for path in files)
    for path in [*([last] if lone else []), *reversed(files)]:
        if reason := damage(path):
            aside = set_aside(path, "broken")
            news.append(f"{path} is broken ({reason}); it is kept as {aside.name}")
        elif newest is None and (path != last or not files):
            newest = path
            break
    if newest and newest != last:
        link(newest, "last.ckpt")
    elif newest is None:
        last.unlink(missing_ok=True)
    return newest, news

"""One training run: from its last checkpoint or the start to its last update, and a summary of it."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from data.writing import refuse_links_out
from train import ranks
from train.ranks import say
from train.runs.building import effective_batch, make_data, make_task, make_trainer, prepare_folder, recorded, task_class
from train.runs.checkpoint import load
from train.runs.curves import draw_curves
from train.runs.differences import check_same_config
from train.runs.loggers import Wandb
from train.runs.memory import out_of_memory_explained
from train.runs.nonfinite import Diverged, NonFiniteGuard
from train.runs.preflight import preflight
from train.runs.resume import check_continues, choose_checkpoint, differences_from, is_of_another, last_good, nothing_left
from train.runs.rundir import RUNS, lock, release, write_text
from train.runs.times import StepTimes
from train.runs.validate import validate
from train.runs.workers import workers_explained
from train.sharding import FullyShard
from train.signals import Signals
from train.tasks.task import RestorationTask


def run(config: dict[str, Any], trainer: L.Trainer) -> None:
    """Trains until trainer.max_steps generator updates are done, from the start or from the run's last checkpoint.

    Every rank calls it, with a trainer of its own as train/runs/building.py makes it.

    Raises: OSError, ValueError or FloatingPointError with a message meant for the person who typed the command; Interrupted
            when a signal asked for the end and everything is saved.
    """
    with Signals(within_s=time_limit_s(config)), out_of_memory_explained(config, trainer), workers_explained(config):
        ranks.join(trainer)
        check_same_config(recorded(config))
        if config["preflight"]:
            preflight(config)
            return
        if config["validate"]:
            validate(config)
            return
        directory, held = RUNS / config["name"], []
        ranks.decided_by_rank_zero(lambda: held.append(lock(directory)))
        try:
            ranks.decided_by_rank_zero(lambda: refuse_links_out(directory, but="wandb"))
            attempt(config, trainer, directory)
        except Diverged as error:
            go_back(config, directory, error)
        finally:
            for file in held:
                release(file, directory)


def time_limit_s(config: dict[str, Any]) -> float:
    """trainer.max_time, days:hours:minutes:seconds, in seconds."""
    limit: str | None = config["trainer"].get("max_time")
    return math.inf if limit is None else sum(int(n) * s for n, s in zip(limit.split(":"), (86400, 3600, 60, 1), strict=True))


def attempt(config: dict[str, Any], trainer: L.Trainer, directory: Path, back_to: Path | None = None) -> None:
    """From the last checkpoint, the one to go back to, another run's, or the start, to the last update.

    Raises: Diverged, and what `run` raises.
    """
    record = recorded(config)
    batch = effective_batch(config, trainer)
    checkpoint = ranks.decided_by_rank_zero(lambda: choose_checkpoint(record, directory, back_to))
    saved = load(checkpoint) if checkpoint else None
    branches = checkpoint is not None and is_of_another(checkpoint, directory)
    if saved:
        check_continues(f"{checkpoint}", saved, record, batch, task_class(config).kept if branches else None)
        if not branches and nothing_left(saved["global_step"], config, directory):
            return
    if branches and isinstance(trainer.strategy, FullyShard):
        raise ValueError("trainer=fsdp does not begin from another run: give trainer=ddp, and trainer=fsdp once that has saved")
    different = differences_from(saved, record, batch) if branches and saved else ""
    task = make_task(config, trainer, fresh=checkpoint is None)
    task.branches = branches
    data = make_data(config)
    if checkpoint is None:
        tell_first_look(data)
    announce(config, task, trainer, checkpoint)
    say(different)
    prepare_folder(record, directory, trainer, saved["global_step"] if saved else 0, begins=branches or checkpoint is None)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if task.validated_step != trainer.global_step:
        trainer.validate(task, datamodule=data, verbose=False)
    write_summary(task, trainer, directory)
    for logger in trainer.loggers:
        if isinstance(logger, Wandb):
            logger.close()


@runtime_checkable
class Looks(Protocol):
    """Data that can tell what their images seem to be (data/looks.py)."""

    def first_look(self) -> list[str]:
        """A sentence for each doubt."""


@rank_zero_only
def tell_first_look(data: L.LightningDataModule) -> None:
    if isinstance(data, Looks):
        for doubt in data.first_look():
            say(f"warning: {doubt}")


def go_back(config: dict[str, Any], directory: Path, error: Diverged) -> None:
    """A second attempt, from the last checkpoint with good weights.

    Raises: FloatingPointError: there is none, or this attempt diverges too; and what `run` raises.
    """
    advice = (
        f"lower optimizer.lr (now {config['optimizer']['lr']:g}), set trainer.gradient_clip_val=1, or trainer.precision=32-true"
    )
    good = ranks.decided_by_rank_zero(lambda: last_good(directory / "checkpoints"))
    if good is None:
        raise FloatingPointError(f"{error}; there is no checkpoint to go back to: {advice}") from error
    say(f"{error}: going back to the last good checkpoint, once")
    try:
        attempt(config, make_trainer(config), directory, back_to=good)
    except Diverged as again:
        raise FloatingPointError(f"{again}, also after going back to the last good checkpoint: {advice}") from again


def announce(config: dict[str, Any], task: RestorationTask, trainer: L.Trainer, checkpoint: Path | None) -> None:
    """Says in two lines what is about to run."""
    batch, accumulate = config["data"]["batch_size"], trainer.accumulate_grad_batches
    parameters = sum(p.numel() for p in task.network.parameters()) / 1e6
    say(
        f"{config['name']}: {type(task.network).__name__} of {parameters:.2f} M parameters on {trainer.world_size} x "
        f"{trainer.accelerator.name()}, {trainer.precision}; "
        f"effective batch {task.effective_batch} = {batch} a device x {trainer.world_size} devices x "
        f"{accumulate} accumulated\n"
        f"{f'continues from {checkpoint}' if checkpoint else 'starts at update 0'}, ends at update {trainer.max_steps}; "
        f"writes to {trainer.default_root_dir}"
    )
    if task.parts:
        say(f"optimizer.parts: {'; '.join(map(str, task.learning))}")
    for name, term in config["loss"].get("terms", {}).items():
        if isinstance(term, dict) and term.get("reduction") == "sum":
            say(f"loss.terms.{name} adds up all values of a device's batch, so hundreds and thousands are usual: reduction=sum")
    if task.validation.lpips is None:
        say(f"validation goes without LPIPS: {task.validation.lpips_missing}")


@rank_zero_only
def write_summary(task: RestorationTask, trainer: L.Trainer, directory: Path) -> None:
    """Writes summary.json and curves.png, and says what was reached and where it lies."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    times = next(callback for callback in callbacks if isinstance(callback, StepTimes))
    guard = next(callback for callback in callbacks if isinstance(callback, NonFiniteGuard))
    measured: dict[str, Any] = task.validated
    values = {name: value if math.isfinite(value) else None for name, value in measured.items()}  # PSNR of LQ that is HQ
    if "lpips" not in values:
        values |= {"lpips": None, "lpips_missing": task.validation.lpips_missing}
    summary = {"step": trainer.global_step, "val": values}
    summary |= {"unreadable_passed_over": task.unreadable, "updates_skipped": guard.skipped}
    write_text(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    draw_curves(directory)
    say("\n".join(last_words(task, trainer, directory, times, guard)))


def last_words(
    task: RestorationTask, trainer: L.Trainer, directory: Path, times: StepTimes, guard: NonFiniteGuard
) -> Iterator[str]:
    """What the last validation measured, what was passed over, where the time went, and what lies where, a line each."""
    measured: dict[str, Any] = task.validated
    yield (
        f"\n{directory} after {trainer.global_step} updates: "
        f"PSNR {measured['psnr']:.2f} dB (LQ {measured['psnr_lq']:.2f}), "
        f"SSIM {measured['ssim']:.4f} (LQ {measured['ssim_lq']:.4f})"
    )
    if task.unreadable:
        yield f"  data.on_error=skip passed over an unreadable file {task.unreadable} times"
    if guard.skipped:
        yield f"  {guard.skipped} updates were skipped: their loss or gradient was not finite"
    if times.updates:
        yield f"  {times.sentence()}"
    for path in ("config.yaml", "metrics.csv", "curves.png", "summary.json", "checkpoints/last.ckpt"):
        yield f"  {directory / path}"
    pictures = sorted((directory / "samples").glob("step_*.png"))
    if pictures:
        yield f"  {pictures[-1]}   (LQ | restored | HQ; {len(pictures)} pictures there)"
    for logger in trainer.loggers[1:]:
        if folder := logger.log_dir or logger.save_dir:
            yield f"  {folder}   ({type(logger).__name__})"

"""One training run: build data, task and trainer from a checked configuration, fit, and leave a summary."""

import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from models.files import official
from train import ranks
from train.jobs.config import plain
from train.jobs.launch import launch
from train.ranks import say
from train.runs.checkpoint import AtomicFiles, load
from train.runs.loggers import CsvLogger
from train.runs.logs import Progress, draw_curves
from train.runs.memory import out_of_memory_explained
from train.runs.nonfinite import Diverged, NonFiniteGuard, leave_signals_to_us
from train.runs.resume import check_continues, choose_checkpoint, finished, last_good
from train.runs.rundir import RUNS, differing_keys, lock, release, write_text
from train.runs.times import StepTimes
from train.signals import Signals
from train.tasks.task import RestorationTask


def run(config: dict[str, Any]) -> None:
    """Trains until trainer.max_steps generator updates are done, from the start or from the run's last checkpoint.

    With several local devices it starts a process for each; under torchrun or srun it is one of them.

    Raises: OSError, ValueError or FloatingPointError with a message meant for the person who typed the command; Interrupted
            when a signal asked for the end and everything is saved.
    """
    quieten()
    if config["preflight"]:
        config = config | {"logger": {}}  # its numbers are not the run's
    trainer = make_trainer(config)
    if trainer.world_size > 1 and not ranks.launched_from_outside():
        launch(config, trainer.num_devices)
        return
    with Signals(), out_of_memory_explained(config, trainer):
        ranks.join(trainer)
        ranks.check_same_config(recorded(config))
        if config["preflight"]:
            from train.runs.preflight import preflight  # it imports this module

            preflight(config)
            return
        directory, held = RUNS / config["name"], []
        ranks.decided_by_rank_zero(lambda: held.append(lock(directory)))
        try:
            attempt(config, trainer, directory)
        except Diverged as error:
            go_back(config, directory, error)
        finally:
            for file in held:
                release(file, directory)


def attempt(config: dict[str, Any], trainer: L.Trainer, directory: Path, back_to: Path | None = None) -> None:
    """From the last checkpoint, the one to go back to, or the start, to the last update.

    Raises: Diverged, and what `run` raises.
    """
    record = recorded(config)
    batch = effective_batch(config, trainer)
    checkpoint = ranks.decided_by_rank_zero(lambda: choose_checkpoint(record, directory, back_to))
    saved = load(checkpoint) if checkpoint else None
    if saved:
        check_continues(f"{checkpoint}", saved, record, batch)
        if finished(saved["global_step"], config, directory):
            return
    task = make_task(config, trainer, fresh=checkpoint is None)
    data: L.LightningDataModule = build(config["data"])
    announce(config, task, trainer, checkpoint)
    prepare(record, directory, trainer, saved["global_step"] if saved else 0)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if task.validated_step != trainer.global_step:
        trainer.validate(task, datamodule=data, verbose=False)
    write_summary(task, trainer, directory)


def recorded(config: dict[str, Any]) -> dict[str, Any]:
    """What describes a run: config.yaml, and the configuration in its checkpoints. All of task stands in the other groups."""
    return {**config, "task": {"_target_": config["task"]["_target_"]}}


def batches_of_update(config: dict[str, Any]) -> int:
    """Batches that a device reads for one generator update."""
    accumulated: int = config["trainer"]["accumulate_grad_batches"]
    return accumulated * config.get("adversary", {}).get("steps_per_update", 1)


def effective_batch(config: dict[str, Any], trainer: L.Trainer) -> int:
    """Samples of an update, over all ranks."""
    batch: int = config["data"]["batch_size"]
    return batch * trainer.world_size * trainer.accumulate_grad_batches


def make_task(config: dict[str, Any], trainer: L.Trainer, fresh: bool = True) -> RestorationTask:
    """The task as the seed makes it; a fresh one has the weights of init.ckpt."""
    L.seed_everything(config["seed"], verbose=False)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32
    task: RestorationTask = build(config["task"])
    task.config, task.effective_batch = recorded(config), effective_batch(config, trainer)
    if fresh:
        init, network = config["init"], task.network
        if init["ckpt"]:
            report = official.load_into(network, init["ckpt"], strict=init["strict"], parts=init["parts"])
            say(f"init.ckpt={init['ckpt']}: {report}")
        if prior := init.get("prior"):
            part: Any = network.prior  # its name: train/jobs/config.py saw that there is one
            report = official.load_into(network.get_submodule(part), prior, strict=init["strict"])
            say(f"init.prior={prior}: {report}")
        if task.ema:
            task.ema.average.load_state_dict(network.state_dict())
        task.check_start()
    return task


def go_back(config: dict[str, Any], directory: Path, error: Diverged) -> None:
    """A second attempt from the last checkpoint, whose weights are good; the same happening again is the end."""
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


def quieten() -> None:
    """Leaves out what Lightning says about choices that were made on purpose, and its advertisements."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r"Found \d+ module\(s\) in eval mode",  # the EMA
        r".*does not have many workers",  # data.num_workers is the user's
        r"The `srun` command is available",
        r"It is recommended to use `self.log\(.*sync_dist=True",  # metrics are means over all ranks already
        r"You have overridden `on_before_batch_transfer`",  # of the task, which knows what it reads there
        r"FSDP2-wrapped module .* returned a view",  # nothing changes it in place
        r".*treespec, LeafSpec.*",  # between Lightning and torch
        r"Detected call of `lr_scheduler.step\(\)` before",  # discriminators that have not begun yet
    ):
        warnings.filterwarnings("ignore", message)


def build(node: dict[str, Any]) -> Any:
    """The object that a node describes. What its constructor raises comes through as it is."""
    try:
        return instantiate(OmegaConf.create(node), _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error from None


def make_trainer(config: dict[str, Any]) -> L.Trainer:
    settings, directory = config["trainer"], RUNS / config["name"]
    # Lightning counts batches between validations; a recipe counts generator updates.
    batches = batches_of_update(config)
    settings = {**settings, "accumulate_grad_batches": batches, "val_check_interval": settings["val_check_interval"] * batches}
    task: Any = get_class(config["task"]["_target_"])
    if settings["strategy"] == "ddp" and task.unused_parameters(config):
        settings["strategy"] = "ddp_find_unused_parameters_true"
    loggers = [CsvLogger(directory=str(directory)), *(build(node) for node in config["logger"].values())]
    # StepTimes comes last: the guard waits for the device, so that the backward pass is not counted as the optimizer, and the
    # checkpoints for the other ranks, whose data may be late.
    callbacks = [build(config["guard"]), build(config["checkpoint"]), StepTimes(file=directory / "times.csv")]
    try:
        trainer: L.Trainer = build({**settings, "_partial_": True})(
            default_root_dir=directory,
            logger=loggers,
            callbacks=[*callbacks, *([Progress()] if settings["enable_progress_bar"] else [])],
            plugins=[AtomicFiles(), ranks.environment(settings["num_nodes"])],
            max_epochs=-1,
            check_val_every_n_epoch=None,  # a run is one endless epoch
            num_sanity_val_steps=0,
            enable_checkpointing=False,  # train/runs/checkpoint.py does it
            enable_model_summary=False,
            use_distributed_sampler=False,  # data/order.py shares the samples out
        )
    except (TypeError, RuntimeError, MisconfigurationException) as error:
        raise ValueError(f"trainer: {error}") from error
    leave_signals_to_us(trainer)
    return trainer


def announce(config: dict[str, Any], task: RestorationTask, trainer: L.Trainer, checkpoint: Path | None) -> None:
    """What is about to run, in two lines."""
    batch, accumulate = config["data"]["batch_size"], trainer.accumulate_grad_batches
    parameters = sum(p.numel() for p in task.network.parameters()) / 1e6
    say(
        f"{config['name']}: {type(task.network).__name__} of {parameters:.2f} M parameters on {trainer.world_size} x "
        f"{trainer.accelerator.name()}, {trainer.precision}; "
        f"effective batch {batch * trainer.world_size * accumulate} = {batch} a device x {trainer.world_size} devices x "
        f"{accumulate} accumulated\n"
        f"{f'continues from {checkpoint}' if checkpoint else 'starts at update 0'}, ends at update {trainer.max_steps}; "
        f"writes to {trainer.default_root_dir}"
    )
    if task.validation.lpips is None:
        say(f"validation goes without LPIPS: {task.validation.lpips_missing}")


@rank_zero_only
def prepare(config: dict[str, Any], directory: Path, trainer: L.Trainer, step: int) -> None:
    """Writes the resolved config, and cuts logged rows of updates that will be done again."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "config.yaml"
    if step == 0 and file.exists() and differing_keys(plain(OmegaConf.load(file)), config):
        (directory / "wandb_id").unlink(missing_ok=True)  # what another configuration sent before it failed is another run
    write_text(file, OmegaConf.to_yaml(OmegaConf.create(config)))
    (directory / "summary.json").unlink(missing_ok=True)  # of what is about to be done again, or of fewer updates
    loggers: Any = trainer.loggers  # train/runs/loggers.py
    for logger in loggers:
        logger.cut_after(step)
        logger.log_hyperparams(config)


@rank_zero_only
def write_summary(task: RestorationTask, trainer: L.Trainer, directory: Path) -> None:
    """summary.json and curves.png, and a last word on what lies where."""
    measured: dict[str, Any] = task.validated
    values = {name: value if math.isfinite(value) else None for name, value in measured.items()}  # PSNR of LQ that is HQ
    if "lpips" not in values:
        values |= {"lpips": None, "lpips_missing": task.validation.lpips_missing}
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    times = next(callback for callback in callbacks if isinstance(callback, StepTimes))
    guard = next(callback for callback in callbacks if isinstance(callback, NonFiniteGuard))
    summary = {"step": trainer.global_step, "val": values}
    summary |= {"unreadable_passed_over": task.unreadable, "updates_skipped": guard.skipped}
    write_text(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    draw_curves(directory)
    say(
        f"\n{directory} after {trainer.global_step} updates: "
        f"PSNR {measured['psnr']:.2f} dB (LQ {measured['psnr_lq']:.2f}), "
        f"SSIM {measured['ssim']:.4f} (LQ {measured['ssim_lq']:.4f})"
    )
    if task.unreadable:
        say(f"  data.on_error=skip passed over an unreadable file {task.unreadable} times")
    if guard.skipped:
        say(f"  {guard.skipped} updates were skipped: their loss or gradient was not finite")
    say(f"  {times.sentence()}" if times.updates else "")
    for path in ("config.yaml", "metrics.csv", "curves.png", "summary.json", "checkpoints/last.ckpt"):
        say(f"  {directory / path}")
    pictures = sorted((directory / "samples").glob("step_*.png"))
    if pictures:
        say(f"  {pictures[-1]}   (LQ | restored | HQ; {len(pictures)} pictures there)")
    for logger in trainer.loggers[1:]:
        say(f"  {logger.log_dir or logger.save_dir}   ({type(logger).__name__})")

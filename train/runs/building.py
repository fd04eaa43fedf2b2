"""From a checked configuration to what trains: the trainer, the task with its weights, the data, and the run's folder."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from train import ranks
from train.environment import environment
from train.runs.checkpoint import AtomicFiles
from train.runs.differences import differing_keys
from train.runs.loggers import CsvLogger
from train.runs.pictures import Pictures
from train.runs.progress import Lines, Progress
from train.runs.resume import note_origins
from train.runs.rundir import RUNS, saved_config, write_text
from train.runs.times import StepTimes
from train.tasks.start import load_start
from train.tasks.task import RestorationTask
from train.trust import build, named


def recorded(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as config.yaml and checkpoints keep it: of the task its class alone, as the groups hold all else."""
    return {**config, "task": {"_target_": config["task"]["_target_"]}}


def batches_of_update(config: dict[str, Any]) -> int:
    """Batches that a device reads for one generator update."""
    accumulated: int = config["trainer"]["accumulate_grad_batches"]
    return accumulated * task_class(config).steps_per_update(config)


def task_class(config: dict[str, Any]) -> type[RestorationTask]:
    found: type[RestorationTask] = named(config["task"]["_target_"])
    return found


def effective_batch(config: dict[str, Any], trainer: L.Trainer) -> int:
    """Samples of an update, over all ranks."""
    batch: int = config["data"]["batch_size"]
    return batch * trainer.world_size * trainer.accumulate_grad_batches


def make_task(config: dict[str, Any], trainer: L.Trainer, fresh: bool = True) -> RestorationTask:
    """The task, its random weights drawn from the seed.

    Args: fresh: false where a checkpoint is loaded afterwards; else the weights that init names are loaded here.
    """
    L.seed_everything(config["seed"], verbose=False)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32
    task: RestorationTask = build(config["task"])
    task.config, task.effective_batch = recorded(config), effective_batch(config, trainer)
    if fresh:
        load_start(task.network, config["init"], config["network"])
        if task.ema:
            task.ema.average.load_state_dict(task.network.state_dict())
        task.check_start()
    return task


def quieten() -> None:
    """Silences Lightning's warnings about choices that we made on purpose, and its advertisements."""
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
        r"Be aware that when using `ckpt_path`, callbacks",  # a validation alone has none
        r"Detected call of `lr_scheduler.step\(\)` before",  # discriminators that have not begun yet
    ):
        warnings.filterwarnings("ignore", message)


def make_data(config: dict[str, Any]) -> L.LightningDataModule:
    """The data. What looking for its files warns of is the same on all ranks, so rank 0 says it for all.

    Fewer data workers than a recipe has are news to nobody who did not ask for them.
    """
    with warnings.catch_warnings():
        if ranks.rank():
            warnings.simplefilter("ignore")
        if not any(each.lstrip("+").startswith("data.num_workers=") for each in config.get("arguments", [])):
            warnings.filterwarnings("ignore", "data.num_workers=")
        data: L.LightningDataModule = build(config["data"])
        return data


def make_trainer(config: dict[str, Any]) -> L.Trainer:
    """Lightning's trainer with our callbacks, loggers and checkpoint files.

    Raises: ValueError: Lightning refuses the settings; the message is its own.
    """
    quieten()
    settings, directory = config["trainer"], RUNS / config["name"]
    # Lightning counts batches between validations; a recipe counts generator updates.
    batches = batches_of_update(config)
    settings = {**settings, "accumulate_grad_batches": batches, "val_check_interval": settings["val_check_interval"] * batches}
    settings["max_time"] = None  # Lightning would end without a word that more is to do: train/signals.py has it
    if settings["strategy"] == "ddp" and task_class(config).unused_parameters(config):
        settings["strategy"] = "ddp_find_unused_parameters_true"
    shown = {} if config["preflight"] else config["logger"]  # the numbers of a preflight are not the run's
    loggers = [] if config["validate"] else [CsvLogger(directory=str(directory)), *(build(node) for node in shown.values())]
    bar = settings["enable_progress_bar"] and sys.stdout is not None and sys.stdout.isatty()
    if settings["enable_progress_bar"] and not bar and not config["validate"]:
        loggers.append(Lines(max_steps=settings["max_steps"]))
    # StepTimes comes last, so that waiting is counted where it belongs: the guard waits for the device, which would else count
    # the backward pass as the optimizer's, and saving waits for the other ranks, whose data may be late.
    callbacks = [build(config["guard"]), Pictures(), build(config["checkpoint"]), StepTimes(file=directory / "times.csv")]
    callbacks = [] if config["validate"] else callbacks
    try:
        trainer: L.Trainer = build({**settings, "enable_progress_bar": bar, "_partial_": True})(
            default_root_dir=directory,
            logger=loggers,
            callbacks=[*callbacks, *([Progress()] if bar else [])],
            plugins=[AtomicFiles(), environment(settings["num_nodes"])],
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


def leave_signals_to_us(trainer: L.Trainer) -> None:
    """Turns off Lightning's handlers, which talk to other ranks inside a signal handler, and its question to rank 0 before
    every batch."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    epoch_loop: Any = trainer.fit_loop.epoch_loop
    epoch_loop._broadcast_sigterm_tensor = lambda: None


@rank_zero_only
def prepare_folder(config: dict[str, Any], directory: Path, trainer: L.Trainer, step: int, begins: bool) -> None:
    """Makes the run's folder ready for an attempt: config.yaml, no rows of updates that will be done again.

    Args: step: the update that the attempt goes on from; 0 for the start.
          begins: whether the run does, from the start or from another run's checkpoint.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for stray in directory.glob(".*.tmp"):
        stray.unlink()  # an attempt was killed while it wrote
    file = directory / "config.yaml"
    if begins and file.exists() and differing_keys(saved_config(directory), config):
        for name in ("wandb_id", "wandb_sent"):  # an attempt of another configuration failed before its first checkpoint
            (directory / name).unlink(missing_ok=True)
    write_text(file, OmegaConf.to_yaml(OmegaConf.create(config)))
    (directory / "summary.json").unlink(missing_ok=True)  # of what is about to be done again, or of fewer updates
    if begins:
        note_origins(config, directory)
    loggers: Any = trainer.loggers  # train/runs/loggers.py
    for logger in loggers:
        logger.cut_after(step)
        logger.log_hyperparams(config)

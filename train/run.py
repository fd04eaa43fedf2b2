"""One training run: build data, task and trainer from a checked configuration, fit, and leave a summary."""

import json
import logging
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from models import official
from train.checkpoint import last_checkpoint
from train.config import plain
from train.logs import CsvLogger, Progress, draw_curves
from train.task import RestorationTask

RUNS = Path("runs")
# Keys that may differ between two attempts at one run: they change where and how long it runs, not what it computes.
MAY_DIFFER = ("resume", "logger", "checkpoint", "data.num_workers", "trainer.max_steps", "trainer.enable_progress_bar")


def run(config: dict[str, Any]) -> None:
    """Trains until trainer.max_steps generator updates are done, from the start or from the run's last checkpoint.

    Raises: OSError, ValueError or FloatingPointError with a message meant for the person who typed the command.
    """
    quieten()
    directory = RUNS / config["name"]
    record = {**config, "task": {"_target_": config["task"]["_target_"]}}  # the rest of task stands in the other groups
    checkpoint = choose_checkpoint(record, directory)
    saved = read_checkpoint(checkpoint, record) if checkpoint else None
    L.seed_everything(config["seed"], verbose=False)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32
    task: RestorationTask = build(config["task"])
    task.config = record
    if config["init"]["ckpt"] and not checkpoint:
        report = official.load_into(task.network, config["init"]["ckpt"], strict=config["init"]["strict"])
        say(f"init.ckpt={config['init']['ckpt']}: {report}")
        if task.ema:
            task.ema.average.load_state_dict(task.network.state_dict())
    data: L.LightningDataModule = build(config["data"])
    if saved and finished(saved["global_step"], config, directory):
        return
    trainer = make_trainer(config, directory)
    announce(config, task, trainer, checkpoint)
    prepare(record, directory, trainer, saved["global_step"] if saved else None)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if task.validated_step != trainer.global_step:
        trainer.validate(task, datamodule=data, verbose=False)
    write_summary(task, trainer, directory)


def quieten() -> None:
    """Leaves out what Lightning says about choices that were made on purpose, and its advertisements."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        r"Found \d+ module\(s\) in eval mode",  # the EMA
        r".*does not have many workers",  # data.num_workers is the user's
        r".*treespec, LeafSpec.*",  # between Lightning and torch
        r"You're resuming from a checkpoint that ended before the epoch ended",  # the order goes on at the right sample
    ):
        warnings.filterwarnings("ignore", message)


@rank_zero_only
def say(text: str) -> None:
    print(text, flush=True)


def build(node: dict[str, Any]) -> Any:
    """The object that a node describes. What its constructor raises comes through as it is."""
    try:
        return instantiate(OmegaConf.create(node), _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error from None


def choose_checkpoint(config: dict[str, Any], directory: Path) -> Path | None:
    """The checkpoint to continue from, or None for a fresh start (an older run in the folder is moved aside, not deleted)."""
    resume, last = config["resume"], last_checkpoint(directory)
    if resume not in ("auto", "never") and not Path(resume).is_file():
        raise FileNotFoundError(f"resume={resume}: no such file; give auto, never or the path of a checkpoint")
    if resume == "never":
        if last:
            set_aside(directory)
        return None
    if last:  # without one nothing was trained here: an attempt that failed at once does not bind the next
        different = differing_keys(plain(OmegaConf.load(directory / "config.yaml")), config)
        if different:
            raise ValueError(
                f"{directory} holds a run with another configuration: {', '.join(different[:8])}"
                f"{' …' if len(different) > 8 else ''}. Give this run its own name=… or start over with resume=never "
                "(the old folder is kept under another name)"
            )
    return last if resume == "auto" else Path(resume)


def read_checkpoint(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's contents, weights left on disk. Raises ValueError when it can't continue this configuration."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        checkpoint["global_step"], checkpoint["config"]["network"]
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"{path} is not a whole checkpoint of a run ({type(error).__name__}: {reason}): continue from another with "
            "resume=PATH, or take its weights alone with init.ckpt=FILE resume=never"
        ) from error
    parts = ("network", "ema_decay", "optimizer")
    before, now = ({part: c[part] for part in parts} for c in (checkpoint["config"], config))
    if different := differing_keys(before, now):
        raise ValueError(
            f"{path} was written with another configuration: {', '.join(different[:8])}. Set these keys as they were, or "
            "take the weights alone with init.ckpt=FILE"
        )
    return checkpoint


def differing_keys(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every leaf that differs, but for MAY_DIFFER."""
    old, new = flatten(before), flatten(now)
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
        and not any(key == name or key.startswith(f"{name}.") for name in MAY_DIFFER)
    ]


def flatten(node: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {path: node}
    return {key: value for name, child in node.items() for key, value in flatten(child, f"{path}.{name}".lstrip(".")).items()}


@rank_zero_only
def set_aside(directory: Path) -> None:
    number = 1
    while (aside := directory.with_name(f"{directory.name}.old{number}")).exists():
        number += 1
    os.rename(directory, aside)
    say(f"resume=never: the run before is kept as {aside}")


def finished(step: int, config: dict[str, Any], directory: Path) -> bool:
    """True when all updates are done and summed up; a run that died in between still gets its summary."""
    summary = directory / "summary.json"
    if step < config["trainer"]["max_steps"] or not summary.exists() or json.loads(summary.read_text())["step"] != step:
        return False
    say(
        f"{directory} is finished: {step} of trainer.max_steps={config['trainer']['max_steps']} updates are done. Raise "
        "trainer.max_steps to go on (not under a schedule that spans the run, such as onecycle or cosine: that is another "
        "run), or start over with resume=never or another name=…"
    )
    return True


def make_trainer(config: dict[str, Any], directory: Path) -> L.Trainer:
    settings = config["trainer"]
    # Lightning counts batches between validations; a recipe counts generator updates.
    interval = settings["val_check_interval"] * settings["accumulate_grad_batches"]
    loggers = [CsvLogger(directory=str(directory)), *(build(node) for node in config["logger"].values())]
    try:
        return build({**settings, "val_check_interval": interval, "_partial_": True})(
            default_root_dir=directory,
            logger=loggers,
            callbacks=[build(config["checkpoint"]), *([Progress()] if settings["enable_progress_bar"] else [])],
            max_epochs=-1,
            check_val_every_n_epoch=None,  # a run is one endless epoch
            num_sanity_val_steps=0,
            enable_checkpointing=False,  # train/checkpoint.py does it
            enable_model_summary=False,
            use_distributed_sampler=False,  # data/order.py shares the samples out
        )
    except (TypeError, RuntimeError, MisconfigurationException) as error:
        raise ValueError(f"trainer: {error}") from error


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
def prepare(config: dict[str, Any], directory: Path, trainer: L.Trainer, step: int | None) -> None:
    """Writes the resolved config, and cuts log rows of updates that will be done again."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    for logger in trainer.loggers:
        if isinstance(logger, CsvLogger):
            logger.cut_after(step or 0)


@rank_zero_only
def write_summary(task: RestorationTask, trainer: L.Trainer, directory: Path) -> None:
    """summary.json and curves.png, and a last word on what lies where."""
    values: dict[str, Any] = {
        name.removeprefix("val/"): float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")
    }
    if "lpips" not in values:
        values |= {"lpips": None, "lpips_missing": task.validation.lpips_missing}
    summary = {"step": trainer.global_step, "val": values, "unreadable_passed_over": task.unreadable}
    (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw_curves(directory)
    say(
        f"\n{directory} after {trainer.global_step} updates: "
        f"PSNR {values['psnr']:.2f} dB (LQ {values['psnr_lq']:.2f}), SSIM {values['ssim']:.4f} (LQ {values['ssim_lq']:.4f})"
    )
    if task.unreadable:
        say(f"  data.on_error=skip passed over an unreadable file {task.unreadable} times")
    for path in ("config.yaml", "metrics.csv", "curves.png", "summary.json", "checkpoints/last.ckpt"):
        say(f"  {directory / path}")
    pictures = sorted((directory / "samples").glob("step_*.png"))
    if pictures:
        say(f"  {pictures[-1]}   (LQ | restored | HQ; {len(pictures)} pictures there)")
    for logger in trainer.loggers[1:]:
        say(f"  {logger.log_dir or logger.save_dir}   ({type(logger).__name__})")

"""What a checkpoint of a task holds in addition to what Lightning saves, and how a run goes on from it."""

import os
from typing import Any, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from train import ranks


class Saved(Protocol):
    """What a checkpoint keeps of a task; RestorationTask says what each is."""

    config: dict[str, Any]
    effective_batch: int
    validated_step: int
    validated: dict[str, float]
    unreadable: int
    branches: bool
    network: nn.Module

    def state_dict(self) -> dict[str, Any]: ...

    def configure_optimizers(self) -> Any: ...

    @property
    def trainer(self) -> L.Trainer:
        """Lightning's, which knows the ranks."""


def save(task: Saved, checkpoint: dict[str, Any]) -> None:
    """Adds what Lightning leaves out; its counts of batches go, for they depend on the number of ranks."""
    del checkpoint["loops"]
    checkpoint |= {
        "config": task.config,
        "effective_batch": task.effective_batch,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "validated": {"step": task.validated_step, "metrics": task.validated},
        "ranks": ranks.gather({"rng": rng_state(), "unreadable": task.unreadable}),
    }


def load(task: Saved, checkpoint: dict[str, Any]) -> None:
    """Takes up what `save` added. What belongs to one rank only where there are as many ranks as before."""
    if task.branches:
        match_average(task, checkpoint["state_dict"])
        if task.trainer.state.fn == TrainerFn.FITTING:
            adopt(task, checkpoint)
    resume_at(task.trainer, checkpoint["global_step"])
    task.validated_step, task.validated = checkpoint["validated"]["step"], checkpoint["validated"]["metrics"]
    if len(checkpoint["ranks"]) == task.trainer.world_size:
        state = checkpoint["ranks"][task.trainer.global_rank]
        set_rng_state(state["rng"])
        task.unreadable = state["unreadable"]


def adopt(task: Saved, checkpoint: dict[str, Any]) -> None:
    """Makes another run's checkpoint one of this run: its state, under this run's configuration.

    Optimizers keep their moments, by parameters' names, and take every option of this configuration. Schedules stand where
    they would after as many updates.
    """
    made, step = task.configure_optimizers(), checkpoint["global_step"]
    pairs = [(each["optimizer"], each["lr_scheduler"]["scheduler"]) for each in (made if isinstance(made, list) else [made])]
    for _, schedule in pairs:
        for _ in range(step):
            schedule.step()
    saved = checkpoint["optimizer_states"]
    checkpoint["optimizer_states"] = [with_moments(each.state_dict(), old) for (each, _), old in zip(pairs, saved, strict=True)]
    checkpoint["lr_schedulers"] = [schedule.state_dict() for _, schedule in pairs]
    checkpoint["callbacks"]["Checkpoints"]["best"] = []  # of files that lie in the other run's folder
    for scaler in [name for name, state in checkpoint.items() if state == {} and name.endswith("Precision")]:
        del checkpoint[scaler]  # of a precision that needed none


def match_average(task: Saved, weights: dict[str, Any]) -> None:
    """Begins an average that another run did not keep as its network; drops one that is not kept on."""
    now = task.state_dict()
    for name in [name for name in weights if name.startswith("ema.") and name not in now]:
        del weights[name]
    for name in [name for name in now if name.startswith("ema.average.") and name not in weights]:
        weights[name] = weights[f"network.{name.removeprefix('ema.average.')}"]


def with_moments(fresh: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """The state of a fresh optimizer with what a saved one has of the same parameters; others begin without.

    Raises: ValueError: the saved one does not name its parameters.
    """
    if any("param_names" not in group for group in saved["param_groups"]):
        raise ValueError(
            "the checkpoint was written by an earlier version, which did not name what its optimizer trains: go on with that "
            "run first until it saves another, or take the weights alone with init.ckpt=FILE"
        )
    new, old = (
        {
            name: number
            for group in state["param_groups"]
            for name, number in zip(group["param_names"], group["params"], strict=True)
        }
        for state in (fresh, saved)
    )
    moments = {new[name]: saved["state"][old[name]] for name in new if old.get(name) in saved["state"]}
    return {**fresh, "state": moments}


def resume_at(trainer: L.Trainer, step: int) -> None:
    """Sets Lightning's counters as they are after `step` updates, whatever the batches that made them."""
    loop = trainer.fit_loop.epoch_loop
    batches, seen = step * trainer.accumulate_grad_batches, cast(Any, loop.batch_progress.total)
    seen.ready = seen.started = seen.processed = seen.completed = batches
    loop._batches_that_stepped = step
    for progress in (
        loop.automatic_optimization.optim_progress.optimizer.step.total,
        loop.manual_optimization.optim_step_progress.total,
    ):
        progress.ready = progress.completed = step


def rng_state() -> dict[str, Any]:
    """State of torch's random numbers in this process. (What a step draws follows from its sample positions all the same.)"""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])

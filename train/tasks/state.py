"""What a checkpoint of a task holds in addition to what Lightning saves, and how a run goes on from it."""

import os
from typing import Any, Protocol, cast

import lightning as L
import torch

from train import ranks


class Saved(Protocol):
    """What a checkpoint keeps of a task; RestorationTask says what each is."""

    config: dict[str, Any]
    effective_batch: int
    validated_step: int
    validated: dict[str, float]
    unreadable: int

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
    resume_at(task.trainer, checkpoint["global_step"])
    task.validated_step, task.validated = checkpoint["validated"]["step"], checkpoint["validated"]["metrics"]
    if len(checkpoint["ranks"]) == task.trainer.world_size:
        state = checkpoint["ranks"][task.trainer.global_rank]
        set_rng_state(state["rng"])
        task.unreadable = state["unreadable"]


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

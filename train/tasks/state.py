"""What a checkpoint of a task holds beside Lightning's own, and how a run goes on from it."""

from typing import Any, cast

import lightning as L
import torch


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

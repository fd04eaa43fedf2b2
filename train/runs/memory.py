"""When memory runs out: where it happened, and the cheapest ways out as overrides."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from train.errors import ran_out
from train.precision import half_precision

# Function in the traceback -> what the run was doing. The first one of this table that is found counts.
PLACES = {
    "validation_step": "validation",
    "on_save_checkpoint": "writing a checkpoint",
    "save_checkpoint": "writing a checkpoint",
    "_next_data": "reading data",
    "backward": "the backward pass",
    "training_step": "the forward pass",
    "optimizer_step": "the optimizer",
}


@contextmanager
def out_of_memory_explained(config: dict[str, Any], trainer: L.Trainer) -> Iterator[None]:
    """Turns an error that says that memory ran out into a ValueError with the advice below; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not ran_out(error):
            raise
        raise ValueError(memory_advice(error, config, trainer)) from error


def place_of(error: BaseException) -> str:
    """What the run was doing when the error was raised."""
    functions = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    return next((place for name, place in PLACES.items() if name in functions), "building the run")


def memory_advice(error: BaseException, config: dict[str, Any], trainer: L.Trainer) -> str:
    """One message: where memory ran out, and up to three overrides that lower the need, the cheapest first."""
    data, place = config["data"], place_of(error)
    batch, size = (data["val_batch_size"], data["val_size"]) if place == "validation" else (data["batch_size"], data["size"])
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    fixes = [*(_validation_fixes if place == "validation" else _training_fixes)(config, trainer)][:3]
    advice = "the cheapest ways out, each to be added to the command" if fixes else "take a machine with more memory"
    return "\n".join(
        [
            f"memory ran out in {place}: batch {batch} a device of {f'{size}x{size}' if size else 'whole'} images, "
            f"trainer.precision={config['trainer']['precision']}, on {trainer.accelerator.name()} ({reason}); {advice}:",
            *(f"  {overrides}   ({cost})" for overrides, cost in fixes),
        ]
    )


def _training_fixes(config: dict[str, Any], trainer: L.Trainer) -> Iterator[tuple[str, str]]:
    """(overrides, what they cost): first those that keep the result, and of these the fastest."""
    data, batch, accumulate = config["data"], config["data"]["batch_size"], config["trainer"]["accumulate_grad_batches"]
    devices, on_gpu = trainer.num_devices, trainer.strategy.root_device.type == "cuda"
    if on_gpu and trainer.num_nodes == 1 and batch % 2 == 0 and torch.cuda.device_count() >= 2 * devices:
        yield (
            f"trainer.devices={2 * devices} data.batch_size={batch // 2}",
            f"the same effective batch on {2 * devices} of the {torch.cuda.device_count()} GPUs here; faster",
        )
    if batch > 1:
        part = next(n for n in range(batch // 2, 0, -1) if batch % n == 0)
        yield (
            f"data.batch_size={part} trainer.accumulate_grad_batches={accumulate * batch // part}",
            f"the same effective batch of {batch * accumulate * trainer.world_size}, hardly slower",
        )
    if config["network"].get("gradient_checkpointing") is False:
        yield (
            "network.gradient_checkpointing=true",
            "the same result; each forward pass is computed twice, about a third slower",
        )
    yield from _precision_fix(config, trainer)
    if data["num_workers"] and not on_gpu:
        yield "data.num_workers=0", "the same result; the workers' memory is free, but each update waits for its data"
    yield f"data.size={data['size'] // 2}", "a quarter of the pixels: this changes the recipe"


def _validation_fixes(config: dict[str, Any], trainer: L.Trainer) -> Iterator[tuple[str, str]]:
    data = config["data"]
    if data["val_batch_size"] > 1:
        yield "data.val_batch_size=1", "the same metrics, hardly slower"
    yield from _precision_fix(config, trainer)
    size = data["val_size"] // 2 if data["val_size"] else data["size"]
    yield f"data.val_size={size}", "metrics of smaller cuts: not to be compared with those of other runs"
    if config["validation"]["lpips"] is not None:
        yield "validation.lpips=null", "the validation goes without LPIPS"
    if data["num_workers"]:
        yield "data.num_workers=0", "the same metrics; the workers' memory is free, but each update waits for its data"


def _precision_fix(config: dict[str, Any], trainer: L.Trainer) -> Iterator[tuple[str, str]]:
    if trainer.strategy.root_device.type == "cuda" and str(config["trainer"]["precision"]).startswith("32"):
        precision = half_precision()
        yield f"trainer.precision={precision}", "activations of half the size, and faster; results differ by rounding"

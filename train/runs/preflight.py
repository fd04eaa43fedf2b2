"""preflight=true: does this configuration fit into memory, how fast is it, and how long will the run take?

A few updates of the run on its own data, one validation and one checkpoint are done, in a folder that is removed afterwards.
"""

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from train import ranks
from train.ranks import say
from train.runs.building import batches_of_update, make_data, make_task, make_trainer, prepare_folder, task_class
from train.runs.nonfinite import Diverged, trained
from train.runs.rundir import RUNS, lock, release
from train.runs.times import PARTS, StepTimes
from train.signals import Interrupted, stop_signal
from train.tasks.task import RestorationTask

FEWEST = 3  # updates, the first of which warms up
BUDGET_S = 60.0  # after that no further update starts, once the fewest are done


class Measure(Callback):
    """Times what StepTimes leaves out, and ends the updates after BUDGET_S. It must be the last callback."""

    def __init__(self, times: StepTimes) -> None:
        self.times = times
        self.sums = [dict(times.run)]  # seconds of each part after 0, 1, 2, … updates
        self.validation_s = self.checkpoint_s = 0.0
        self._began = self._mark = time.perf_counter()

    def on_train_start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.times.updates == len(self.sums) - 1:
            return  # a micro-batch in the middle of an update
        self.sums.append(dict(self.times.run))
        late = self.times.updates >= FEWEST and time.perf_counter() - self._began > BUDGET_S
        signum, stop = ranks.highest([stop_signal(), int(late)], trainer.strategy.root_device)
        if signum:
            raise Interrupted(signum, trainer.global_step)
        trainer.should_stop = trainer.should_stop or bool(stop)
        self._mark = time.perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        self.validation_s, self._mark = time.perf_counter() - self._mark, time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.checkpoint_s = time.perf_counter() - self._mark  # train/runs/checkpoint.py wrote it just before

    def update_s(self, window: int) -> dict[str, float]:
        """Seconds of each part, mean of the last `window` updates, the first left out where there is another."""
        count = max(1, min(window, len(self.sums) - 2))
        return {part: (self.sums[-1][part] - self.sums[-1 - count][part]) / count for part in PARTS}


def preflight(config: dict[str, Any]) -> None:
    """Prints the report. Every rank of the run calls it.

    Raises: what the run itself would raise; FloatingPointError when not one update is finite.
    """
    short, window = shortened(config)
    directory, held = RUNS / short["name"], []
    ranks.decided_by_rank_zero(lambda: held.append(lock(directory)))
    try:
        trainer = make_trainer(short)
        task = make_task(short, trainer)
        data = make_data(config)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        measure = Measure(next(callback for callback in callbacks if isinstance(callback, StepTimes)))
        callbacks.append(measure)
        activations = count_activations(task)
        prepare_folder(short, directory, trainer, 0, begins=True)
        trainer.fit(task, datamodule=data)
        if trainer.is_global_zero:
            say(report(config, task, trainer, measure, window, sum(activations.values())))
    except Diverged as error:
        raise FloatingPointError(f"{error}: lower optimizer.lr, or check the loss") from error
    finally:
        for file in held:
            shutil.rmtree(directory, ignore_errors=True)
            release(file, directory)


def shortened(config: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The run of a few updates that is measured, and how many of its last updates to time.

    Batches that workers have ready before the first update flatter the wait for data: two for each worker are let pass, then
    one from each is timed.
    """
    workers, batches = config["data"]["num_workers"], batches_of_update(config)
    window = max(FEWEST - 1, -(-workers // batches))
    updates = min(1 + -(-2 * workers // batches) + window, config["trainer"]["max_steps"])
    name = Path(config["name"])
    short = {
        **config,
        "name": str(name.with_name(f".{name.name}.preflight")),  # a name that no run can have
        "trainer": {**config["trainer"], "max_steps": updates, "val_check_interval": updates, "enable_progress_bar": False},
        "checkpoint": {**config["checkpoint"], "every_n_steps": updates, "every_s": None},
        "task": task_class(config).all_at_once(config),
    }
    return short, window


def count_activations(task: RestorationTask) -> dict[int, int]:
    """Address -> bytes of every tensor that the next training step keeps for its backward pass; empty until that step."""
    step, found = task.training_step, dict[int, int]()

    def training_step(*arguments: Any) -> Any:
        del task.training_step  # back to the class's own
        with saved_storages(task, found):
            return step(*arguments)

    task.training_step = training_step  # type: ignore[method-assign]
    return found


@contextmanager
def saved_storages(module: nn.Module, found: dict[int, int]) -> Iterator[None]:
    """Adds address -> bytes of each storage that autograd saves inside the context, parameters and buffers left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself could hold the graph that holds it

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def report(
    config: dict[str, Any], task: RestorationTask, trainer: L.Trainer, measure: Measure, window: int, activations: int
) -> str:
    """What is printed, a line for each question.

    Args: window: updates that the times are means of.     activations: bytes that a training step keeps for its backward pass.
    """
    parts = measure.update_s(window)
    update_s, (wait, compute, optimizer) = sum(parts.values()), parts.values()
    file_bytes = (Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt").stat().st_size
    lines = {
        "parameters": _parameters(task.network),
        "memory": _memory(task, trainer),
        "activations": f"{_size(activations)} of a forward pass, batch {config['data']['batch_size']}{_peak(trainer)}",
        "update": f"{update_s:.4g} s: data wait {wait:.4g}, forward and backward {compute:.4g}, optimizer {optimizer:.4g}",
        "images/s": f"{task.effective_batch / update_s:.4g} (effective batch {task.effective_batch})",
        "validation": f"{measure.validation_s:.3g} s",
        "checkpoint": f"{measure.checkpoint_s:.3g} s, {_size(file_bytes)}",
        "the run": _whole_run(config, update_s, measure),
        "disk": _disk(config["checkpoint"], file_bytes, shutil.disk_usage(trainer.default_root_dir).free),
    }
    return "\n".join(
        [
            f"preflight of {config['name']} on {trainer.world_size} x {trainer.accelerator.name()}, {trainer.precision}, after "
            f"{trainer.global_step} updates",
            *(f"  {name:<12} {line}" for name, line in lines.items()),
            "nothing of it is kept; the same command without preflight=true trains",
        ]
    )


def _parameters(network: nn.Module) -> str:
    total = sum(p.numel() for p in network.parameters())
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return f"{trainable / 1e6:.2f} M trainable of {total / 1e6:.2f} M"


def _memory(task: RestorationTask, trainer: L.Trainer) -> str:
    """Of what stays there from update to update. Gradients are as large as what is trained, discriminators included."""
    states = (each for optimizer in trainer.optimizers for each in optimizer.state.values())
    optimizer = _bytes(value for each in states for value in each.values() if isinstance(value, Tensor))
    network, ema = _bytes(task.network.state_dict().values()), _bytes(task.ema.state_dict().values()) if task.ema else 0
    everything = _bytes(value for each in (task, *task.frozen_networks()) for value in (*each.parameters(), *each.buffers()))
    others = everything - ema - _bytes([*task.network.parameters(), *task.network.buffers()])
    return (
        f"network {_size(network)}, gradients {_size(_bytes(trained(trainer)))}, optimizer {_size(optimizer)}, "
        f"EMA {_size(ema)}, other networks {_size(others)}"
    )


def _peak(trainer: L.Trainer) -> str:
    """Measured on a GPU; empty elsewhere."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return ""
    return f"; measured peak {_size(torch.cuda.max_memory_allocated())} of {_size(torch.cuda.mem_get_info(device)[1])}"


def _whole_run(config: dict[str, Any], update_s: float, measure: Measure) -> str:
    """How long all updates, validations and checkpoints will take."""
    checkpoint, steps = config["checkpoint"], config["trainer"]["max_steps"]
    updates_s = steps * update_s
    validations = -(-steps // config["trainer"]["val_check_interval"])
    checkpoints = max(1, steps // checkpoint["every_n_steps"], int(updates_s / (checkpoint["every_s"] or float("inf"))))
    validations_s, checkpoints_s = validations * measure.validation_s, checkpoints * measure.checkpoint_s
    whole, of_updates, of_validations, of_checkpoints = (
        timedelta(seconds=round(seconds))
        for seconds in (updates_s + validations_s + checkpoints_s, updates_s, validations_s, checkpoints_s)
    )
    return (
        f"{whole} for trainer.max_steps={steps}: updates {of_updates}, {validations} validations {of_validations}, "
        f"{checkpoints} checkpoints {of_checkpoints}"
    )


def _disk(checkpoint: dict[str, Any], file_bytes: int, free_bytes: int) -> str:
    """What the run's checkpoints will take, one being written while the others are still there."""
    files = checkpoint["keep"] + checkpoint["keep_best"] + 1
    enough = files * file_bytes < free_bytes
    return (
        f"{_size(files * file_bytes)} for {files} checkpoints (checkpoint.keep={checkpoint['keep']}, "
        f"keep_best={checkpoint['keep_best']}, one being written); {_size(free_bytes)} free"
        f"{'' if enough else ' - NOT ENOUGH: lower checkpoint.keep or free some'}"
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"

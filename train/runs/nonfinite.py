"""Numbers that are not finite: an update that has them is skipped, and too many in a row end the attempt."""

from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Ge
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from train import ranks
from train.sharding import local
from train.tasks.task import RestorationTask


class Diverged(Exception):
    """Training can't go on from these weights; the ones of the last checkpoint are good."""

    def __init__(self, step: int, reason: str) -> None:
        self.step, self.reason = step, reason
        super().__init__(f"update {step}: {reason}")


class NonFiniteGuard(Callback):
    """Skips an update whose loss or gradients are NaN or infinite on any rank: weights, optimizer and EMA stay as they were.

    A skipped update counts as one: the order of the samples does not shift. With an fp16 scaler, gradients alone are the
    scaler's to judge.

    Args: max_in_a_row: as many skipped updates in a row raise Diverged.
    """

    def __init__(self, *, max_in_a_row: Annotated[int, Ge(1)]) -> None:
        self.max_in_a_row = max_in_a_row
        self.in_a_row = self.skipped = 0
        self._start = 0

    def state_dict(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.in_a_row, self.skipped = state_dict["in_a_row"], state_dict["skipped"]

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._start = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.in_a_row and self.in_a_row >= trainer.global_step - self._start:
            raise Diverged(trainer.global_step, "not one update was finite")

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: L.Trainer, task: RestorationTask, optimizer: Optimizer
    ) -> None:
        parameters = trained(trainer)
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        names = [*task.nonfinite, "the gradient"]
        row = torch.stack([*task.nonfinite.values(), _any_nonfinite(gradients, trainer.strategy.root_device)])
        task.nonfinite = {}
        rows = ranks.gather_rows(row.to(torch.uint8)).tolist()  # waits for the device
        found = {name: [n for n, row in enumerate(rows) if row[column]] for column, name in enumerate(names)}
        found = {name: where for name, where in found.items() if where}
        task.skip_update = bool(found)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scaled = scaler is not None and scaler.get_scale() >= 1  # a smaller scale can't be what makes them infinite
        if not found or (scaled and set(found) == {"the gradient"}):
            self.in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None  # optimizers pass over a parameter without gradient: no momentum, no weight decay
        self.in_a_row += 1
        self.skipped += 1
        self._report(trainer, found)

    def _report(self, trainer: L.Trainer, found: dict[str, list[int]]) -> None:
        # A term that is NaN makes the loss so, and that the gradient: the first cause is named.
        terms = [name for name in found if name not in ("the loss", "the gradient")] or [next(iter(found))]
        what = ", ".join(
            name + (f" on rank {', '.join(map(str, found[name]))}" if trainer.world_size > 1 else "") for name in terms
        )
        step = trainer.global_step + 1
        if trainer.is_global_zero:
            print(f"update {step} is skipped ({self.in_a_row} in a row): not finite: {what}", flush=True)
        if self.in_a_row >= self.max_in_a_row:
            raise Diverged(step, f"{self.in_a_row} updates in a row were not finite (the last one: {what})")


def trained(trainer: L.Trainer) -> list[nn.Parameter]:
    """All parameters that optimizers train, those of discriminators included."""
    return [p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]


def _any_nonfinite(tensors: list[Tensor], device: torch.device) -> Tensor:
    """() bool on the device, which is the tensors' own."""
    if not tensors:
        return torch.tensor(False, device=device)
    # ord=1: on a CPU five times as fast as the largest value; dtype: half precision would overflow
    norms = torch.stack(torch._foreach_norm(tensors, ord=1, dtype=torch.float32))
    return ~torch.isfinite(norms).all()

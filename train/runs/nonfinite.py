"""Numbers that are not finite: an update that has them is skipped, and too many in a row end the attempt."""

from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Ge
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.amp import GradScaler
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

    A skipped update counts as one: the order of the samples does not shift. With float16, an optimizer whose gradients alone
    are not finite is left to its scaler (task.scaler_of), which leaves out that optimizer's step.

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
        device = trainer.strategy.root_device
        gradients = [_any_nonfinite(_gradients(each), device) for each in trainer.optimizers]
        names = list(task.nonfinite)
        row = torch.stack([*task.nonfinite.values(), *gradients])
        task.nonfinite = {}
        rows = ranks.gather_rows(row.to(torch.uint8)).tolist()  # waits for the device
        where = [[n for n, row in enumerate(rows) if row[column]] for column in range(len(names) + len(gradients))]
        found = {name: at for name, at in zip(names, where[: len(names)], strict=True) if at}
        infinite = {each: at for each, at in zip(trainer.optimizers, where[len(names) :], strict=True) if at}
        left = {each for each in infinite if _overflows(task.scaler_of(each))}  # the rest is judged here
        if judged := sorted({n for each, at in infinite.items() if each not in left for n in at}):
            found["the gradient"] = judged
        if not found:
            task.outcome = "left to the scaler" if trainer.optimizers[0] in left else "done"
            self.in_a_row = 0
            return
        task.outcome = "dropped"
        for parameter in trained(trainer):
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


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    return [local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _overflows(scaler: GradScaler | None) -> bool:
    """Whether its scale can be what makes gradients infinite, be they still scaled or not: a scale below 1 can't."""
    return scaler is not None and scaler.get_scale() >= 1


def _any_nonfinite(tensors: list[Tensor], device: torch.device) -> Tensor:
    """() bool on the device, which is the tensors' own."""
    if not tensors:
        return torch.tensor(False, device=device)
    # ord=1: on a CPU five times as fast as the largest value; dtype: half precision would overflow
    norms = torch.stack(torch._foreach_norm(tensors, ord=1, dtype=torch.float32))
    return ~torch.isfinite(norms).all()

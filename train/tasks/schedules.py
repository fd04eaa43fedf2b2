"""Learning rates over a run. One schedule may serve a generator and its discriminators, each from its own learning rate."""

from collections.abc import Iterator
from typing import Annotated, Any

from annotated_types import Ge, Interval
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


class OneCycle(OneCycleLR):
    """torch's OneCycleLR, whose peak is the learning rate that the optimizer has (Smith and Topin 2018, arXiv:1708.07120).

    From a 25th of it up to it, and down to a 250,000th. Adam's betas stay as they are.

    Args: total_steps: updates of the run. pct_start: share of them on the way up.
    """

    def __init__(
        self, *, optimizer: Optimizer, total_steps: Annotated[int, Ge(1)], pct_start: Annotated[float, Interval(ge=0, le=1)]
    ) -> None:
        peaks = [group["lr"] for group in optimizer.param_groups]
        super().__init__(optimizer, peaks, total_steps=total_steps, pct_start=pct_start, cycle_momentum=False)


def schedule_mistakes(path: str, schedule: dict[str, Any], optimizer: dict[str, Any]) -> Iterator[str]:
    """A learning rate that would rise to the end of its cosine. path: dotted, of the optimizer in the configuration."""
    lr, least = optimizer["lr"], schedule.get("eta_min", 0)
    if least > lr:
        yield f"{path}.lr={lr:g} would rise to schedule.eta_min={least:g}: set schedule.eta_min=0, or {path}.lr above it"

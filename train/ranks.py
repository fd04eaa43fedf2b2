"""What the processes of one run (its ranks) tell each other, so that all of them do the same.

Everything here works with one rank too, where it returns at once.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

T = TypeVar("T")


class SaidByRankZero(Exception):
    """Raised on the other ranks where rank 0 failed: rank 0 prints the error, and they end without a word."""


def join(trainer: L.Trainer) -> None:
    """Connects the ranks now, as they decide things together before Lightning would connect them; it finds them connected."""
    if trainer.world_size > 1:
        trainer.strategy.setup_environment()


def connected() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if connected() else 0


@rank_zero_only
def say(text: str) -> None:
    """Prints the text, unless it is empty, on rank 0 alone."""
    if text:
        print(text, flush=True)


def gather(value: T) -> list[T]:
    """The values of all ranks, in the order of ranks; any object that can be pickled."""
    if not connected():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(row: Tensor) -> Tensor:
    """(n) of each rank to (ranks, n), on the row's device."""
    if not connected():
        return row[None]
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, row)
    return torch.stack(rows)


def highest(values: list[int], device: torch.device) -> list[int]:
    """The largest of each value over all ranks."""
    if not connected():
        return values
    tensor = torch.tensor(values, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def add(tensor: Tensor) -> Tensor:
    """The sum over all ranks."""
    if connected():
        dist.all_reduce(tensor)
    return tensor


def of_rank_zero(tensor: Tensor) -> Tensor:
    """Rank 0's tensor, which has the same shape on all ranks."""
    if connected():
        dist.broadcast(tensor, src=0)
    return tensor


def average(tensors: list[Tensor]) -> None:
    """Each tensor becomes its mean over all ranks, in place and in one exchange; they have the same shapes everywhere."""
    if not connected():
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def decided_by_rank_zero(decide: Callable[[], T]) -> T:
    """What `decide` returns on rank 0, the only rank that calls it.

    Raises: where `decide` fails: on rank 0 its error, SaidByRankZero on the others, so that all ranks end.
    """
    if not connected():
        return decide()
    message: list[Any] = [None, None]
    failure: Exception | None = None
    if rank() == 0:
        try:
            message[0] = decide()
        except Exception as error:
            failure, message[1] = error, str(error)
    dist.broadcast_object_list(message, src=0)
    if failure is not None:
        raise failure
    if message[1] is not None:
        raise SaidByRankZero(message[1])
    return message[0]

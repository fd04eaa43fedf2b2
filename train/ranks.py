"""What the processes of one run (its ranks) tell each other, so that all of them do the same."""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

T = TypeVar("T")


class SaidByRankZero(Exception):
    """Rank 0 failed with this error and says it; the other ranks end with it, silently."""


def join(trainer: L.Trainer) -> None:
    """Connects the ranks before anything is decided; Lightning finds the connection there later."""
    if trainer.world_size > 1:
        trainer.strategy.setup_environment()


def connected() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if connected() else 0


@rank_zero_only
def say(text: str) -> None:
    """Prints it once, whatever the number of ranks."""
    if text:
        print(text, flush=True)


def gather(value: T) -> list[T]:
    """The values of all ranks, by rank."""
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


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Each gradient becomes its mean over all ranks, which must have gradients of the same parameters."""
    if not connected():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def decided_by_rank_zero(decide: Callable[[], T]) -> T:
    """What `decide` returns on rank 0, where alone it runs; if it fails there, every rank ends.

    Raises: on rank 0 what `decide` raised, SaidByRankZero on the others.
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


def flatten(node: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> value of every leaf."""
    if not isinstance(node, dict) or not node:
        return {path: node}
    return {key: value for name, child in node.items() for key, value in flatten(child, f"{path}.{name}".lstrip(".")).items()}


def check_same_config(config: dict[str, Any]) -> None:
    """Raises ValueError on every rank when the ranks were not given one and the same resolved configuration."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    if len(set(gather(digest))) == 1:
        return
    configs = [flatten(each) for each in gather(config)]
    keys = sorted({key for each in configs for key in each if any(other.get(key) != each[key] for other in configs)})
    values = "; ".join(
        f"{key}: {', '.join(f'{each.get(key)!r} on rank {n}' for n, each in enumerate(configs))}" for key in keys
    )
    raise ValueError(f"the ranks were given different configurations ({values}): start every rank with the same command")


def launched_from_outside() -> bool:
    """True in a process that is one of several ranks already: of our own launch, torchrun or srun."""
    return "LOCAL_RANK" in os.environ or in_srun()


def in_srun() -> bool:
    """True in a task of an srun with several; the batch script of such a job itself is none."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def environment(nodes: int) -> ClusterEnvironment:
    """Where Lightning reads ranks and addresses. Left to itself it takes a batch script for an srun, and waits for the others.

    Raises: ValueError: a run on several nodes was started on one of them alone.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TorchElasticEnvironment()
    if "LOCAL_RANK" not in os.environ and in_srun():
        return SLURMEnvironment(auto_requeue=False)
    missing = [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if nodes > 1 and missing:
        raise ValueError(
            f"trainer.num_nodes={nodes}, but {', '.join(missing)} is not in the environment: start it on every node with srun "
            "or torchrun, or set them"
        )
    return LightningEnvironment()

"""Who started this process, and where Lightning finds its rank: our own launch, torchrun, srun, or a user for one rank."""

import os

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)


def launched_from_outside() -> bool:
    """True in a process that somebody started as one of several ranks: train/jobs/launch.py, torchrun or srun."""
    return "LOCAL_RANK" in os.environ or in_srun()


def in_srun() -> bool:
    """True in a task of an srun with several tasks. The batch script that calls srun is not one of them."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def environment(nodes: int) -> ClusterEnvironment:
    """Where Lightning reads ranks and addresses. Its own choice takes a batch script for a task of srun, and waits.

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

"""validate=true: what the validation measures of a run's newest weights, or of init.ckpt. Nothing is trained or written."""

import tempfile
from pathlib import Path
from typing import Any

from train import ranks
from train.ranks import say
from train.runs.building import effective_batch, make_data, make_task, make_trainer, recorded, task_class
from train.runs.checkpoint import load
from train.runs.differences import OF_THE_COMMAND, differing_keys, listed
from train.runs.resume import check_continues, last_good, named_checkpoint
from train.runs.rundir import RUNS, saved_config


def validate(config: dict[str, Any]) -> None:
    """Prints each metric. Every rank of the command calls it.

    Raises: ValueError, OSError: there are no weights to validate, or they are of another network.
    """
    record = recorded(config)
    checkpoint = ranks.decided_by_rank_zero(lambda: weights_to_validate(record, RUNS / config["name"]))
    different: list[str] = []
    with tempfile.TemporaryDirectory() as folder:  # for what a task draws
        trainer = make_trainer({**config, "name": folder})
        if checkpoint:
            saved = load(checkpoint)
            check_continues(f"{checkpoint}", saved, record, effective_batch(config, trainer), task_class(config).kept)
            different = differing_keys(saved["config"], record, may_differ=OF_THE_COMMAND)
        task = make_task(config, trainer, fresh=checkpoint is None)
        task.branches = True
        trainer.validate(task, make_data(config), ckpt_path=checkpoint, weights_only=True, verbose=False)
    of = f"{checkpoint}, update {trainer.global_step}" if checkpoint else f"init.ckpt={config['init']['ckpt']}"
    say(f"{of}: {type(task.network).__name__}{', the average of its weights' if checkpoint and task.ema else ''}")
    if different:
        say(f"  with another configuration than then: {listed(different)}")
    if task.validation.lpips is None:
        say(f"  without LPIPS: {task.validation.lpips_missing}")
    for name in [name for name in task.validated if not name.endswith("_lq")]:
        beside = f"   (LQ {task.validated[f'{name}_lq']:.5g})" if f"{name}_lq" in task.validated else ""
        say(f"  {name:<14}{task.validated[name]:.5g}{beside}")


def weights_to_validate(config: dict[str, Any], directory: Path) -> Path | None:
    """A checkpoint, as the same command would train on from it, or None for init.ckpt. Nothing is renamed or removed.

    Raises: ValueError, FileNotFoundError: there is neither.
    """
    resume = config["resume"]
    if resume not in ("auto", "never"):
        return named_checkpoint(resume)
    found = last_good(directory / "checkpoints") if resume == "auto" else None
    if found and (different := differing_keys(saved_config(directory), config)):
        raise ValueError(
            f"{directory} holds a run with another configuration: {listed(different)}. Give resume={directory} to validate it "
            f"under this one{', or resume=never to validate init.ckpt' if config['init']['ckpt'] else ''}"
        )
    if found is None and not config["init"]["ckpt"]:
        raise ValueError("validate=true: there is nothing to validate; give resume=runs/NAME, or init.ckpt=FILE")
    return found

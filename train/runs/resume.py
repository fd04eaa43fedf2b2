"""Where an attempt at a run goes on: which checkpoint, and whether it fits the configuration. Which runs it began from."""

import json
import os
from pathlib import Path
from typing import Any

from train.ranks import say
from train.runs.checkpoint import damage, load, newest_whole, sha256_of, step_files, step_of
from train.runs.differences import OF_THE_COMMAND, differing_keys, flatten, listed, within
from train.runs.rundir import RUNS, no_such, read_summary, saved_config, set_aside, write_text


def choose_checkpoint(config: dict[str, Any], directory: Path, back_to: Path | None = None) -> Path | None:
    """The checkpoint to continue from, or None for a start at update 0. A previous run in the folder is renamed, not deleted.

    resume=PATH is obeyed once: the same command given again goes on from what this run saved itself. So does a job that SLURM
    starts again, also after resume=never.

    Args:   back_to: the checkpoint that a diverged run returns to, whatever `resume` says.
    Raises: ValueError, FileNotFoundError: no checkpoint can be used as the command wants it; the message says what to do.
    """
    resume, folder = config["resume"], directory / "checkpoints"
    resume = "auto" if Path(resume).absolute() == directory.absolute() else resume
    if back_to:
        return _go_back_to(back_to, folder)
    last, news = newest_whole(folder)
    say("\n".join(news))
    saved = load(last) if last else None
    job = os.environ.get("SLURM_JOB_ID")
    started_again = saved is not None and job is not None and saved["slurm_job"] == job
    if resume == "never" and not started_again:
        if last or any(folder.glob("*.broken*")):
            say(f"resume=never: the run before is kept as {set_aside(directory, 'old')}")
        return None
    if saved:  # without a checkpoint nothing was trained here, and any configuration may start
        different = differing_keys(saved_config(directory), config)
        if different:
            raise ValueError(
                f"{directory} holds a run with another configuration: {listed(different)}. Give this run its own name=… (with "
                f"resume={directory} it goes on from there), or start over with resume=never (the old folder is kept under "
                "another name)"
            )
    if saved and (resume == "auto" or started_again or saved["config"]["resume"] == resume):
        return last
    if resume == "auto":
        if any(folder.glob("*.broken*")):
            raise ValueError(
                f"no checkpoint in {folder} is whole: continue from a copy with resume=PATH, or start over with resume=never "
                "(the old folder is kept under another name)"
            )
        return None
    checkpoint = named_checkpoint(resume)
    if saved and is_of_another(checkpoint, directory) and (different := differing_keys(load(checkpoint)["config"], config)):
        raise ValueError(
            f"{directory} holds a run already, and {checkpoint} is of one with another configuration: {listed(different)}. "
            f"Give the run that goes on from there its own name=…, or go on in {directory} with resume={directory}"
        )
    return _go_back_to(checkpoint, folder)


def named_checkpoint(resume: str) -> Path:
    """The checkpoint that resume=… names; of a run's folder the newest that is whole. The run itself is not touched, and may
    be training.

    Raises: ValueError, FileNotFoundError: there is none.
    """
    path = Path(resume)
    if path.is_dir():
        found = last_good(path / "checkpoints")
        if found is None:
            raise ValueError(f"resume={resume}: there is no whole checkpoint in {path / 'checkpoints'}")
        return found
    if not path.is_file():
        raise FileNotFoundError(no_such(resume))
    if reason := damage(path):
        raise ValueError(f"resume={resume} is broken: {reason}")
    return path


def is_of_another(checkpoint: Path, directory: Path) -> bool:
    """Whether a checkpoint lies elsewhere than in a run's folder."""
    return checkpoint.parent.absolute() != (directory / "checkpoints").absolute()


def _go_back_to(checkpoint: Path, folder: Path) -> Path:
    """Renames the checkpoints that the run saved after this one, which it will make again."""
    step = load(checkpoint)["global_step"]
    for later in (path for path in step_files(folder) if step_of(path) > step):
        say(f"{later} is later than {checkpoint} and is kept as {set_aside(later, 'aside').name}")
    return checkpoint


def check_continues(
    name: str, saved: dict[str, Any], config: dict[str, Any], effective_batch: int, kept: tuple[str, ...] | None
) -> None:
    """Raises ValueError when a checkpoint can't go on under this configuration.

    Args: kept: of another run's checkpoint the parts that must be as they were (patterns of keys); null: all of them.
    """
    different = differing_keys(saved["config"], config)
    if kept is not None:
        different = within(different, kept)
    elif saved["effective_batch"] != effective_batch:
        different.append(_other_batch(saved["effective_batch"], effective_batch))
    if different:
        raise ValueError(
            f"{name} was written with another configuration: {listed(different)}. Set these keys as they were, or take the "
            "weights alone with init.ckpt=FILE"
        )


def _other_batch(before: int, now: int) -> str:
    return f"effective batch (data.batch_size x devices x trainer.accumulate_grad_batches): {before} -> {now}"


def differences_from(saved: dict[str, Any], config: dict[str, Any], effective_batch: int) -> str:
    """What a run has otherwise than the one whose checkpoint it begins with, a line each.

    Raises: ValueError: it would end before it began.
    """
    step, last = saved["global_step"], config["trainer"]["max_steps"]
    if step >= last:
        raise ValueError(
            f"resume={config['resume']} is at update {step} already: give a trainer.max_steps above it, now {last}"
        )
    different = differing_keys(saved["config"], config, may_differ=OF_THE_COMMAND)
    if saved["effective_batch"] != effective_batch:
        different.append(_other_batch(saved["effective_batch"], effective_batch))
    return "\n  ".join(["what differs from that run:", *different]) if different else "nothing differs from that run"


def nothing_left(step: int, config: dict[str, Any], directory: Path) -> bool:
    """True, after saying so, when all updates are done and summed up. A run that died in between still gets its summary."""
    summary = read_summary(directory)
    if step < config["trainer"]["max_steps"] or summary is None or summary["step"] != step:
        return False
    say(
        f"{directory} is finished: {step} of trainer.max_steps={config['trainer']['max_steps']} updates are done. Raise "
        "trainer.max_steps to go on (under a schedule that spans the run, such as onecycle or cosine, that is another run: "
        f"resume={directory} name=…), or start over with resume=never or another name=…"
    )
    return True


def is_finished(config: dict[str, Any]) -> bool:
    """True when this very configuration has reached its last update and was summed up.

    For a command of several runs, which passes over such a run. Whether another configuration may go on from it the run says.
    """
    directory = RUNS / config["name"]
    summary = read_summary(directory)
    if summary is None or summary["step"] != config["trainer"]["max_steps"]:
        return False
    saved = saved_config(directory)
    same = (*OF_THE_COMMAND, "data.num_workers")
    return not differing_keys(saved, {**config, "task": saved["task"]}, may_differ=same)


def last_good(folder: Path) -> Path | None:
    """The newest whole checkpoint that was not written in the middle of a row of skipped updates."""
    last = folder / "last.ckpt"
    whole = (path for path in [*reversed(step_files(folder)), *([last] if last.exists() else [])] if not damage(path))
    return next((path for path in whole if not load(path)["callbacks"]["NonFiniteGuard"]["in_a_row"]), None)


ORIGINS = "began_from.json"  # in a run's folder: other runs' folders -> SHA-256 of the checkpoint that they had


def note_origins(config: dict[str, Any], directory: Path) -> None:
    """Of a run that begins: which runs it takes weights from, and what these are at this moment."""
    if origins := _other_runs(config, directory):
        write_text(directory / ORIGINS, json.dumps(origins, indent=2) + "\n")
    else:
        (directory / ORIGINS).unlink(missing_ok=True)


def changed_origins(config: dict[str, Any], directory: Path) -> list[str]:
    """The runs named in the configuration that have been trained again, or further, since this one began from them."""
    file = directory / ORIGINS
    noted = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return [run for run, digest in _other_runs(config, directory).items() if noted.get(run) != digest]


def _other_runs(config: dict[str, Any], directory: Path) -> dict[str, str]:
    """Folder -> SHA-256 of its newest checkpoint, for every value of the configuration that is another run's folder."""
    values = {value for value in flatten(config).values() if isinstance(value, str) and Path(value) != directory}
    checkpoints = {value: os.path.join(value, "checkpoints", "last.ckpt") for value in sorted(values)}
    return {value: sha256_of(Path(file)) for value, file in checkpoints.items() if os.path.isfile(file)}

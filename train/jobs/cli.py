"""The command line around Hydra: --help lists what exists, and a mistake ends with one error in place of a traceback."""

import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError, safe_load

from train.conf import CONF, choices, first_comment, groups, own_keys
from train.errors import ERROR_FILE, fail, message_of
from train.jobs.arguments import PRINTING, compose, continued, left_out, named_as_typed, overrides_of, quoting, settled
from train.trust import variable

LISTED = (
    *("model", "experiment", "task", "loss", "adversary", "data", "degradation", "augmentation"),
    *("network", "optimizer", "schedule", "trainer", "logger"),
)


def main() -> None:
    """Runs one training, or with -m (or a launcher) one for each combination; exit code 0 only when all of them ended well."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--resolved"]:  # a process that train/jobs/launch.py started
        from train.jobs.launch import die_with_parent
        from train.signals import Signals

        die_with_parent()
        with Signals():  # a signal that comes during the imports is noted too
            train(json.loads(Path(arguments[1]).read_text(encoding="utf-8")))
        return
    if {"--help", "-h"} & set(arguments):
        print(help_text())
        return
    try:
        sys.argv[1:] = arguments = continued(settled([left_out(named_as_typed(argument)) for argument in arguments]))
    except ValueError as error:
        fail(str(error))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, not to Hydra's own printer
    register_resolvers()
    launcher = any(argument.startswith("hydra/launcher=") for argument in arguments)
    if {"-m", "--multirun"} & set(arguments) or launcher:
        sweep(arguments)
    elif given := PRINTING & {argument.partition("=")[0] for argument in arguments}:
        sys.argv += ["--resolve"] if given & {"--cfg", "-c"} else []
        with_hydra(hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(train_composed))
    else:  # Hydra composes, and runs nothing that a configuration asks of it
        with_hydra(lambda: train_composed(compose(overrides_of(arguments))))


def register_resolvers() -> None:
    """What conf/ computes from the machine."""
    OmegaConf.register_new_resolver("best_precision", best_precision, replace=True)
    OmegaConf.register_new_resolver("slurm_nodes", lambda: int(os.environ.get("SLURM_NNODES", "1")), replace=True)
    OmegaConf.register_new_resolver("slurm_tasks_per_node", slurm_tasks_per_node, replace=True)
    OmegaConf.register_new_resolver("oc.env", variable, replace=True)


def with_hydra(command: Callable[[], Any]) -> None:
    try:
        command()
    except (HydraException, ValueError, YAMLError) as error:
        if os.environ.get("FACEWRIGHT_TRACEBACK"):
            raise
        fail(explain(error, sys.argv[1:]))


def train_composed(config: DictConfig) -> None:
    from train.jobs.config import ConfigError, check  # torch and Lightning load only now: --help and --cfg stay quick

    try:
        checked = check(config, [each for each in overrides_of(sys.argv[1:]) if not each.lstrip("+~").startswith("hydra")])
    except ConfigError as error:
        fail(str(error))
    train({**checked, "arguments": overrides_of(sys.argv[1:])})


def sweep(arguments: list[str]) -> None:
    """Every combination in turn; ends non-zero naming the jobs that failed."""
    from train.environment import launched_from_outside
    from train.jobs.sweep import Sweep, is_swept
    from train.signals import Signals

    if launched_from_outside():
        fail("-m starts the processes of its runs itself: leave out torchrun or srun")
    try:
        planned = Sweep.plan(arguments, CONF)
    except (HydraException, ValueError) as error:
        fail(explain(error, [a for a in arguments if a.startswith("-") or not is_swept(a)]))
    sys.argv[1:] = ["--multirun", *(each for each in arguments if each not in ("-m", "--multirun")), *planned.settings]

    def run_job(config: DictConfig) -> float | None:
        return planned.run(config)

    run_job.sweep = planned  # type: ignore[attr-defined]  # hydra_plugins/slurm.py submits the jobs itself
    ended: int | str | None = 0
    with Signals():
        try:
            with_hydra(hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(run_job))
        except SystemExit as exit_:  # a job was interrupted, or there is nothing that Optuna could call the best
            ended = exit_.code
        failed = planned.report()
    if failed and ended in (0, 1):
        fail(f"{len(failed)} of {len(planned.jobs)} jobs failed: {', '.join(job.name for job in failed)}")
    sys.exit(ended)


def train(config: dict[str, Any]) -> None:
    """One training in this process, or in one for each of its devices, and its error as one message."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities import rank_zero_only

    from train.environment import launched_from_outside
    from train.jobs.launch import Failed, launch
    from train.ranks import SaidByRankZero
    from train.runs.building import make_trainer
    from train.runs.run import run
    from train.signals import Interrupted

    try:
        trainer = make_trainer(config)
        if trainer.world_size > 1 and not launched_from_outside():
            launch(config, trainer.num_devices)
        else:
            run(config, trainer)
    except Interrupted as ended:
        # on rank 0 alone: srun ends all ranks when one ends badly, and rank 0 may still be saving
        sys.exit(ended.exit_code if getattr(rank_zero_only, "rank", 0) == 0 else 0)
    except SaidByRankZero:
        sys.exit(1)
    except Exception as error:
        expected = isinstance(error, OSError | ValueError | FloatingPointError | MisconfigurationException | Failed)
        expected = expected or type(error).__module__.startswith("wandb")
        if not expected or os.environ.get("FACEWRIGHT_TRACEBACK"):  # a bug: the traceback says where
            if not os.environ.get(ERROR_FILE):
                raise
            fail(traceback.format_exc())
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            fail(f"{error}: what was saved is whole; free space and give the same command again to go on")
        fail(message_of(error))


def slurm_tasks_per_node() -> int:
    """Tasks on each node of the SLURM job this process is in (as many on each), or 1."""
    said = os.environ.get("SLURM_NTASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE") or "1"
    return int(re.split(r"\D", said, maxsplit=1)[0])  # 4(x2): 4 on each of 2 nodes


def best_precision() -> str:
    """See train/precision.py; torch loads only where the machine is asked."""
    from train import precision

    return precision.best_precision()


def help_text() -> str:
    """What --help prints: usage, and every model, loss, data set, … with the first comment line of its file."""
    lines = [
        "python train.py model=NAME [KEY=VALUE …]        train a published recipe",
        "python train.py experiment=NAME [KEY=VALUE …]   a few lines that differ from a recipe; experiment=demo needs nothing",
        "python train.py resume=runs/NAME [name=OTHER KEY=VALUE …]  go on with a run, or with another one from there",
        "python train.py -m experiment=uphorse degradation=light,heavy data.root=DIR   a sweep: one run for each value",
        "python train.py -m hydra/sweeper=optuna … 'optimizer.lr=tag(log,interval(1e-5,1e-3))'   a search",
        "python train.py [-m] hydra/launcher=slurm …     the same as SLURM jobs; docs/runs.md has more",
        "python train.py … preflight=true                does it fit, how long will it take? A few updates; nothing is kept",
        "python train.py resume=runs/NAME validate=true  its metrics, or of init.ckpt=FILE; nothing is trained or written",
        "python train.py … --cfg job                     print the resolved configuration",
        "",
        "Keys most often set: name, seed, resume=auto|never|PATH|runs/NAME, init.ckpt, optimizer.lr, data.root,",
        "data.num_workers, data.batch_size (a device), trainer.max_steps, trainer.devices, trainer.val_check_interval,",
        "checkpoint.every_n_steps, network.*, loss.terms.*, degradation.*",
        "FACEWRIGHT_TRACEBACK=1 in the environment shows where an error was raised.",
    ]
    for group in LISTED:
        lines += ["", f"{group}="]
        lines += [f"  {file.stem:<34}{first_comment(file)}" for file in choices(group)]
    return "\n".join(lines)


def explain(error: Exception, arguments: list[str]) -> str:
    """Hydra's message without its search path and without its advice to append a wrong key, but with the nearest valid one."""
    from train.jobs.config import nearest, not_ours, of_every_run, plain, valid_keys

    text = str(error).partition("\nConfig search path")[0].strip()
    unread = error.override if isinstance(error, OverrideParseException) else None
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'\n", text):
        unread = ambiguous[1]
    if unread:
        return f"{unread} can't be read: {quoting(unread) or text.partition(chr(10))[0]}"
    if options := re.search(r"Could not find '([\w./-]+)/([^'/]+)'\s+Available options in '[^']*':\s+(.*)", text, re.DOTALL):
        group, name, listed = options.group(1), options.group(2), options.group(3).split()
        return f"{group}={name}: there is no {group} of that name (there are {', '.join(listed)}){nearest(name, listed)}"
    for key, value in (argument.split("=", 1) for argument in arguments if "=" in argument):
        if key in groups() and not _names_choices(key, value):
            return f"{key}={value}: give a name (python train.py --help lists them)"
        if isinstance(own_keys().get(key), dict) and re.search(rf"\b{key}\b", text):
            return of_every_run(key, safe_load(value))
    wrong = re.search(
        r"Could not \w+ '([^']+)'|Key '([^']+)' is not in struct|No match in the defaults list.*?'?([\w./]+)'?", text
    )
    if not isinstance(error, ConfigCompositionException) or not wrong:
        return text
    key = next(group for group in wrong.groups() if group)
    given = next((argument for argument in arguments if argument.lstrip("+~").startswith(f"{key}=")), key)
    if reason := not_ours(given.lstrip("+~")):
        return reason
    try:
        config = plain(compose([a for a in overrides_of(arguments) if a.lstrip("+~").partition("=")[0] != key]))
    except (HydraException, ValueError):  # more than one thing is wrong
        return text
    if key in valid_keys(config, config):
        return text  # it exists, but not for what it was given
    return f"{key}: there is no such key{nearest(key, [*groups(), *valid_keys(config, config)])}"


def _names_choices(group: str, value: str) -> bool:
    """Whether the value of GROUP=… is a name, several of a sweep, or a list of names that there are."""
    given = safe_load(value)
    if isinstance(given, list):
        return {f"{name}" for name in given} <= {file.stem for file in choices(group)}
    return isinstance(given, str) and given != ""

"""What was typed: kept with a run, and put before the arguments of a command that goes on from it."""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from train.conf import CONF, groups, refuse_shadows
from train.runs.rundir import RUNS, no_such, saved_config

SEARCHED = "hydra.searchpath="

# Of Hydra's options those that start no code that a configuration names; the second take a value.
FLAGS = ("-m", "--multirun", "--resolve", "--version", "--hydra-help", "--info", "-i")
OPTIONS = ("--cfg", "-c", "--package", "-p")
PRINTING = {"--cfg", "-c", "--version", "--hydra-help", "--info", "-i"}  # those with which Hydra prints, and runs nothing


def compose(overrides: list[str], **options: bool) -> DictConfig:
    """The configuration that these arguments make, without a check."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=overrides, **options)


def settled(arguments: list[str]) -> list[str]:
    """The options of a command line, then its KEY=VALUE; the folder of --config-dir becomes one of these.

    Raises: ValueError: an option that there is not, or no such folder, or it has a file that conf/ has.
    """
    options, overrides = [], []
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        if key in ("--config-dir", "-cd"):
            folder = Path(value if equals else next(rest, "")).absolute()
            refuse_shadows(folder)
            overrides.append(f"{SEARCHED}['file://{folder}']")
        elif key in OPTIONS:
            options.append(f"{key}={value if equals else next(rest, '')}")
        elif key in FLAGS:
            options.append(argument)
        elif argument.startswith("-"):
            raise ValueError(f"{argument}: there is no such option (python train.py --help lists what there is)")
        else:
            overrides.append(argument)
    return [*options, *overrides]


def overrides_of(arguments: list[str]) -> list[str]:
    """The KEY=VALUE of a command line that is settled."""
    return [argument for argument in arguments if not argument.startswith("-")]


def refuse_foreign_hydra(fixed: list[str], swept: list[Override]) -> None:
    """Raises ValueError: a file of another folder than conf/ tells Hydra what to run, log or submit. What is typed may.

    Args: fixed: KEY=VALUE that stand for one value each.     swept: the others.
    """
    if not any(each.startswith(SEARCHED) for each in fixed):
        return
    typed = [each for each in fixed if each.lstrip("+~").startswith("hydra") and not each.startswith(SEARCHED)]
    groups_swept = [each for each in swept if "." not in each.key_or_group]
    if unknown := [each.input_line for each in groups_swept if not each.is_choice_sweep()]:
        raise ValueError(f"{unknown[0]}: with --config-dir name the choices, as in model=a,b")
    choices = [f"{each.key_or_group}={choice}" for each in groups_swept for choice in each.sweep_string_iterator()]
    ours = _what_hydra_runs(typed)
    for choice in choices or [""]:
        theirs = _what_hydra_runs([*fixed, *filter(None, [choice])])
        if changed := [key for key in ours if ours[key] != theirs[key]]:
            raise ValueError(
                f"hydra.{changed[0]} is set by a file of --config-dir{f' ({choice})' if choice else ''}: what Hydra itself "
                "does stands in conf/ or on the command line"
            )


def _what_hydra_runs(overrides: list[str]) -> dict[str, Any]:
    node = compose(overrides, return_hydra_config=True).hydra
    parts = ("callbacks", "hydra_logging", "job_logging", "launcher", "mode", "output_subdir", "run", "sweep", "sweeper")
    found: dict[str, Any] = {}
    for part in parts:
        found[part] = OmegaConf.to_container(node[part]) if OmegaConf.is_config(node[part]) else node[part]
    found["sweeper"].pop("params", None)  # what a search varies
    return {**found, "job.env_set": OmegaConf.to_container(node.job.env_set), "job.chdir": node.job.chdir}


def named_as_typed(argument: str) -> str:
    """name=2026 and name=1e5 are names, which Hydra would take for numbers."""
    plain = re.fullmatch(r"name=([\w.+-]+)", argument)
    return f"name='{plain[1]}'" if plain and plain[1] != "null" else argument


def quoting(argument: str) -> str:
    """What to type where Hydra's grammar finds more in KEY=VALUE than a text; empty where the value is not at fault."""
    key, _, value = argument.partition("=")
    quoted = f"{key}={QuotedString(value, Quote.double).with_quotes()}"
    try:
        _parsed([quoted])
    except HydraException:
        return ""
    return f"= , ( [ {{ ~ and quotes mean something else there; as a text it takes two quotes: {shlex.quote(quoted)}"


def of_job(overrides: list[str]) -> list[str]:
    """What would have to be typed for one job of the command at hand. overrides: the job's own."""
    return [*(each for each in overrides_of(sys.argv[1:]) if each.startswith(SEARCHED)), *overrides]


def left_out(argument: str) -> str:
    """GROUP=null as Hydra has it: ~GROUP. Any other argument as it is."""
    group, _, value = argument.partition("=")
    return f"~{group}" if value == "null" and group in groups() else argument


def continued(arguments: list[str]) -> list[str]:
    """The arguments of a command, behind those of the run whose folder or checkpoint it names with resume=….

    The run's folder gives the name too, where none is given. A command that chooses a model or an experiment is taken as it
    stands.

    Raises: ValueError: the folder is no run's, or lies outside of runs/ and no name is given.
    """
    try:
        given = _parsed(overrides_of(arguments))
    except HydraException:
        return arguments  # Hydra says what is wrong
    keys = {each.key_or_group for each in given}
    values = [each.value() for each in given if each.key_or_group == "resume" and not each.is_sweep_override()]
    resume = values[-1] if values else None
    if not isinstance(resume, str) or resume in ("auto", "never") or keys & {"model", "experiment"}:
        return arguments
    folder = Path(os.path.abspath(resume))
    if not folder.exists():
        raise ValueError(no_such(resume))
    if folder.is_file():
        folder = folder.parent.parent  # of a checkpoint
    before = [each for each in _parsed(_arguments_of(folder, resume)) if each.key_or_group not in {*keys, "name"}]
    lines = _still_there(before, given)
    if "name" not in keys:
        if RUNS.absolute() not in folder.parents:
            raise ValueError(f"resume={resume} lies outside of {RUNS}/: give the run that goes on from it a name=…")
        lines.append(f"name='{folder.relative_to(RUNS.absolute())}'")
    place = next(n for n, argument in enumerate(arguments) if "=" in argument and argument[0] != "-")
    return [*arguments[:place], *lines, *arguments[place:]]


def _parsed(overrides: list[str]) -> list[Override]:
    parsed: list[Override] = OverridesParser.create().parse_overrides(overrides)
    return parsed


def _arguments_of(folder: Path, resume: str) -> list[str]:
    """What config.yaml in a run's folder says was typed, without what was for that attempt alone."""
    if not (folder / "config.yaml").exists():
        raise ValueError(
            f"resume={resume} lies in no run's folder, which would have a config.yaml that says what to train: give that too, "
            f"as in python train.py model=NAME … resume={resume}"
        )
    typed = saved_config(folder).get("arguments")
    if not isinstance(typed, list) or not all(isinstance(each, str) for each in typed):
        raise ValueError(
            f"resume={resume} is of a run whose config.yaml does not say what was typed: give that too, as in "
            f"python train.py model=NAME … resume={resume}"
        )
    attempts = re.compile(r"resume=|preflight=|validate=|[+~]*hydra(?!\.searchpath=)|-")  # no option, and nothing of Hydra's
    for place in [place for each in typed if each.startswith(SEARCHED) for place in re.findall("file://([^']*)", each)]:
        refuse_shadows(Path(place))
    return [each for each in typed if not attempts.match(each)]


def _still_there(before: list[Override], given: list[Override]) -> list[str]:
    """Of a run's arguments those that have a place where another choice of a group is given: schedule=cosine has no
    schedule.milestones."""
    chosen = tuple(f"{each.key_or_group}." for each in given if each.key_or_group in groups())
    doubtful = [each for each in before if each.key_or_group.startswith(chosen) and not each.is_add()]
    lines = [str(each.input_line) for each in before if each not in doubtful]
    if doubtful:
        plain = [str(each.input_line) for each in given if not each.is_sweep_override()]
        config = compose([*lines, *plain])
        missing = object()
        doubtful = [each for each in doubtful if OmegaConf.select(config, each.key_or_group, default=missing) is not missing]
    return [*lines, *(str(each.input_line) for each in doubtful)]

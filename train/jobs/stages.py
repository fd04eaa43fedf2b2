"""The stages of a model, one after the other, each beginning with what the ones before it left:

    python -m train.stages codeformer data.root=FFHQ512 [KEY=VALUE …] [stage1.KEY=VALUE …]

KEY=VALUE is for every stage, stage1.KEY=VALUE (stage1.~KEY) for one. Runs lie in runs/NAME/stage1, … (name=NAME; else the
chain's). The same command goes on where it was interrupted, and passes over the stages that are finished.

Chains, each a file in conf/stages/:"""

import sys
from typing import Any

from hydra.errors import HydraException
from yaml import safe_load

from train.conf import choices, first_comment
from train.errors import fail
from train.jobs import cli
from train.jobs.arguments import compose, left_out
from train.jobs.launch import Failed, launch, ranks_here
from train.runs.rundir import RUNS
from train.signals import Interrupted, Signals, stop_signal


def main() -> None:
    """Runs one chain; exit code 0 only when all its stages are finished."""
    chain, *arguments = sys.argv[1:] or [""]
    chains = {file.stem: file for file in choices("stages")}
    if chain not in chains or {"--help", "-h"} & set(arguments):
        print(__doc__, *(f"  {name:<16}{first_comment(file)}" for name, file in chains.items()), sep="\n")
        sys.exit(0 if chain in {"--help", "-h", *chains} else f"error: give one of {', '.join(chains)}")
    from train.environment import launched_from_outside  # Lightning and torch load only now, so that --help is quick

    if launched_from_outside():
        fail("train.stages starts the processes of its runs itself: leave out torchrun or srun")
    cli.register_resolvers()
    try:
        configs = planned(chain, safe_load(chains[chain].read_text(encoding="utf-8")), arguments)
    except (HydraException, ValueError) as error:
        fail(cli.explain(error, arguments))
    try:
        with Signals():
            run(configs)
    except (Failed, ValueError, OSError) as error:
        fail(str(error))
    except Interrupted as ended:
        sys.exit(ended.exit_code)


def planned(chain: str, stages: dict[str, list[str]], arguments: list[str]) -> dict[str, dict[str, Any]]:
    """Stage -> checked configuration, all of them before the first begins.

    Args:   stages: stage -> its own arguments, in the order of training.     arguments: those of the command.
    Raises: ConfigError, HydraException: what is wrong, and with which stage.
    """
    from train.jobs.config import ConfigError, check

    name = next((each.removeprefix("name=") for each in reversed(arguments) if each.startswith("name=")), chain)
    shared = [each for each in arguments if not each.startswith(("name=", *(f"{stage}." for stage in stages)))]
    runs = {stage: f"{RUNS}/{name}/{stage}" for stage in stages}
    configs = {}
    for stage, own in stages.items():
        given = [each.removeprefix(f"{stage}.") for each in arguments if each.startswith(f"{stage}.")]
        overrides = [*(each.format(**runs) for each in own), *shared, *given, f"name='{name}/{stage}'"]
        overrides = [left_out(each) for each in overrides]
        try:
            configs[stage] = {**check(compose(overrides), overrides), "arguments": overrides}
            if looks := [key for key in ("preflight", "validate") if configs[stage][key]]:
                raise ConfigError(f"{looks[0]}=true looks at one stage: python train.py model=… {looks[0]}=true")
        except ConfigError as error:
            raise ConfigError("\n".join(f"{stage}: {line}" for line in str(error).splitlines())) from error
    return configs


def run(configs: dict[str, dict[str, Any]]) -> None:
    """Trains what is not finished.

    Raises: Failed, Interrupted: from the stage at hand, or between two; ValueError: a later stage is finished already, on
            what an earlier one had before.
    """
    from train.runs.resume import changed_origins, is_finished

    stage_of = {f"{RUNS / config['name']}": stage for stage, config in configs.items()}
    for stage, config in configs.items():
        directory = RUNS / config["name"]
        if config["resume"] != "never" and is_finished(config):
            if changed := changed_origins(config, directory):
                raise ValueError(
                    f"{stage}: {directory} is finished, but was made from what "
                    f"{' and '.join(stage_of.get(each, each) for each in changed)} had before: start it over "
                    f"with {stage}.resume=never, or give this chain another name=…"
                )
            print(f"{stage}: {directory} is finished", flush=True)
            continue
        print(f"{stage}: {directory}", flush=True)
        launch(config, ranks_here(config))
        if signum := stop_signal():  # it came as the stage ended
            raise Interrupted(signum, config["trainer"]["max_steps"])

"""The stages of a model, one after the other, each beginning with what the ones before it left:

    python -m train.stages codeformer data.root=FFHQ512 [KEY=VALUE …] [stage1.KEY=VALUE …]

KEY=VALUE is for every stage, stage1.KEY=VALUE for one. Runs lie in runs/NAME/stage1, … (name=NAME; else the model's). The same
command goes on where it was interrupted, and passes over the stages that are finished.
"""

import sys
from typing import Any

from train import cli
from train.config import ConfigError, check
from train.launch import Failed, launch
from train.ranks import launched_from_outside
from train.signals import Interrupted
from train.sweep import is_finished

# Model -> stage -> its arguments; {stage1} stands for the run of that stage.
STAGES = {
    "codeformer": {
        "stage1": ["model=codeformer_stage1"],
        "stage2": ["model=codeformer_stage2", "init.stage1={stage1}"],
        "stage3": ["model=codeformer_stage3", "init.stage1={stage1}", "init.stage2={stage2}"],
    }
}


def main() -> None:
    model, *arguments = sys.argv[1:] or [""]
    if model not in STAGES or {"--help", "-h"} & set(arguments):
        print(__doc__)
        sys.exit(0 if model in {"--help", "-h", *STAGES} else f"error: give one of {', '.join(STAGES)}")
    if launched_from_outside():
        cli.fail("train.stages starts the processes of its runs itself: leave out torchrun or srun")
    cli.register_resolvers()
    try:
        configs = planned(model, arguments)
    except (cli.HydraException, ValueError) as error:
        cli.fail(cli.explain(error, arguments))
    try:
        for stage, config in configs.items():
            if is_finished(config):
                print(f"{stage}: runs/{config['name']} is finished", flush=True)
                continue
            print(f"{stage}: runs/{config['name']}", flush=True)
            devices = config["trainer"]["devices"]
            launch(config, devices if isinstance(devices, int) and devices > 1 else None)
    except Failed as error:
        cli.fail(str(error))
    except Interrupted as ended:
        sys.exit(ended.exit_code)


def planned(model: str, arguments: list[str]) -> dict[str, dict[str, Any]]:
    """Stage -> checked configuration, all of them before the first begins.

    Raises: ConfigError, HydraException: what is wrong, and with which stage.
    """
    stages = STAGES[model]
    name = next((each.removeprefix("name=") for each in reversed(arguments) if each.startswith("name=")), model)
    shared = [each for each in arguments if not each.startswith(("name=", *(f"{stage}." for stage in stages)))]
    runs = {stage: f"runs/{name}/{stage}" for stage in stages}
    configs = {}
    for stage, own in stages.items():
        given = [each.removeprefix(f"{stage}.") for each in arguments if each.startswith(f"{stage}.")]
        overrides = [*(each.format(**runs) for each in own), *shared, *given, f"name={name}/{stage}"]
        try:
            configs[stage] = check(cli.compose(overrides))
        except ConfigError as error:
            raise ConfigError("\n".join(f"{stage}: {line}" for line in str(error).splitlines())) from error
    return configs


if __name__ == "__main__":
    main()

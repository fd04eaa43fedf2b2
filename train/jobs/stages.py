"""The stages of a model, one after the other, each beginning with what the ones before it left:

    python -m train.stages codeformer data.root=FFHQ512 [KEY=VALUE …] [stage1.KEY=VALUE …]

KEY=VALUE is for every stage, stage1.KEY=VALUE (stage1.~KEY) for one. Runs lie in runs/NAME/stage1, … (name=NAME; else the
model's). The same command goes on where it was interrupted, and passes over the stages that are finished.
"""

import sys
from pathlib import Path
from typing import Any

from models.files import official
from train.environment import launched_from_outside
from train.errors import fail
from train.jobs import cli
from train.jobs.config import ConfigError, check
from train.jobs.launch import Failed, launch
from train.jobs.sweep import is_finished
from train.runs.rundir import RUNS
from train.signals import Interrupted, Signals, stop_signal

# Model -> stage -> its arguments; {stage1} stands for the run of that stage.
STAGES = {
    "codeformer": {
        "stage1": ["model=codeformer_stage1"],
        "stage2": ["model=codeformer_stage2", "init.stage1='{stage1}'"],
        "stage3": ["model=codeformer_stage3", "init.stage1='{stage1}'", "init.stage2='{stage2}'"],
    }
}


def main() -> None:
    model, *arguments = sys.argv[1:] or [""]
    if model not in STAGES or {"--help", "-h"} & set(arguments):
        print(__doc__)
        sys.exit(0 if model in {"--help", "-h", *STAGES} else f"error: give one of {', '.join(STAGES)}")
    if launched_from_outside():
        fail("train.jobs.stages starts the processes of its runs itself: leave out torchrun or srun")
    cli.register_resolvers()
    try:
        configs = planned(model, arguments)
    except (cli.HydraException, ValueError) as error:
        fail(cli.explain(error, arguments))
    try:
        with Signals():
            run(configs)
    except (Failed, ValueError, OSError) as error:
        fail(str(error))
    except Interrupted as ended:
        sys.exit(ended.exit_code)


def run(configs: dict[str, dict[str, Any]]) -> None:
    """Trains what is not finished.

    Raises: Failed, Interrupted: from the stage at hand, or between two; ValueError: a later stage is finished already, on
            what an earlier one had made before.
    """
    trained = ""  # the last stage that this command has trained
    for stage, config in configs.items():
        directory = RUNS / config["name"]
        if config["resume"] != "never" and is_finished(config):
            if trained or ("codes" in config and teacher_changed(directory, config["codes"]["teacher"])):
                raise ValueError(
                    f"{stage}: {directory} is finished, but was made from what {trained or 'stage1'} had before: start it over "
                    f"with {stage}.resume=never, or give this chain another name=…"
                )
            print(f"{stage}: {directory} is finished", flush=True)
            continue
        print(f"{stage}: {directory}", flush=True)
        devices = config["trainer"]["devices"]
        launch(config, devices if isinstance(devices, int) and devices > 1 else None)
        trained = stage
        if signum := stop_signal():  # it came as the stage ended
            raise Interrupted(signum, config["trainer"]["max_steps"])


def teacher_changed(directory: Path, teacher: str) -> bool:
    """Whether a run's target codes came from other weights than lie there now."""
    from train.runs.checkpoint import load
    from train.tasks.code_prediction import fingerprint_of

    saved: str = load(directory / "checkpoints" / "last.ckpt")["teacher"]
    return saved != fingerprint_of(official.build(teacher))


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
        overrides = [*(each.format(**runs) for each in own), *shared, *given, f"name='{name}/{stage}'"]
        try:
            configs[stage] = check(cli.compose(overrides))
            if configs[stage]["preflight"]:
                raise ConfigError("preflight=true looks at one stage: python train.py model=… preflight=true")
        except ConfigError as error:
            raise ConfigError("\n".join(f"{stage}: {line}" for line in str(error).splitlines())) from error
    return configs


if __name__ == "__main__":
    main()

"""The command line around Hydra: --help that lists what exists, and one clear error in place of a traceback."""

import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parent.parent / "conf"
LISTED = ("model", "experiment", "loss", "data", "degradation", "network", "optimizer", "schedule", "trainer", "logger")


def main() -> None:
    """Runs one training (or, with -m, one for each combination); exit code 0 only when every one of them ended well."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        return
    if {"--cfg", "-c"} & set(sys.argv[1:]):
        sys.argv.append("--resolve")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, not to Hydra's own printer
    OmegaConf.register_new_resolver("best_precision", best_precision, replace=True)
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(_run)()
    except (HydraException, ValueError) as error:
        fail(explain(error, sys.argv[1:]))


def _run(config: DictConfig) -> None:
    from train.config import ConfigError, check  # torch and Lightning load only now: --help and --cfg stay quick

    try:
        checked = check(config)
    except ConfigError as error:
        fail(str(error))
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from train.run import run

    try:
        run(checked)
    except Exception as error:
        expected = isinstance(error, OSError | ValueError | FloatingPointError | MisconfigurationException)
        expected = expected or type(error).__module__.startswith("wandb")
        if not expected or os.environ.get("FACEWRIGHT_TRACEBACK"):
            raise  # a bug: the traceback says where
        fail(str(error))


def fail(message: str) -> NoReturn:
    print("\n".join(f"error: {line}" for line in message.splitlines() if line.strip()), file=sys.stderr)
    sys.exit(1)


def best_precision() -> str:
    """bf16-mixed on a GPU that computes in it, else 32-true."""
    import torch

    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def help_text() -> str:
    """What --help prints: usage, and every model, loss, data set, … with the first comment line of its file."""
    lines = [
        "python train.py model=NAME [KEY=VALUE …]        train a published recipe",
        "python train.py experiment=NAME [KEY=VALUE …]   a few lines that differ from a recipe; experiment=demo needs nothing",
        "python train.py -m experiment=uphorse degradation=light,heavy data.root=DIR   a sweep: one run for each value",
        "python train.py … --cfg job                     print the resolved configuration",
        "",
        "Keys most often set: name, seed, resume=auto|never|PATH, init.ckpt, optimizer.lr, data.root, data.num_workers,",
        "data.batch_size (a device), trainer.max_steps, trainer.devices, trainer.val_check_interval, checkpoint.every_n_steps,",
        "network.*, loss.terms.*, degradation.*",
        "FACEWRIGHT_TRACEBACK=1 in the environment shows where an error was raised.",
    ]
    for group in LISTED:
        lines += ["", f"{group}="]
        lines += [f"  {file.stem:<24}{_first_comment(file)}" for file in sorted((CONF / group).glob("*.yaml"))]
    return "\n".join(lines)


def _first_comment(file: Path) -> str:
    comments = (line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def explain(error: Exception, arguments: list[str]) -> str:
    """Hydra's message without its search path and without its advice to append a wrong key, but with the nearest valid one."""
    from train.config import nearest, valid_keys

    text = str(error).partition("\nConfig search path")[0].strip()
    if options := re.search(r"Could not find '([\w./-]+)/([^'/]+)'\s+Available options in '[^']*':\s+(.*)", text, re.DOTALL):
        group, name, listed = options.group(1), options.group(2), options.group(3).split()
        return f"{group}={name}: there is no {group} of that name (there are {', '.join(listed)}){nearest(name, listed)}"
    wrong = re.search(
        r"Could not \w+ '([^']+)'|Key '([^']+)' is not in struct|No match in the defaults list.*?'?([\w./]+)'?", text
    )
    if not isinstance(error, ConfigCompositionException) or not wrong:
        return text
    key = next(group for group in wrong.groups() if group)
    try:
        composed = _compose([a for a in arguments if not a.startswith("-") and a.lstrip("+~").partition("=")[0] != key])
    except (HydraException, ValueError):  # more than one thing is wrong
        return text
    groups = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
    return f"{key}: there is no such key{nearest(key, [*groups, *valid_keys(composed)])}"


def _compose(overrides: list[str]) -> dict[str, Any]:
    from train.config import plain

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(hydra.compose("train", overrides=overrides))

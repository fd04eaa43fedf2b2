"""The weights that a fresh run starts from: init.ckpt for the network, init.prior for a generative prior within it."""

import json
from collections.abc import Iterator
from pydoc import locate
from typing import Any, Protocol, runtime_checkable

from torch import nn

from models.files import official
from models.files.families import FAMILIES
from models.files.family import CheckpointError, class_path
from train.conf import choices_with
from train.errors import not_given
from train.ranks import say


@runtime_checkable
class HasPrior(Protocol):
    """A network with a generative prior within, such as GFPGAN's StyleGAN2, whose own file may give it its weights."""

    prior: str  # the name of that part


def load_start(network: nn.Module, init: dict[str, Any], given: dict[str, Any] | None = None) -> None:
    """Puts the files of init into the network, and says how many keys matched.

    Raises: what models.files.official.load_into raises.
    """
    if init["ckpt"]:
        try:
            report = official.load_into(network, init["ckpt"], strict=init["strict"], parts=init["parts"])
        except CheckpointError as error:
            raise CheckpointError(f"{error}{fitting(init['ckpt'], given or {})}") from error
        say(f"init.ckpt={init['ckpt']}: {report}")
    if init.get("prior"):
        assert isinstance(network, HasPrior)  # or start_mistakes would have refused it
        report = official.load_into(network.get_submodule(network.prior), init["prior"], strict=init["strict"])
        say(f"init.prior={init['prior']}: {report}")


def fitting(file: str, given: dict[str, Any]) -> str:
    """What makes the network that a file holds weights of, as `python -m models.official inspect` knows it; empty: unknown.

    Args: given: the node of the network that it did not fit.
    """
    try:
        found = official.identify(official.read(file))
    except (OSError, ValueError, RuntimeError):
        return ""
    target = class_path(FAMILIES[found.family].network)
    if given.get("_target_") != target:
        return f"; it holds a {target}: network={' or '.join(choices_with('network', f'_target_: {target}'))}"
    differing = {key: value for key, value in found.arguments.items() if key in given and given[key] != value}
    keys = (f"network.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in differing.items())
    return f"; it fits with {' '.join(key.replace(', ', ',') for key in keys)}" if differing else ""


def start_mistakes(config: dict[str, Any]) -> Iterator[str]:
    """What is wrong with init in a resolved configuration, a sentence each."""
    init, target = config["init"], config["network"]["_target_"]
    prior, whole = init.get("prior"), init["ckpt"]
    if prior and whole:
        yield f"init.prior={prior} and init.ckpt={whole}: the second holds a prior as well; give one of them"
    if prior and not isinstance(locate(target), HasPrior):
        yield f"init.prior={prior}: {target} has no prior within: choose network=gfpgan, or give init.ckpt"
    if init["required"] and not prior and not whole and "prior" not in init:
        others = [key for key in init if key not in ("ckpt", "required", "strict", "parts") and init[key] is None]
        yield from map(not_given, others or ["ckpt"])  # else ckpt: ${init.stage1} or the like

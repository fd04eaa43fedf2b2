"""Folders of diffusers and transformers: their config.json says how large a network is, and nothing else that we follow."""

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from models.files.family import CheckpointError, shown
from models.files.sizes import on_paper

# Settings for which the libraries fetch code, or import more of it, than a network's own.
LOADS = (
    *("attn_implementation", "_attn_implementation", "experts_implementation"),
    *("auto_map", "kernel_config", "quantization_config"),
)


def settings(file: Path) -> dict[str, Any]:
    """What a JSON file sets. Raises CheckpointError: it sets nothing, or one of LOADS; OSError: it can't be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__} in place of settings: fetch it again")
    if asked := [key for key in LOADS if content.get(key)]:
        raise CheckpointError(
            f"{file} is refused: {asked[0]}={shown(str(content[asked[0]]))} would load code. It is not needed: take it out"
        )
    return content


def settings_of(make: Callable[..., object], folder: Path) -> dict[str, Any]:
    """The settings of config.json that are arguments of `make`; all others are left aside."""
    content = settings(folder / "config.json")
    return {key: content[key] for key in known(make) if key in content}


def known(make: Callable[..., object]) -> Collection[str]:
    """Names of a constructor's arguments, and of a dataclass's own fields without those that it inherits."""
    return vars(make).get("__annotations__") or list(inspect.signature(make).parameters)


def check_size(folder: Path, make: Callable[[], object], pickled: Mapping[str, Tensor] | None = None) -> None:
    """Makes the network without memory, as far as the weights of the folder reach: safetensors files and `pickled`.

    Raises: CheckpointError: the network is larger, can't be made, or its weights are looked for elsewhere.
    """
    for index in folder.glob("*.index.json"):
        named = settings(index).get("weight_map")
        if not isinstance(named, dict) or any(Path(str(name)).name != name for name in named.values()):
            raise CheckpointError(f"{index} is refused: it names weights that do not lie beside it")
    weights = dict(pickled or {})
    try:
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="pt") as opened:
                shapes = {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
            weights |= {f"{file.name} {key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}
        with on_paper(weights):
            make()
    except Exception as error:  # a stranger's files raise nearly anything
        raise CheckpointError(f"{folder}/config.json does not suit the weights beside it: {shown(str(error), 500)}") from error

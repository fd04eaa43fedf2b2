"""Refuses a configuration with unknown, mistyped, out-of-range or unread keys before anything is built or read.

Every node with `_target_` is held against the signature of the class it names: its keys, types and ranges (annotated_types
in the annotations). The remaining keys are those of RUN. Nothing is instantiated, and no weights are needed.
"""

import difflib
import inspect
import json
import logging
import re
from collections.abc import Iterator
from pydoc import locate
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Gt, Interval
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    ConfigDict,
    PydanticSchemaGenerationError,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # get_object logs what it raises, and check reports that

Node = dict[str, Any]
GROUPS = ("model", "experiment")  # groups that place nothing under their own name
NODES = (
    *(
        "task",
        "network",
        "loss",
        "adversary",
        "codebook",
        "codes",
        "diffusion",
        "degradation",
        "augmentation",
        "data",
        "optimizer",
        "schedule",
        "trainer",
        "logger",
        "checkpoint",
        "guard",
        "validation",
    ),
)
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_"}


# Keys that train/runs/run.py reads itself.
RUN: dict[str, Any] = {
    "name": Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*(/[A-Za-z0-9][A-Za-z0-9._=,+-]*)*$")],
    "seed": Annotated[int, Interval(ge=0, lt=2**32)],
    "resume": Annotated[str, StringConstraints(min_length=1)],
    "preflight": bool,
    "weights.dir": str,
    "init.ckpt": str | None,
    "init.required": bool,
    "init.strict": bool,
    "init.parts": list[str] | None,
    "init.stage1": str | None,
    "init.stage2": str | None,
    "init.stable_diffusion": str | None,
    "init.prior": str | None,
    "ema_decay": Annotated[float, Interval(ge=0, lt=1)] | None,
}

# Those of RUN that only some models have.
STAGES = {"init.stage1", "init.stage2", "init.stable_diffusion", "init.prior"}

# Ranges that the classes of other libraries do not state.
RANGES: dict[str, Any] = {
    "optimizer.lr": Annotated[float, Gt(0), Interval(lt=1e3)],
    "optimizer.weight_decay": Annotated[float, Ge(0)],
    "optimizer.eps": Annotated[float, Gt(0)],
    "optimizer.betas": tuple[Annotated[float, Interval(ge=0, lt=1)], Annotated[float, Interval(ge=0, lt=1)]],
    "trainer.max_steps": Annotated[int, Ge(1)],
    "trainer.devices": Annotated[int, Ge(1)] | list[Annotated[int, Ge(0)]] | str,
    "trainer.num_nodes": Annotated[int, Ge(1)],
    "trainer.val_check_interval": Annotated[int, Ge(1)],
    "trainer.log_every_n_steps": Annotated[int, Ge(1)],
    "trainer.accumulate_grad_batches": Annotated[int, Ge(1)],
    "trainer.gradient_clip_val": Annotated[float, Gt(0)] | None,
    "trainer.accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
    "schedule.factor": Annotated[float, Interval(ge=0, le=1)],
    "schedule.gamma": Annotated[float, Gt(0)],
    "schedule.pct_start": Annotated[float, Interval(ge=0, le=1)],
}

# What some tasks need: what brings it.
WITH = {
    "adversary": "choose one, such as adversary=unet_sn",
    "codebook": "start from model=codeformer_stage1",
    "codes": "start from a model that has it, such as model=codeformer_stage2",
    "diffusion": "start from model=ircontrolnet_ffhq",
}

# Arguments of lightning.Trainer that the run sets itself, or that would read the same samples again.
NOT_OURS = {
    *("callbacks", "logger", "default_root_dir", "max_epochs", "min_epochs", "check_val_every_n_epoch", "num_sanity_val_steps"),
    *("enable_checkpointing", "enable_model_summary", "use_distributed_sampler", "limit_train_batches", "overfit_batches"),
    *("fast_dev_run", "reload_dataloaders_every_n_epochs", "max_time", "min_steps"),
}


class ConfigError(ValueError):
    """A configuration that no run should start from; the message lists every mistake found."""


def check(config: DictConfig) -> Node:
    """The resolved configuration as plain containers.

    Raises: ConfigError listing all mistakes: key, value, what would be right, the nearest valid key.
    """
    try:
        resolved = plain(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        said = str(error.msg or error).partition("\n")[0]
        if absent := re.match(r"Interpolation key '([\w.]+)' not found", said):
            if str(error.full_key).startswith("task."):
                said = f"this task needs {absent[1]}, of which there is none: {WITH[absent[1]]}"
            else:
                said = f"it follows {absent[1]}, which is not there: set {error.full_key}=VALUE"
        raise ConfigError(f"{error.full_key or 'config'}: {said}") from error
    if resolved.get("name") is None:
        raise ConfigError("nothing to train: choose model=NAME or experiment=NAME (python train.py --help lists them)")
    mistakes = list(_check_run(resolved, plain(config)))
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    return resolved


def plain(config: Any, **options: Any) -> Node:
    """A DictConfig as dicts, lists and values; unresolved unless asked."""
    container = OmegaConf.to_container(config, **options)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def nearest(wrong: str, valid: list[str]) -> str:
    """`; did you mean X?` for the valid dotted key that was most likely meant, or an empty string.

    A sibling spelled like it, else the same name in another place (trainer.lr: optimizer.lr), else what reads most alike.
    """
    parent, _, last = wrong.rpartition(".")
    siblings = {name: key for key in valid for above, _, name in [key.rpartition(".")] if above == parent}
    match = [siblings[name] for name in difflib.get_close_matches(last, siblings, n=1, cutoff=0.7)]
    match = match or [key for key in valid if key.rpartition(".")[2] == last]
    match = match or difflib.get_close_matches(wrong, valid, n=1, cutoff=0.6)
    return f"; did you mean {match[0]}?" if match else ""


def valid_keys(config: Node) -> list[str]:
    """Every dotted key that a run with this configuration could take."""
    init = config.get("init") or {}
    keys = [*(key for key in RUN if key not in STAGES or key.removeprefix("init.") in init), *GROUPS]

    def walk(path: str, value: Any) -> None:
        keys.append(path)
        if isinstance(value, dict):
            for name in dict.fromkeys(key for key in (*value, *_parameters(value)) if key not in HYDRA_KEYS):
                walk(f"{path}.{name}", value.get(name))

    for name, value in config.items():
        if name != "task":  # its keys are interpolations of the others
            walk(name, value)
    return keys


def _check_run(config: Node, raw: Node) -> Iterator[str]:
    valid = valid_keys({name: value for name, value in config.items() if name in NODES})
    values = dict(config)
    for group, keys in (
        ("init", "init.ckpt, init.required and init.strict are the keys"),
        ("weights", "weights.dir is the key"),
    ):
        if not isinstance(config.get(group), dict):
            yield f"{group}={config.get(group)!r}: {keys}"
            return
        values |= {f"{group}.{key}": value for key, value in values.pop(group).items()}

    def read(key: str) -> bool:
        return starts[key] in str(raw)

    starts = {key: f"${{init.{key}}}" for key in ("stable_diffusion", "stage1", "stage2", "ckpt") if key in raw["init"]}
    frozen = {"stable_diffusion", "stage1"} if "diffusion" in config else set()
    yield from _check_prior(config["name"], config["init"], config["network"])
    waits, updates = config.get("adversary", {}).get("generator_start_step", 0), config["trainer"].get("max_steps", 0)
    if isinstance(waits, int) and isinstance(updates, int) and waits >= updates > 0:
        yield f"adversary.generator_start_step={waits}: trainer.max_steps={updates} ends before the generator begins: raise it"
    if "prior" not in raw["init"]:
        for key in starts:
            needed = values.get("init.required") is True or key in frozen
            given = values[f"init.{key}"] or raw["init"][key] in starts.values()
            if needed and not given and (key == "ckpt" or read(key)):
                what = "FILE or a diffusers folder" if key == "stable_diffusion" else "FILE or a run"
                yield f"init.{key} is not set, and {config['name']} starts from trained weights: give init.{key}={what}"
    for key in starts.keys() - {"ckpt"}:
        if values[f"init.{key}"] is not None and not read(key):
            yield f"init.{key}={values[f'init.{key}']!r}: nothing reads the key init.{key}, {config['name']} takes init.ckpt"
    for key in NOT_OURS & config["trainer"].keys():
        yield f"trainer.{key}={config['trainer'][key]!r} is not for a configuration: the run sets it itself"
    precision = config["trainer"].get("precision")
    if str(precision).startswith("64"):
        yield f"trainer.precision={precision}: losses are computed and weights opened in float32 at most: take 32-true"
    for part, what, tasks in (
        ("adversary", "without discriminators", "adversarial, autoencoding or controllable"),
        ("codes", "without codes", "codes or controllable"),
        ("codebook", "without a look at a codebook", "autoencoding"),
        ("diffusion", "without a diffusion model", "control"),
    ):
        if part in config and part not in config["task"]:
            yield f"{part}: {config['task'].get('_target_')} trains {what}: choose task={tasks}, or leave {part} out (~{part})"
    for key, value in raw["task"].items():
        if key not in HYDRA_KEYS and value != f"${{{key}}}":
            yield f"task.{key}={value!r}: conf/task wires the groups together; set {key} instead"
    for name, value in values.items():
        if name in RUN:
            yield from _check_value(name, value, RUN[name])
        elif name in NODES:
            yield from _check_tree(name, value, raw[name], Node, valid)
        else:
            yield f"{name}={value!r}: nothing reads the key {name}{nearest(name, valid)}"


def _check_prior(name: str, init: Node, network: Node) -> Iterator[str]:
    """Of a generative prior within the network, whose class names it (GFPGAN.prior): its own file, or all of the network's."""
    prior, whole = init.get("prior"), init["ckpt"]
    if prior and whole:
        yield f"init.prior={prior} and init.ckpt={whole}: the second holds a prior as well; give one of them"
    if prior and not hasattr(locate(str(network.get("_target_"))), "prior"):
        yield f"init.prior={prior}: {network.get('_target_')} has no prior within: choose network=gfpgan, or give init.ckpt"
    if prior or whole:
        return
    if "prior" in init and init["required"] is True:
        yield (
            f"init.prior is not set, and {name} starts from trained weights: give init.prior=FILE, a StyleGAN2 "
            "(python -m models.weights fetch stylegan2_ffhq), or init.ckpt=FILE, a whole network"
        )
    elif network.get("fix_decoder") is True:
        yield (
            "network.fix_decoder=true would freeze a prior of random weights: give init.prior=FILE or init.ckpt=FILE, or set "
            "network.fix_decoder=false"
        )


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _holds_node(value: Any) -> bool:
    return isinstance(value, dict) and (_is_node(value) or any(_holds_node(child) for child in value.values()))


def _check_node(path: str, node: Node, raw: Any, valid: list[str]) -> Iterator[str]:
    """A node with `_target_` against the signature of what it names. `raw` is the node before interpolation."""
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        package = node["_target_"].partition(".")[0]
        if getattr(error.__cause__, "name", None) == package:
            reason = f"there is no package {package} here: check its spelling, or install it (uv pip install {package})"
        else:
            reason = " ".join(str(error).splitlines())
        yield f"{path}._target_={node['_target_']!r} can't be imported: {reason}"
        return
    hints = _hints(target)
    parameters = _parameters(node)
    for key, value in node.items():
        full = f"{path}.{key}"
        if key in HYDRA_KEYS:
            continue
        if parameters and key not in parameters:
            known = [other for other in valid if other != full and not other.startswith(f"{full}.")]
            yield f"{full}={value!r}: {node['_target_']} has no {key}{nearest(full, known)}"
        elif isinstance(raw, dict) and isinstance(raw.get(key), str) and isinstance(value, dict | list):
            continue  # an interpolation of a whole node, which is checked in its own place
        else:
            yield from _check_tree(full, value, raw[key] if isinstance(raw, dict) else None, hints.get(key, Any), valid)
    if not node.get("_partial_"):
        required = [name for name, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        for name in required:
            if name not in node:
                yield f"{path}.{name} is missing: {node['_target_']} needs it"


def _check_tree(path: str, value: Any, raw: Any, annotation: Any, valid: list[str]) -> Iterator[str]:
    """A value that may hold further nodes (loss.terms, degradation.operators) or be plain."""
    if _is_node(value):
        yield from _check_node(path, value, raw, valid)
    elif _holds_node(value):
        for name, child in value.items():
            full = f"{path}.{name}"
            if _holds_node(child) or child == {}:
                yield from _check_tree(full, child, raw[name] if isinstance(raw, dict) else None, Node, valid)
            else:
                others = [key for key in valid if key != full and not key.startswith(f"{full}.") and key.startswith(path)]
                yield f"{full}={child!r} has no _target_, so nothing reads it{nearest(full, others)}"
    else:
        yield from _check_value(path, value, RANGES.get(path, annotation))


def _check_value(path: str, value: Any, annotation: Any) -> Iterator[str]:
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticSchemaGenerationError, NameError):
        return  # an annotation of another library that can't be checked; its constructor will judge
    try:
        adapter.validate_json(json.dumps(value), strict=True)  # strict, but a YAML list may stand for a tuple
    except ValidationError as error:
        problems = [each for each in error.errors() if each["type"] != "needs_python_object"]  # a node could stand here too
        yield f"{path}={value!r}: {'; or '.join(dict.fromkeys(problem['msg'] for problem in problems or error.errors()))}"


def _parameters(node: Any) -> dict[str, inspect.Parameter]:
    """Keyword parameters of what a node names; empty when it names nothing or takes anything."""
    if not _is_node(node):
        return {}
    try:
        parameters = inspect.signature(get_object(node["_target_"])).parameters
    except (ImportError, ValueError, TypeError):
        return {}
    return {} if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else dict(parameters)


def _hints(target: Any) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    except (NameError, TypeError):
        return {}

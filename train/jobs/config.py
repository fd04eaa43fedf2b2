"""Refuses a configuration with unknown, mistyped, out-of-range or unread keys before anything is built or read.

Every node with `_target_` is held against the signature of the class it names: its keys, types and ranges (annotated_types
in the annotations). A key that the class does not take may be a short way: other keys of its node take their value from it, as
data.columns.codes.path does from data.codes. What else a class knows of a configuration it says itself (SaysMistakes). The
remaining keys are those of RUN. Nothing is instantiated, and no weights are needed.

This file imports nothing of a run, so that restoration/ may check its command by it too (tests/test_imports.py).
"""

import difflib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Protocol, get_type_hints, runtime_checkable

from annotated_types import Ge, Gt, Interval
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    ConfigDict,
    PydanticSchemaGenerationError,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from train.conf import choices, choices_with, groups, own_keys, whole_trainer
from train.errors import not_given
from train.trust import HYDRA_KEYS, NotAllowed, named

Node = dict[str, Any]

NotEmpty = Annotated[str, StringConstraints(min_length=1)]

# Keys that belong to no class: the run itself reads them. Further keys of init are files that the model's nodes take.
RUN: dict[str, Any] = {
    "name": Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*(/[A-Za-z0-9][A-Za-z0-9._=,+-]*)*$")],
    "seed": Annotated[int, Interval(ge=0, lt=2**32)],
    "resume": Annotated[str, StringConstraints(min_length=1)],
    "preflight": bool,
    "validate": bool,
    "weights.dir": str,
    "init.ckpt": NotEmpty | None,
    "init.required": bool,
    "init.strict": bool,
    "init.parts": list[str] | None,
    "init.prior": NotEmpty | None,
    "ema_decay": Annotated[float, Interval(ge=0, lt=1)] | None,
}
# Groups that the run builds itself; the others reach it through the task, or through a node that names them. degradation is
# always there, and data that brings its LQs (data=pairs) leaves it aside.
BUILT = {"task", "data", "degradation", "trainer", "logger", "checkpoint", "guard"}

# Ranges that the classes of other libraries do not state.
RANGES: dict[str, Any] = {
    "optimizer.lr": Annotated[float, Gt(0), Interval(lt=1e3)],
    "optimizer.weight_decay": Annotated[float, Ge(0)],
    "optimizer.eps": Annotated[float, Gt(0)],
    "optimizer.betas": tuple[Annotated[float, Interval(ge=0, lt=1)], Annotated[float, Interval(ge=0, lt=1)]],
    "trainer.max_steps": Annotated[int, Ge(1)],
    "trainer.max_time": Any,  # in one form alone: _check_trainer
    "trainer.devices": Annotated[int, Ge(1)] | list[Annotated[int, Ge(0)]] | str,
    "trainer.num_nodes": Annotated[int, Ge(1)],
    "trainer.val_check_interval": Annotated[int, Ge(1)],
    "trainer.log_every_n_steps": Annotated[int, Ge(1)],
    "trainer.accumulate_grad_batches": Annotated[int, Ge(1)],
    "trainer.gradient_clip_val": Annotated[float, Gt(0)] | None,
    "trainer.accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
    "schedule.factor": Annotated[float, Interval(ge=0, le=1)],
    "schedule.gamma": Annotated[float, Gt(0)],
}

# Arguments of lightning.Trainer that the run sets itself, or that would read the same samples again.
NOT_OURS = {
    *("callbacks", "logger", "default_root_dir", "max_epochs", "min_epochs", "check_val_every_n_epoch", "num_sanity_val_steps"),
    *("enable_checkpointing", "enable_model_summary", "use_distributed_sampler", "limit_train_batches", "overfit_batches"),
    *("fast_dev_run", "reload_dataloaders_every_n_epochs", "min_steps"),
}
COUNT_UPDATES = "a run is one endless epoch, so count updates: trainer.max_steps=N (images / effective batch make an epoch)"


@runtime_checkable
class SaysMistakes(Protocol):
    """A class that a node names and that knows more of a configuration than its signature tells: a task, a network, …"""

    @classmethod
    def mistakes(cls, config: Node) -> Iterator[str]:
        """What is wrong with a resolved configuration, a sentence each that names the key and the way out.

        Builds nothing, and reads no file. By then every key has the type that its class asks for, files of init aside, which
        may be null.
        """


class ConfigError(ValueError):
    """A configuration that no run should start from; the message lists every mistake found."""


def check(config: DictConfig, arguments: Sequence[str] = ()) -> Node:
    """The resolved configuration as plain containers.

    Args:   arguments: those that made the configuration. A group that they leave out (~GROUP) is left out with all the keys
                that a model or an experiment sets in it, for which Hydra would go on to look for a class; what is
                added to it (+GROUP.KEY) stays.
    Raises: ConfigError listing all mistakes: key, value, what would be right, the nearest valid key.
    """
    config = config.copy()
    with open_dict(config):
        for group in {argument[1:].partition("=")[0] for argument in arguments if argument.startswith("~")} & {*groups()}:
            of_model = config.pop(group, None) or {}
            typed = {
                argument.lstrip("+").partition("=")[0].split(".")[1]
                for argument in arguments
                if argument.startswith(f"+{group}.")
            }
            if typed:  # ~network +network._target_=… is a network of one's own
                config[group] = {key: of_model[key] for key in of_model if key in typed}
        if config.get("logger") is None:
            config.logger = {}  # none but the metrics.csv of every run
    raw = plain(config)
    if lacking := list(_lacking(raw)):
        raise ConfigError("\n".join(lacking))
    try:
        resolved = plain(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        said = str(error.msg or error).partition("\n")[0]
        if absent := re.match(r"Interpolation key '([\w.]+)' not found", said):
            way_out = _bring(absent[1]) if absent[1] in groups() else f"set {error.full_key}=VALUE"
            said = f"it follows {absent[1]}, which is not there: {way_out}"
        raise ConfigError(f"{error.full_key or 'config'}: {said}") from error
    if resolved.get("name") is None:
        raise ConfigError("nothing to train: choose model=NAME or experiment=NAME (python train.py --help lists them)")
    mistakes = list(_check_run(resolved, raw))
    if {not_given(key) for key in resolved.get("init") or ()}.issuperset(mistakes):  # all else is of its type
        mistakes += _said_by_classes(resolved)
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

    Of epochs it says that there are none.

    A sibling spelled like it, else the same name in another place (trainer.lr: optimizer.lr), else what reads most alike.
    """
    parent, _, last = wrong.rpartition(".")
    if "epoch" in wrong.rpartition(".")[2]:
        return f"; {COUNT_UPDATES}"
    siblings = {name: key for key in valid for above, _, name in [key.rpartition(".")] if above == parent}
    match = [siblings[name] for name in difflib.get_close_matches(last, siblings, n=1, cutoff=0.7)]
    match = match or [key for key in valid if key.rpartition(".")[2] == last]
    match = match or difflib.get_close_matches(wrong, valid, n=1, cutoff=0.6)
    return f"; did you mean {match[0]}?" if match else ""


def valid_keys(config: Node, raw: Node) -> list[str]:
    """Every dotted key that a run with this configuration could take, but for those that take their value from another key.

    Args: config, raw: the configuration after and before interpolation.
    """
    init = [f"init.{key}" for key in config.get("init") or {}]
    keys = [*(key for key in RUN if not key.startswith("init.")), *init, *groups()]

    def walk(path: str, value: Any, raw: Any) -> None:
        if _short_way_of(path, raw):
            return
        keys.append(path)
        if isinstance(value, dict):
            for name in dict.fromkeys(key for key in (*value, *_parameters(value)) if key not in HYDRA_KEYS):
                walk(f"{path}.{name}", value.get(name), raw.get(name) if isinstance(raw, dict) else None)

    for name, value in config.items():
        if isinstance(value, dict) and name not in ("task", "init", "weights"):  # all keys of task stand elsewhere too
            walk(name, value, raw.get(name))
    return list(dict.fromkeys(keys))


def _lacking(raw: Node) -> Iterator[str]:
    """What every run or this task needs, and what is left out (~KEY), null, or of another form."""
    every_run = {**own_keys(), **({"trainer": whole_trainer()} if _is_node(raw.get("trainer")) else {})}
    for name, default in every_run.items():
        value = raw.get(name)
        if name not in raw and not isinstance(default, dict):
            yield f"{name} is left out, but every run has it: give {name}=VALUE"
        elif isinstance(default, dict) and not (_is_node(value) if _is_node(default) else isinstance(value, dict)):
            yield of_every_run(name, value)
        elif isinstance(default, dict) and (name == "trainer" or not _is_node(default)):
            left_out = [f"{name}.{key}" for key in default if key not in raw[name]]
            yield from (f"{key} is left out, but every run has it: give {key}=VALUE" for key in left_out)
    for name in ("task", "data", "trainer", *({"degradation", "augmentation"} & raw.keys())):
        if not _is_node(raw.get(name)):
            yield f"{name}: every run needs one: {_bring(name)}"
    for name, value in raw["logger"].items():
        if not _is_node(value):
            yield f"logger.{name}={value!r}: this is no logger: leave it out with ~logger.{name}, or choose logger=csv"
    for key, value in (raw.get("task") or {}).items():
        there = key in raw and (key not in groups() or _is_node(raw[key]))
        if value == f"${{{key}}}" and not there and key not in every_run:
            yield f"task.{key}: this task needs {key}, of which there is none: {_bring(key)}"


def of_every_run(name: str, value: Any) -> str:
    """The refusal of a value in place of what conf/train.yaml sets under a name."""
    keys = [f"{name}.{key}" for key in own_keys()[name] if key not in HYDRA_KEYS]
    return f"{name}={value!r}: every run has it, and what can be set is {_any_of(keys, 'and')}"


def _bring(group: str) -> str:
    """What to do where a task needs a group that is not there."""
    if group in groups():
        return f"choose one: {group}={_any_of([file.stem for file in choices(group)])}"
    bringing = choices_with("model", f"\n{group}:")
    return f"start from a model that has it: model={_any_of(bringing)}" if bringing else f"set {group}"


def _any_of(names: list[str], last: str = "or") -> str:
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _check_run(config: Node, raw: Node) -> Iterator[str]:
    values = dict(config)
    for group in ("init", "weights"):
        values |= {f"{group}.{key}": value for key, value in values.pop(group).items()}
    read = {name: value for name, value in config.items() if _is_read(name, raw)}
    given = config["init"].items()
    files = {key for key, value in given if f"init.{key}" in RUN or value is None or _is_read(f"init.{key}", raw)}
    valid = valid_keys({**read, "init": dict.fromkeys(files)}, raw)
    yield from _check_trainer(config["trainer"])
    if config.get("preflight") is True and config.get("validate") is True:
        yield "preflight=true and validate=true: give one of them"
    for key, value in raw["task"].items():
        if key not in HYDRA_KEYS and not re.fullmatch(rf"\$\{{(\w+\.)?{key}\}}", str(value)):
            yield f"task.{key}={value!r}: conf/task wires the groups together; set {key} instead"
    for name, value in values.items():
        if name in RUN:
            yield from check_value(name, value, RUN[name])
        elif name.startswith("init.") and name.removeprefix("init.") in files:
            yield from check_value(name, value, NotEmpty | None)
        elif isinstance(value, dict) and name in read:
            of_task = {key for key in value if raw["task"].get(key) == f"${{{name}.{key}}}"}
            yield from check_tree(name, {k: v for k, v in value.items() if k not in of_task}, raw[name], Node, valid)
            for key in of_task:  # the class of the group knows nothing of it: optimizer.parts
                yield from check_value(f"{name}.{key}", value[key], _task_hints(config).get(key, Any))
        elif isinstance(value, dict) and (tasks := choices_with("task", f"${{{name}}}")):
            task = config["task"].get("_target_")
            yield f"{name}: {task} does not read it: choose task={_any_of(tasks)}, or leave {name} out (~{name})"
        else:
            yield f"{name}={value!r}: nothing reads the key {name}{nearest(name, valid)}"


def _check_trainer(trainer: Node) -> Iterator[str]:
    yield from (not_ours(f"trainer.{key}={trainer[key]!r}") for key in sorted(NOT_OURS & trainer.keys()))
    limit = trainer.get("max_time")
    if limit is not None and not re.fullmatch(r"\d+(:\d\d){3}", str(limit)):
        yield f"trainer.max_time={limit}: give days:hours:minutes:seconds, as in trainer.max_time=00:02:00:00"
    precision = trainer.get("precision")
    if str(precision).startswith("64"):
        yield f"trainer.precision={precision}: losses are computed and weights opened in float32 at most: take 32-true"


def not_ours(given: str) -> str:
    """Why no configuration has this KEY=VALUE of lightning.Trainer; empty: it may."""
    name = given.partition("=")[0].removeprefix("trainer.")
    if given.startswith(name) or name not in NOT_OURS:
        return ""
    reason = COUNT_UPDATES if "epoch" in name else "the run sets it itself"
    return f"{given} is not for a configuration: {reason}"


def _said_by_classes(config: Node) -> Iterator[str]:
    for node in config.values():
        if _is_node(node) and isinstance(target := named(node["_target_"]), SaysMistakes):
            yield from target.mistakes(config)


def _is_read(name: str, raw: Node) -> bool:
    """Whether the run builds a group (or takes a key of init), or a node outside of it names it."""
    others = str({key: value for key, value in raw.items() if key != name})
    return name in BUILT or f"${{{name}}}" in others or f"${{{name}." in others


def _task_hints(config: Node) -> dict[str, Any]:
    try:
        return target_hints(named(config["task"]["_target_"]))
    except (NotAllowed, ImportError):  # which is said where it stands
        return {}


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("_target_"), str)


def _is_short_way(key: str, raw: Any) -> bool:
    """Whether a key only gives its value to others of its node: data.codes, as data.columns.codes.path is ${data.codes}."""
    return f"${{{key}}}" in str(raw)


def _short_way_of(key: str, raw: Any) -> str | None:
    """The key that gives a key its value, within the same group: data.codes of data.columns.codes.path. Empty or None: none."""
    name = raw[2:-1] if isinstance(raw, str) and re.fullmatch(r"\$\{[\w.]+\}", raw) else ""
    return name if name.partition(".")[0] == key.partition(".")[0] else None


def _holds_node(value: Any) -> bool:
    return isinstance(value, dict) and (_is_node(value) or any(_holds_node(child) for child in value.values()))


def _check_node(path: str, node: Node, raw: Any, valid: list[str]) -> Iterator[str]:
    """A node with `_target_` against the signature of what it names. `raw` is the node before interpolation."""
    try:
        target = named(node["_target_"])
    except (NotAllowed, ImportError) as error:
        yield f"{path}.{not_built(node['_target_'], error)}"
        return
    hints = target_hints(target)
    parameters = _parameters(node)
    for key, value in node.items():
        full = f"{path}.{key}"
        if key in HYDRA_KEYS:
            continue
        if parameters and key not in parameters and _is_short_way(full, raw):
            if _is_node(value):  # the keys that follow it are not checked again
                yield from _check_node(full, value, raw[key], valid)
        elif parameters and key not in parameters:
            known = [other for other in valid if other != full and not other.startswith(f"{full}.")]
            yield f"{full}={value!r}: {node['_target_']} has no {key}{nearest(full, known)}"
        elif (
            isinstance(raw, dict)
            and isinstance(raw.get(key), str)
            and (_is_node(value) or (isinstance(value, dict | list) and not _short_way_of(full, raw[key])))
        ):
            continue  # an interpolation of a whole node, which is checked in its own place
        else:
            yield from check_tree(full, value, raw[key] if isinstance(raw, dict) else None, hints.get(key, Any), valid)
    if not node.get("_partial_"):
        required = [name for name, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        for name in required:
            if name not in node:
                yield f"{path}.{name} is missing: {node['_target_']} needs it"


def not_built(target: Any, error: Exception) -> str:
    """The sentence for a `_target_` that `named` does not give."""
    verb = "is not built" if isinstance(error, NotAllowed) else "can't be imported"
    return f"_target_={target!r} {verb}: {' '.join(str(error).split())}"


def check_tree(path: str, value: Any, raw: Any, annotation: Any, valid: list[str]) -> Iterator[str]:
    """A value that may hold further nodes (loss.terms, degradation.operators) or be plain."""
    if _is_node(value):
        yield from _check_node(path, value, raw, valid)
    elif _holds_node(value):
        for name, child in value.items():
            full = f"{path}.{name}"
            if _holds_node(child) or child == {}:
                yield from check_tree(full, child, raw[name] if isinstance(raw, dict) else None, Node, valid)
            else:
                others = [key for key in valid if key != full and not key.startswith(f"{full}.") and key.startswith(path)]
                yield f"{full}={child!r} has no _target_, so nothing reads it{nearest(full, others)}"
    else:
        key = _short_way_of(path, raw) or path  # what the user sets
        mistakes = list(check_value(key, value, RANGES.get(key, annotation)))
        given = re.fullmatch(r"\$\{init\.(\w+)\}", raw) if isinstance(raw, str) and value is None else None
        yield from [not_given(given[1])] if mistakes and given else mistakes


def check_value(path: str, value: Any, annotation: Any) -> Iterator[str]:
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticSchemaGenerationError, NameError):
        return  # an annotation of another library that can't be checked; its constructor will judge
    try:
        adapter.validate_json(json.dumps(value), strict=True)  # strict, but a YAML list may stand for a tuple
    except ValidationError as error:
        problems = [each for each in error.errors() if each["type"] != "needs_python_object"]  # a node could stand here too
        said = "; or ".join(dict.fromkeys(problem["msg"] for problem in problems or error.errors()))
        if isinstance(value, int | float) and any(each["type"] == "string_type" for each in problems):
            said += f"; as a text it takes two quotes: '{path}=\"{json.dumps(value)}\"'"
        if value == "":
            said = "it is empty, as a variable of the shell that is not set: give a value, or leave it out"
        yield f"{path}={value!r}: {said}"


def _parameters(node: Any) -> dict[str, inspect.Parameter]:
    """Keyword parameters of what a node names; empty when it names nothing or takes anything."""
    if not _is_node(node):
        return {}
    try:
        parameters = inspect.signature(named(node["_target_"])).parameters
    except (ImportError, ValueError, TypeError):
        return {}
    return {} if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else dict(parameters)


def target_hints(target: Any) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    except (NameError, TypeError):
        return {}

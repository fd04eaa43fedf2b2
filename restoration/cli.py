"""The command line of restore.py: what was typed, to a checked configuration and the stages of its pipeline."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from train.conf import CONF, choices, comments, first_comment
from train.errors import fail
from train.jobs.typed import Typed, as_typed, followed
from train.signals import Interrupting, exit_code, stop_signal
from train.trust import NotAllowed, build, named, variable

if TYPE_CHECKING:
    from restoration.run import Settings
    from restoration.stage import Stage

GROUPS = ("pipeline", "version")  # what a command chooses in; the version is DiffBIR's
SCRIPT = Path(__file__).parents[1] / "restore.py"
USAGE = """python restore.py runs/NAME PHOTO_OR_FOLDER [OUTPUT]     one network: a run or an official file
python restore.py ckpt=FILE input=DIR output=DIR [KEY=VALUE …]
python restore.py pipeline=NAME input=DIR output=DIR [KEY=VALUE …]
python restore.py … --cfg job                             print the resolved configuration
python restore.py --config-dir DIR pipeline=MINE …        a pipeline of your own: DIR/pipeline/MINE.yaml

Values are taken as they are typed: quotes are for the shell alone."""


def main() -> None:
    """Restores images; exit code 0 only where every one was restored."""
    arguments = sys.argv[1:]
    OmegaConf.register_new_resolver("oc.env", variable, replace=True)
    with Interrupting():
        try:
            typed = Typed.of(arguments, GROUPS)
            if typed.asks_for_help:
                print(help_text(typed))
                return
            sys.exit(0 if restored(arguments) else 1)
        except (ValueError, OSError) as error:
            fail(str(error))
        except KeyboardInterrupt:
            same = "the same command without overwrite=true" if "overwrite=true" in arguments else "the same command"
            print(f"interrupted: {same} goes on from there", file=sys.stderr)
            sys.exit(exit_code(stop_signal()))


def restored(arguments: Sequence[str]) -> bool:
    """Whether every image was. Raises ValueError for mistakes in the command, and what restore_folder does."""
    typed = Typed.of(arguments, GROUPS)
    if typed.prints:
        config, _ = configured(typed)
        missing = any(OmegaConf.is_missing(config, key) for key in config)
        print(OmegaConf.to_yaml(config, resolve=not missing), end="")
        return True
    from restoration.photo import PhotoSettings, restore_photographs
    from restoration.run import Settings, restore_folder

    chosen = Pipeline.of(typed)
    values = chosen.values
    settings = Settings(**{key: values[key] for key in Settings.__dataclass_fields__})
    of_photos = {key: values[key] for key in PhotoSettings.__dataclass_fields__}
    if values["faces"] == "aligned":
        given = {key.partition(".")[0] for key, _ in typed.pairs} | ({"background"} if typed.behind else set())
        if idle := sorted(given & (of_photos.keys() - {"faces"})):
            raise ValueError(f"{idle[0]} does nothing with faces=aligned: add faces=photo, or leave {idle[0]} out")
    behind = background_of(typed, values["background"])
    if settings.devices > 1:
        return on_all_devices(arguments, settings)
    recipe = chosen.recipe | {key: values[key] for key in ("quantize", "batch_size")}
    if values["faces"] == "aligned":
        return restore_folder(settings, chosen.stages, recipe, chosen.files)
    how = PhotoSettings(**{key: build(value) for key, value in of_photos.items()})
    recipe |= {key: value for key, value in of_photos.items() if key not in ("keep_faces", "faces_from", "parser")}
    recipe |= {f"background.{key}": value for key, value in behind.recipe.items()}
    files = chosen.files | {f"background.{key}": value for key, value in behind.files.items()}
    files |= {key: [file] for key, file in (("faces_from", how.faces_from), ("parser", how.parser)) if file}
    return restore_photographs(settings, how, chosen.stages, behind.stages, recipe, files)


@dataclass(frozen=True)
class Pipeline:
    """A checked command: its values, its stages, and what restore.json keeps of these."""

    values: dict[str, Any]
    stages: "dict[str, Stage]"
    recipe: dict[str, Any]
    files: dict[str, Sequence[str]]

    @classmethod
    def of(cls, typed: Typed) -> "Pipeline":
        """Raises ValueError: mistakes in the command."""
        values, raw = checked(*configured(typed))
        stages: dict[str, Stage] = {name: build(node) for name, node in values["pipeline"].items()}
        refuse_idle(stages, raw["pipeline"], {key for key, _ in typed.pairs})
        return cls(values, stages, *recorded(values["pipeline"], raw["pipeline"], stages))


def background_of(typed: Typed, name: str) -> Pipeline:
    """The pipeline of background=NAME with its keys background.KEY=VALUE; no stages where it is none."""
    if name == "none":
        if typed.behind:
            raise ValueError(f"background.{typed.behind[0][0]} does nothing with background=none: add background=NAME")
        return Pipeline({}, {}, {}, {})
    shared = [(key, value) for key, value in typed.pairs if key in ("which", "bf16", "seed")]
    pairs = [*shared, *typed.behind, ("input", "."), ("output", ".")]
    return Pipeline.of(Typed(folders=typed.folders, groups=[f"pipeline={name}"], pairs=pairs, prefix="background."))


def pipeline_of(typed: Typed) -> str:
    """The chosen pipeline."""
    return typed.choice("pipeline", "network")


def configured(typed: Typed) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration of a command before interpolation, and dotted key -> annotation of all that it can take.

    Raises: ValueError: a pipeline or a key that there is not, or one that is not set.
    """
    config = chosen(typed)
    hints = annotations(config)
    required = [str(key) for key in config if OmegaConf.is_missing(config, key)]
    places = [key for key in ("ckpt", "input", "output") if key in required and key not in dict(typed.pairs)]
    if len(typed.places) > len(places):
        raise ValueError(f"{typed.places[len(places)]}: give KEY=VALUE (python restore.py --help lists the keys)")
    typed.pairs += zip(places, typed.places, strict=False)
    for key, value in typed.pairs:
        if key not in hints:
            raise ValueError(typed.prefix + _no_such_key(key, typed, list(hints)))
        OmegaConf.update(config, key, as_typed(key, value, hints[key]))
    if OmegaConf.is_missing(config, "output"):
        weights = Path("" if OmegaConf.is_missing(config, "ckpt") else str(config.get("ckpt", "")))
        config.output = f"restored/{(weights.stem if weights.is_file() else weights.name) or pipeline_of(typed)}"
    for key in sorted(required, key=("input", "output").__contains__):
        if not typed.prints and (OmegaConf.is_missing(config, key) or config[key] == ""):
            said = comments(CONF / "restore.yaml", *choices("pipeline")).get(key, "")
            raise ValueError(f"{typed.prefix}{key} is not set: give {typed.prefix}{key}=PATH, {said}")
    return config, hints


def chosen(typed: Typed) -> DictConfig:
    """The configuration of the chosen pipeline, without KEY=VALUE. Raises ValueError: there is no such pipeline."""
    from train.jobs.config import nearest

    for given in typed.groups:
        group, _, name = given.partition("=")
        own = [folder.glob(f"{group}/*.yaml") for folder in typed.folders]
        there = [file.stem for files in (choices(group), *own) for file in files]
        if name not in there:
            raise ValueError(f"{given}: there is no such {group} (there are {', '.join(there)}){nearest(name, there)}")
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            searched = [f"hydra.searchpath=['file://{folder}']" for folder in typed.folders]
            config = hydra.compose("restore", overrides=[*searched, *typed.groups])
    except HydraException as error:
        said = str(error).partition("\nConfig search path")[0]
        if "'version'" in said:
            said = "version is of DiffBIR's pipelines: add pipeline=diffbir, or leave version out"
        raise ValueError(said) from error
    OmegaConf.set_struct(config, False)
    return config


def annotations(config: DictConfig) -> dict[str, Any]:
    """Dotted key -> annotation, of the keys of every pipeline, of the stages' arguments, and of the keys that these follow."""
    from restoration.photo import PhotoSettings
    from restoration.run import Settings
    from train.jobs.config import not_built, plain, target_hints

    found: dict[str, Any] = {}
    for settings in (Settings, PhotoSettings):
        found |= get_type_hints(settings, include_extras=True)
    raw = plain(config)
    nodes = {key: value for key, value in raw.items() if isinstance(value, dict) and key != "pipeline"}
    nodes |= {f"pipeline.{name}": node for name, node in (raw.get("pipeline") or {}).items()}
    for name, node in nodes.items():
        if not isinstance(node, dict) or "_target_" not in node:
            raise ValueError(f"{name} is no node that names a class: give it a _target_ (docs/restore.md)")
        try:
            hints = target_hints(named(node["_target_"]))
        except (NotAllowed, ImportError) as error:
            raise ValueError(f"{name}.{not_built(node['_target_'], error)}") from error
        for argument in dict.fromkeys([*node, *hints]):
            hint = hints.get(argument, Any)
            found[f"{name}.{argument}"] = hint
            if short := followed(node.get(argument)):
                found.setdefault(short, hint)
    return found


def checked(config: DictConfig, hints: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration as plain containers, after and before interpolation. Raises ConfigError listing all mistakes."""
    from train.jobs.config import ConfigError, check_tree, check_value, plain

    raw = plain(config)
    try:
        resolved = plain(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error.msg or error).partition(chr(10))[0]}") from error

    def of_keys() -> Iterator[str]:
        for key, value in resolved.items():
            if isinstance(value, dict) and key != "pipeline":
                valid = [other for other in hints if other.startswith(f"{key}.")]
                yield from check_tree(key, value, raw[key], dict[str, Any], valid)
            elif key in hints:
                yield from check_value(key, value, hints[key])
            elif key not in GROUPS:
                yield f"{key}={value!r}: no stage of this pipeline reads it (a stage reads it by ${{{key}}})"

    def of_stages() -> Iterator[str]:
        for name, node in resolved["pipeline"].items():
            valid = [key for key in hints if key.startswith(f"pipeline.{name}.")]
            yield from check_tree(f"pipeline.{name}", node, raw["pipeline"][name], dict[str, Any], valid)

    if mistakes := list(of_keys()) or list(of_stages()):  # what is wrong with a key is wrong with all that follow it
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    return resolved, raw


def refuse_idle(stages: Mapping[str, "Stage"], raw: Mapping[str, Any], given: set[str]) -> None:
    """Raises ValueError: a key that was given and does nothing beside the others."""
    for name, stage in stages.items():
        for argument, why in stage.idle():
            keys = {f"pipeline.{name}.{argument}", followed(raw[name].get(argument))} & given
            if keys:
                raise ValueError(f"{keys.pop()} does nothing {why}")


def recorded(
    pipeline: Mapping[str, Any], raw: Mapping[str, Any], stages: Mapping[str, "Stage"]
) -> tuple[dict[str, Any], dict[str, Sequence[str]]]:
    """What restore.json keeps of a pipeline, under the keys that a user sets: the values, and the paths of weights."""
    recipe: dict[str, Any] = {}
    files: dict[str, Sequence[str]] = {}
    for name, node in pipeline.items():
        opened = stages[name].files()
        for argument, value in node.items():
            key = followed(raw[name].get(argument)) or f"pipeline.{name}.{argument}"
            if argument in opened:
                files[key] = opened[argument]
            else:
                recipe[key] = value
    return recipe, files


def on_all_devices(arguments: Sequence[str], settings: "Settings") -> bool:
    """The same command once for each device, with its part of the images; whether all ended well."""
    import torch

    count = settings.devices
    on_gpus = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    if on_gpus and count > torch.cuda.device_count():
        raise ValueError(f"devices={count}: there are {torch.cuda.device_count()} GPUs here")
    number, parts = map(int, (settings.shard or "1/1").split("/"))
    running = []
    try:
        for device in range(count):
            shard = f"shard={number + parts * device}/{parts * count}"
            where = [f"device=cuda:{device}"] if on_gpus else []
            running.append(subprocess.Popen([sys.executable, SCRIPT, *arguments, "devices=1", shard, *where]))
        return not any(list(map(subprocess.Popen.wait, running)))  # all of them, not until the first that failed
    except KeyboardInterrupt:
        for each in running:
            each.terminate()
        for each in running:
            each.wait()
        raise


def help_text(typed: Typed) -> str:
    """What --help prints: usage, every pipeline, and the keys of every pipeline and of the chosen one, a line each."""
    lines = [USAGE, "", "pipeline="]
    lines += [f"  {file.stem:<20}{first_comment(file)}" for file in choices("pipeline")]
    lines += ["", "version=            of DiffBIR's pipelines"]
    lines += [f"  {file.stem:<20}{first_comment(file)}" for file in choices("version")]
    everywhere = comments(CONF / "restore.yaml")
    files = [*choices("pipeline"), *choices("version")]
    own = {key: said for key, said in comments(*files).items() if key in list(chosen(typed)) and key not in everywhere}
    for title, said in (("Keys of every pipeline", everywhere), (f"Keys of pipeline={pipeline_of(typed)}", own)):
        lines += ["", title, *(f"  {key:<20}{comment}" for key, comment in said.items())]
    return "\n".join(lines)


def _no_such_key(key: str, typed: Typed, there: list[str]) -> str:
    from train.jobs.config import nearest

    def has(name: str) -> bool:
        return key in list(chosen(Typed(groups=[f"pipeline={name}"])))

    if bringing := [file.stem for file in choices("pipeline") if has(file.stem)]:
        listed = ", ".join(bringing[:3]) + (", …" if len(bringing) > 3 else "")
        return f"{key} is of pipeline={listed}, not of pipeline={pipeline_of(typed)}: choose one of these, or leave {key} out"
    return (
        f"{key}: there is no such key{nearest(key, there)} (python restore.py pipeline={pipeline_of(typed)} --help lists them)"
    )

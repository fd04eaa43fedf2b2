"""The command line of evaluate.py: what was typed, to a checked configuration and the metrics of its protocol."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from restoration.run import usable_device
from train.conf import CONF, choices, comments, first_comment
from train.errors import fail
from train.jobs.typed import Typed, as_typed, followed
from train.trust import NotAllowed, build, named, variable

USAGE = """python evaluate.py outputs=DIR [hq=DIR] [lq=DIR] protocol=NAME [KEY=VALUE …]
python evaluate.py outputs=[A,B] hq=DIR protocol=paired          two folders, compared image by image
python evaluate.py submit outputs=DIR lq=DIR landmarks=FILE zip=FILE runtime_s=1.2 device=gpu extra_data=false
python evaluate.py statistics images=FFHQ512 out=FILE.npz        the statistics of good images, for fid
python evaluate.py … --cfg job                                   print the resolved configuration

Exit code 0 only where every image could be scored. Values are taken as they are typed: quotes are for the shell alone."""
KEYS = {"weights": str, "fid_statistics": str | None}  # beside those of Settings


def main() -> None:
    """Scores folders, and writes the report."""
    arguments = sys.argv[1:]
    OmegaConf.register_new_resolver("oc.env", variable, replace=True)
    try:
        if arguments[:1] == ["statistics"]:
            statistics(dict(each.split("=", 1) for each in arguments[1:] if "=" in each))
            return
        if arguments[:1] == ["submit"]:
            print(submitted(arguments[1:]))
            return
        typed = Typed.of(arguments, groups=("protocol",))
        if typed.asks_for_help:
            print(help_text())
            return
        sys.exit(0 if scored(typed) else 1)
    except (ValueError, OSError, HydraException) as error:
        fail(str(error).partition("\nConfig search path")[0])
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from there", file=sys.stderr)
        sys.exit(130)


def scored(typed: Typed) -> bool:
    """Whether every image was. Raises ValueError: mistakes in the command, and what evaluate says."""
    config = configured(typed)
    if typed.prints:
        print(OmegaConf.to_yaml(config), end="")
        return True
    from evaluation.report import tell, write
    from evaluation.run import Settings, evaluate
    from train.jobs.config import ConfigError, check_tree, check_value, plain

    raw = plain(config)
    try:
        values = plain(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error.msg or error).partition(chr(10))[0]}") from error
    hints = get_type_hints(Settings, include_extras=True) | KEYS
    mistakes = [said for key, hint in hints.items() for said in check_value(key, values[key], hint)]
    if not mistakes:
        for name, node in values["metrics"].items():
            mistakes += check_tree(
                f"metrics.{name}", node, raw["metrics"][name], dict[str, Any], [f"metrics.{name}.{k}" for k in node]
            )
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    values["device"] = str(usable_device(values["device"]))
    settings = Settings(**{key: values[key] for key in Settings.__dataclass_fields__})
    metrics = {name: build(node) for name, node in values["metrics"].items()}
    result = evaluate(settings, typed.choice("protocol", "own"), metrics, values.get("published") or ())
    complete = tell(result)
    print(f"report: {write(result)}")
    return complete


def configured(typed: Typed) -> DictConfig:
    """The configuration before interpolation. Raises ValueError: a protocol or a key that there is not, or no outputs."""
    from evaluation.run import Settings
    from train.jobs.config import nearest, not_built, plain, target_hints

    for given in typed.groups:
        there = [
            file.stem for files in (choices("protocol"), *(f.glob("protocol/*.yaml") for f in typed.folders)) for file in files
        ]
        name = given.partition("=")[2]
        if name not in there:
            raise ValueError(f"{given}: there is no such protocol (there are {', '.join(there)}){nearest(name, there)}")
    searched = [f"hydra.searchpath=['file://{folder}']" for folder in typed.folders]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("evaluate", overrides=[*searched, *typed.groups])
    OmegaConf.set_struct(config, False)
    hints: dict[str, Any] = dict(get_type_hints(Settings, include_extras=True)) | KEYS
    for name, node in plain(config)["metrics"].items():
        try:
            of = target_hints(named(node["_target_"]))
        except (NotAllowed, ImportError) as error:
            raise ValueError(f"metrics.{name}.{not_built(node['_target_'], error)}") from error
        hints |= {f"metrics.{name}.{key}": hint for key, hint in of.items() if not followed(node.get(key))}
    if typed.places:
        raise ValueError(f"{typed.places[0]}: give KEY=VALUE (python evaluate.py --help lists the keys)")
    for key, text in typed.pairs:
        if key not in hints:
            raise ValueError(f"{key}: there is no such key{nearest(key, list(hints))} (python evaluate.py --help lists them)")
        several = key == "outputs" and text.startswith("[") and text.endswith("]")
        value: Any = text[1:-1].split(",") if several else as_typed(key, text, hints[key])
        OmegaConf.update(config, key, value)
    if not typed.prints and (OmegaConf.is_missing(config, "outputs") or config.outputs in ("", [""])):
        raise ValueError(f"outputs is not set: give outputs=DIR, {comments(CONF / 'evaluate.yaml')['outputs']}")
    return config


def statistics(given: Mapping[str, str]) -> None:
    """Inception's statistics of a folder of good images, for fid. Raises ValueError: a key that is missing."""
    keys: Sequence[str] = ("images", "out")
    if lacking := [key for key in keys if key not in given]:
        raise ValueError(f"{lacking[0]} is not set: python evaluate.py statistics images=DIR out=FILE.npz")
    import numpy as np
    from tqdm import tqdm

    from data.reading import read_image
    from data.sources.files import ImageFolder
    from evaluation.fid import Inception, Statistics
    from evaluation.metrics import batch
    from models.files import weights

    source = ImageFolder(root=given["images"])
    device = usable_device("auto")
    file = given.get("weights")
    network = Inception(Path(file) if file else weights.find(name="inception_fid", folder=weights.default_dir())).to(device)
    bar = tqdm(range(len(source)), unit="image", disable=None)
    features = [network(batch(read_image(source, i), device))[0].float().cpu().numpy() for i in bar]
    Statistics.of(np.stack(features)).save(Path(given["out"]))
    print(f"{len(source)} images: {given['out']}")


def submitted(arguments: Sequence[str]) -> str:
    """Packs a submission. Raises ValueError: a key that is missing, unknown or of the wrong kind, and what submit says."""
    from evaluation.submission import Submission, submit
    from train.jobs.config import check_value, nearest

    hints = get_type_hints(Submission, include_extras=True)
    pairs = [each.partition("=") for each in arguments]
    if unknown := [key for key, _, _ in pairs if key not in hints]:
        raise ValueError(f"{unknown[0]}: there is no such key{nearest(unknown[0], list(hints))} (there are {', '.join(hints)})")
    values = {key: as_typed(key, text, hints[key]) for key, _, text in pairs}
    required = [key for key in hints if not hasattr(Submission, key)]
    if lacking := [key for key in required if key not in values]:
        example = " ".join(f"{key}=…" for key in required)
        raise ValueError(f"{lacking[0]} is not set: python evaluate.py submit {example}")
    if mistakes := [said for key, value in values.items() for said in check_value(key, value, hints[key])]:
        raise ValueError("\n".join(mistakes))
    return submit(Submission(**values))


def help_text() -> str:
    """Usage, protocols and keys, a line each."""
    lines = [USAGE, "", "protocol="]
    lines += [f"  {file.stem:<16}{first_comment(file)}" for file in choices("protocol")]
    lines += ["", "Keys", *(f"  {key:<16}{said}" for key, said in comments(CONF / "evaluate.yaml").items())]
    return "\n".join(lines)

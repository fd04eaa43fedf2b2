"""Official checkpoints: open them, recognise what they hold, load them into our networks and write them.

    python -m models.official inspect FILE                              what is in a file
    python -m models.official export runs/X --format official           what the reference programs read
    python -m models.official export runs/X --format diffusers          a control network as diffusers' ControlNetModel

Which networks are known: models/files/families/.
"""

import argparse
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.files.families import FAMILIES, Recognised, family_of, full_state, recognise
from models.files.family import Arguments, CheckpointError, Folder, class_path, first, shown
from models.files.folders import settings
from models.files.sizes import check_archive, is_argument, on_paper
from models.files.wrappers import Which, nested, unwrap

Form = Literal["official", "safetensors", "diffusers"]

# What files hold beside their weights: objects of training frameworks, and plain values. They are passed over.
PASSED_OVER = (
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "mmengine.", "omegaconf.", "easydict.", "yacs."),
    *("argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict", "numpy.", "pathlib.", "datetime."),
    *("builtins.list", "builtins.dict", "builtins.int", "builtins.float", "builtins.str", "decimal.", "uuid.", "typing."),
)


@dataclass(frozen=True)
class Checkpoint:
    """One opened file: its weights, the wrapper they were in, and the network's arguments if the file records them."""

    path: Path
    state: dict[str, Tensor]
    wrapper: str
    recorded: Arguments | None = None  # config["network"] of a training run, with _target_


@dataclass(frozen=True)
class Report:
    """What loading did, as lists of keys. `widened` are the matched keys whose float16 or bfloat16 values became float32."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]  # "key: file float32 (3, 4), network float32 (3, 5)"
    widened: list[str]

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} keys match"]
        for what in ("missing", "unexpected", "mismatched", "widened"):
            if keys := getattr(self, what):
                parts.append(f"{len(keys)} {what} ({first(keys)})")
        return ", ".join(parts)


def read(path: str | Path, which: Which | None = None) -> Checkpoint:
    """The weights of a file, of a run folder (its checkpoints/last.ckpt) or of a network's diffusers folder.

    They are on the CPU and in the file's own dtype.

    Args:   which: the running average, the network itself or one of the discriminators, where a file holds several; None
                prefers the average. An official file that holds one network alone does not say which.
    Raises: FileNotFoundError; CheckpointError for a file that is truncated, foreign, empty, without the weights that
            `which` asks for, or a pickle that would run code. No code of the file is ever run.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return _read_diffusers(path)
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a checkpoint file, or a run folder with checkpoints/last.ckpt")
    try:
        content, recorded = _open_safetensors(path) if _is_safetensors(path) else _open_pickle(path)
        state, wrapper = unwrap(content, which, str(path))
    except (AttributeError, TypeError) as error:  # a pickle may put anything in place of an OrderedDict's own methods
        raise CheckpointError(f"{path} holds no mapping that can be read ({shown(str(error))}): fetch it again") from error
    return Checkpoint(path, state, wrapper, recorded)


def _folders() -> dict[str, Folder]:
    """The diffusers folders that families read and write, by the class that their config.json names."""
    return {family.folder.of: family.folder for family in FAMILIES.values() if family.folder}


def _read_diffusers(path: Path) -> Checkpoint:
    folders = _folders()
    try:
        of = str(settings(path / "config.json").get("_class_name"))
        if of not in folders:
            raise ValueError(f"its config.json is of {shown(of)}, not of {' or '.join(folders)}")
        network = folders[of].read(path)
    except Exception as error:  # a stranger's settings raise nearly anything
        what = " or ".join(folder.holds for folder in folders.values())
        reason = shown(str(error), 1000)
        raise CheckpointError(f"{path} is not a {what} as `export --format diffusers` writes it: {reason}") from error
    recorded = {"_target_": class_path(type(network)), **folders[of].arguments(network)}
    return Checkpoint(path, network.state_dict(), f"none: a folder of diffusers' {of}", recorded)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(24)


def _is_safetensors(path: Path) -> bool:
    """By its name, or by its first bytes: a number of 8 bytes, then `{`."""
    return path.suffix == ".safetensors" or _beginning(path)[8:9] == b"{"


def _open_safetensors(path: Path) -> tuple[object, Arguments | None]:
    try:
        with safe_open(path, framework="pt") as file:
            recorded = (file.metadata() or {}).get("network", "")
            return {key: file.get_tensor(key) for key in file.keys()}, _record(recorded)  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}): fetch or write it again") from error


def _record(written: str) -> Arguments | None:
    """The arguments that `export` wrote. Other programs have an entry of this name too, and it says nothing to us."""
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("_target_"), str) else None


def _open_pickle(path: Path) -> tuple[object, Arguments | None]:
    try:
        content = _load(path)
    except CheckpointError:
        raise
    except OSError as error:  # a file that was cut short raises it too
        raise OSError(f"{path} can't be read ({error.strerror or error}): is it whole, and yours to read?") from error
    except Exception as error:  # damaged bytes raise nearly anything
        if code := _asked_for(error):
            raise CheckpointError(
                f"{path} is refused: as a pickle it would run code when opened (it calls for {code}). If you trust its "
                "source, re-save the bare state dict elsewhere with safetensors.torch.save_file, and give that file"
            ) from None
        reason = next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0]
        if isinstance(error, pickle.UnpicklingError):  # torch then explains at length how to run foreign code
            reason = f"it begins with {_beginning(path)!r}"
        raise CheckpointError(
            f"{path} is truncated or not a checkpoint ({shown(reason, 120)}): give a .ckpt, .pth, .pt or .safetensors file, "
            "or fetch it again"
        ) from error
    config = content.get("config") if isinstance(content, Mapping) else None
    recorded = config.get("network") if isinstance(config, Mapping) else None
    return content, recorded if isinstance(recorded, dict) else None


class _PassedOver:
    """Stands for every class and function of PASSED_OVER that a file names: takes whatever such things are made of.

    What is made of nothing may be filled by key or by attribute, as Lightning's AttributeDict is; torch does this only to a
    mapping of its own. A defaultdict is made of a class.
    """

    def __new__(cls, *made_of: object) -> Any:
        return OrderedDict() if all(isinstance(each, type) for each in made_of) else super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _load(path: Path) -> object:
    """What a file of torch.save holds. Code of the file is never run: torch's safe unpickler refuses any name that it does not
    know, and the names of PASSED_OVER stand for `_PassedOver`.
    """
    zipped = zipfile.is_zipfile(path)
    if zipped:
        check_archive(path)
    passed: list[Any] = []
    while True:
        try:
            with torch.serialization.safe_globals(passed):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:  # it names one at a time
            name = _asked_for(error)
            if not name.startswith(PASSED_OVER) or (_PassedOver, name) in passed or len(passed) == 100:
                raise
            passed.append((_PassedOver, name))


def _asked_for(error: Exception) -> str:
    """The class or function that torch's safe unpickler refused; empty for another error."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return "" if found is None else found[1] if "." in found[1] else f"builtins.{found[1]}"


def write(path: Path, save: Callable[[Path], None]) -> None:
    """Let `save` write a temporary file beside path, flush it to the disk, and put it in place in one step."""
    # Nobody who hands on a run folder can have put a link under this name.
    temporary = path.with_name(f".{path.name}.{token_hex(8)}.tmp")
    try:
        save(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def identify(checkpoint: Checkpoint) -> Recognised:
    """As `recognise`, but a file's own record of its arguments comes first. Only classes in FAMILIES are ever built."""
    if checkpoint.recorded is None:
        try:
            return recognise(checkpoint.state)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from error
    target = str(checkpoint.recorded.get("_target_"))
    names = [n for n, family in FAMILIES.items() if target == class_path(family.network)]
    if not names:
        raise CheckpointError(f"{checkpoint.path} records network {target[:99]!r}; families known: {', '.join(FAMILIES)}")
    arguments = {key: value for key, value in checkpoint.recorded.items() if not str(key).startswith("_")}
    if odd := [str(key) for key, value in arguments.items() if not is_argument(key, value)]:
        raise CheckpointError(f"{checkpoint.path} records arguments that no network has: {first(odd)}")
    return Recognised(names[0], arguments, recorded=True)


def load_into(
    network: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    strict: bool = True,
    which: Which | None = None,
    parts: Collection[str] | None = None,
) -> Report:
    """Put the weights of a file, a run folder or a state dict into a network; this is what `init.ckpt` does.

    Weights of another form are converted where the network's family can do so (models/files/families/).
    Tensors are copied whole: shapes must be equal, and a dtype may only be widened (float16 to float32).
    Keys that follow from the configuration (the family's `derived`) count neither as missing nor as unexpected.

    Args:   strict: anything but a full match raises, before the network is touched; False loads what matches.
            parts: names of the children of the network that the weights are for, such as encoder; None: the whole network.
    Raises: CheckpointError with the counts and first keys, also if nothing matches at all or values are not finite; and what
            `read` raises.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    loaded = unwrap(source, which, where)[0] if isinstance(source, Mapping) else read(source, which).state
    report, state = _fit(network, loaded, parts)
    if not report.matched or (strict and not report.complete):
        way_out = "init.strict=false loads what matches" if report.matched else "is it a file of another network?"
        raise CheckpointError(f"{where} does not fit {type(network).__name__}: {report}; {way_out}")
    check_finite(state, where)
    network.load_state_dict(state, strict=False)  # it checks and drops the derived
    return report


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError, which names the first keys, for weights that are NaN or infinite. where: they come from."""
    broken = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"{where} holds values that are not finite, in {first(broken)}: fetch it again, or give a checkpoint that was "
            "saved before its training failed"
        )


def _fit(
    network: nn.Module, loaded: dict[str, Tensor], parts: Collection[str] | None = None
) -> tuple[Report, dict[str, Tensor]]:
    """How the weights fit the network, and those that do, with the derived."""
    own = network.state_dict()
    _, loaded = max(nested(loaded), key=lambda each: sum(key in own for key in each[1]))  # of the same number, the first
    family = family_of(network)
    loaded = family.converted(network, loaded) if family else loaded
    derived = {key: value for key, value in loaded.items() if family and key.endswith(family.derived)}
    state = {key: value for key, value in loaded.items() if key not in derived}
    wanted = {key: value for key, value in own.items() if parts is None or key.partition(".")[0] in parts}
    both = [key for key in wanted if key in state]
    matched = [key for key in both if state[key].shape == wanted[key].shape and _widens(state[key].dtype, wanted[key].dtype)]
    report = Report(
        matched=matched,
        missing=[key for key in wanted if key not in state],
        unexpected=[key for key in state if key not in wanted],
        mismatched=[f"{k}: file {_form(state[k])}, network {_form(wanted[k])}" for k in both if k not in set(matched)],
        widened=[key for key in matched if state[key].dtype != wanted[key].dtype],
    )
    return report, {key: state[key] for key in matched} | derived


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _widens(source: torch.dtype, target: torch.dtype) -> bool:
    floats = source.is_floating_point and target.is_floating_point
    return source == target or (floats and torch.promote_types(source, target) == target)


def build(path: str | Path, which: Which | None = None) -> nn.Module:
    """The network that a file holds, with its weights, in eval mode on the CPU."""
    checkpoint = read(path, which)
    return _build(checkpoint, identify(checkpoint))


def _build(checkpoint: Checkpoint, found: Recognised) -> nn.Module:
    make = partial(FAMILIES[found.family].network, **found.arguments)
    try:
        with on_paper(checkpoint.state):
            report, _ = _fit(make(), checkpoint.state)
        if not report.complete:
            raise CheckpointError(f"the weights don't fit: {report}")
        network = make()
        load_into(network, checkpoint.state)
    except Exception as error:  # a stranger's arguments raise nearly anything
        raise CheckpointError(f"{checkpoint.path} does not give a {found.family} network: {shown(str(error), 1000)}") from error
    return network.eval()


def export(source: str | Path, output: Path, form: Form, which: Which | None = None) -> None:
    """Write a checkpoint or run as the reference programs read it, as safetensors that also record the arguments, or, where
    its family has such a form, as a folder that diffusers' `from_pretrained` reads.
    """
    checkpoint = read(source, which)
    found = identify(checkpoint)
    network, family = _build(checkpoint, found), FAMILIES[found.family]
    save: Callable[[], None]
    if form == "official":
        content = family.write(network)
        save = lambda: write(output, lambda temporary: _save(content, temporary))  # noqa: E731
    elif form == "diffusers":
        if (folder := family.folder) is None:
            raise CheckpointError(
                f"{checkpoint.path} holds {found.family}, which has no diffusers form: give a "
                f"{' or '.join(folder.holds for folder in _folders().values())}"
            )
        save = lambda: _save_folder(lambda temporary: folder.write(network, temporary), output)  # noqa: E731
    else:
        state, record = full_state(network), {"_target_": class_path(type(network)), **found.arguments}
        metadata = {"format": "pt", "network": json.dumps(record)}
        save = lambda: write(output, lambda temporary: save_file(state, temporary, metadata))  # noqa: E731
    try:
        save()
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch hides the disk's error
        raise CheckpointError(
            f"{output} can't be written ({cause}): free space there, or name another place with --output"
        ) from error


def _save(content: object, path: Path) -> None:
    with path.open("wb") as file:  # given a path, torch.save would write the temporary name into the file
        torch.save(content, file)


def _save_folder(save: Callable[[Path], None], folder: Path) -> None:
    """As `write`, of a folder."""
    temporary = folder.with_name(f".{folder.name}.{token_hex(8)}.tmp")
    try:
        save(temporary)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def inspect(source: str) -> str:
    """What a file holds, for people."""
    checkpoint = read(source)
    found = identify(checkpoint)
    family = FAMILIES[found.family]
    weights = [value for key, value in checkpoint.state.items() if not key.endswith(family.derived)]
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in weights})
    origin = "recorded in the file" if found.recorded else "recognised from keys and shapes"
    width = max([16, *(len(key) + 1 for key in found.arguments)])
    lines = [
        f"file        {checkpoint.path}",
        f"wrapper     {checkpoint.wrapper}",
        f"family      {found.family} ({class_path(family.network)}), {origin}",
        *(f"  {key:<{width}}{value!r}" for key, value in found.arguments.items()),
        *(f"assumed     {note}" for note in found.assumed),
        f"parameters  {sum(value.numel() for value in weights):,} in {len(weights)} tensors, "
        f"and {len(checkpoint.state) - len(weights)} derived tensors",
        f"dtype       {', '.join(dtypes)}",
    ]
    return "\n".join(lines)


def default_output(source: Path, suffix: str) -> Path:
    output = source / f"{source.resolve().name}{suffix}" if source.is_dir() else source.with_suffix(suffix)
    if output.exists():
        raise CheckpointError(f"{output} exists: name the file to write with --output")
    return output


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m models.official", description="Inspect and export checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True)
    inspecting = commands.add_parser("inspect", help="say what a checkpoint holds")
    exporting = commands.add_parser("export", help="write the form that other programs read")
    for command in (inspecting, exporting):
        command.add_argument("source", metavar="FILE", help="a .ckpt, .pth, .pt or .safetensors file, or a run folder")
    exporting.add_argument("--format", choices=("official", "safetensors", "diffusers"), required=True)
    exporting.add_argument(
        "--output", type=Path, help="file (diffusers: folder) to write; otherwise named after the source, never over a file"
    )
    exporting.add_argument("--which", choices=("ema", "network"), help="default: the average where there is one")
    options = parser.parse_args(arguments)
    try:
        if options.command == "inspect":
            print(inspect(options.source))
            return
        suffix = {"official": ".pth", "safetensors": ".safetensors", "diffusers": ""}[options.format]
        if suffix and options.output and (options.output.suffix == ".safetensors") != (suffix == ".safetensors"):
            exporting.error(f"--output {options.output}: the name must end with {suffix} for --format {options.format}")
        if not suffix and options.output and options.output.exists():
            raise CheckpointError(f"{options.output} exists: name the folder to write with --output")
        output = options.output or default_output(Path(options.source), suffix)
        export(options.source, output, options.format, options.which)
        print(f"wrote {output}")
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"{parser.prog}: {' '.join(str(error).split())}")

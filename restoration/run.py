"""Inference: a folder of images through the stages of a pipeline, into a folder of PNGs."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from pydantic import StringConstraints
from torch import Tensor

from data.images import READ_ERRORS, upright_size, write_png
from data.sources.files import Files, ImageFolder
from data.sources.shown import printable
from data.writing import refuse_links_out
from restoration import record
from restoration.chain import Batch, Chain, writing
from restoration.record import Record
from restoration.stage import Stage

WORK = ".stages"  # folder within the output's for what stages made
Text = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys of conf/restore.yaml, which says what each is."""

    input: Text
    output: Text
    overwrite: bool
    which: Literal["ema", "network"] | None
    device: Text
    devices: Annotated[int, Ge(1)]
    bf16: bool
    seed: int
    batch_size: Annotated[int, Ge(1)]
    shard: Annotated[str, StringConstraints(pattern=r"^[0-9]+/[0-9]+$")] | None
    keep: bool | list[str]
    quantize: Literal["8bit"] | None


def restore_folder(
    settings: Settings, stages: Mapping[str, Stage], recipe: Mapping[str, Any], files: Mapping[str, Sequence[str]]
) -> bool:
    """Restores every image that has no output yet. However it ends, it says how many were restored and what went wrong.

    No network is opened where nothing is left to do.

    Args:    recipe: key -> value, of all that the outputs follow from beside the images and the weights.
             files: key -> files, runs or folders of weights.
    Returns: False where images are left out: they can't be read or written, or the networks can't restore them.
    Raises:  ValueError, OSError: nothing can be restored, or the disk is full.
    """
    source = open_input(settings.input)
    targets = outputs_of(source, settings)
    mine = part(range(len(source)), settings.shard)
    now = checked_record(settings, recipe, files, targets)
    there = sum(targets[i].exists() for i in mine)

    def begin() -> None:
        if settings.overwrite:  # what is there goes only now, when there is something in its place
            for i in mine:
                for old in (targets[i], *(chain.path(stage, i) for stage in stages)):
                    old.unlink(missing_ok=True)
        now.write()

    chain = Chain(
        stages=stages,
        source=source,
        work=Path(settings.output) / WORK,
        device=usable_device(settings.device),
        put=lambda i, image: _put(targets[i], image),
        has=lambda i: targets[i].exists(),
        begin=begin,
        anew=settings.overwrite,
        kept=kept(settings.keep, list(stages)),
        rounded=settings.quantize == "8bit",
    )

    try:
        chain.run(chain.left(batches(source, mine, settings.batch_size)))
    finally:
        if chain.has_opened:
            _say(chain, settings, len(mine), there)
    if not chain.failed:
        remove_empty(chain.work)
    return not chain.failed


def _say(chain: Chain, settings: Settings, count: int, there: int) -> None:
    pace = f", {chain.seconds / chain.done:.2f} s an image on {chain.device}" if chain.done else ""
    before = "made anew" if settings.overwrite else "there already" + (" (overwrite=true makes them again)" if there else "")
    print(f"{chain.done} of {count} images restored into {settings.output}{pace}; {there} were {before}", flush=True)
    for _, message in sorted(chain.failed.items()):
        print(f"error: {printable(message)}", file=sys.stderr)


def _put(target: Path, image: Tensor) -> None:
    with writing(target):
        write_png(target, image)


def remove_empty(folder: Path) -> None:
    """Removes folders that hold nothing but folders; kept work stays."""
    for each in sorted((path for path in folder.rglob("*/")), reverse=True):
        with suppress(OSError):
            each.rmdir()
    with suppress(OSError):
        folder.rmdir()


def open_input(path: str) -> Files:
    """The images of a folder, or the one image. Raises ValueError: there is none."""
    if Path(path).is_file():
        return Files(root=Path(path).parent, paths=[Path(path).name])
    return ImageFolder(root=path)


def part(numbers: Sequence[int], shard: str | None) -> Sequence[int]:
    """The numbers of a shard such as 2/8; None: all. Raises ValueError: there is no such part."""
    if shard is None:
        return numbers
    which, count = map(int, shard.split("/"))
    if not 1 <= which <= count:
        raise ValueError(f"shard={shard}: give one of 1/{count or 1} to {count or 1}/{count or 1}")
    return numbers[which - 1 :: count]


def kept(keep: bool | list[str], stages: list[str]) -> list[str]:
    """The stages whose work stays. Raises ValueError: no such stage, or the last, whose work is the output."""
    if isinstance(keep, bool):
        return stages[:-1] if keep else []
    if wrong := [name for name in keep if name not in stages[:-1]]:
        there = f"give {' or '.join(stages[:-1])}" if stages[:-1] else "this pipeline has one stage, whose work is the output"
        raise ValueError(f"keep={wrong[0]}: {there}")
    return keep


def batches(source: Files, numbers: Sequence[int], size: int) -> list[Batch]:
    """The images in their order, up to `size` neighbours of one size together."""
    if size == 1:
        return [[i] for i in numbers]
    runs = [list(run) for _, run in groupby(numbers, lambda i: _pixels(source, i))]
    return [run[start : start + size] for run in runs for start in range(0, len(run), size)]


def _pixels(source: Files, i: int) -> object:
    """Something equal for images of one size; an image that can't be read stands alone."""
    try:
        return upright_size(source.read(i))
    except READ_ERRORS:
        return source.paths[i]


def outputs_of(source: Files, settings: Settings, suffix: str = ".png") -> list[Path]:
    """Where the restored images go, in a folder that is there then.

    Raises: ValueError: two would be one file, an input would be overwritten or outputs lie among the inputs, or no such
            folder can be made.
    """
    folder = Path(settings.output)
    targets = [folder / PurePosixPath(path).with_suffix(suffix) for path in source.paths]
    target, count = Counter(targets).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"input={settings.input}: several images would become {target}, as they differ by suffix alone: rename one"
        )
    within = Path(settings.input).is_dir() and folder.resolve().is_relative_to(source.root.resolve())
    inputs = {(source.root / path).resolve() for path in source.paths}
    if within or any(target.resolve() in inputs for target in targets):
        raise ValueError(f"output={settings.output} is where the input lies: give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output={settings.output} can't be made a folder ({error.strerror}): give another") from error
    refuse_links_out(folder)
    return targets


def checked_record(
    settings: Settings, recipe: Mapping[str, Any], files: Mapping[str, Sequence[str]], targets: list[Path]
) -> Record:
    """The record of this command. Raises ValueError: something else made what lies in the folder."""
    folder = Path(settings.output)
    there = None if settings.overwrite else record.read(folder)
    found = next(filter(Path.exists, targets), None)
    now = Record(dict(recipe), record.weights_of(files, there), settings.input, folder)
    made = found or next((folder / WORK).rglob("*.npy"), None)  # else only faces were looked for, which is done again
    if settings.overwrite or made is None:
        return now
    way_out = "give another output, or overwrite=true to make all anew"
    if there is None:
        raise ValueError(f"{made} is there, and no {record.NAME} says what made it: {way_out}")
    if changed := list(now.differences(there)):
        raise ValueError(f"output={folder} was made by another configuration ({'; '.join(changed)}): {way_out}")
    if found and there.input != now.input:
        raise ValueError(f"{found} was made of input={there.input}, not of input={now.input}: {way_out}")
    return now


def usable_device(name: str) -> torch.device:
    """The device of a name; auto is cuda where there is one. Raises ValueError: it can't hold a tensor, or not give it back."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name} can't be used: {str(error).partition(chr(10))[0]}; give device=cpu or cuda") from error
    return device

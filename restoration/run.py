"""Inference: a folder of images through a trained network, into a folder of PNGs."""

import errno
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.images import to_tensor, write_png
from data.reading import read_image
from data.sources.files import Files, ImageFolder
from models.diffusion.ircontrolnet import IRControlNet
from models.files import official
from models.vqgan import VQAutoEncoder
from restoration import diffbir
from restoration.tiles import Windowed, restore_tiled, rounded
from train.errors import fail, ran_out
from train.jobs.config import nearest
from train.signals import Interrupting, exit_code, stop_signal

HELP = f"""python restore.py ckpt=FILE input=DIR output=DIR [KEY=VALUE …]

  ckpt          a run (runs/NAME), one of its checkpoints, or an official file; which network it holds is read from it
  input         a folder of images, subfolders too, or one image
  output        folder for the PNGs, outside of the input's, under the same names; what is there already is kept, so that an
                interrupted command goes on when given again
  overwrite     false; true makes them all again
  which         of a run: ema or network; left out, the EMA where there is one
  w             0.5: CodeFormer's fidelity, from 0 (codes alone) to 1; w=[0,0.5,1] writes a strip of pictures, one for each
  tile_px       512: SwinIR and ELAN take larger images in tiles of this side
  overlap_px    64: of neighbouring tiles
  device        auto: cuda where there is one, else cpu
  bf16          false; true: bfloat16 autocast

{diffbir.HELP}"""

Restore = Callable[[Tensor, str], Tensor]  # (1, 3, h, w) in [0, 1] and what the image is called to the restored one, on the CPU


@runtime_checkable
class Controllable(Protocol):
    """A network whose forward takes a fidelity `w` and `adain` beside the image, such as CodeFormer."""

    takes_fidelity: bool


@dataclass(frozen=True)
class Options:
    """The keys of the command; HELP says what each is."""

    ckpt: str  # with a second stage, the first's
    input: str
    output: str
    overwrite: bool = False
    which: official.Which | None = None
    w: tuple[float, ...] = (0.5,)
    tile_px: int = 512
    overlap_px: int = 64
    device: str = "auto"
    bf16: bool = False
    second: diffbir.Options | None = None
    given: frozenset[str] = frozenset()  # keys of the above that the user set


def fidelities(text: str) -> tuple[float, ...]:
    """0.5 or [0,0.5,1]. Raises ValueError: another form, none, or one that is below 0 or not finite."""
    found = tuple(float(each) for each in text.removeprefix("[").removesuffix("]").split(","))
    if not all(0 <= w < float("inf") for w in found):
        raise ValueError(text)
    return found


# Key -> what reads its text (KeyError or ValueError where it can't), and what to give; all others are taken as they stand.
READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(("ckpt", "stage1", "input", "output"), (os.path.expanduser, "a path")),
    **dict.fromkeys(("overwrite", "bf16"), ({"true": True, "false": False}.__getitem__, "true or false")),
    **dict.fromkeys(("tile_px", "overlap_px"), (int, "a whole number of pixels")),
    "which": ({"ema": "ema", "network": "network"}.__getitem__, "ema or network"),
    "w": (fidelities, "a fidelity of 0 or more, or several as in w=[0,0.5,1]"),
    "pipeline": ({"diffbir": "diffbir"}.__getitem__, "diffbir, or leave it out to restore with one network"),
    **diffbir.READERS,
}
OWN = [each.name for each in fields(Options) if each.name not in ("second", "given")]
SECOND = [each.name for each in fields(diffbir.Options)]


def main() -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(HELP)
        return
    with Interrupting():
        try:
            if not restore_folder(options_of(sys.argv[1:])):
                sys.exit(1)
        except (ValueError, OSError) as error:
            fail(str(error))
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from there", file=sys.stderr)
            sys.exit(exit_code(stop_signal()))


def options_of(arguments: list[str]) -> Options:
    """KEY=VALUE arguments. Raises ValueError: an unknown key, a value of the wrong kind, or one that is missing."""
    known = [*OWN, "pipeline", "stage1", *SECOND]
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key not in known or not equals:
            raise ValueError(f"{argument}: give KEY=VALUE with a key of {', '.join(known)}{nearest(key, known)}")
        read, wanted = READERS.get(key, (str, ""))
        try:
            given[key] = read(text)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{argument}: give {wanted}") from error
    two_stages = given.pop("pipeline", None) is not None
    if two_stages and "ckpt" in given:
        raise ValueError("ckpt is of restoring with one network: with pipeline=diffbir give stage1=FILE stage2=FILE")
    if not two_stages and (foreign := [key for key in given if key not in OWN]):
        raise ValueError(f"{foreign[0]} is of two stages: add pipeline=diffbir, or leave {foreign[0]} out")
    required = ("stage1", "stage2", "sd", "input", "output") if two_stages else ("ckpt", "input", "output")
    if missing := [key for key in required if not given.get(key)]:
        example = "pipeline=diffbir stage1=FILE stage2=FILE sd=DIR" if two_stages else "ckpt=FILE"
        raise ValueError(f"{missing[0]} is not set: give {example} input=DIR output=DIR")
    if not two_stages:
        return Options(**given, given=frozenset(given))
    second = diffbir.options_of({key: given.pop(key) for key in SECOND if key in given})
    options = Options(ckpt=given.pop("stage1"), **given, second=second, given=frozenset(given))
    if len(options.w) > 1:
        raise ValueError(f"w={list(options.w)} with pipeline=diffbir: give the first stage one fidelity")
    return options


def restore_folder(options: Options) -> bool:
    """Restores every image that has no output yet. However it ends, it says how many were restored and what went wrong.

    No network is opened where nothing is left to do.

    Returns: False where images are left out: they can't be read or written, or the network can't restore them.
    Raises:  ValueError, OSError: nothing can be restored, or the disk is full.
    """
    source = open_input(options.input)
    targets = outputs_of(source, options)
    left = [i for i, target in enumerate(targets) if options.overwrite or not target.exists()]
    if left:
        restore, device = restorer(options)
    failed: list[str] = []
    done, seconds = 0, 0.0
    try:
        for i in tqdm(left, unit="image", disable=len(left) < 2 or not sys.stderr.isatty()):
            start = time.perf_counter()
            try:
                write(targets[i], restore(to_tensor(read_image(source, i))[None], source.paths[i])[0])
            except ValueError as error:
                failed.append(str(error) if source.name(i) in str(error) else f"{source.name(i)}: {error}")
                continue
            done += 1
            seconds += time.perf_counter() - start
    finally:
        pace = f", {seconds / done:.2f} s an image on {device}" if done else ""
        there = f"{len(targets) - len(left)} were there already"
        there += " and stay, whatever made them (overwrite=true makes them again)" if len(left) < len(targets) else ""
        print(f"{done} of {len(targets)} images restored into {options.output}{pace}; {there}", flush=True)
        for message in failed:
            print(f"error: {message}", file=sys.stderr)
    return not failed


def open_input(path: str) -> Files:
    """The images of a folder, or the one image. Raises ValueError: there is none."""
    if Path(path).is_file():
        return Files(root=Path(path).parent, paths=[Path(path).name])
    return ImageFolder(root=path)


def outputs_of(source: Files, options: Options) -> list[Path]:
    """Where the restored images go, in a folder that is there then.

    Raises: ValueError: two would be one file, an input would be overwritten or outputs lie among the inputs, or no such
            folder can be made.
    """
    folder = Path(options.output)
    targets = [folder / PurePosixPath(path).with_suffix(".png") for path in source.paths]
    target, count = Counter(targets).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"input={options.input}: several images would become {target}, as they differ by suffix alone: rename one"
        )
    within = Path(options.input).is_dir() and folder.resolve().is_relative_to(source.root.resolve())
    inputs = {Path(source.name(i)).resolve() for i in range(len(source))}
    if within or any(target.resolve() in inputs for target in targets):
        raise ValueError(f"output={options.output} is where the input lies: give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output={options.output} can't be made a folder ({error.strerror}): give another") from error
    return targets


def restorer(options: Options) -> tuple[Restore, torch.device]:
    """One network, or a first and a second stage; and where they compute.

    Raises: ValueError: files, device or settings can't be used. The function raises it for an image that is not of the
            network's size or needs more memory than there is, and where the restored one is not finite.
    """
    device = usable_device(options.device)
    first = one_network(options, device)
    second = None
    if options.second is not None:
        second = diffbir.second_stage(options.second, device, which=options.which, bf16=options.bf16)

    @torch.no_grad()  # not inference_mode, which restoration guidance can't take gradients in
    def restore(lq: Tensor, name: str) -> Tensor:
        image = finite(first(lq), "the network's" if second is None else "the first stage's")
        if options.second is None or second is None:
            return image
        with memory_explained(image, options.second.savings(bf16=options.bf16), device):
            return finite(second(image, name), "the second stage's")

    return restore, device


def one_network(options: Options, device: torch.device) -> Callable[[Tensor], Tensor]:
    """(1, 3, h, w) in [0, 1] to the restored image, or to a strip of one for each w; both on the CPU. Raises as restorer."""
    network: nn.Module = official.build(options.ckpt, options.which).to(device)
    if isinstance(network, IRControlNet):
        raise ValueError(
            f"{options.ckpt} holds DiffBIR's control network, which restores nothing by itself: give pipeline=diffbir "
            f"stage1=FILE stage2={options.ckpt} sd=DIR"
        )
    if options.second is not None and isinstance(network, VQAutoEncoder):
        raise ValueError(f"stage1={options.ckpt} holds {type(network).__name__}, which restores no images: give a restorer")
    multiple = network.multiple if isinstance(network, Windowed) else None  # None: the network needs the whole image
    takes_w = isinstance(network, Controllable)
    for used, keys, what in ((takes_w, {"w"}, "fidelity"), (multiple, {"tile_px", "overlap_px"}, "tiles")):
        if not used and (idle := min(keys & options.given, default=None)):
            raise ValueError(
                f"{idle} does nothing: {options.ckpt} holds {type(network).__name__}, which takes no {what}; leave {idle} out"
            )
    if multiple:
        rounded(options.tile_px, options.overlap_px, multiple)
    ways: list[dict[str, Any]] = [{"w": w, "adain": True} for w in options.w] if takes_w else [{}]

    def on_device(lq: Tensor, way: dict[str, Any]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            made = network(lq.to(device), **way)
        return made if isinstance(made, Tensor) else made.restored

    def restored(lq: Tensor, way: dict[str, Any]) -> Tensor:
        if multiple is None:
            return on_device(lq, way).float().cpu()
        tiles = {"tile_px": options.tile_px, "overlap_px": options.overlap_px, "multiple": multiple}
        return restore_tiled(partial(on_device, way=way), lq, **tiles)

    def restore(lq: Tensor) -> Tensor:
        smaller = [f"set tile_px below {min(options.tile_px, max(lq.shape[-2:]))}"] if multiple else []
        with memory_explained(lq, smaller, device):
            strip = [restored(lq, way) for way in ways]
            return torch.cat(strip, dim=-1) if len(strip) > 1 else strip[0]

    return restore


@contextmanager
def memory_explained(image: Tensor, ways_out: list[str], device: torch.device) -> Iterator[None]:
    """Raises ValueError with the image's size and the ways out where memory ran out within it; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        height, width = image.shape[-2:]
        ways_out = [*ways_out, *(["device=cpu"] if device.type != "cpu" else [])]
        advice = ", or ".join(ways_out) or "take a machine with more"
        raise ValueError(f"memory ran out on its {width}x{height} pixels: {advice}") from error


def finite(image: Tensor, whose: str) -> Tensor:
    """The image. Raises ValueError where it is not finite."""
    if not image.isfinite().all():
        raise ValueError(f"{whose} output is not finite")
    return image


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


def write(target: Path, image: Tensor) -> None:
    """(3, h, w) into a PNG. Raises ValueError: nothing can have this name; OSError: nothing at all can be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_png(target, image)
    except OSError as error:
        message = f"{target} can't be written: {error.strerror or error}"
        if error.errno in (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            raise ValueError(message) from error
        raise OSError(f"{message}; what was written is whole: mend this and give the same command again to go on") from error

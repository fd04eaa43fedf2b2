"""Inference: a folder of images through a trained network, into a folder of PNGs."""

import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from tqdm import tqdm

from data.faces import read_image
from data.images import UnreadableImage, to_tensor, write_png
from data.sources import Files, ImageFolder
from models import official
from train.cli import fail
from train.config import nearest
from train.tiles import restore_tiled

HELP = """python restore.py ckpt=FILE input=DIR output=DIR [KEY=VALUE …]

  ckpt          a run (runs/NAME), one of its checkpoints, or an official file; which network it holds is read from it
  input         a folder of images, subfolders too, or one image
  output        folder for the PNGs, under the same names; what is there already is kept, so that an interrupted
                command goes on when given again
  overwrite     false; true makes them all again
  which         of a run: ema or network; left out, the EMA where there is one
  w             0.5: CodeFormer's fidelity, from 0 (codes alone) to 1; w=[0,0.5,1] writes a strip of pictures, one for each
  tile_px       512: larger images go through in tiles of this side
  overlap_px    64: of neighbouring tiles
  device        auto: cuda where there is one, else cpu
  bf16          false; true: bfloat16 autocast"""


@dataclass
class Options:
    ckpt: str = MISSING
    input: str = MISSING
    output: str = MISSING
    overwrite: bool = False
    which: str | None = None
    w: list[float] = field(default_factory=lambda: [0.5])
    tile_px: int = 512
    overlap_px: int = 64
    device: str = "auto"
    bf16: bool = False


def main() -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(HELP)
        return
    try:
        failed = restore_folder(options_of(sys.argv[1:]))
    except (ValueError, OSError) as error:
        fail(str(error))
    if failed:
        fail("\n".join(failed))


def options_of(arguments: list[str]) -> Options:
    """KEY=VALUE arguments. Raises ValueError: an unknown key, a value of the wrong kind, or one that is missing."""
    known = [each.name for each in fields(Options)]
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if key not in known or not equals:
            raise ValueError(f"{argument}: give KEY=VALUE with a key of {', '.join(known)}{nearest(key, known)}")
    listed = [f"w=[{each.removeprefix('w=').strip('[]')}]" if each.startswith("w=") else each for each in arguments]
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), OmegaConf.from_dotlist(listed)))
    except OmegaConfBaseException as error:
        key = error.full_key or "ckpt"
        missing = f"{key} is not set: give ckpt=FILE input=DIR output=DIR"
        raise ValueError(missing if "Missing" in type(error).__name__ else f"{key}: {error.msg}".partition("\n")[0]) from error
    assert isinstance(options, Options)
    if options.which not in (None, "ema", "network"):
        raise ValueError(f"which={options.which}: give ema or network")
    return options


def restore_folder(options: Options) -> list[str]:
    """Restores every image that has no output yet, and says how it went.

    Returns: what went wrong with single images: files that can't be read, or are too small for the network.
    Raises:  ValueError, OSError: nothing can be restored, or the disk is full.
    """
    source, outputs = open_input(options.input), Path(options.output)
    targets = [outputs / PurePosixPath(path).with_suffix(".png") for path in source.paths]
    if len(set(targets)) < len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise ValueError(
            f"input={options.input}: several images would become {twice}, as they differ by suffix alone: rename one"
        )
    left = [i for i, target in enumerate(targets) if options.overwrite or not target.exists()]
    restore, device = restorer(options)
    failed, seconds = [], 0.0
    for i in tqdm(left, unit="image", disable=len(left) < 2 or not sys.stderr.isatty()):
        start = time.perf_counter()
        try:
            restored = restore(to_tensor(read_image(source, i))[None].to(device))[0]
        except (UnreadableImage, ValueError) as error:
            failed.append(str(error) if source.name(i) in str(error) else f"{source.name(i)}: {error}")
            continue
        targets[i].parent.mkdir(parents=True, exist_ok=True)
        write_png(targets[i], restored)
        seconds += time.perf_counter() - start
    done = len(left) - len(failed)
    pace = f", {seconds / done:.2f} s an image on {device}" if done else ""
    print(f"{done} of {len(targets)} images restored into {outputs}{pace}; {len(targets) - len(left)} were there already")
    return failed


def open_input(path: str) -> Files:
    """The images of a folder, or the one image. Raises ValueError: there is none."""
    if Path(path).is_file():
        return Files(root=Path(path).parent, paths=[Path(path).name])
    return ImageFolder(root=path)


def restorer(options: Options) -> tuple[Callable[[Tensor], Tensor], torch.device]:
    """(1, 3, h, w) in [0, 1] to the restored image, or to a strip of one for each w; and the device it wants its input on."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name} can't be used: {str(error).partition(chr(10))[0]}; give device=cpu or cuda") from error
    network: nn.Module = official.build(options.ckpt, options.which).to(device)  # type: ignore[arg-type]
    multiple = int(getattr(network, "multiple", 1))
    tiles = {"tile_px": options.tile_px, "overlap_px": options.overlap_px, "multiple": multiple}
    takes_w = "w" in inspect.signature(network.forward).parameters
    ways: list[dict[str, Any]] = [{"w": w, "adain": True} for w in options.w] if takes_w else [{}]

    def restored(lq: Tensor, way: dict[str, Any]) -> Tensor:
        made = network(lq, **way)
        return made if isinstance(made, Tensor) else made.restored

    @torch.inference_mode()
    def restore(lq: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            strip = [restore_tiled(partial(restored, way=way), lq, **tiles) for way in ways]
        return torch.cat(strip, dim=-1).float()

    return restore, device

"""Files of the diffusion network in pixels: iddpm_ffhq512_ema500000.pth of DifFace, which PGDiff and DT-BFR use too."""

import re
from typing import Any

from models.diffusion.adm import ADM
from models.files.family import Arguments, Family, Shapes, state_of

PREFIX = "module."  # PGDiff cuts seven characters off every key, whatever they are
SMALLEST_PX = 8  # side of the smallest map in the published networks
HEAD_CHANNELS = 64  # in all of them


def recognise(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
    """ADM's constructor arguments, from keys and shapes; None for anything else, and for networks that resample otherwise."""
    needed = ("time_embed.2.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight", "out.2.weight")
    if any(key not in shapes for key in needed) or "input_blocks.0.0.bias" not in shapes:
        return None
    width = shapes["time_embed.0.weight"][1]
    levels: list[tuple[int, int]] = []  # channels and residual blocks of each level
    attended: set[int] = set()
    count, channels = 0, 0
    for block in range(1, 1 + max(int(m[1]) for key in shapes if (m := re.match(r"input_blocks\.(\d+)\.", key)))):
        if f"input_blocks.{block}.0.op.weight" in shapes:
            levels.append((channels, count))
            count = 0
            continue
        if (convolution := f"input_blocks.{block}.0.in_layers.2.weight") not in shapes:
            return None
        channels, count = shapes[convolution][0], count + 1
        if f"input_blocks.{block}.1.qkv.weight" in shapes:
            attended.add(len(levels))
    levels.append((channels, count))
    image_size = SMALLEST_PX << (len(levels) - 1)
    found: Arguments = {
        "image_size": image_size,
        "model_channels": width,
        "num_res_blocks": [count for _, count in levels],
        "attention_resolutions": [image_size >> level for level in sorted(attended)],
        "channel_mult": [channels // width for channels, _ in levels],
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "num_head_channels": HEAD_CHANNELS,
        "use_scale_shift_norm": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * levels[0][0],
    }
    if "label_emb.weight" in shapes:
        found["num_classes"] = shapes["label_emb.weight"][0]
    assumed = [
        f"image_size={image_size}: no key tells it; the smallest map of published networks has {SMALLEST_PX}x{SMALLEST_PX}",
        f"num_head_channels={HEAD_CHANNELS}: no key tells it",
    ]
    return found, assumed


def write(network: ADM) -> dict[str, Any]:
    """What DifFace, PGDiff and DT-BFR read."""
    return {f"{PREFIX}{key}": value for key, value in state_of(network).items()}


FAMILY = Family(name="adm", network=ADM, recognise=recognise, write=write)

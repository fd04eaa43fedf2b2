"""SwinIR's files: those of JingyunLiang/SwinIR, of DiffBIR's stage 1, and of DT-BFR and DifFace, which train on these."""

import math
import re
from collections import Counter
from typing import Any

from torch import Tensor

from models.files.family import Arguments, CheckpointError, Family, Shapes
from models.swinir import SwinIR


def recognise(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
    """SwinIR's constructor arguments, from keys and shapes; None for anything else."""
    table = "layers.{}.residual_group.blocks.0.attn.relative_position_bias_table"
    if table.format(0) not in shapes or not {"conv_first.weight", "conv_first.1.weight"} & set(shapes):
        return None
    stem = "conv_first.weight" if "conv_first.weight" in shapes else "conv_first.1.weight"
    embed_dim, stem_chans = shapes[stem][:2]
    blocks = sorted(
        {(int(m[1]), int(m[2])) for k in shapes if (m := re.match(r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\.", k))}
    )
    depths = list(Counter(group for group, _ in blocks).values())
    groups = range(len(depths))  # a group without a number of its own has no table, below
    window_size = (math.isqrt(shapes[table.format(0)][0]) + 1) // 2
    upsampler = _upsampler(shapes)
    out_chans = stem_chans if stem == "conv_first.weight" else _out_chans(shapes, stem_chans)
    img_size, assumed = _img_size(shapes, window_size, any_shift=max(depths) > 1)
    hidden = shapes["layers.0.residual_group.blocks.0.mlp.fc1.weight"][0]
    img_range = 255.0 if window_size == 7 else 1.0
    assumed.append(f"img_range={img_range:g}: no key tells; 255 in the official window-7 (JPEG) files, 1 in all others")
    return {
        "img_size": img_size,
        "in_chans": out_chans,
        "embed_dim": embed_dim,
        "depths": depths,
        "num_heads": [shapes[table.format(i)][1] for i in groups],
        "window_size": window_size,
        # The constructor truncates embed_dim * mlp_ratio, and a quotient may come out a hair too small.
        "mlp_ratio": hidden / embed_dim if int(embed_dim * (hidden / embed_dim)) == hidden else (hidden + 0.5) / embed_dim,
        "unshuffle": math.isqrt(stem_chans // out_chans),
        "upscale": _upscale(shapes, upsampler, out_chans),
        "upsampler": upsampler,
        "resi_connection": "1conv" if "conv_after_body.weight" in shapes else "3conv",
        "img_range": img_range,
    }, assumed


def _upsampler(shapes: Shapes) -> str:
    if "conv_before_upsample.0.weight" in shapes:
        return "nearest+conv" if "conv_up1.weight" in shapes else "pixelshuffle"
    return "pixelshuffledirect" if "upsample.0.weight" in shapes else ""


def _out_chans(shapes: Shapes, stem_chans: int) -> int:
    """Image channels behind a pixel-unshuffle; the direct head hides them in a square, so RGB is tried before grey."""
    if "conv_last.weight" in shapes:
        return shapes["conv_last.weight"][0]
    products = (stem_chans, shapes["upsample.0.weight"][0])
    return next(c for c in (3, 1, *products) if all(p % c == 0 and math.isqrt(p // c) ** 2 == p // c for p in products))


def _upscale(shapes: Shapes, upsampler: str, out_chans: int) -> int:
    if upsampler == "nearest+conv":
        return 2 ** sum(f"conv_up{i}.weight" in shapes for i in (1, 2, 3))
    if upsampler == "pixelshuffledirect":
        return math.isqrt(shapes["upsample.0.weight"][0] // out_chans)
    steps = [shape for key, shape in shapes.items() if re.fullmatch(r"upsample\.\d+\.weight", key)]
    return math.prod(math.isqrt(shape[0] // shape[1]) for shape in steps) if upsampler else 1


def _img_size(shapes: Shapes, window_size: int, any_shift: bool) -> tuple[int, list[str]]:
    """Side of the feature map a file was built for, and what was assumed for want of a key."""
    mask = next((shape for key, shape in shapes.items() if key.endswith(".attn_mask")), None)
    if mask is not None:
        return math.isqrt(mask[0]) * window_size, []
    if any_shift and any(key.endswith(".relative_position_index") for key in shapes):
        # The reference writes both derived keys, but no mask when img_size <= window_size: then it never shifts.
        return window_size, []
    return 64, ["img_size=64: the file has no derived keys that tell; 64 is the size in most official files"]


def state_of(network: SwinIR) -> dict[str, Tensor]:
    """Weights, position indices and masks, in the order of the official files."""
    derived = network.derived_buffers()
    state: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        mask = key.removesuffix(".norm1.weight") + ".attn_mask"  # a block's first key
        state |= {mask: derived.pop(mask)} if mask in derived else {}
        state[key] = value.contiguous()
        index = key.removesuffix("_bias_table") + "_index"
        state |= {index: derived.pop(index)} if index in derived else {}
    assert not derived, f"derived buffers without a place: {list(derived)}"
    return state


def write(network: SwinIR) -> dict[str, Any]:
    """What the reference programs read: bare for DiffBIR, params_ema for original real-SR, params for the other originals.

    Raises: CheckpointError for a network that no reference program can build.
    """
    if network.image_skip:
        raise CheckpointError("network.image_skip=true has no official form: use --format safetensors")
    if network.unshuffle not in (1, network.upscale):
        raise CheckpointError(
            f"network.unshuffle={network.unshuffle} with upscale={network.upscale} has no official form "
            "(the reference unshuffles by the upscale factor): use --format safetensors"
        )
    state = state_of(network)
    if network.unshuffle > 1:
        return state
    # The original test script reads params_ema for real-SR and falls back to the whole file, not to params.
    return {"params_ema" if network.upsampler == "nearest+conv" else "params": state}


swinir = Family(
    name="swinir",
    network=SwinIR,
    recognise=recognise,
    state=state_of,
    write=write,
    derived=(".attn_mask", ".relative_position_index"),
)

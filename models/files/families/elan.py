"""ELAN's files: those of xindongzhang/ELAN, and HGGT's at x1."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.elan import ELAN
from models.files.family import Arguments, CheckpointError, Family, Shapes
from models.swinir import RGB_MEAN


def recognise(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
    """ELAN's constructor arguments, from keys and shapes; None for anything else."""
    if "body.0.modules_gmsa.gmsa_0.project_inp.0.weight" not in shapes:
        return None
    c_elan = shapes["head.0.weight"][0]
    layers = {(int(m[1]), int(m[2])) for k in shapes if (m := re.match(r"body\.(\d+)\.modules_gmsa\.gmsa_(\d+)\.", k))}
    untold = "window_sizes=[4, 8, 16]" if "sub_mean.bias" in shapes else "window_sizes=[4, 8, 16] and img_range=255"
    return {
        "scale": math.isqrt(shapes["tail.0.weight"][0] // 3),
        "m_elan": len(layers),
        "c_elan": c_elan,
        "n_share": max(layer for _, layer in layers),
        "r_expand": shapes["body.0.modules_lfe.lfe_0.conv0.shift_conv.conv1x1.weight"][0] // c_elan,
        "window_sizes": [4, 8, 16],
        "img_range": 255.0,
    }, [f"{untold}: no key tells; so they are in every official file"]


def range_of(state: Mapping[str, Tensor]) -> Arguments:
    """img_range, where the file has the mean that it scales (above x1)."""
    bias = state.get("sub_mean.bias")
    if bias is None or not bias[0] < 0:
        return {}
    digits = 6 if bias.dtype.itemsize > 2 else 3  # as many as the file's precision holds
    return {"img_range": float(f"{-bias[0].item() / RGB_MEAN[0]:.{digits}g}")}


def state_of(network: ELAN) -> dict[str, Tensor]:
    """Weights, the mean's convolutions and the shift kernels, in the order of the official files."""
    derived = network.derived_buffers()
    state = {key: derived.pop(key) for key in list(derived) if key.startswith(("sub_mean.", "add_mean."))}
    for key, value in network.state_dict().items():
        kernel = key.removesuffix(".conv1x1.weight") + ".weight"
        state |= {kernel: derived.pop(kernel)} if kernel in derived else {}
        state[key] = value.contiguous()
    assert not derived, f"derived buffers without a place: {list(derived)}"
    return state


def write(network: ELAN) -> dict[str, Any]:
    """What the reference programs read: HGGT's at scale 1, above it a training file of ELAN's own (there is no other).

    Raises: CheckpointError for a network that no reference program can build.
    """
    if network.image_skip:
        raise CheckpointError("network.image_skip=true has no official form: use --format safetensors")
    if network.windows != [4, 8, 16]:
        raise CheckpointError(
            f"network.window_sizes={network.windows} has no official form, as its files hold no window sizes and readers "
            "take [4, 8, 16]: use --format safetensors"
        )
    if network.scale == 1 and network.img_range != 255:
        raise CheckpointError(
            f"network.img_range={network.img_range:g} at scale 1 has no official form, as its files hold no range and readers "
            "take 255: use --format safetensors"
        )
    state = state_of(network)
    if network.scale == 1:
        return {"params": state}
    return {"model_state_dict": {f"module.{key}": value for key, value in state.items()}}


elan = Family(
    name="elan",
    network=ELAN,
    recognise=recognise,
    values=range_of,
    state=state_of,
    write=write,
    derived=(".shift_conv.weight", "sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias"),
)

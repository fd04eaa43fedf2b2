"""RRDBNet's files: those of Real-ESRGAN, of BSRGAN and BSRNet (cszn/KAIR), and of ESRGAN itself, new and old."""

import math
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from models.files.family import Arguments, CheckpointError, Family, Shapes, state_of
from models.rrdb import Form, RRDBNet

FIRST_OF: dict[Form, str] = {  # a key that every file of a form has; the fourth part of a body's first block
    "real_esrgan": "body.0.rdb1.conv1.weight",
    "esrgan": "RRDB_trunk.0.RDB1.conv1.weight",
    "esrgan_old": "model.1.sub.0.RDB1.conv1.0.weight",
}


def recognise(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
    """RRDBNet's constructor arguments, from keys and shapes; None for anything else."""
    form = next((form for form, key in FIRST_OF.items() if key in shapes), None)
    if form is None:
        return None
    grow, feat = shapes[FIRST_OF[form]][:2]
    body = re.escape(FIRST_OF[form].partition("0")[0])
    blocks = {int(m[1]) for key in shapes if (m := re.match(rf"{body}(\d+)\.rdb", key, re.IGNORECASE))}
    if form == "esrgan_old":  # one row of convolutions: the first, those behind an enlargement, two more
        doublings = sum(bool(re.fullmatch(r"model\.\d+\.weight", key)) for key in shapes) - 3
    else:
        doublings = sum(bool(re.fullmatch(r"(conv_up|upconv)\d\.weight", key)) for key in shapes)
    unshuffle = math.isqrt(shapes["model.0.weight" if form == "esrgan_old" else "conv_first.weight"][1] // 3)
    return {
        "scale": 2**doublings // unshuffle,
        "unshuffle": unshuffle,
        "num_feat": feat,
        "num_block": max(blocks) + 1,
        "num_grow_ch": grow,
        "form": form,
    }, []


def namer(network: RRDBNet, form: Form) -> Callable[[str], str]:
    """From a key of ours to what a form calls it."""
    up, last = network.doublings, 3 * network.doublings + 4
    rules = {
        "real_esrgan": {},
        "esrgan": {
            r"body\.(\d+)\.rdb": r"RRDB_trunk.\1.RDB",
            r"conv_body": "trunk_conv",
            r"conv_up": "upconv",
            r"conv_hr": "HRconv",
        },
        "esrgan_old": {
            r"conv_first": "model.0",
            r"body\.(\d+)\.rdb(\d)\.conv(\d)": r"model.1.sub.\1.RDB\2.conv\3.0",
            r"conv_body": f"model.1.sub.{len(network.body)}",
            **{rf"conv_up{i}": f"model.{3 * i}" for i in range(1, up + 1)},
            r"conv_hr": f"model.{last - 2}",
            r"conv_last": f"model.{last}",
        },
    }[form]

    def named(key: str) -> str:
        for ours, theirs in rules.items():
            if match := re.match(ours, key):
                return match.expand(theirs) + key[match.end() :]
        return key

    return named


def converted(network: RRDBNet, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under any form's names, under ours."""
    form = next((form for form, key in FIRST_OF.items() if key in state), network.form)
    named = namer(network, form)
    ours = {named(key): key for key in network.state_dict()}
    return {ours.get(key, key): value for key, value in state.items()}


def write(network: RRDBNet) -> dict[str, Any]:
    """What the reference program of its form reads. Raises CheckpointError for a network that this program can't build."""
    readable = {
        "real_esrgan": network.scale * network.unshuffle == 4,
        "esrgan": network.unshuffle == 1 and network.scale in (2, 4),
        "esrgan_old": network.unshuffle == 1,
    }
    if not readable[network.form]:
        raise CheckpointError(
            f"scale={network.scale} with unshuffle={network.unshuffle} has no official file of form={network.form}: "
            "use --format safetensors"
        )
    named = namer(network, network.form)
    state = {named(key): value for key, value in state_of(network).items()}
    return {"params_ema": state} if network.form == "real_esrgan" else state


rrdb = Family(name="rrdb", network=RRDBNet, recognise=recognise, write=write, converted=converted)

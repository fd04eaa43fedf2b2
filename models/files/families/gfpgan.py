"""GFPGAN's files (TencentARC/GFPGAN) in both forms: the paper's equalised one, and the clean one of versions 1.2 to 1.4."""

import math
import re
from typing import Any

from models.files.family import Arguments, CheckpointError, Family, Shapes, under_params_ema
from models.gfpgan import GFPGANv1, GFPGANv1Clean, to_clean


def recognise_gfpgan(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
    """GFPGANv1's constructor arguments, from keys and shapes; None for anything else."""
    if not {"conv_body_first.0.weight", "stylegan_decoder.constant_input.weight"} <= set(shapes):
        return None
    arguments, assumed = _gfpgan(shapes)
    return {**arguments, "resample_kernel": [1.0, 3.0, 3.0, 1.0], "lr_mlp": 0.01, "fix_decoder": True}, [
        "resample_kernel=[1, 3, 3, 1], lr_mlp=0.01, fix_decoder=true: no key tells; so they are in the official file",
        *assumed,
    ]


def recognise_gfpgan_clean(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
    """GFPGANv1Clean's constructor arguments, from keys and shapes; None for anything else."""
    if not {"conv_body_first.weight", "stylegan_decoder.constant_input.weight"} <= set(shapes):
        return None
    arguments, assumed = _gfpgan(shapes)
    return {**arguments, "fix_decoder": False}, ["fix_decoder=false: no key tells; so it is in every official file", *assumed]


def _gfpgan(shapes: Shapes) -> tuple[Arguments, list[str]]:
    """What both forms of GFPGAN have in common."""
    decoder = "stylegan_decoder."
    out_size = max(shape[-1] for key, shape in shapes.items() if key.startswith(f"{decoder}noises."))
    num_style_feat = shapes[f"{decoder}to_rgb1.modulated_conv.modulation.weight"][1]
    narrow = shapes[f"{decoder}constant_input.weight"][1] / 512
    last = shapes[f"{decoder}to_rgbs.{int(math.log2(out_size)) - 3}.modulated_conv.weight"][2]
    scale = shapes["condition_scale.0.2.weight"]
    return {
        "out_size": out_size,
        "num_style_feat": num_style_feat,
        "channel_multiplier": round(last * out_size / (16384 * narrow)) if out_size > 32 else 1,
        "num_mlp": sum(bool(re.fullmatch(r"stylegan_decoder\.style_mlp\.\d+\.weight", key)) for key in shapes),
        "different_w": shapes["final_linear.weight"][0] > num_style_feat,
        "narrow": narrow,
        "sft_half": scale[0] == scale[1],
    }, [] if out_size > 32 else ["channel_multiplier=1: no key tells below 64 px"]


def write(network: GFPGANv1) -> dict[str, Any]:
    """What the reference program reads; a network without a kernel becomes a clean one, as versions 1.2 to 1.4 did.

    Raises: CheckpointError for a network that the reference program cannot build.
    """
    if network.resample_kernel is None:
        return under_params_ema(to_clean(network))
    if network.resample_kernel != [1, 3, 3, 1]:
        raise CheckpointError(
            f"network.resample_kernel={network.resample_kernel} has no official form, as its files hold no kernel and readers "
            "take [1, 3, 3, 1]: use --format safetensors"
        )
    return under_params_ema(network)


gfpgan = Family(
    name="gfpgan",
    network=GFPGANv1,
    recognise=recognise_gfpgan,
    write=write,
    converted=GFPGANv1.converted,  # a clean file's weights, for the equalised network that they came from
)
gfpgan_clean = Family(name="gfpgan_clean", network=GFPGANv1Clean, recognise=recognise_gfpgan_clean, write=under_params_ema)

"""Families of networks: how each one's official files are recognised and written.

A new family is one recognising function, one writing function, and a line in FAMILIES.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from models.codeformer import CodeFormer
from models.diffusion.ircontrolnet import IRControlNet, arguments
from models.elan import ELAN, RGB_MEAN
from models.gfpgan import GFPGANv1, GFPGANv1Clean, to_clean
from models.swinir import SwinIR
from models.vqgan import VQAutoEncoder

Shapes = Mapping[str, tuple[int, ...]]
Arguments = dict[str, Any]


class CheckpointError(ValueError):
    """A file that can't be used, with its name, the reason and what to do."""


@dataclass(frozen=True)
class Recognised:
    """A family, the constructor arguments of its network, and what the file could not tell (`assumed`, in words)."""

    family: str
    arguments: Arguments
    assumed: list[str] = field(default_factory=list)
    recorded: bool = False


def recognise_swinir(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
    """SwinIR's constructor arguments, from keys and shapes; None for anything else."""
    table = "layers.{}.residual_group.blocks.0.attn.relative_position_bias_table"
    if table.format(0) not in shapes or not {"conv_first.weight", "conv_first.1.weight"} & set(shapes):
        return None
    stem = "conv_first.weight" if "conv_first.weight" in shapes else "conv_first.1.weight"
    embed_dim, stem_chans = shapes[stem][:2]
    blocks = sorted(
        {(int(m[1]), int(m[2])) for k in shapes if (m := re.match(r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\.", k))}
    )
    groups = range(blocks[-1][0] + 1)
    depths = [sum(group == i for group, _ in blocks) for i in groups]
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


def write_swinir(network: SwinIR) -> dict[str, Any]:
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
    state = full_state(network)
    if network.unshuffle > 1:
        return state
    # The original test script reads params_ema for real-SR and falls back to the whole file, not to params.
    return {"params_ema" if network.upsampler == "nearest+conv" else "params": state}


def recognise_elan(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
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


def elan_range(state: Mapping[str, Tensor]) -> Arguments:
    """img_range, where the file has the mean that it scales (above x1)."""
    bias = state.get("sub_mean.bias")
    if bias is None or not bias[0] < 0:
        return {}
    digits = 6 if bias.dtype.itemsize > 2 else 3  # as many as the file's precision holds
    return {"img_range": float(f"{-bias[0].item() / RGB_MEAN[0]:.{digits}g}")}


def write_elan(network: ELAN) -> dict[str, Any]:
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
    state = full_state(network)
    if network.scale == 1:
        return {"params": state}
    return {"model_state_dict": {f"module.{key}": value for key, value in state.items()}}


def recognise_codeformer(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
    """CodeFormer's constructor arguments, from keys and shapes; None for anything else."""
    if not {"position_emb", "quantize.embedding.weight", "idx_pred_layer.1.weight"} <= set(shapes):
        return None
    tokens, dim_embd = shapes["position_emb"]
    factor = 2 ** (sum(bool(re.fullmatch(r"encoder\.blocks\.\d+\.conv\.weight", key)) for key in shapes))
    connected = {int(m[1]) for key in shapes if (m := re.match(r"fuse_convs_dict\.(\d+)\.", key))}
    return {
        **_autoencoder(shapes, math.isqrt(tokens) * factor),
        "dim_embd": dim_embd,
        "n_head": 8,
        "n_layers": len({key.split(".")[1] for key in shapes if key.startswith("ft_layers.")}),
        "connect_list": sorted(connected),
        "fix_modules": ["quantize", "generator"],
    }, ["n_head=8, fix_modules=[quantize, generator]: no key tells; so they are in every official file"]


def recognise_vqgan(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
    """The arguments of CodeFormer's autoencoder, from keys and shapes; None for anything else."""
    if not {"encoder.blocks.0.weight", "quantize.embedding.weight", "generator.blocks.0.weight"} <= set(shapes):
        return None
    return _autoencoder(shapes, 512), ["img_size=512: no key tells; so it is in every official file"]


def _autoencoder(shapes: Shapes, img_size: int) -> Arguments:
    """Arguments of models.vqgan.CodebookNetwork: the encoder's blocks are one flat list, level after level."""
    nf = shapes["encoder.blocks.0.weight"][0]
    kinds: dict[int, str] = {}
    for key in shapes:
        if m := re.match(r"encoder\.blocks\.(\d+)\.(conv1|q|conv)\.weight$", key):
            kinds[int(m[1])] = m[2]
    in_order = sorted(kinds)[:-3]  # the last three are a residual block, attention and a residual block at the coarsest size
    widths: list[list[int]] = [[]]  # of the residual blocks of each level
    attentive: list[int] = []
    for number in in_order:
        if kinds[number] == "conv":
            widths.append([])
        elif kinds[number] == "conv1":
            widths[-1].append(shapes[f"encoder.blocks.{number}.conv1.weight"][0])
        else:
            attentive.append(img_size >> (len(widths) - 1))
    codebook_size, emb_dim = shapes["quantize.embedding.weight"]
    return {
        "img_size": img_size,
        "nf": nf,
        "ch_mult": [width[0] // nf for width in widths],
        "res_blocks": len(widths[0]),
        "attn_resolutions": list(dict.fromkeys(attentive)),
        "codebook_size": codebook_size,
        "emb_dim": emb_dim,
    }


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


def recognise_ircontrolnet(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
    """IRControlNet's constructor arguments, from keys and shapes; None for anything else."""
    if not {"input_blocks.0.0.weight", "zero_convs.0.0.weight", "middle_block_out.0.weight"} <= set(shapes):
        return None
    hint_channels = shapes["input_blocks.0.0.weight"][1] // 2
    return {**arguments(shapes, hint_channels), "num_head_channels": 64, "gradient_checkpointing": False}, [
        f"hint_channels={hint_channels}, num_head_channels=64: no key tells; so they are in every official file"
    ]


def write_gfpgan(network: GFPGANv1) -> dict[str, Any]:
    """What the reference program reads; a network without a kernel becomes a clean one, as versions 1.2 to 1.4 did.

    Raises: CheckpointError for a network that the reference program cannot build.
    """
    if network.resample_kernel is None:
        return write_params_ema(to_clean(network))
    if network.resample_kernel != [1, 3, 3, 1]:
        raise CheckpointError(
            f"network.resample_kernel={network.resample_kernel} has no official form, as its files hold no kernel and readers "
            "take [1, 3, 3, 1]: use --format safetensors"
        )
    return write_params_ema(network)


def write_params_ema(network: nn.Module) -> dict[str, Any]:
    """What the reference programs of CodeFormer and GFPGAN read: they ask for params_ema."""
    return {"params_ema": full_state(network)}


def full_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's weights and, where it has them, the derived buffers, in the order of the official files."""
    derived = network.derived_buffers() if isinstance(network, SwinIR | ELAN) else {}
    state: dict[str, Tensor] = {k: derived.pop(k) for k in list(derived) if k.startswith(("sub_mean.", "add_mean."))}
    for key, value in network.state_dict().items():
        before = (f"{key.removesuffix('.norm1.weight')}.attn_mask", f"{key.removesuffix('.conv1x1.weight')}.weight")
        state |= {k: derived.pop(k) for k in before if k in derived}
        state[key] = value.contiguous()
        index = key.removesuffix("_bias_table") + "_index"
        state |= {k: derived.pop(k) for k in [index] if k in derived}
    assert not derived, f"derived buffers without a place: {list(derived)}"
    return state


class Family(NamedTuple):
    """How the files of one network are recognised and written."""

    network: type[nn.Module]
    recognise: Callable[[Shapes], tuple[Arguments, list[str]] | None]
    write: Callable[[Any], dict[str, Any]]
    values: Callable[[Mapping[str, Tensor]], Arguments] = lambda state: {}  # arguments that values tell, not shapes


FAMILIES = {
    "swinir": Family(SwinIR, recognise_swinir, write_swinir),
    "elan": Family(ELAN, recognise_elan, write_elan, elan_range),
    "codeformer": Family(CodeFormer, recognise_codeformer, write_params_ema),
    "vqgan": Family(VQAutoEncoder, recognise_vqgan, write_params_ema),
    "gfpgan": Family(GFPGANv1, recognise_gfpgan, write_gfpgan),
    "gfpgan_clean": Family(GFPGANv1Clean, recognise_gfpgan_clean, write_params_ema),
    "ircontrolnet": Family(IRControlNet, recognise_ircontrolnet, full_state),
}


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """The family and constructor arguments of a bare state dict. Raises CheckpointError for one that no family knows."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    for name, family in FAMILIES.items():
        try:
            found = family.recognise(shapes)
        except (KeyError, IndexError, StopIteration) as error:
            raise CheckpointError(
                f"looks like {name}, but its configuration can't be read: at {error}, key missing or odd"
            ) from error
        if found:
            arguments, assumed = found
            return Recognised(name, arguments | family.values(state), assumed)
    raise CheckpointError(f"unknown network: its first keys are {first(list(state))}; families known: {', '.join(FAMILIES)}")


def class_path(network: type[nn.Module]) -> str:
    return f"{network.__module__}.{network.__name__}"


def first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")

"""CodeFormer's files, and those of the autoencoder that its training begins with (sczhou/CodeFormer)."""

import math
import re

from models.codeformer import CodeFormer
from models.files.family import Arguments, Family, Shapes, under_params_ema
from models.vqgan import VQAutoEncoder


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
    """The arguments of CodeFormer's autoencoder, from keys and shapes; None for anything else, CodeFormer itself included."""
    if not {"encoder.blocks.0.weight", "quantize.embedding.weight", "generator.blocks.0.weight"} <= set(shapes):
        return None
    if "position_emb" in shapes:
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


codeformer = Family(name="codeformer", network=CodeFormer, recognise=recognise_codeformer, write=under_params_ema)
vqgan = Family(name="vqgan", network=VQAutoEncoder, recognise=recognise_vqgan, write=under_params_ema)

"""Names of Stable Diffusion's tensors: the official ones (latent-diffusion's, in its single files) and those of diffusers.

A table (Names) maps official modules to diffusers' modules. A key begins with a module of the table; what follows (`.weight`,
or modules further in) is the same on both sides. So one table serves both directions. Nothing here needs diffusers.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Names = dict[str, str]
Shapes = Mapping[str, tuple[int, ...]]
State = dict[str, Tensor]

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
TEXT_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn": "self_attn",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


class Layout(NamedTuple):
    """What keys and shapes tell about a UNet or a control network."""

    in_channels: int  # of the first convolution
    model_channels: int
    channel_mult: list[int]
    num_res_blocks: int
    attention_resolutions: list[int]
    context_dim: int
    linear: bool  # the projections around attention: matrices in SD 2, 1x1 convolutions in SD 1

    @property
    def widths(self) -> list[int]:
        return [factor * self.model_channels for factor in self.channel_mult]


def layout(shapes: Shapes) -> Layout:
    """The layout of a UNet or control network with official keys, without prefix. Raises KeyError if a key is missing."""
    model_channels, in_channels = shapes["input_blocks.0.0.weight"][:2]
    halving = sorted(int(m[1]) for key in shapes if (m := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", key)))
    last = max(int(m[1]) for key in shapes if (m := re.match(r"input_blocks\.(\d+)\.", key)))
    firsts = [1, *(place + 1 for place in halving)]
    text = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    widths = [shapes[f"input_blocks.{place}.0.out_layers.3.weight"][0] for place in firsts]
    attentive = [2**level for level, place in enumerate(firsts) if f"input_blocks.{place}.1.norm.weight" in shapes]
    return Layout(
        in_channels=in_channels,
        model_channels=model_channels,
        channel_mult=[width // model_channels for width in widths],
        num_res_blocks=(halving[0] if halving else last + 1) - 1,
        attention_resolutions=attentive[::-1],
        context_dim=shapes[text][1],
        linear=len(shapes["middle_block.1.proj_in.weight"]) == 2,
    )


def unet_config(shapes: Shapes, head_channels: int) -> dict[str, Any]:
    """Arguments of diffusers' UNet2DConditionModel. head_channels: channels of one attention head, which no key tells."""
    found = layout(shapes)
    attentive = [2**level in found.attention_resolutions for level in range(len(found.channel_mult))]
    return {
        "in_channels": found.in_channels,
        "out_channels": shapes["out.2.weight"][0] if "out.2.weight" in shapes else found.in_channels,
        "block_out_channels": found.widths,
        "layers_per_block": found.num_res_blocks,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attentive],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attentive)],
        "attention_head_dim": [width // head_channels for width in found.widths],  # a number of heads, whatever its name says
        "cross_attention_dim": found.context_dim,
        "use_linear_projection": found.linear,
        "sample_size": 64,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKL. Its scaling factor is a constant of Stable Diffusion 1 and 2."""
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)],
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": shapes["post_quant_conv.weight"][1],
        "scaling_factor": 0.18215,
        "sample_size": 512,
    }


def text_config(shapes: Shapes, head_width: int) -> dict[str, Any]:
    """Arguments of transformers' CLIPTextConfig: all layers but the last, which Stable Diffusion 2 does not use."""
    vocabulary, width = shapes["token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _count(shapes, r"transformer\.resblocks\.(\d+)\.") - 1,
        "num_attention_heads": width // head_width,
        "max_position_embeddings": shapes["positional_embedding"][0],
        "hidden_act": "gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }


def _count(keys: Mapping[str, object], pattern: str) -> int:
    return len({m[1] for key in keys if (m := re.match(pattern, key))})


def unet_names(config: Mapping[str, Any]) -> Names:
    """Names in the whole UNet. config: diffusers' configuration of it."""
    levels, blocks = len(config["block_out_channels"]), config["layers_per_block"]
    names = encoder_names(config)
    for u, kind in enumerate(config["up_block_types"]):  # in the order of the decoder, from low to high resolution
        attentive = kind.startswith("CrossAttn")
        for j in range(blocks + 1):
            place = f"output_blocks.{u * (blocks + 1) + j}"
            names |= _residual(f"{place}.0", f"up_blocks.{u}.resnets.{j}")
            if attentive:
                names[f"{place}.1"] = f"up_blocks.{u}.attentions.{j}"
        if u < levels - 1:
            names[f"{place}.{2 if attentive else 1}.conv"] = f"up_blocks.{u}.upsamplers.0.conv"
    return names | {"out.0": "conv_norm_out", "out.2": "conv_out"}


def encoder_names(config: Mapping[str, Any]) -> Names:
    """Names in the encoder and the middle block, which a UNet and a control network have in common."""
    levels, blocks = len(config["block_out_channels"]), config["layers_per_block"]
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
    }
    for level, kind in enumerate(config["down_block_types"]):
        for j in range(blocks):
            place = f"input_blocks.{1 + level * (blocks + 1) + j}"
            names |= _residual(f"{place}.0", f"down_blocks.{level}.resnets.{j}")
            if kind.startswith("CrossAttn"):
                names[f"{place}.1"] = f"down_blocks.{level}.attentions.{j}"
        if level < levels - 1:
            names[f"input_blocks.{(level + 1) * (blocks + 1)}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    return {
        **names,
        **_residual("middle_block.0", "mid_block.resnets.0"),
        "middle_block.1": "mid_block.attentions.0",
        **_residual("middle_block.2", "mid_block.resnets.1"),
    }


def control_names(config: Mapping[str, Any]) -> Names:
    """Names in a control network. Diffusers splits the channels of the first convolution, which is left to the caller."""
    stages = len(config["block_out_channels"]) * (config["layers_per_block"] + 1)
    zeros = {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in range(stages)}
    return encoder_names(config) | zeros | {"middle_block_out.0": "controlnet_mid_block"}


def _residual(official: str, diffusers: str) -> Names:
    return {f"{official}.{ours}": f"{diffusers}.{theirs}" for ours, theirs in RESIDUAL.items()}


def vae_names(config: Mapping[str, Any]) -> Names:
    """Names in the autoencoder. The official decoder counts its levels from high resolution, diffusers from low."""
    levels, blocks = len(config["block_out_channels"]), config["layers_per_block"]
    names = {name: name for name in ("quant_conv", "post_quant_conv")}
    for half, levels_of, level_of, resample, count in (
        ("encoder", "down", "down_blocks", ("downsample.conv", "downsamplers.0.conv"), blocks),
        ("decoder", "up", "up_blocks", ("upsample.conv", "upsamplers.0.conv"), blocks + 1),
    ):
        names |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        names[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        for level in range(levels):
            official = f"{half}.{levels_of}.{level}"
            diffusers = f"{half}.{level_of}.{level if half == 'encoder' else levels - 1 - level}"
            names[f"{official}.{resample[0]}"] = f"{diffusers}.{resample[1]}"
            for j in range(count):
                names |= _vae_residual(f"{official}.block.{j}", f"{diffusers}.resnets.{j}")
        attention = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
        for ours, theirs in attention.items():
            names[f"{half}.mid.attn_1.{ours}"] = f"{half}.mid_block.attentions.0.{theirs}"
        for j in (0, 1):
            names |= _vae_residual(f"{half}.mid.block_{j + 1}", f"{half}.mid_block.resnets.{j}")
    return names


def _vae_residual(official: str, diffusers: str) -> Names:
    alike = {f"{official}.{name}": f"{diffusers}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")}
    return alike | {f"{official}.nin_shortcut": f"{diffusers}.conv_shortcut"}


def to_diffusers(state: Mapping[str, Tensor], names: Names, what: str) -> State:
    """A state dict with official keys to one with diffusers' keys.

    Args:   what: the network, in words, for the error.
    Raises: ValueError: keys without a name in diffusers, with their number and the first.
    """
    converted = dict(_renamed(state, names, what))
    return {k: v.flatten(1) if _is_vae_attention(k) and v.ndim == 4 else v for k, v in converted.items()}


def to_official(state: Mapping[str, Tensor], names: Names, what: str) -> State:
    """The inverse of `to_diffusers`; raises the same error."""
    state = {k: v[..., None, None] if _is_vae_attention(k) and v.ndim == 2 else v for k, v in state.items()}
    return dict(_renamed(state, {theirs: ours for ours, theirs in names.items()}, what))


def _is_vae_attention(key: str) -> bool:
    """Whether the key is of a projection that is a matrix in diffusers, but a 1x1 convolution in official files."""
    return bool(re.match(r"(en|de)coder\.mid_block\.attentions\.0\.to_", key))


def _renamed(state: Mapping[str, Tensor], names: Names, what: str) -> Iterator[tuple[str, Tensor]]:
    strange = []
    for key, value in state.items():
        module = key
        while module and module not in names:
            module = module.rpartition(".")[0]
        if module:
            yield names[module] + key.removeprefix(module), value
        else:
            strange.append(key)
    if strange:
        raise ValueError(f"{what} has {len(strange)} keys that don't belong there, the first is {strange[0]}")


def text_names(layers: int) -> Names:
    """OpenCLIP's names in the text tower -> those of transformers' CLIPTextModel (5.6 and later, without `text_model.`)."""
    names = {
        "token_embedding": "embeddings.token_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final": "final_layer_norm",
    }
    for i in range(layers):
        names |= {f"transformer.resblocks.{i}.{ours}": f"encoder.layers.{i}.{theirs}" for ours, theirs in TEXT_LAYER.items()}
    return names


def text_to_diffusers(state: Mapping[str, Tensor], layers: int) -> State:
    """The first layers of an OpenCLIP text tower with the keys of transformers' CLIPTextModel.

    OpenCLIP's q, k and v are one tensor, which is split. The blocks after these layers, the projection and the temperature are
    left out, as Stable Diffusion 2 does not use them.

    Raises:  ValueError: keys of something else.
    """
    split: State = {}
    for key, value in state.items():
        block = re.match(r"transformer\.resblocks\.(\d+)\.", key)
        if key in ("text_projection", "logit_scale", "attn_mask") or (block and int(block[1]) >= layers):
            continue
        if fused := re.fullmatch(r"(.*\.attn)\.in_proj_(weight|bias)", key):
            parts = zip("qkv", value.chunk(3), strict=True)
            split |= {f"{fused[1]}.{name}_proj.{fused[2]}": part.contiguous() for name, part in parts}
        else:
            split[key] = value
    return dict(_renamed(split, text_names(layers), "the text tower"))


def text_to_official(state: Mapping[str, Tensor], layers: int) -> State:
    """The inverse of `text_to_diffusers`, without what that leaves out."""
    renamed = dict(_renamed(state, {theirs: ours for ours, theirs in text_names(layers).items()}, "the text tower"))
    fused: State = {}
    for key, value in renamed.items():
        if part := re.fullmatch(r"(.*\.attn)\.q_proj\.(weight|bias)", key):
            parts = [renamed[f"{part[1]}.{name}_proj.{part[2]}"] for name in "qkv"]
            fused[f"{part[1]}.in_proj_{part[2]}"] = torch.cat(parts)
        elif not re.search(r"\.attn\.[kv]_proj\.", key):
            fused[key] = value
    return fused


def hint_of_sd1(config: Mapping[str, Any]) -> str:
    """The end of an error's sentence if diffusers' configuration is of a UNet of Stable Diffusion 1; otherwise empty."""
    if config["cross_attention_dim"] == 768 or not config.get("use_linear_projection"):
        return f"; it is of Stable Diffusion 1 (text of width {config['cross_attention_dim']})"
    return ""

"""IRControlNet's files: those of XPixelGroup/DiffBIR, and folders that diffusers' own ControlNetModel reads."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.diffusion import ldm
from models.diffusion.ircontrolnet import IRControlNet
from models.files.family import Arguments, Family, Folder, Shapes, state_of
from models.files.folders import check_size, settings_of

EMBEDDING = "controlnet_cond_embedding"  # of the condition, in diffusers


def recognise(shapes: Shapes) -> tuple[Arguments, list[str]] | None:
    """IRControlNet's constructor arguments, from keys and shapes; None for anything else."""
    if not {"input_blocks.0.0.weight", "zero_convs.0.0.weight", "middle_block_out.0.weight"} <= set(shapes):
        return None
    hint_channels = shapes["input_blocks.0.0.weight"][1] // 2
    return {**arguments(shapes, hint_channels), "num_head_channels": 64, "gradient_checkpointing": False}, [
        f"hint_channels={hint_channels}, num_head_channels=64: no key tells; so they are in every official file"
    ]


def arguments(shapes: Shapes, hint_channels: int) -> Arguments:
    """What the shapes of a file tell of the constructor's arguments: all but heads and checkpointing."""
    found = ldm.layout(shapes)
    return {
        "in_channels": found.in_channels - hint_channels,
        "hint_channels": hint_channels,
        "model_channels": found.model_channels,
        "channel_mult": found.channel_mult,
        "num_res_blocks": found.num_res_blocks,
        "attention_resolutions": found.attention_resolutions,
        "context_dim": found.context_dim,
    }


def arguments_of(network: IRControlNet) -> Arguments:
    """The constructor's arguments that make such a network; without checkpointing."""
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    more = {"num_head_channels": network.num_head_channels, "gradient_checkpointing": False}
    return arguments(shapes, network.hint_channels) | more


def to_diffusers(network: IRControlNet) -> nn.Module:
    """diffusers' own ControlNetModel that gives the same residuals; `.save_pretrained(FOLDER)` writes it.

    Its forward takes the noisy latent, the timestep, the text and, as `controlnet_cond`, the condition latent. The first
    convolution is linear, so that its part for the condition fits into diffusers' embedding of a condition: two
    convolutions with a SiLU between. The first makes x and -x of each channel, and silu(x) - silu(-x) = x.
    """
    from diffusers import ControlNetModel  # here, as it takes seconds, and nothing else in this file needs it

    state = network.state_dict()
    hint, latent = network.hint_channels, network.in_channels
    config = ldm.unet_config({key: tuple(value.shape) for key, value in state.items()}, network.num_head_channels)
    for decoder in ("out_channels", "up_block_types", "sample_size"):
        del config[decoder]
    config |= {
        "in_channels": latent,
        "conditioning_channels": hint,
        "conditioning_embedding_out_channels": [2 * hint],
        "global_pool_conditions": False,
    }
    entry = state["input_blocks.0.0.weight"]
    state["input_blocks.0.0.weight"] = entry[:, :latent]
    converted = ldm.to_diffusers(state, ldm.control_names(config), "the control network") | {
        f"{EMBEDDING}.conv_in.weight": _both_signs(hint).to(entry),
        f"{EMBEDDING}.conv_in.bias": entry.new_zeros(2 * hint),
        f"{EMBEDDING}.conv_out.weight": torch.cat([entry[:, latent:], -entry[:, latent:]], 1),
        f"{EMBEDDING}.conv_out.bias": entry.new_zeros(len(entry)),
    }
    made: Any = ControlNetModel(**config)
    made.load_state_dict(converted, strict=True)
    return made.eval()


def from_diffusers(made: nn.Module) -> IRControlNet:
    """The network of a ControlNetModel that `to_diffusers` made.

    Raises:  ValueError: another ControlNetModel, such as one whose condition is an image.
    """
    config: Any = made.config
    state = made.state_dict()
    embedding = {key: state.pop(key) for key in list(state) if key.startswith(f"{EMBEDDING}.")}
    hint = config["conditioning_channels"]
    signs = embedding[f"{EMBEDDING}.conv_in.weight"]
    if not torch.equal(signs, _both_signs(hint).to(signs)) or embedding[f"{EMBEDDING}.conv_out.bias"].any():
        raise ValueError("the ControlNetModel takes an image as condition, or another latent: it is no IRControlNet")
    official = ldm.to_official(state, ldm.control_names(config), "the ControlNetModel")
    entry = official["input_blocks.0.0.weight"]
    official["input_blocks.0.0.weight"] = torch.cat([entry, embedding[f"{EMBEDDING}.conv_out.weight"][:, :hint]], 1)
    heads = config["attention_head_dim"]
    heads = heads if isinstance(heads, int) else heads[-1]  # a number of heads, whatever its name says
    network = IRControlNet(
        **arguments({key: tuple(value.shape) for key, value in official.items()}, hint),
        num_head_channels=config["block_out_channels"][-1] // heads,
        gradient_checkpointing=False,
    )
    network.load_state_dict(official, strict=True)
    return network.eval()


def read_diffusers(folder: Path) -> IRControlNet:
    """The network of a folder that `write_diffusers` wrote.

    Raises:  ValueError, OSError: the folder holds another control network, or not all of it.
    """
    from diffusers import ControlNetModel

    check_size(folder, lambda: ControlNetModel(**settings_of(ControlNetModel, folder)))
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
    made, report = ControlNetModel.from_pretrained(folder, output_loading_info=True, **options)
    if odd := [key for keys in report.values() for key in keys]:
        raise ValueError(f"its weights don't fit its config.json: {len(odd)} keys, such as {odd[0]}")
    return from_diffusers(made)


def write_diffusers(network: IRControlNet, folder: Path) -> None:
    made: Any = to_diffusers(network)
    made.save_pretrained(folder)


def _both_signs(channels: int) -> Tensor:
    """Weights (2c, c, 3, 3) of a convolution that gives each of c channels, and then the negative of each."""
    identity = torch.eye(channels)
    return F.pad(torch.cat([identity, -identity])[..., None, None], (1, 1, 1, 1))


ircontrolnet = Family(
    name="ircontrolnet",
    network=IRControlNet,
    recognise=recognise,
    write=state_of,
    folder=Folder(
        of="ControlNetModel", holds="control network", read=read_diffusers, write=write_diffusers, arguments=arguments_of
    ),
)

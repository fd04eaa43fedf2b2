"""A tiny random Stable Diffusion 2: it makes no pictures, but IRControlNet trains beside it (experiment=demo_control).

python -m models.diffusion.tiny OUT
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from models.diffusion.schedule import TIMESTEPS
from models.diffusion.stable_diffusion import StableDiffusion
from train.console import printing_never_fails

UNET_CONFIG: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [64, 128],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [1, 2],
    "cross_attention_dim": 64,
    "use_linear_projection": True,
    "sample_size": 64,
}
VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": [32, 32, 32, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "hidden_act": "gelu",
    "bos_token_id": 0,  # these three are wrong in the published config.json, too
    "eos_token_id": 2,
    "pad_token_id": 1,
}


def tiny() -> StableDiffusion:
    """Random weights, the same each time (and torch's seed set to 0): it knows no words."""
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(**UNET_CONFIG)
    vae: Any = AutoencoderKL(**VAE_CONFIG)
    text = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
    return StableDiffusion(unet=unet, vae=vae, text_encoder=text, tokenizer=None)


@torch.no_grad()
def tell_noise(diffusion: StableDiffusion) -> None:
    """Fits the UNet's last convolution, so that at the last timestep it gives back the noise it is shown, as a real one."""
    unet = diffusion.unet
    seen: list[Tensor] = []
    hook = unet.conv_out.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    noise = torch.randn(4, 4, 32, 32)
    diffusion(noise, torch.full((4,), TIMESTEPS - 1), diffusion.text([""]).expand(4, -1, -1))
    hook.remove()
    columns = F.unfold(seen[0], 3, padding=1).transpose(1, 2).flatten(0, 1)
    weight = torch.linalg.lstsq(columns, noise.flatten(2).transpose(1, 2).flatten(0, 1)).solution
    unet.conv_out.weight.copy_(weight.T.view_as(unet.conv_out.weight))
    unet.conv_out.bias.zero_()


def write(diffusion: StableDiffusion, folder: Path) -> None:
    """As a diffusers folder: unet/, vae/ and text_encoder/, in safetensors."""
    for name in ("unet", "vae", "text_encoder"):
        getattr(diffusion, name).save_pretrained(folder / name)


def main() -> None:
    """Writes one that training takes."""
    arguments = sys.argv[1:]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.exit(
            __doc__ if {"--help", "-h"} & set(arguments) else "error: give one folder: python -m models.diffusion.tiny OUT"
        )
    folder = Path(arguments[0])
    if folder.exists():
        sys.exit(f"error: {folder} is there already: give another folder, or remove it")
    diffusion = tiny()
    tell_noise(diffusion)
    write(diffusion, folder)
    print(f"{folder}: a random Stable Diffusion of {sum(p.numel() for p in diffusion.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    printing_never_fails()
    main()

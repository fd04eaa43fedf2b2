"""A training step of IRControlNet against that of DiffBIR's train_stage2.py: time and memory.

Run: uv run benchmarks/ircontrolnet.py [--repeats 3] [--device cpu] [--batch 1] [--size 512] [--tiny]
DiffBIR is not on PyPI, so its step is written out here, with the control network, UNet, autoencoder and text encoder that ours
has and spandrel's SwinIR: with gradient checkpoints, the prompts encoded anew in every step. What differs is what surrounds the
networks. Each row is measured in a process of its own. Weights are random.
"""

import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder first, and `models` is one above

from benchmarks.swinir import build as swinir
from benchmarks.versus import arguments, image

# Stable Diffusion 2.1 and its control network, and the same in small.
UNET: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20, 20],
}
VAE: dict[str, Any] = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
TEXT: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CONTROL: dict[str, Any] = {"model_channels": 320, "channel_mult": [1, 2, 4, 4], "num_res_blocks": 2}
TINY_UNET: dict[str, Any] = {
    "block_out_channels": [64, 64, 128, 128],
    "layers_per_block": 1,
    "attention_head_dim": [1, 1, 2, 2],
}
TINY_VAE: dict[str, Any] = {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}
TINY_TEXT: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_CONTROL: dict[str, Any] = {"model_channels": 64, "channel_mult": [1, 1, 2, 2], "num_res_blocks": 1}

ROWS: dict[str, dict[str, Any]] = {
    "DiffBIR's": {"peer": True, "checkpointed": True, "made_before": 0},
    "ours, with gradient checkpoints": {"peer": False, "checkpointed": True, "made_before": 0},
    "ours": {"peer": False, "checkpointed": False, "made_before": 0},
    "ours, latents of HQ made before": {"peer": False, "checkpointed": False, "made_before": 1},
    "ours, latents of HQ and condition made before": {"peer": False, "checkpointed": False, "made_before": 2},
}


def stable_diffusion(tiny: bool) -> Any:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from models.diffusion.stable_diffusion import StableDiffusion

    text = TINY_TEXT if tiny else TEXT
    unet = UNet2DConditionModel(
        **(TINY_UNET if tiny else UNET),
        in_channels=4,
        out_channels=4,
        use_linear_projection=True,
        cross_attention_dim=text["hidden_size"],
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    vae = AutoencoderKL(
        **(TINY_VAE if tiny else VAE),
        latent_channels=4,
        scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_act="gelu", **text))
    return StableDiffusion(unet=unet, vae=vae, text_encoder=encoder, tokenizer=None)


class Ours:
    """What train/tasks/control.py's task does in an update."""

    def __init__(self, *, tiny: bool, checkpointed: bool, peer: bool, device: str) -> None:
        from models.diffusion.diffbir import DiffBIR
        from models.diffusion.ircontrolnet import IRControlNet
        from models.diffusion.schedule import NoiseSchedule
        from train.tasks.diffusion import Diffusion

        torch.manual_seed(0)
        backbone = stable_diffusion(tiny)
        self.network: Any = IRControlNet(
            **(TINY_CONTROL if tiny else CONTROL),
            in_channels=4,
            hint_channels=4,
            attention_resolutions=[4, 2, 1],
            num_head_channels=64,
            context_dim=(TINY_TEXT if tiny else TEXT)["hidden_size"],
            gradient_checkpointing=checkpointed,
        )
        self.network.copy_encoder(backbone.unet)
        if checkpointed:
            backbone.unet.enable_gradient_checkpointing()
        self.text_encoder = backbone.text_encoder  # ours lets it go
        self.schedule = NoiseSchedule(prediction="eps", zero_snr=False)
        self.diffusion = Diffusion(
            backbone=backbone,
            noise=self.schedule,
            stage1=swinir("theirs" if peer else "ours"),  # type: ignore[arg-type]
            sampler=DiffBIR,
            noise_aug=0,
            precision="32-true" if device == "cpu" else "bf16-mixed",
            channels_last=not peer,
        )
        if not peer:
            self.network.to(memory_format=torch.channels_last)
        self.network.to(device)
        self.diffusion.to(device)
        if peer:
            self.text_encoder.to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=not peer)
        self.moments: list[Tensor] = []  # made before: of HQ, and of the condition
        self.device = device

    def loss(self, hq: Tensor, lq: Tensor) -> Tensor:
        from train.tasks.draws import SampleDraws

        given = self.diffusion.examples(hq, lq, SampleDraws(0, range(len(hq))), *self.moments)
        return F.mse_loss(self.diffusion.predict(self.network, given), given.target)

    def __call__(self, hq: Tensor, lq: Tensor) -> float:
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss = self.loss(hq, lq)
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Theirs(Ours):
    """What train_stage2.py does in one."""

    def loss(self, hq: Tensor, lq: Tensor) -> Tensor:
        from models.diffusion.stable_diffusion import tokens_of
        from train.tasks.draws import SampleDraws

        backbone, draws = self.diffusion.backbone, SampleDraws(0, range(len(hq)))
        with torch.no_grad():
            moments = backbone.moments(hq)
            clean = backbone.sample(moments, draws(moments[:, :4]))
            condition = backbone.mode(backbone.moments(self.diffusion.stage1(lq)))
            tokens = tokens_of([""] * len(hq), None, self.text_encoder.config).to(hq.device)
            text = self.text_encoder(tokens).last_hidden_state
        timesteps, noise = draws.timesteps(len(self.schedule.betas)).to(hq.device), draws(clean)
        noisy = self.schedule.noised(clean, timesteps, noise)
        predicted = backbone(noisy, timesteps, text, self.network(noisy, timesteps, text, condition))
        return F.mse_loss(predicted, noise)


def measured(
    options: dict[str, Any], tiny: bool, batch: int, size: int, device: str, repeats: int
) -> tuple[float, float, float]:
    """Loss of the first step, median seconds of the later ones, GiB at the peak; meant to run in a process of its own."""
    kind: Callable[..., Ours] = Theirs if options["peer"] else Ours
    step = kind(tiny=tiny, checkpointed=options["checkpointed"], peer=options["peer"], device=device)
    hq, lq = image(batch, size, device), image(batch, size, device).flip(3)
    seen = (lambda: hq, lambda: step.diffusion.stage1(lq))[: options["made_before"]]
    with torch.no_grad():
        step.moments = [step.diffusion.backbone.moments(made()) for made in seen]
    first, seconds = step(hq, lq), []
    for _ in range(repeats):
        start = time.perf_counter()
        step(hq, lq)  # its loss is read, so that a GPU is done
        seconds.append(time.perf_counter() - start)
    if device == "cuda":
        return first, median(seconds), torch.cuda.max_memory_allocated() / 2**30
    high_water = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert high_water is not None
    return first, median(seconds), int(high_water[1]) / 2**20


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--tiny", action="store_true", help="networks in small")
    args = parser.parse_args()
    print(f"batch {args.batch}, {args.size} px, {args.device}{', networks in small' * args.tiny}\n")
    print("| training step | time | images/s | ratio | peak memory |\n|---|---|---|---|---|", flush=True)
    found = {}
    for label, options in ROWS.items():
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            job = (options, args.tiny, args.batch, args.size, args.device, args.repeats)
            loss, seconds, peak = found[label] = fresh.apply(measured, job)
        theirs = found["DiffBIR's"]
        if abs(loss - theirs[0]) > 1e-3 * theirs[0]:
            sys.exit(f"{label}: a loss of {loss} where the peer has {theirs[0]}: they compute different things")
        print(
            f"| {label} | {seconds:.2f} s | {args.batch / seconds:.3f} | {theirs[1] / seconds:.2f}x | {peak:.2f} GiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()

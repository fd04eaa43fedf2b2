"""DiffBIR's second stage: Stable Diffusion under a control network, on what a first stage made."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from pydantic import FiniteFloat
from torch import Tensor
from tqdm import tqdm

from models.diffusion.diffbir import DiffBIR, Guidance
from models.diffusion.ircontrolnet import IRControlNet
from models.diffusion.sampling import Draw, drawn_from
from models.diffusion.schedule import NoiseSchedule, Prediction
from models.files import official
from restoration.stage import Restore, is_terminal, memory_explained

PARTS = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}  # what is read of a folder of Stable Diffusion
Factor = Annotated[FiniteFloat, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """Its files and settings; conf/pipeline/diffbir.yaml and conf/version say what each is, and what is published."""

    stage2: str
    sd: str
    tokenizer: str | None
    prediction: Prediction
    zero_snr: bool
    sampler: str
    steps: int
    cfg: FiniteFloat
    prompt: str
    negative: str
    rescale_cfg: bool = False
    strength: Factor = 1.0
    start_point_type: Literal["noise", "cond"] = "noise"
    noise_aug: int = 0
    cldm_tiled: bool = False
    cldm_tile_size: int = 512
    cldm_tile_stride: int = 256
    g_scale: Factor = 0.0
    g_loss: Literal["mse", "w_mse"] = "mse"
    g_space: Literal["latent", "rgb"] = "latent"
    g_t_start: int = 1001
    g_t_stop: int = -1
    g_repeat: Annotated[int, Ge(1)] = 1
    which: Literal["ema", "network"] | None = None
    bf16: bool = False
    seed: int = 231

    def __post_init__(self) -> None:
        self._without_networks()  # settings that don't go together

    def files(self) -> Mapping[str, Sequence[str]]:
        parts = [str(part) for part in sorted(Path(self.sd).glob("*/")) if part.name in PARTS] or [self.sd]
        return {"stage2": [self.stage2], "sd": parts, "tokenizer": [self.tokenizer] if self.tokenizer else []}

    def idle(self) -> Iterator[tuple[str, str]]:
        cfg = f"with cfg={self.cfg:g}"
        prompts = (self.prompt, self.negative if self.cfg != 1 else "")
        if self.g_scale == 0:
            for key in ("g_loss", "g_space", "g_t_start", "g_t_stop", "g_repeat"):
                yield key, "by itself: add g_scale above 0"
        if not self.cldm_tiled:
            yield "cldm_tile_size", "by itself: add cldm_tiled=true"
            yield "cldm_tile_stride", "by itself: add cldm_tiled=true"
        if self.cfg == 1:
            yield "negative", f"{cfg}, which is no guidance: give another cfg, or leave negative out"
        if self.cfg == 0:
            yield "prompt", f"{cfg}, which is the negative prompt alone: give another cfg, or leave prompt out"
        if self.rescale_cfg and self.cfg <= 1:
            yield "rescale_cfg", f"{cfg}: give cfg above 1, or leave rescale_cfg out"
        if self.noise_aug and not self.strength:
            yield "noise_aug", "with strength=0: raise strength, or leave noise_aug out"
        if not any(map(str.strip, prompts)):
            yield "tokenizer", "with no prompt to read: leave tokenizer out"

    def load(self, device: torch.device) -> Restore:
        stage = self._with_networks(device)
        savings = [*([] if self.cldm_tiled else ["cldm_tiled=true"]), *([] if self.bf16 else ["bf16=true"])]

        def steps(states: Any) -> Any:
            return iter(tqdm(states, total=self.steps, unit="step", leave=False, disable=not is_terminal()))

        def restore(images: Tensor, lq: Tensor, names: Sequence[str]) -> Tensor:
            draws = [drawn_from(noise_of(self.seed, name)) for name in names]
            with memory_explained(images, savings, device):
                if self.g_scale:  # the guidance's loss is over all that it is given
                    return torch.cat([stage(images[i : i + 1].to(device), draws[i], steps).cpu() for i in range(len(images))])
                return stage(images.to(device), each_its_own(draws), steps).cpu()

        return restore

    def _with_networks(self, device: torch.device) -> DiffBIR:
        from models.diffusion.stable_diffusion import check_prediction, load  # here, as diffusers and transformers take seconds

        control = official.build(self.stage2, self.which)
        if not isinstance(control, IRControlNet):
            raise ValueError(
                f"stage2={self.stage2} holds {type(control).__name__}: give an IRControlNet, DiffBIR's control network"
            )
        self._check_tiles(8 * control.multiple)  # before the gigabytes of sd are read
        diffusion = load(self.sd, prediction=self.prediction, tokenizer=self.tokenizer)
        try:
            control.encoder_of(diffusion.unet)
        except ValueError as error:
            raise ValueError(f"stage2={self.stage2} is not for sd={self.sd}: {error}") from error
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        control, diffusion = control.to(device, dtype), diffusion.to(device, dtype)
        check_prediction(diffusion, self.prediction)
        stage = replace(self._without_networks(), control=control, diffusion=diffusion)
        _ = stage.text  # computed once; raises for prompts without a tokenizer
        diffusion.text_encoder = None  # its memory is for the images
        return stage

    def _without_networks(self) -> DiffBIR:
        """The stage with all its settings, in which both networks are still missing. Raises ValueError as DiffBIR does."""
        unset: Any = None
        guidance = Guidance(
            scale=self.g_scale,
            start=self.g_t_start,
            stop=self.g_t_stop,
            space=self.g_space,
            repeats=self.g_repeat,
            weighted=self.g_loss == "w_mse",
        )
        return DiffBIR(
            control=unset,
            diffusion=unset,
            schedule=NoiseSchedule(prediction=self.prediction, zero_snr=self.zero_snr),
            sampler=self.sampler,
            steps=self.steps,
            scale=self.cfg,
            rescale=self.rescale_cfg,
            positive=self.prompt,
            negative=self.negative,
            strength=self.strength,
            start=self.start_point_type,
            noise_aug=self.noise_aug,
            tile_px=self.cldm_tile_size if self.cldm_tiled else 0,
            stride_px=self.cldm_tile_stride if self.cldm_tiled else 0,
            guidance=guidance if self.g_scale else None,
        )

    def _check_tiles(self, multiple: int) -> None:
        """Raises ValueError: tiles that the control network can't halve at each of its levels, or gaps between them."""
        size, stride = self.cldm_tile_size, self.cldm_tile_stride
        if self.cldm_tiled and (size < 1 or size % multiple):
            raise ValueError(f"cldm_tile_size={size}: give a multiple of {multiple}")
        if self.cldm_tiled and (not 1 <= stride <= size or stride % 8):
            raise ValueError(f"cldm_tile_stride={stride}: give a multiple of 8 up to cldm_tile_size, {size}")


def noise_of(seed: int, name: str) -> torch.Generator:
    """The noise of one image, whatever was restored before it."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def each_its_own(draws: Sequence[Draw]) -> Draw:
    """Draws for a batch in which each image has the noise that it has alone."""
    return lambda like: torch.cat([draw(like[i : i + 1]) for i, draw in enumerate(draws)])

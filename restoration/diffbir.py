"""DiffBIR's second stage for restore.py: its keys, the published settings of each version, and the restorer."""

import hashlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from models.diffusion.ircontrolnet import IRControlNet
from models.diffusion.sampling import drawn_from
from models.diffusion.schedule import NoiseSchedule, Prediction
from models.files import official

if TYPE_CHECKING:
    from models.diffusion.diffbir import DiffBIR

HELP = """python restore.py pipeline=diffbir stage1=FILE stage2=FILE sd=DIR input=DIR output=DIR [KEY=VALUE …]

  A first restoration by one network, as above, and the detail of Stable Diffusion on it. All keys above but ckpt, and:
  stage1        the first stage: what ckpt is above; SwinIR, CodeFormer, GFPGAN, …
  stage2        the control network: a run of model=ircontrolnet_ffhq, official (v1_face.pth, v2.pth, DiffBIR_v2.1.pt), or a
                diffusers folder of one
  sd            Stable Diffusion 2.1-base, a diffusers folder or the single file; for v2.1 the zero-SNR one
  tokenizer     a folder with vocab.json and merges.txt, for the prompts; left out, that of sd
  version       v2: what stage2 was trained as, v1, v2 or v2.1; it sets the published values, here as "v1 and v2 | v2.1":
  prediction    eps | v: what the UNet predicts
  zero_snr      false | true: pure noise at the last timestep
  sampler       spaced | edm_dpm++_3m_sde; there are ddim and edm_dpm++_2m too
  steps         50 | 10
  cfg           4 | 6: scale of classifier-free guidance; 1 is none, and takes half of the time
  prompt        empty | "Cinematic, High Contrast, …"
  negative      "low quality, blurry, low-resolution, …" | "painting, oil painting, …"

  rescale_cfg   false; true: from 1 at the noisy end to 1 + cfg
  strength      1: of the control
  start_point_type   noise; cond: from the first restoration, noised (not with zero_snr)
  noise_aug     0: the timestep that the condition is noised to, against faults of the first stage
  cldm_tiled    false; true: large images in tiles of cldm_tile_size (512), one each cldm_tile_stride (256)
  g_scale       0: pull towards the first restoration (sampler=spaced); with g_loss=mse|w_mse, g_space=latent|rgb,
                g_t_start=1001, g_t_stop=-1, g_repeat=1
  seed          231: an image's noise follows from it and from the image's name
  bf16          of this stage: true keeps its weights in bfloat16"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Named and set as in XPixelGroup/DiffBIR's inference.py, but for cfg (cfg_scale), prompt, negative, stage2 and sd."""

    stage2: str
    sd: str
    tokenizer: str | None = None
    version: str
    prediction: Prediction
    zero_snr: bool
    sampler: str
    steps: int
    cfg: float
    prompt: str
    negative: str
    rescale_cfg: bool = False
    strength: float = 1.0
    start_point_type: Literal["noise", "cond"] = "noise"
    noise_aug: int = 0
    cldm_tiled: bool = False
    cldm_tile_size: int = 512
    cldm_tile_stride: int = 256
    g_scale: float = 0.0
    g_loss: Literal["mse", "w_mse"] = "mse"
    g_space: Literal["latent", "rgb"] = "latent"
    g_t_start: int = 1001
    g_t_stop: int = -1
    g_repeat: int = 1
    seed: int = 231

    def savings(self, *, bf16: bool) -> list[str]:
        """Keys that would lessen the memory it needs."""
        return [*([] if self.cldm_tiled else ["cldm_tiled=true"]), *([] if bf16 else ["bf16=true"])]


# Source: inference.py before v2.1 (v1 and v2: commit 314724e) and with it (3f8b530). DiffBIR's LLaVA captions are left out.
V2: dict[str, Any] = {
    "prediction": "eps",
    "zero_snr": False,
    "sampler": "spaced",
    "steps": 50,
    "cfg": 4.0,
    "prompt": "",
    "negative": "low quality, blurry, low-resolution, noisy, unsharp, weird textures",
}
VERSIONS: dict[str, dict[str, Any]] = {
    "v1": V2,
    "v2": V2,
    "v2.1": {
        "prediction": "v",
        "zero_snr": True,
        "sampler": "edm_dpm++_3m_sde",
        "steps": 10,
        "cfg": 6.0,
        "prompt": "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - "
        "realistic maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin pore detailing, "
        "hyper sharpness, perfect without deformations.",
        "negative": "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, "
        "unreal engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts, "
        "deformed, lowres, over-smooth.",
    },
}


def number(text: str) -> float:
    """Raises ValueError: no number, or one that is not finite."""
    if not math.isfinite(found := float(text)):
        raise ValueError(text)
    return found


def not_negative(text: str) -> float:
    """Raises ValueError: no such number."""
    if (found := number(text)) < 0:
        raise ValueError(text)
    return found


def at_least_one(text: str) -> int:
    """Raises ValueError: no such number."""
    if (found := int(text)) < 1:
        raise ValueError(text)
    return found


def choice(*names: str) -> tuple[Callable[[str], str], str]:
    return {name: name for name in names}.__getitem__, " or ".join(names)


READERS: dict[str, tuple[Callable[[str], Any], str]] = {  # as in restoration/run.py
    **dict.fromkeys(("stage2", "sd", "tokenizer"), (os.path.expanduser, "a path")),
    **dict.fromkeys(("zero_snr", "rescale_cfg", "cldm_tiled"), ({"true": True, "false": False}.__getitem__, "true or false")),
    "cfg": (number, "a number"),
    **dict.fromkeys(("strength", "g_scale"), (not_negative, "a number of 0 or more")),
    **dict.fromkeys(("steps", "noise_aug", "g_t_start", "g_t_stop", "seed"), (int, "a whole number")),
    "g_repeat": (at_least_one, "a whole number from 1 on"),
    **dict.fromkeys(("cldm_tile_size", "cldm_tile_stride"), (int, "a whole number of pixels")),
    "version": choice(*VERSIONS),
    "prediction": choice("eps", "v"),
    "start_point_type": choice("noise", "cond"),
    "g_loss": choice("mse", "w_mse"),
    "g_space": choice("latent", "rgb"),
}


def options_of(given: dict[str, Any]) -> Options:
    """The keys that were given, and those of their version. Raises ValueError: a key that does nothing beside the others."""
    version = given.get("version", "v2")
    options = Options(**{"version": version, **VERSIONS[version], **given})
    cfg = f"with cfg={options.cfg:g}"
    prompts = (options.prompt, options.negative if options.cfg != 1 else "")
    for idle, prefix, why in (
        (options.g_scale == 0, "g_", "by itself: add g_scale above 0"),
        (not options.cldm_tiled, "cldm_tile_", "by itself: add cldm_tiled=true"),
        (options.cfg == 1, "negative", f"{cfg}, which is no guidance: give another cfg, or leave negative out"),
        (options.cfg == 0, "prompt", f"{cfg}, which is the negative prompt alone: give another cfg, or leave prompt out"),
        (options.rescale_cfg and options.cfg <= 1, "rescale_cfg", f"{cfg}: give cfg above 1, or leave rescale_cfg out"),
        (options.noise_aug and not options.strength, "noise_aug", "with strength=0: raise strength, or leave noise_aug out"),
        (not any(map(str.strip, prompts)), "tokenizer", "with no prompt to read: leave tokenizer out"),
    ):
        if idle and (without := [key for key in given if key.startswith(prefix) and key != "g_scale"]):
            raise ValueError(f"{without[0]} does nothing {why}")
    return options


def second_stage(
    options: Options, device: torch.device, *, which: official.Which | None, bf16: bool
) -> Callable[[Tensor, str], Tensor]:
    """The first stage's image (1, 3, h, w) in [0, 1] and its name to the restored one; both on the CPU.

    Raises: ValueError, OSError: files that are missing or of another kind, or settings that don't go together.
    """
    from models.diffusion.stable_diffusion import check_prediction, load  # here, as diffusers and transformers take seconds

    control = official.build(options.stage2, which)
    if not isinstance(control, IRControlNet):
        raise ValueError(
            f"stage2={options.stage2} holds {type(control).__name__}: give an IRControlNet, DiffBIR's control network"
        )
    check_tiles(options, 8 * control.multiple)
    stage = without_diffusion(
        options, control
    )  # before the gigabytes of sd are read: settings that don't fit are refused at once
    diffusion = load(options.sd, prediction=options.prediction, tokenizer=options.tokenizer)
    try:
        control.encoder_of(diffusion.unet)
    except ValueError as error:
        raise ValueError(f"stage2={options.stage2} is not for sd={options.sd}: {error}") from error
    dtype = torch.bfloat16 if bf16 else torch.float32
    control, diffusion = control.to(device, dtype), diffusion.to(device, dtype)
    check_prediction(diffusion, options.prediction)
    stage = replace(stage, control=control, diffusion=diffusion)
    _ = stage.text  # computed once; raises for prompts without a tokenizer
    diffusion.text_encoder = None  # its memory is for the images

    def steps(states: Any) -> Any:
        return iter(tqdm(states, total=options.steps, unit="step", leave=False, disable=not sys.stderr.isatty()))

    def restore(first: Tensor, name: str) -> Tensor:
        return stage(first.to(device), drawn_from(noise_of(options.seed, name)), steps).cpu()

    return restore


def without_diffusion(options: Options, control: IRControlNet) -> "DiffBIR":
    """The stage with all its settings, in which Stable Diffusion is still missing. Raises ValueError as DiffBIR does."""
    from models.diffusion.diffbir import DiffBIR, Guidance

    unset: Any = None
    return DiffBIR(
        control=control,
        diffusion=unset,
        schedule=NoiseSchedule(prediction=options.prediction, zero_snr=options.zero_snr),
        sampler=options.sampler,
        steps=options.steps,
        scale=options.cfg,
        rescale=options.rescale_cfg,
        positive=options.prompt,
        negative=options.negative,
        strength=options.strength,
        start=options.start_point_type,
        noise_aug=options.noise_aug,
        tile_px=options.cldm_tile_size if options.cldm_tiled else 0,
        stride_px=options.cldm_tile_stride if options.cldm_tiled else 0,
        guidance=Guidance(
            scale=options.g_scale,
            start=options.g_t_start,
            stop=options.g_t_stop,
            space=options.g_space,
            repeats=options.g_repeat,
            weighted=options.g_loss == "w_mse",
        )
        if options.g_scale
        else None,
    )


def check_tiles(options: Options, multiple: int) -> None:
    """Raises ValueError: tiles that the control network can't halve at each of its levels, or gaps between them."""
    size, stride = options.cldm_tile_size, options.cldm_tile_stride
    if options.cldm_tiled and (size < 1 or size % multiple):
        raise ValueError(f"cldm_tile_size={size}: give a multiple of {multiple}")
    if options.cldm_tiled and (not 1 <= stride <= size or stride % 8):
        raise ValueError(f"cldm_tile_stride={stride}: give a multiple of 8 up to cldm_tile_size, {size}")


def noise_of(seed: int, name: str) -> torch.Generator:
    """The noise of one image, whatever was restored before it."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))

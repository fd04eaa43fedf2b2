"""DiffBIR's second stage (Lin et al. 2023): turns a first restoration into an image with the detail of Stable Diffusion."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from models.diffusion.colour import wavelet_colour_fix
from models.diffusion.guidance import Loss, Model, guided, image_loss, latent_loss, restoration_guidance
from models.diffusion.ircontrolnet import IRControlNet
from models.diffusion.sampling import SAMPLERS, Draw, check_steps, sample_spaced, spaced_schedule
from models.diffusion.schedule import TIMESTEPS, NoiseSchedule
from models.diffusion.tiles import tiled

if TYPE_CHECKING:
    from models.diffusion.stable_diffusion import StableDiffusion  # diffusers and transformers take seconds

Progress = Callable[[Iterator[Tensor]], Iterator[Tensor]]
Start = Literal["noise", "cond"]
Space = Literal["rgb", "latent"]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Settings of restoration guidance. Their published names: g_scale, g_start, g_stop, g_space, g_repeat, g_loss=w_mse."""

    scale: float
    start: int
    stop: int
    space: Space
    repeats: int
    weighted: bool

    def __post_init__(self) -> None:
        if self.space not in get_args(Space):
            raise ValueError(f"guidance space={self.space}: give {' or '.join(get_args(Space))}")
        if self.space == "latent" and self.weighted:
            raise ValueError("g_loss=w_mse with g_space=latent: its weights are of an image's edges; take g_space=rgb")


@dataclass(frozen=True, kw_only=True)
class DiffBIR:
    """The second stage with all its settings; a call restores a batch. Raises ValueError for settings that don't go together.

    Args:    sampler: a key of models.diffusion.sampling.SAMPLERS. steps: sampling steps.
             scale, rescale: of classifier-free guidance, see models.diffusion.guidance. positive, negative: prompts.
             strength: factor of all residuals of the control network.
             start: sampling starts from noise, or ("cond", not for zero-SNR) from the condition latent, noised to the last
                 timestep.
             noise_aug: timestep to which the condition is noised before sampling; 0 means that it is not.
             tile_px, stride_px: side and distance of tiles in the image, multiples of 8; tile_px=0 means no tiles.
             guidance: pulls towards the first restoration; for the spaced sampler alone.
    """

    control: IRControlNet
    diffusion: "StableDiffusion"
    schedule: NoiseSchedule
    sampler: str
    steps: int
    scale: float
    rescale: bool
    positive: str
    negative: str
    strength: float
    start: Start
    noise_aug: int
    tile_px: int
    stride_px: int
    guidance: Guidance | None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler={self.sampler}: there are {', '.join(SAMPLERS)}")
        check_steps(self.sampler, self.schedule, self.steps)
        if self.start not in get_args(Start):
            raise ValueError(f"start={self.start}: give {' or '.join(get_args(Start))}")
        if self.start == "cond" and self.schedule.alphas_cumprod[-1] == 0:
            raise ValueError("start=cond with a zero-SNR schedule: at its last timestep nothing is left of the condition")
        if not 0 <= self.noise_aug < TIMESTEPS:
            raise ValueError(f"noise_aug={self.noise_aug}: a timestep from 0 (none) to {TIMESTEPS - 1}")
        if self.tile_px % 8 or self.stride_px % 8:
            raise ValueError(
                f"tile_px={self.tile_px}, stride_px={self.stride_px}: multiples of 8, the pixels of one latent value"
            )
        if self.guidance is not None and self.sampler != "spaced":
            raise ValueError(f"guidance with sampler={self.sampler}: only sampler=spaced has it")
        if (g := self.guidance) is not None and not any(
            g.stop < timestep + 1 < g.start for timestep in spaced_schedule(self.schedule, self.steps).timesteps
        ):
            raise ValueError(
                f"guidance from g_t_start={g.start} to g_t_stop={g.stop} meets none of {self.steps} steps: widen it"
            )

    @cached_property
    @torch.no_grad()
    def text(self) -> tuple[Tensor, Tensor]:
        """Features of the positive and of the negative prompt, each (1, 77, c). Raises ValueError: there is no tokenizer."""
        prompts = [self.positive, self.negative if self.scale != 1 else ""]  # with scale 1 the negative prompt is not used
        positive, negative = self.diffusion.text(prompts).split(1)
        return positive, negative

    @torch.no_grad()
    def __call__(self, first: Tensor, draw: Draw, progress: Progress = iter) -> Tensor:
        """Args:    first: (b, 3, h, w) in [0, 1], the first stage's restoration, of any size.
                 draw: gives all unit noise: first that of the start, then that of noise_aug, then that of each step.
                 progress: wraps the iterator over the latents after each step, as a progress bar with total=steps does.
        Returns: (b, 3, h, w), about [0, 1], not clamped, with the coarse colours of `first`.
        """
        h, w = first.shape[-2:]
        multiple = 8 * self.control.multiple
        padded = F.pad(first, (0, -w % multiple, 0, -h % multiple))  # black below and to the right, as published
        moments = self.diffusion.moments(padded)
        condition = self.diffusion.mode(moments)
        latent = draw(condition)
        if self.start == "cond":
            latent = self._noised(condition, TIMESTEPS - 1, latent)
        seen = self._noised(condition, self.noise_aug, draw(condition)) if self.noise_aug else condition
        model: Model = partial(controlled, self.control, self.diffusion, strength=self.strength)
        if self.tile_px:
            model = tiled(model, size=self.tile_px // 8, stride=self.stride_px // 8)
        positive, negative = (text.expand(len(first), -1, -1) for text in self.text)
        predict = guided(model, condition=seen, positive=positive, negative=negative, scale=self.scale, rescale=self.rescale)
        sample = SAMPLERS[self.sampler]
        if self.guidance is not None:
            loss = self._loss(self.guidance, padded, moments, draw)
            g = self.guidance
            sample = partial(
                sample_spaced,
                correct=restoration_guidance(loss, scale=g.scale, start=g.start, stop=g.stop, repeats=g.repeats),
            )
        latent = deque(progress(sample(predict, self.schedule, latent, self.steps, draw)), maxlen=1).pop()
        return wavelet_colour_fix(self.diffusion.decode(latent)[..., :h, :w], first)

    def _noised(self, latent: Tensor, timestep: int, noise: Tensor) -> Tensor:
        return self.schedule.noised(latent, torch.full((len(latent),), timestep, device=latent.device), noise)

    def _loss(self, guidance: Guidance, target: Tensor, moments: Tensor, draw: Draw) -> Loss:
        if guidance.space == "rgb":
            return image_loss(self.diffusion.decode, target, weighted=guidance.weighted)
        return latent_loss(lambda: self.diffusion.sample(moments, draw(moments[:, : moments.shape[1] // 2])))


def controlled(
    control: IRControlNet,
    diffusion: "StableDiffusion",
    latent: Tensor,
    timesteps: Tensor,
    text: Tensor,
    condition: Tensor,
    *,
    strength: float = 1.0,
) -> Tensor:
    """The controlled UNet's output, (b, 4, h, w) as latent and condition. timesteps: (b,). text: (b, 77, c).

    strength: factor of all residuals of the control network.
    """
    residuals = control(latent, timesteps, text, condition)
    return diffusion(latent, timesteps, text, [strength * each for each in residuals] if strength != 1 else residuals)

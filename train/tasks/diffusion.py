"""The frozen Stable Diffusion and first stage that a control network is trained within (DiffBIR's train_stage2.py)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple, cast

import torch
from annotated_types import Interval
from torch import Tensor, nn

from losses.frozen import FrozenNetworks
from models.diffusion.schedule import NoiseSchedule
from models.diffusion.stable_diffusion import StableDiffusion
from models.files.fingerprints import digest_of
from models.files.first_stage import FirstStage
from train.tasks.draws import SampleDraws

Precision = (
    Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true", "32", "bf16", "16", "64", 32, 16, 64]
    | Literal["transformer-engine", "transformer-engine-float16"]
)


class Examples(NamedTuple):
    """A batch for the control network: what the networks see and what they should make of it; latents are (b, 4, h/8, w/8)."""

    noisy: Tensor
    timesteps: Tensor  # (b,)
    condition: Tensor
    target: Tensor  # the noise, or v


class Diffusion(FrozenNetworks):
    """What the control network is trained within, all of it frozen; it follows the task's device, and is no part of the task.

    So no optimizer, EMA, DDP or checkpoint reaches it. Read at every start; a run that goes on with other weights is refused.

    Args:   backbone: Stable Diffusion 2.1, as models.diffusion.stable_diffusion.load gives it.
            noise: models.diffusion.schedule.NoiseSchedule.
            stage1: makes the restorations that are the conditions.
            sampler: control, diffusion and schedule to the second stage that validates: models.diffusion.diffbir.DiffBIR.
            noise_aug: the condition is noised at a timestep below this one, another for each sample (v2.1: 200); 0: it isn't.
            precision: the trainer's. bf16-… keeps the frozen weights in bfloat16, which halves their memory; others in float32.
            channels_last: how weights of convolutions lie in memory; GPUs prefer it in half precision.
    """

    def __init__(
        self,
        *,
        backbone: StableDiffusion,
        noise: NoiseSchedule,
        stage1: FirstStage,
        sampler: Callable[..., Callable[..., Tensor]],
        noise_aug: Annotated[int, Interval(ge=0, le=1000)],
        precision: Precision,
        channels_last: bool,
    ) -> None:
        super().__init__(backbone, stage1)
        self.noise, self.sampler, self.noise_aug, self.channels_last = noise, sampler, noise_aug, channels_last
        self.fingerprint = digest_of(backbone.unet, backbone.vae, backbone.text_encoder, stage1)
        self.autoencoder = digest_of(backbone.vae)
        options = getattr(sampler, "keywords", {})
        backbone.keep_texts(list(dict.fromkeys(["", options.get("positive", ""), options.get("negative", "")])))
        if str(precision).startswith("bf16"):
            backbone.to(torch.bfloat16)
        if channels_last:
            backbone.to(memory_format=torch.channels_last)

    @property
    def backbone(self) -> StableDiffusion:
        return cast(StableDiffusion, self.frozen[0])

    @property
    def stage1(self) -> FirstStage:
        return cast(FirstStage, self.frozen[1])

    @torch.no_grad()
    def examples(
        self,
        hq: Tensor,
        lq: Tensor,
        draws: SampleDraws,
        hq_moments: Tensor | None = None,
        condition_moments: Tensor | None = None,
    ) -> Examples:
        """As DiffBIR's train_stage2.py makes it.

        Args: hq, lq: (b, 3, h, w) in [0, 1]. hq_moments, condition_moments: of the latents of hq and of
              lq's restoration, where they were made before.
        """
        moments = self.backbone.moments(hq) if hq_moments is None else hq_moments
        clean = self.backbone.sample(moments, draws(moments[:, : moments.shape[1] // 2]))
        moments = self.backbone.moments(self.stage1(lq)) if condition_moments is None else condition_moments
        condition = self.backbone.mode(moments)
        timesteps, noise = draws.timesteps(len(self.noise.betas)).to(clean.device), draws(clean)
        if self.noise_aug:
            condition = self.noise.noised(condition, draws.timesteps(self.noise_aug).to(clean.device), draws(condition))
        noisy = self.noise.noised(clean, timesteps, noise)
        return Examples(noisy, timesteps, condition, self.noise.target(clean, timesteps, noise))

    def predict(self, control: nn.Module, given: Examples) -> Tensor:
        """The UNet's output under control, in the shape of the target."""
        text = self.backbone.text([""]).expand(len(given.noisy), -1, -1)
        residuals = control(given.noisy, given.timesteps, text, given.condition)
        output: Tensor = self.backbone(given.noisy, given.timesteps, text, residuals)
        return output

    def second_stage(self, control: nn.Module) -> Callable[..., Tensor]:
        """Raises ValueError: settings of the sampler that don't go together."""
        return self.sampler(control=control, diffusion=self.backbone, schedule=self.noise)

    def restore(self, control: nn.Module, lq: Tensor, draws: SampleDraws) -> Tensor:
        """(b, 3, h, w) to (b, 3, h, w), about [0, 1]."""
        return self.second_stage(control)(self.stage1(lq), draws)

    @torch.no_grad()
    def check(self, control: nn.Module, sizes: set[int], device: torch.device) -> None:
        """Tries every network once, on a grey image of each side. Raises ValueError: one of them is not what it should be."""
        self.backbone.check_prediction(self.noise.prediction)
        for size in sorted(sizes):
            self._check(control, torch.full((1, 3, size, size), 0.5, device=device))

    def _check(self, control: nn.Module, image: Tensor) -> None:
        first = self.stage1.check(image)
        steps = replace(self.second_stage(control), steps=2)  # type: ignore[type-var]
        latent: Callable[[], Tensor] = lambda: self.backbone.mode(self.backbone.moments(first))  # noqa: E731
        for what, made in (
            ("a latent of init.stable_diffusion", latent),
            ("an image of init.stable_diffusion's autoencoder", lambda: self.backbone.decode(latent())),
            ("a residual of the control network (init.ckpt)", lambda: self._residuals(control, latent())),
            ("a sample of the second stage", lambda: steps(first, SampleDraws(0, [0]))),
        ):
            if not made().isfinite().all():
                raise ValueError(f"{what} is not finite: check its weights, or take a wider trainer.precision")

    def _residuals(self, control: nn.Module, latent: Tensor) -> Tensor:
        text, timesteps = self.backbone.text([""]), torch.zeros(1, dtype=torch.int64, device=latent.device)
        return torch.stack([each.float().sum() for each in control(latent, timesteps, text, latent)])

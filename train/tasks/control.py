"""Training of IRControlNet (DiffBIR's stage 2): a control network learns to steer a frozen Stable Diffusion."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from data.batch import Batch
from models.files import official
from train.tasks.calling import outputs
from train.tasks.draws import SampleDraws
from train.tasks.regression import RegressionTask
from train.tasks.task import constructed
from train.tasks.validation import check_scale

Precision = (
    Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true", "32", "bf16", "16", "64", 32, 16, 64]
    | Literal["transformer-engine", "transformer-engine-float16"]
)


class FirstStage(nn.Module):
    """A trained restorer, whose restorations are the conditions.

    Args:   path: a run or official file of a restorer that keeps the size: SwinIR, CodeFormer, GFPGAN, ELAN x1.
            w, adain: of a CodeFormer, see models/codeformer.py; the others have no use for them.
    Raises: ValueError: the path holds something else than a restorer.
    """

    def __init__(self, *, path: str, w: Annotated[float, Ge(0)], adain: bool) -> None:
        super().__init__()
        self.path, self.network = path, official.build(path)
        arguments = inspect.signature(self.network.forward).parameters
        if "lq" not in arguments:
            raise ValueError(f"stage1={path} holds {type(self.network).__name__}, which restores no images: give a restorer")
        self.options = {"w": float(w), "adain": adain} if "w" in arguments else {}
        self.eval().requires_grad_(False)
        self.fingerprint = f"{digest_of(self.network)} {self.options}"

    def forward(self, lq: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1], same shape out, about [0, 1]: not clamped, as in DiffBIR's train_stage2.py."""
        weight = next(self.network.parameters())  # in half precision with a -true precision of the trainer
        return outputs(self.network(lq.to(weight.dtype), **self.options))["restored"].float()

    def check(self, image: Tensor) -> Tensor:
        """The restoration. Raises ValueError: it is of another size, or not finite."""
        made: Tensor = self(image)
        if made.shape != image.shape:
            raise ValueError(
                f"stage1={self.path} makes {tuple(made.shape[-2:])} of {tuple(image.shape[-2:])}: give a restorer that keeps "
                "the size"
            )
        if not made.isfinite().all():
            raise ValueError(f"a restoration of stage1={self.path} is not finite: check its weights, or take a wider precision")
        return made


class Examples(NamedTuple):
    """A batch for the control network: what the networks see and what they should make of it; latents are (b, 4, h/8, w/8)."""

    noisy: Tensor
    timesteps: Tensor  # (b,)
    condition: Tensor
    target: Tensor  # the noise, or v


class Diffusion(nn.Module):
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
        backbone: Any,
        noise: Any,
        stage1: FirstStage,
        sampler: Callable[..., Callable[..., Tensor]],
        noise_aug: Annotated[int, Interval(ge=0, le=1000)],
        precision: Precision,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.noise, self.sampler, self.noise_aug, self.channels_last = noise, sampler, noise_aug, channels_last
        self.fingerprint = digest_of(backbone.unet, backbone.vae, backbone.text_encoder, stage1)
        self.autoencoder = digest_of(backbone.vae)
        options = getattr(sampler, "keywords", {})
        backbone.keep_texts(list(dict.fromkeys(["", options.get("positive", ""), options.get("negative", "")])))
        if str(precision).startswith("bf16"):
            backbone.to(torch.bfloat16)
        if channels_last:
            backbone.to(memory_format=torch.channels_last)
        self.frozen = (backbone, stage1)  # a tuple, so that they are not registered as submodules

    @property
    def backbone(self) -> Any:
        return self.frozen[0]

    @property
    def stage1(self) -> FirstStage:
        return self.frozen[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Diffusion":
        for network in self.frozen:
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def examples(
        self, hq: Tensor, lq: Tensor, draws: Any, hq_moments: Tensor | None = None, condition_moments: Tensor | None = None
    ) -> Examples:
        """As DiffBIR's train_stage2.py makes it.

        Args: hq, lq: (b, 3, h, w) in [0, 1]. draws: SampleDraws. hq_moments, condition_moments: of the latents of hq and of
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


def digest_of(*networks: nn.Module) -> str:
    """SHA-256 of all weights."""
    digest = hashlib.sha256()
    for network in networks:
        for value in network.state_dict().values():
            digest.update(value.contiguous().cpu().numpy())
    return digest.hexdigest()


@constructed
class ControlTask(RegressionTask):
    """The control network learns what to add to the UNet, so that it predicts the noise in the latents of HQs.

    A fresh network begins as a copy of the UNet's encoder; init.ckpt comes on top of it.

    Raises: ValueError: as RestorationTask, and where networks don't go together.
    """

    diffusion: Diffusion

    offers = frozenset({"predicted", "target", "hq", "lq"})
    inputs = 4
    reads = frozenset({"latents", "condition_latents"})

    def __post_init__(self) -> None:
        control: Any = self.network
        if not hasattr(control, "copy_encoder"):
            raise ValueError(f"{type(control).__name__} controls no diffusion model: task=control is for network=ircontrolnet")
        if control.hint_channels != control.in_channels:
            raise ValueError(
                f"network.hint_channels={control.hint_channels}: the condition is a latent, of as many channels as "
                f"network.in_channels={control.in_channels}"
            )
        control.copy_encoder(self.diffusion.backbone.unet)
        if control.gradient_checkpointing:
            # The UNet's decoder keeps activations for the control network too.
            self.diffusion.backbone.unet.enable_gradient_checkpointing()
        super().__post_init__()

    def configure_model(self) -> None:
        super().configure_model()
        if self.diffusion.channels_last and not self.sharded:  # FSDP takes no such weights
            for each in (self.network, *([self.ema.average] if self.ema else [])):
                each.to(memory_format=torch.channels_last)

    def check_start(self) -> None:
        network: Any = self.network
        self.diffusion.second_stage(network)  # its settings are tried before an hour has passed
        size, multiple = self.config["data"]["size"], 8 * network.multiple
        if size % multiple:
            nearest = max(multiple, round(size / multiple) * multiple)
            raise ValueError(
                f"data.size={size}: the latents of IRControlNet need a multiple of {multiple}, such as data.size={nearest}"
            )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        sizes = {self.config["data"]["size"], self.config["data"]["val_size"] or self.config["data"]["size"]}
        self.diffusion.check(self.validated_network, sizes, self.device)
        columns = getattr(getattr(self.trainer, "datamodule", None), "columns", {})
        self._check_latents(columns.get("latents"), None)
        self._check_latents(columns.get("condition_latents"), self.diffusion.stage1.fingerprint)

    def _check_latents(self, latents: Any, stage1: str | None) -> None:
        """Raises ValueError: data.columns.latents.Latents that other networks made. stage1: what restored the images before."""
        if latents is None:
            return
        wrong = ""
        if latents.autoencoder != self.diffusion.autoencoder:
            wrong = "was made by another autoencoder than that of init.stable_diffusion"
        elif stage1 is None and latents.stage1 is not None:
            wrong = "was made with stage1=, so that it is one for data.condition_latents"
        elif stage1 is not None and latents.stage1 is None:
            wrong = "was made without stage1=, so that it is one for data.latents"
        elif latents.stage1 != stage1:
            wrong = f"was made by another stage 1, or with another w or adain, than init.stage1={self.diffusion.stage1.path}"
        if wrong:
            command = f"python -m data.prepare latents{' stage1=…' if stage1 else ''}"
            raise ValueError(f"{latents.given} {wrong}: make another one with {command}, or set {latents.key}=null")

    def run_network(self, batch: Batch) -> dict[str, Any]:
        draws = SampleDraws(self.config["seed"], self.positions)
        check_scale(batch["lq"], batch["hq"])  # stage 1 keeps the size
        hq_moments, condition_moments = batch.get("hq_moments"), batch.get("condition_moments")
        given = self.diffusion.examples(batch["hq"], batch["lq"], draws, hq_moments, condition_moments)
        self.note_nonfinite({"the latent of HQ": given.noisy.sum(), "the condition latent": given.condition.sum()})
        return {"predicted": self.diffusion.predict(self.network, given), "target": given.target}

    def restore(self, lq: Tensor) -> Tensor:
        """With the same noise each time: it follows from data.val_seed and the sample's position."""
        draws = SampleDraws(self.config["data"]["val_seed"], self.positions)
        return self.diffusion.restore(self.validated_network, lq, draws).clamp(0, 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["frozen"] = self.diffusion.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint["frozen"] != self.diffusion.fingerprint:
            raise ValueError(
                "init.stable_diffusion or init.stage1 holds other weights than when this run began, so that it can't go on as "
                "it would have: put the old ones back, or start over with resume=never"
            )

"""Training of IRControlNet (DiffBIR's stage 2): a control network learns to steer a frozen Stable Diffusion."""

from typing import Any

import torch
from torch import Tensor

from data.batch import Batch
from models.diffusion.ircontrolnet import IRControlNet
from train.tasks.diffusion import Diffusion
from train.tasks.draws import SampleDraws
from train.tasks.regression import RegressionTask
from train.tasks.task import constructed
from train.tasks.validation import check_scale


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
        control = self.network
        if not isinstance(control, IRControlNet):
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
        """`predicted` and `target`, noise or v: both (b, 4, h / 8, w / 8)."""
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

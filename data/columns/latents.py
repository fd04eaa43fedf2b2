"""Latents of images, made once before training (python -m data.prepare latents) in place of anew for each sample."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.columns.codes import checksum
from data.columns.column import Column, Setting
from data.columns.names import places_of
from data.order import Draws
from data.reading import Picture
from data.sources.files import existing

INDEX = "latents.json"


class Latents(Column):
    """The posteriors of an autoencoder on the HQs, one small file an image.

    Args:    path: OUT of python -m data.prepare latents.
    """

    tensor = "hq_moments"

    def bind(self, setting: Setting) -> None:
        """Raises ValueError: the folder is for another size, or images are not always cut in one way, and unmirrored."""
        assert self.path is not None
        try:
            index = json.loads(
                (existing(self.path, "a folder of python -m data.prepare latents") / INDEX).read_text(encoding="utf-8")
            )
            names, made_for, self.autoencoder = index["names"], index["size"], str(index["autoencoder"])
            self.files: list[str] = index["files"]
            self.stage1: str | None = index.get("stage1")  # fingerprint of what restored the images; None: nothing did
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{self.given} has no {INDEX} that can be read ({error}): run python -m data.prepare latents to its end"
            ) from error
        if made_for != setting.cut.size:
            raise ValueError(
                f"{self.given} is of images at {made_for} px, and data.size={setting.cut.size}: make another one with "
                f"python -m data.prepare latents size={setting.cut.size}, or set data.size={made_for}"
            )
        self.rows = places_of(setting.source, names, count=len(self.files), given=self.given, command="latents")
        if wrong := self.changing(setting):
            raise ValueError(
                f"{self.given} are of images cut in one way, which training's are not with {'; '.join(wrong)}: change that, or "
                f"set {self.key}=null to compute latents anew for each sample"
            )

    def changing(self, setting: Setting) -> list[str]:
        """Every setting under which an image is not always that of which latents were made, in words."""
        return [*setting.moved(), *setting.mirrored(), *setting.degraded()]

    def photo(self, picture: Picture) -> np.ndarray:
        """(size, size, 3) uint8: that of which the latent was made."""
        return picture.photos[-1]

    def of(self, picture: Picture, draws: Draws) -> Tensor:
        """(8, h / 8, w / 8) float32: mean and log variance of the latent, unscaled.

        Raises:  ValueError: there is none, or it is of other pixels.
        """
        assert self.path is not None
        file = Path(self.path) / self.files[self.rows[picture.index]]
        try:
            with safe_open(file, framework="pt") as opened:
                if opened.metadata()["checksum"] == str(checksum(self.photo(picture))):
                    moments: Tensor = opened.get_tensor("moments")
                    return moments
            reason = f"{file} is of other pixels than {picture.name}: "
        except (OSError, SafetensorError, KeyError) as error:
            reason = f"{file}, the latent of {picture.name}, can't be read ({error}): delete it and "
        raise ValueError(f"{reason}run python -m data.prepare latents again, or set {self.key}=null")

    def check_precision(self, precision: str | None) -> None:
        """Raises ValueError: images and latents are of half precision."""
        if precision in ("bf16-true", "16-true"):
            raise ValueError(f"trainer.precision={precision} would round {self.key}: set a mixed precision, or {self.key}=null")


class ConditionLatents(Latents):
    """The posteriors of an autoencoder on what stage 1 makes of given LQs (data=pairs)."""

    tensor = "condition_moments"

    def bind(self, setting: Setting) -> None:
        """Raises ValueError: LQs are made anew for each sample, so that nothing can have been made of them before."""
        super().bind(setting)
        if setting.degradation is not None:
            raise ValueError(
                f"{self.given} are of LQs that are given, and the degradation makes others for each sample: choose data=pairs, "
                f"or set {self.key}=null"
            )

    def changing(self, setting: Setting) -> list[str]:
        """As for HQs, but for the degradation, which `bind` refuses whatever it does."""
        return [*setting.moved(), *setting.mirrored()]

    def photo(self, picture: Picture) -> np.ndarray:
        """The LQ."""
        return picture.photos[0]

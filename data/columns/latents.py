"""Latents of images, made once before training (python -m data.prepare latents) in place of anew for each sample."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.columns.codes import checksum
from data.columns.names import places_of
from data.sources.files import Source, existing

INDEX = "latents.json"


class Latents:
    """The posteriors of an autoencoder on a source's images, or on their restorations, one small file an image.

    Args:    key: of the configuration, for messages. folder: OUT of python -m data.prepare latents. size: side of the training
                 images.
    Raises:  ValueError: it is no such folder, for another size, or lacks images of the source.
    """

    def __init__(self, *, key: str, folder: str, source: Source, size: int) -> None:
        self.key, self.folder, self.given = key, folder, f"{key}={folder}"
        try:
            index = json.loads((existing(folder, "a folder of python -m data.prepare latents") / INDEX).read_text())
            names, made_for, self.autoencoder = index["names"], index["size"], str(index["autoencoder"])
            self.files: list[str] = index["files"]
            self.stage1: str | None = index.get("stage1")  # fingerprint of what restored the images; None: nothing did
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{self.given} has no {INDEX} that can be read ({error}): run python -m data.prepare latents to its end"
            ) from error
        if made_for != size:
            raise ValueError(
                f"{self.given} is of images at {made_for} px, and data.size={size}: make another one with python -m "
                f"data.prepare latents size={size}, or set data.size={made_for}"
            )
        self.rows = places_of(source, names, count=len(self.files), given=self.given, command="latents")

    def of(self, index: int, photo: np.ndarray, name: str) -> Tensor:
        """(8, h, w) float32: mean and log variance of an image's latent, unscaled.

        Args:    index: of the source. photo: (size, size, 3) uint8, the image as training sees it. name: for the message.
        Raises:  ValueError: there is none, or it is of other pixels.
        """
        file = Path(self.folder) / self.files[self.rows[index]]
        try:
            with safe_open(file, framework="pt") as opened:
                if opened.metadata()["checksum"] == str(checksum(photo)):
                    moments: Tensor = opened.get_tensor("moments")
                    return moments
            reason = f"{file} is of other pixels than {name}: "
        except (OSError, SafetensorError, KeyError) as error:
            reason = f"{file}, the latent of {name}, can't be read ({error}): delete it and "
        raise ValueError(f"{reason}run python -m data.prepare latents again, or set {self.key}=null")

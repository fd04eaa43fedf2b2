"""Fréchet distance of two folders in the features of Inception (Heusel et al. 2017), as the challenge computes it.

The network is the Inception of 2015-12-05 as pytorch-fid ports it (Apache-2.0), 2048 features of the last pooling. Images go in
resized to 299 x 299 by bilinear interpolation without antialiasing, in [-1, 1].
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.writing import replacing

INPUT_PX = 299


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features, and how many images they are of."""

    mean: np.ndarray  # (c,)
    covariance: np.ndarray  # (c, c)
    count: int

    @classmethod
    def of(cls, features: np.ndarray) -> "Statistics":
        """(images, c). Raises ValueError: less than two images have no covariance."""
        if len(features) < 2:
            raise ValueError(f"FID needs two images or more, and there are {len(features)}")
        return cls(np.mean(features, axis=0), np.cov(features, rowvar=False), len(features))

    def save(self, path: Path) -> None:
        with replacing(path) as file:
            np.savez(file, mean=self.mean, covariance=self.covariance, count=self.count)

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Of `save`, or the organisers' inception_FFHQ_512.pth ({name, size, mean, cov}). Raises ValueError: neither."""
        try:
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as stored:
                    return cls(stored["mean"], stored["covariance"], int(stored["count"]))
            with torch.serialization.safe_globals(_of_numpy()):
                stored = torch.load(path, map_location="cpu", weights_only=True)
            return cls(np.asarray(stored["mean"]), np.asarray(stored["cov"]), int(stored.get("size") or 0))
        except FileNotFoundError:
            raise
        except Exception as error:  # damaged bytes raise nearly anything
            raise ValueError(f"{path} holds no statistics for FID ({' '.join(str(error).split()):.120})") from error


def distance(one: Statistics, other: Statistics) -> float:
    """The Fréchet distance of two Gaussians; it may lie a rounding below 0 for equal ones."""
    difference = one.mean - other.mean
    roots = np.linalg.eigvals(one.covariance @ other.covariance).astype(complex) ** 0.5
    return float(difference @ difference + np.trace(one.covariance) + np.trace(other.covariance) - 2 * roots.real.sum())


class Inception(nn.Module):
    """Images to features; weights: pt_inception-2015-12-05-6726825d.pth of pytorch-fid.

    Raises: ValueError: pytorch-fid is missing, or the file holds something else.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        try:
            from pytorch_fid import inception
        except ImportError as error:
            raise ValueError("FID needs the package pytorch-fid: uv pip install pytorch-fid") from error
        state = torch.load(weights, map_location="cpu", weights_only=True)
        fetched, inception.load_state_dict_from_url = inception.load_state_dict_from_url, lambda *_, **__: state
        try:
            self.network = inception.InceptionV3([3], resize_input=False, normalize_input=False).eval()
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{weights} is not pytorch-fid's Inception: {str(error).splitlines()[0]}") from error
        finally:
            inception.load_state_dict_from_url = fetched

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) RGB in [0, 1] to (b, 2048)."""
        resized = F.interpolate(2 * images - 1, size=(INPUT_PX, INPUT_PX), mode="bilinear", align_corners=False)
        return self.network(resized)[0].flatten(1)


def _of_numpy() -> list[Any]:
    """What a pickled array is made of."""
    core: Any = np._core.multiarray  # type: ignore[attr-defined]
    kinds = [type(np.dtype(kind)) for kind in ("float32", "float64", "int64")]
    return [np.ndarray, np.dtype, core._reconstruct, core.scalar, *kinds]

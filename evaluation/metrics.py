"""Metrics of one image, each a class that conf/protocol names: against a ground truth, against the LQ, or by itself.

Images are (h, w, 3) uint8 RGB, as they lie in their files. A metric whose weights are missing raises FileNotFoundError when it
is opened, with the line that fetches them.
"""

import hashlib
import importlib
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from evaluation import gate
from evaluation.niqe import niqe
from models.adaface import AdaFace
from models.files import weights as catalogued

Reference = Literal["hq", "lq"] | None


class Metric(Protocol):
    """One number for an image."""

    reference: Reference  # what stands beside the image
    higher_is_better: bool

    def open(self, device: torch.device) -> None:
        """Opens its weights, once a process. Raises FileNotFoundError, which says how to fetch them; ValueError."""
        ...

    def key(self) -> str:
        """Names the metric with its settings and weights; a value is kept under it and the images' contents."""
        ...

    def __call__(self, image: np.ndarray, reference: np.ndarray | None, name: str) -> float:
        """Raises ValueError: not defined for this image, and why."""
        ...


@runtime_checkable
class OfFeatures(Protocol):
    """A metric of a whole folder, computed of features of each image by itself. `open` and `key` are as of a Metric."""

    reference: Reference
    higher_is_better: bool

    def open(self, device: torch.device) -> None: ...

    def key(self) -> str: ...

    def features(self, image: np.ndarray) -> np.ndarray:
        """(c,) float32."""
        ...

    def of(self, features: np.ndarray) -> float:
        """(images, c) to the number."""
        ...


class Plain:
    """A metric without weights."""

    reference: Reference = "hq"
    higher_is_better = True

    def open(self, device: torch.device) -> None:
        pass

    def key(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in sorted(vars(self).items()))
        return f"{type(self).__name__}({settings})"


class PSNR(Plain):
    """Peak signal-to-noise ratio in dB of RGB, or of BT.601's luma (16 to 235) as papers on super-resolution have it. 0 to inf.

    Equal images have no finite value: they are refused.
    """

    def __init__(self, *, luma: bool = False, border_px: Annotated[int, Ge(0)] = 0) -> None:
        self.luma, self.border_px = luma, border_px

    def __call__(self, image: np.ndarray, reference: np.ndarray | None, name: str) -> float:
        one, other = (inner(channels(each, self.luma), self.border_px) for each in (image, reference))
        error = float(np.mean((one - other) ** 2))
        if not error:
            raise ValueError("it equals its reference, so that PSNR is infinite")
        return float(10 * np.log10(255**2 / error))


class SSIM(Plain):
    """Structural similarity (Wang et al. 2004), window of 11 px with deviation 1.5, of RGB or of luma as PSNR. -1 to 1."""

    def __init__(self, *, luma: bool = False, border_px: Annotated[int, Ge(0)] = 0) -> None:
        self.luma, self.border_px = luma, border_px

    def __call__(self, image: np.ndarray, reference: np.ndarray | None, name: str) -> float:
        pair = [inner(channels(each, self.luma), self.border_px) for each in (image, reference)]
        one, other = (torch.from_numpy(each.reshape(*each.shape[:2], -1)).permute(2, 0, 1)[None] for each in pair)
        found = structural_similarity_index_measure(one, other, data_range=255.0)
        assert isinstance(found, Tensor)  # a map comes beside it only where it is asked for
        return float(found)


class Niqe(Plain):
    """NIQE, see evaluation/niqe.py. 0 to inf, lower is better. Beside other programs' it is equal to 1e-3."""

    reference: Reference = None
    higher_is_better = False

    def __call__(self, image: np.ndarray, reference: np.ndarray | None, name: str) -> float:
        return niqe(image)


class Sharpness(Plain):
    """Variance of the luma's Laplacian: how much fine detail there is, good or bad. 0 to inf."""

    reference: Reference = None

    def __call__(self, image: np.ndarray, reference: np.ndarray | None, name: str) -> float:
        return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


class ColourShift(Plain):
    """Mean CIE 1976 difference of the blurred images' colours from the LQ's (a 32nd of the side). 0 to inf, lower is better."""

    reference: Reference = "lq"
    higher_is_better = False

    def __call__(self, image: np.ndarray, reference: np.ndarray | None, name: str) -> float:
        assert reference is not None
        size = (image.shape[1], image.shape[0])
        lq = cv2.resize(reference, size, interpolation=cv2.INTER_AREA) if reference.shape != image.shape else reference
        deviation = image.shape[0] / 32
        blurred = (cv2.GaussianBlur(each, (0, 0), deviation).astype(np.float32) / 255 for each in (image, lq))
        one, other = (cv2.cvtColor(each, cv2.COLOR_RGB2LAB) for each in blurred)
        return float(np.linalg.norm(one - other, axis=2).mean())


class LPIPS:
    """Learned perceptual distance (Zhang et al. 2018), package lpips (BSD-2). 0 to about 1, lower is better.

    The backbone is torchvision's (BSD-3): python -m models.weights fetch alexnet|vgg16.
    """

    reference: Reference = "hq"
    higher_is_better = False

    def __init__(self, *, net: Literal["alex", "vgg"], weights: str, file: str | None = None) -> None:
        self.net, self.weights, self.file = net, weights, file

    def open(self, device: torch.device) -> None:
        from losses import perceptual

        name = {"alex": "alexnet", "vgg": "vgg16"}[self.net]
        backbone = partial(catalogued.state_dict, name=name, folder=self.weights, file=self.file)
        self.distance: nn.Module = perceptual.LPIPS(weight=1.0, net=self.net, reduction="mean", backbone=backbone)
        self.distance.to(device).eval()
        self.device = device

    def key(self) -> str:
        return f"LPIPS({self.net}, {digest(self.distance)})"

    @torch.no_grad()
    def __call__(self, image: np.ndarray, reference: np.ndarray | None, name: str) -> float:
        assert reference is not None
        return float(self.distance(batch(image, self.device), batch(reference, self.device)))


class Identity:
    """Cosine of AdaFace's embeddings (Kim et al. 2022, MIT; IR-50 on MS1MV2) of the image and its reference. -1 to 1.

    Args:    to: hq tells whether it is still the same person; lq is the challenge's gate, which a copy of the input passes.
             landmarks: the organisers' CSV; None: those of FFHQ's template, for aligned faces.
             weights: the file; null is adaface_ir50's in `folder`.
    """

    higher_is_better = True

    def __init__(
        self, *, to: Literal["hq", "lq"], folder: str, weights: str | None = None, landmarks: str | None = None
    ) -> None:
        self.reference: Reference = to
        self.folder, self.weights, self.landmarks = folder, weights, landmarks

    def open(self, device: torch.device) -> None:
        network = AdaFace(layers=50, mode="ir")
        catalogued.pretrained(network=network, name="adaface_ir50", folder=self.folder, file=self.weights, prefix="model.")
        self.embedder = gate.Embedder(network, device)

    @cached_property
    def rows(self) -> dict[str, gate.Row] | None:
        return gate.read_landmarks(Path(self.landmarks)) if self.landmarks else None

    def key(self) -> str:
        places = {"": gate.FFHQ} if self.rows is None else {name: row.landmarks for name, row in self.rows.items()}
        of_places = hashlib.sha256(str([(name, points.tolist()) for name, points in places.items()]).encode()).hexdigest()
        return f"Identity({self.reference}, {digest(self.embedder.network)}, {of_places[:12]})"

    def __call__(self, image: np.ndarray, reference: np.ndarray | None, name: str) -> float:
        assert reference is not None
        crops = np.stack([gate.crop(each, self._points(name)) for each in (image, reference)])
        one, other = self.embedder(crops).split(1)
        return float(gate.cosine(one, other))

    def _points(self, name: str) -> np.ndarray:
        if self.rows is None:
            return gate.FFHQ
        if name not in self.rows:
            raise ValueError(f"{self.landmarks} has no landmarks of {name}")
        return self.rows[name].landmarks


class Pyiqa:
    """A no-reference metric of the package pyiqa (PolyForm Noncommercial 1.0.0), which you install yourself: musiq, maniqa, …

    Args:    metric: pyiqa's name. file: its weights; null lets pyiqa download them. higher_is_better: as pyiqa says.
    """

    reference: Reference = None
    NEEDS: ClassVar = {"qalign": " icecream", "clipiqa": " 'setuptools<81'"}  # what pyiqa forgets to ask for

    def __init__(self, *, metric: str, file: str | None = None, higher_is_better: bool = True) -> None:
        self.metric, self.file, self.higher_is_better = metric, file, higher_is_better

    def open(self, device: torch.device) -> None:
        try:
            pyiqa: Any = importlib.import_module("pyiqa")
        except ImportError as error:
            needs = f"uv pip install pyiqa{self.NEEDS.get(self.metric, '')}"
            raise FileNotFoundError(f"{self.metric} needs pyiqa, which is for non-commercial use: {needs}") from error
        more = {"pretrained_model_path": self.file} if self.file else {}
        self.network, self.device = pyiqa.create_metric(self.metric, device=device, **more), device
        self.version = pyiqa.__version__

    def key(self) -> str:
        return f"pyiqa({self.metric}, {self.version}, {digest(self.network)})"

    @torch.no_grad()
    def __call__(self, image: np.ndarray, reference: np.ndarray | None, name: str) -> float:
        return float(self.network(batch(image, self.device)))


class FID:
    """Fréchet distance of the outputs from FFHQ in Inception's features, see evaluation/fid.py. 0 to inf, lower is better.

    Biased by the number of images: compare equal numbers alone.

    Args:    statistics: of the good images: inception_FFHQ_512.pth, what `python evaluate.py statistics` writes.
             weights: pytorch-fid's Inception.
    """

    reference: Reference = None
    higher_is_better = False

    def __init__(self, *, statistics: str | None, weights: str | None, folder: str) -> None:
        self.statistics, self.weights, self.folder = statistics, weights, folder

    def open(self, device: torch.device) -> None:
        from evaluation.fid import Inception, Statistics

        if self.statistics is None:
            raise FileNotFoundError("fid needs the statistics of good images: give fid_statistics=FILE")
        path = Path(self.weights) if self.weights else catalogued.find(name="inception_fid", folder=self.folder)
        self.real = Statistics.load(Path(self.statistics))
        self.network, self.device = Inception(path).to(device), device

    def key(self) -> str:
        return f"Inception({digest(self.network)})"

    def features(self, image: np.ndarray) -> np.ndarray:
        return self.network(batch(image, self.device))[0].float().cpu().numpy()

    def of(self, features: np.ndarray) -> float:
        from evaluation.fid import Statistics, distance

        return distance(Statistics.of(features), self.real)


def channels(image: np.ndarray | None, luma: bool) -> np.ndarray:
    """float64 in 0 to 255: (h, w, 3), or BT.601's luma (h, w) in 16 to 235."""
    assert image is not None
    return image @ np.array([65.481, 128.553, 24.966]) / 255 + 16 if luma else image.astype(np.float64)


def inner(image: np.ndarray, border_px: int) -> np.ndarray:
    return image[border_px : image.shape[0] - border_px, border_px : image.shape[1] - border_px]


def batch(image: np.ndarray, device: torch.device) -> Tensor:
    """(1, 3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().div(255).to(device)


def digest(network: nn.Module) -> str:
    """A short hash of all weights."""
    total = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        total.update(key.encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:12]

"""Perceptual losses on images (b, 3, h, w) in [0, 1]."""

import warnings
from pathlib import Path
from typing import Literal

import lpips
import torch
from torch import Tensor

from losses.frozen import Frozen
from losses.weighted import Loss, Weight

BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}  # torchvision's names in its cache


class LPIPS(Loss):
    """Learned perceptual distance (Zhang et al. 2018, arXiv:1801.03924), package `lpips` 0.1, mean over the batch.

    Args:   net: the backbone, "vgg" (used for training) or "alex" (used for scoring).
            backbone: file of torchvision's ImageNet weights for it; null looks into torchvision's cache. The linear
                layers on top come with the package.
    Raises: FileNotFoundError when the backbone's file is not there; ValueError when it holds something else.
    """

    def __init__(self, *, weight: Weight, net: Literal["vgg", "alex"], backbone: str | None) -> None:
        super().__init__(weight=weight)
        state = _backbone_weights(net, backbone)
        with warnings.catch_warnings():  # lpips still says `pretrained=` to torchvision
            warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated", UserWarning)
            warnings.filterwarnings("ignore", "Arguments other than a weight enum", UserWarning)
            metric = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)  # "rand": it would download; filled below
        # lpips cuts torchvision's `features` into slices and keeps their numbers: slice2.5.weight is features.5.weight
        metric.net.load_state_dict(
            {key: state[f"features.{key.split('.', 1)[1]}"] for key in metric.net.state_dict()}, strict=True
        )
        self.metric = Frozen(metric)

    def forward(self, restored: Tensor, hq: Tensor) -> Tensor:
        return self.metric(2 * restored - 1, 2 * hq - 1).mean()


def _backbone_weights(net: str, backbone: str | None) -> dict[str, Tensor]:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net]
    path = Path(backbone) if backbone else cached
    if not path.is_file():
        raise FileNotFoundError(
            f"LPIPS with net={net} needs torchvision's ImageNet weights, and {path} does not exist: put "
            f"https://download.pytorch.org/models/{BACKBONES[net]} there, or name its place in the key `backbone`"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        probe = state["features.0.weight"]
    except Exception as error:
        raise ValueError(f"{path} is not a torchvision state dict of {net}: fetch {BACKBONES[net]} again ({error})") from error
    if tuple(probe.shape) != {"vgg": (64, 3, 3, 3), "alex": (64, 3, 11, 11)}[net]:
        raise ValueError(f"{path} holds another network than {net} (first layer {tuple(probe.shape)}): name {BACKBONES[net]}")
    return state

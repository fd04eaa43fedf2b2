"""Perceptual losses on images (b, 3, h, w) in [0, 1]."""

import warnings
from collections.abc import Callable
from typing import Literal

import lpips
from torch import Tensor

from losses.frozen import Frozen
from losses.weighted import Loss, Weight

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FIRST_LAYERS = {"vgg": (64, 3, 3, 3), "alex": (64, 3, 11, 11)}


class LPIPS(Loss):
    """Learned perceptual distance (Zhang et al. 2018, arXiv:1801.03924), package `lpips` 0.1.

    Args:   net: the backbone, "vgg" (used for training) or "alex" (used for scoring).
            reduction: over the images of a batch; DT-BFR's code has "sum".
            imagenet_first: whether images are normalised by ImageNet's mean and deviation before LPIPS does so itself, which
                CodeFormer's code does by mistake.
            backbone: gives torchvision's ImageNet weights for it (models.files.weights.state_dict). The linear layers on
                top come with the package.
    Raises: ValueError when the backbone's weights are of another network.
    """

    def __init__(
        self,
        *,
        weight: Weight,
        net: Literal["vgg", "alex"],
        reduction: Literal["mean", "sum"],
        backbone: Callable[[], dict[str, Tensor]],
        imagenet_first: bool = False,
    ) -> None:
        super().__init__(weight=weight)
        self.reduction, self.imagenet_first = reduction, imagenet_first
        state = backbone()
        first = tuple(state["features.0.weight"].shape) if "features.0.weight" in state else None
        if first != FIRST_LAYERS[net]:
            raise ValueError(
                f"LPIPS with net={net} was given the weights of another network (features.0.weight {first} in place of "
                f"{FIRST_LAYERS[net]}): name that backbone"
            )
        with warnings.catch_warnings():  # lpips still says `pretrained=` to torchvision
            warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated", UserWarning)
            warnings.filterwarnings("ignore", "Arguments other than a weight enum", UserWarning)
            metric = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)  # "rand": it would download; filled below
        # lpips cuts torchvision's `features` into slices and keeps their numbers: slice2.5.weight is features.5.weight
        metric.net.load_state_dict(
            {key: state[f"features.{key.split('.', 1)[1]}"] for key in metric.net.state_dict()}, strict=True
        )
        metric.weights_from = "backbone and package"  # strictly, all of them
        self.metric = Frozen(metric)

    def forward(self, restored: Tensor, hq: Tensor) -> Tensor:
        """restored: (b, 3, h, w), about [0, 1]. hq: (b, 3, h, w) in [0, 1]. Returns a scalar."""
        prepared = imagenet_normalised if self.imagenet_first else signed
        distances = self.metric(prepared(restored.to(hq.dtype)), prepared(hq)).float()
        return distances.mean() if self.reduction == "mean" else distances.sum()


def signed(image: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return 2 * image - 1


def imagenet_normalised(image: Tensor) -> Tensor:
    """(b, 3, h, w) in [0, 1], less ImageNet's mean, over its deviation."""
    mean, deviation = (image.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / deviation

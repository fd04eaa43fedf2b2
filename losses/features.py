"""Losses on the features of a frozen network, images (b, 3, h, w) in [0, 1]."""

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from losses.frozen import Frozen
from losses.weighted import Loss, Weight


def gram(features: Tensor) -> Tensor:
    """(b, c, h, w) to (b, c, c): inner products of channels, divided by c * h * w (Johnson et al. 2016, eq. 3)."""
    b, c, h, w = features.shape
    flat = features.view(b, c, h * w)
    return flat @ flat.transpose(1, 2) / (c * h * w)


class FeatureLoss(Loss):
    """L1 between features, and between their Gram matrices (style), as GFPGAN and HGGT take it with VGG19.

    Args:   network: gives features by layer of images, such as models.vgg.VGG19Features with the same layers.
            layer_weights: layer -> its weight in both sums.
            perceptual_weight, style_weight: of the sum over features and of the sum over Gram matrices. A sum with weight 0 is
                not computed.
    Raises: ValueError: both are 0.
    """

    def __init__(
        self,
        *,
        weight: Weight,
        network: nn.Module,
        layer_weights: Mapping[str, Annotated[float, Ge(0)]],
        perceptual_weight: Annotated[float, Ge(0)],
        style_weight: Annotated[float, Ge(0)],
    ) -> None:
        super().__init__(weight=weight)
        if not perceptual_weight and not style_weight:
            raise ValueError(
                "a FeatureLoss with perceptual_weight=0 and style_weight=0 is always 0: raise one, or remove the term"
            )
        self.network, self.layer_weights = Frozen(network), dict(layer_weights)
        self.perceptual_weight, self.style_weight = perceptual_weight, style_weight

    def forward(self, restored: Tensor, hq: Tensor) -> Tensor:
        """restored: (b, 3, h, w), about [0, 1]. hq: (b, 3, h, w) in [0, 1]. Returns a scalar."""
        made = self.network(restored)
        with torch.no_grad():
            wanted = self.network(hq)
        with torch.autocast(restored.device.type, enabled=False):  # a Gram matrix sums over all pixels
            return torch.stack([w * self._distance(made[name], wanted[name]) for name, w in self.layer_weights.items()]).sum()

    def _distance(self, made: Tensor, wanted: Tensor) -> Tensor:
        distance = made.new_zeros(())
        if self.perceptual_weight:
            distance = distance + self.perceptual_weight * F.l1_loss(made, wanted)
        if self.style_weight:
            distance = distance + self.style_weight * F.l1_loss(gram(made), gram(wanted))
        return distance

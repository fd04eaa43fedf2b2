"""Images of several sizes against the HQ, which is halved again and again."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.weighted import Loss


class Pyramid(Loss):
    """L1 averaged over each size's pixels and added up over the sizes, as GFPGAN has it for the images of its U-Net."""

    def forward(self, pyramid: Sequence[Tensor], hq: Tensor) -> Tensor:
        """Args:    pyramid: images (b, 3, s, s) in any order, about [0, 1]; s is hq's side or a half, a quarter, … of it.
                 hq: (b, 3, h, w) in [0, 1].
        Returns: a scalar.
        Raises:  ValueError: an image whose size is no such part of hq's.
        """
        with torch.autocast(hq.device.type, enabled=False):
            return torch.stack([F.l1_loss(image.float(), wanted) for image, wanted in pairs(pyramid, hq.float())]).sum()


def pairs(pyramid: Sequence[Tensor], hq: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each image with the HQ of its size. Each HQ is the next larger one, halved bilinearly. Raises ValueError as above."""
    smallest = min(image.shape[-1] for image in pyramid)
    levels = {hq.shape[-2:]: hq}
    while hq.shape[-1] >= 2 * smallest:
        hq = F.interpolate(hq, scale_factor=0.5, mode="bilinear", align_corners=False)
        levels[hq.shape[-2:]] = hq
    for image in pyramid:
        if image.shape[-2:] not in levels:
            sizes = ", ".join(f"{height}x{width}" for height, width in levels)
            raise ValueError(f"an image of {image.shape[-2]}x{image.shape[-1]} in the pyramid; the HQ comes as {sizes}")
    return [(image, levels[image.shape[-2:]]) for image in pyramid]

"""The colours of one image with the details of another: DiffBIR's colour fix, which StableSR and SUPIR share."""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 5


def wavelet_colour_fix(content: Tensor, style: Tensor) -> Tensor:
    """The fine structure of `content` on the coarse one of `style`; both (b, 3, h, w), same shape out, not clamped."""
    return content - coarse(content) + coarse(style)


def coarse(image: Tensor) -> Tensor:
    """(b, c, h, w), same shape out: smoothed five times by a 3x3 binomial filter, its taps 1, 2, 4, 8 and 16 pixels apart."""
    tap = image.new_tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(tap, tap).expand(image.shape[1], 1, 3, 3)
    for level in range(LEVELS):
        radius = 2**level
        padded = F.pad(image, (radius, radius, radius, radius), mode="replicate")
        image = F.conv2d(padded, kernel, groups=image.shape[1], dilation=radius)
    return image

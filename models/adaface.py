"""AdaFace's embedder of faces (Kim et al. 2022, arXiv:2204.00964): the improved residual networks of its net.py."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 101: (3, 13, 30, 3)}
WIDTHS = (64, 128, 256, 512)


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a gate in [0, 1] that is computed from the means of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, h, w), same shape out."""
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class Bottleneck(nn.Module):
    """Norm, convolution, norm, PReLU, strided convolution, norm; nothing follows the sum with the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        if inputs == outputs:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        if squeeze:
            self.res_layer.add_module("se_block", SqueezeExcitation(outputs, 16))

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride), sides rounded up."""
        return self.res_layer(x) + self.shortcut_layer(x)


class AdaFace(nn.Module):
    """Aligned faces to unit vectors, whose cosine says how alike two people look. Keys are the official ones.

    Args: layers: the number in the network's name (ir_18, ir_50, …). mode: "ir_se" has squeeze and excitation in each block.
    """

    face_px = 112

    def __init__(self, *, layers: Literal[18, 34, 50, 101], mode: Literal["ir", "ir_se"]) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        blocks, inputs = [], 64
        for width, units in zip(WIDTHS, UNITS[layers], strict=True):
            for unit in range(units):
                blocks.append(Bottleneck(inputs, width, 2 if unit == 0 else 1, mode == "ir_se"))
                inputs = width
        self.body = nn.Sequential(*blocks)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, 512),
            nn.BatchNorm1d(512, affine=False),
        )

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Args:    faces: (b, 3, 112, 112) RGB in [0, 1], with eyes, nose and mouth where ArcFace's template has them.
        Returns: the embeddings (b, 512), of unit length, and the norms (b, 1) that they had before: large for faces that are
                 easy to recognise.
        """
        x = self.output_layer(self.body(self.input_layer(2 * faces.flip(1) - 1)))  # BGR in [-1, 1], as it was trained
        norm = x.norm(dim=1, keepdim=True)
        return x / norm, norm

"""The grey ArcFace network that GFPGAN compares identities with (gfpgan/archs/arcface_arch.py, ResNet-18)."""

import torch.nn.functional as F
from torch import Tensor, nn

GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue


class Excitation(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): each channel times a weight in (0, 1) that follows from the means of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width // 16), nn.PReLU(), nn.Linear(width // 16, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(b, width, h, w) to the same."""
        return x * self.fc(x.mean((2, 3)))[..., None, None]


class IRBlock(nn.Module):
    """Norm, convolution, norm, PReLU, strided convolution, norm, excitation if any; the same PReLU again after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, use_se: bool) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.se = Excitation(outputs) if use_se else nn.Identity()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride), sides rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        return self.prelu(self.se(self.bn2(self.conv2(x))) + shortcut)


class ResNetArcFace(nn.Module):
    """Faces to embeddings of 512 numbers; keys are those of arcface_resnet18.pth.

    Args: layers: blocks of each of the four stages, [2, 2, 2, 2] as published.
          use_se: whether blocks have squeeze and excitation; the published file's have none.
    """

    face_px = 128

    def __init__(self, *, layers: list[int], use_se: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU()
        widths = (64, 64, 128, 256, 512)
        for stage, blocks in enumerate(layers, start=1):
            inputs, outputs = widths[stage - 1], widths[stage]
            further = (IRBlock(outputs, outputs, 1, use_se) for _ in range(blocks - 1))
            self.add_module(f"layer{stage}", nn.Sequential(IRBlock(inputs, outputs, 1 if stage == 1 else 2, use_se), *further))
        self.bn4 = nn.BatchNorm2d(512)
        self.dropout = nn.Dropout()
        self.fc5 = nn.Linear(512 * 8 * 8, 512)
        self.bn5 = nn.BatchNorm1d(512)

    def forward(self, faces: Tensor) -> Tensor:
        """(b, 3, h, w) RGB in [0, 1], whole FFHQ-aligned images, to embeddings (b, 512), not of unit length."""
        signed = 2 * faces - 1
        grey = sum(weight * signed[:, channel : channel + 1] for channel, weight in enumerate(GREY))
        return self.embed_grey(F.interpolate(grey, (128, 128), mode="bilinear", align_corners=False))  # type: ignore[arg-type]

    def embed_grey(self, grey: Tensor) -> Tensor:
        """(b, 1, 128, 128) in [-1, 1] to (b, 512)."""
        x = F.max_pool2d(self.prelu(self.bn1(self.conv1(grey))), 2)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.bn5(self.fc5(self.dropout(self.bn4(x)).flatten(1)))

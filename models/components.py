"""The parts of a face that GFPGAN gives a discriminator of their own: eyes and mouth (Wang et al. 2021, section 3.3).

Their places come as components (b, 3, 3): for left eye, right eye and mouth the x and y of the centre and half the side, in
pixels of the image. "Left" means on the left side of the image.
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torchvision.ops import roi_align

from models.kernels import laid_out
from models.stylegan2 import GAIN, ConvLayer, Resampler, activated

PARTS = ("left_eye", "right_eye", "mouth")
TEMPLATE_PX = 512  # side of the aligned faces that sizes in pixels are published for


def mirrored(components: Tensor, width_px: int) -> Tensor:
    """The components (b, 3, 3) of images that are mirrored left to right, same shape out; the two eyes change places.

    x becomes width_px - x, as in the reference, although the pixel column x of an image lands on width_px - 1 - x.
    """
    swapped = components[:, [1, 0, 2]]
    return torch.cat([width_px - swapped[..., :1], swapped[..., 1:]], -1)


def boxes_of(components: Tensor, *, eye_enlarge: float) -> Tensor:
    """(b, 3, 3) to boxes (b, 3, 4): left, top, right, bottom in pixels (reference data/ffhq_degradation_dataset.py).

    Args:    eye_enlarge: how many times as large the eyes' boxes are made, 1.4 as published.
    Raises:  ValueError: components of another shape.
    """
    if components.ndim != 3 or components.shape[1:] != (3, 3):
        raise ValueError(f"components of shape {tuple(components.shape)}: give (b, 3, 3), x, y and half a side of {PARTS}")
    half = components[..., 2:] * components.new_tensor([eye_enlarge, eye_enlarge, 1.0]).view(3, 1)
    center = components[..., :2]
    return torch.cat([center - half + 1, center + half], -1)


def cut(images: Tensor, boxes: Tensor, side_px: int) -> Tensor:
    """One box of each image, resized (RoI align, He et al. 2017): (b, c, h, w) to (b, c, side_px, side_px). Differentiable.

    Args:    boxes: (b, 4) left, top, right, bottom; what lies outside of the image is black.
             side_px: 80 for eyes and 120 for mouths of 512 px images, as published.
    Raises:  ValueError: as many boxes as images are wanted.
    """
    if boxes.shape != (len(images), 4):
        raise ValueError(f"boxes of shape {tuple(boxes.shape)} for {len(images)} images: give one each, ({len(images)}, 4)")
    full = images.float()  # half precision has no fractions of pixels
    return roi_align(full, list(boxes.to(full).unsqueeze(1)), side_px, sampling_ratio=-1, aligned=False).to(images.dtype)


class Part(nn.Module):
    """Cuts one part out of each image, as its discriminator sees it.

    Args: component: which part. eye_enlarge: see `boxes_of`.
          side_px: side of the cut for images that are 512 px wide, as published; of others in proportion.
    """

    def __init__(
        self,
        *,
        component: Literal["left_eye", "right_eye", "mouth"],
        side_px: Annotated[int, Ge(4)],
        eye_enlarge: Annotated[float, Gt(0)],
    ) -> None:
        super().__init__()
        self.number, self.side_px, self.eye_enlarge = PARTS.index(component), side_px, eye_enlarge

    def forward(self, images: Tensor, components: Tensor) -> Tensor:
        """(b, c, h, w) and (b, 3, 3) to (b, c, side, side), side being side_px * w / 512, rounded.

        Raises: ValueError: that is below 4 px, where the discriminator has no pixel left.
        """
        width = images.shape[-1]
        side = round(self.side_px * width / TEMPLATE_PX)
        if side < 4:
            raise ValueError(
                f"a part's side_px={self.side_px} at 512 px leaves {side} px of the {PARTS[self.number]} in images {width} px "
                "wide, and its discriminator needs 4: choose a larger data.size, or model=gfpgan_simple, which has no parts"
            )
        return cut(images, boxes_of(components, eye_enlarge=self.eye_enlarge)[:, self.number], side)


class FacialComponentDiscriminator(nn.Module):
    """Judges patch by patch whether a part of a face is real. Its widths are fixed.

    Keys are those of TencentARC/GFPGAN gfpgan/archs/gfpganv1_arch.py.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvLayer(3, 64, 3)
        self.conv2 = ConvLayer(64, 128, 3, halves=True)
        self.conv3 = ConvLayer(128, 128, 3)
        self.conv4 = ConvLayer(128, 256, 3, halves=True)
        self.conv5 = ConvLayer(256, 256, 3)
        self.final_conv = ConvLayer(256, 1, 3, activate=False, bias=True)
        self.resampler = Resampler([1.0, 3.0, 3.0, 1.0])

    def forward(self, image: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] to logits (b, 1, h // 4, w // 4)."""
        return self.logits(self.features(image))

    def features(self, image: Tensor) -> list[Tensor]:
        """What style losses compare: (b, 128, h // 2, w // 2) and (b, 256, h // 4, w // 4), after their activations."""
        half = self.conv3(self._halved(self.conv1(laid_out(2 * image - 1)), self.conv2))
        return [half, self.conv5(self._halved(half, self.conv4))]

    def logits(self, features: list[Tensor]) -> Tensor:
        """The logits (b, 1, h // 4, w // 4) that belong to the output of `features`."""
        return self.final_conv(features[-1])

    def _halved(self, x: Tensor, layer: ConvLayer) -> Tensor:
        return activated(self.resampler.halve_convolution(x, *layer.folded(GAIN)))

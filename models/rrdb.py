"""RRDBNet of ESRGAN (Wang et al. 2018, arXiv:1809.00219), as in Real-ESRGAN, BSRGAN and BSRNet: enlarges photographs.

Keys are those of Real-ESRGAN (xinntao/BasicSR basicsr/archs/rrdbnet_arch.py); models/files/families/rrdb.py knows the other
names that the same weights have. Letters in shapes: b batch, c channels.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

Positive = Annotated[int, Ge(1)]
Form = Literal["real_esrgan", "esrgan", "esrgan_old"]
SHARE = 0.2  # of what a block makes, added to what it was given


class RRDBNet(nn.Module):
    """Enlarges an image by a power of two, or restores it at its size; official weights load with strict=True.

    Args:
        scale: output size over input size.
        unshuffle: so many pixels a side become channels before the body (Real-ESRGAN: 2 at scale 2, 4 at scale 1).
        num_feat: channels of the body. num_block: RRDBs in it. num_grow_ch: channels that each dense convolution adds.
        form: whose names an official export has: Real-ESRGAN's; BSRGAN's, which are ESRGAN's; or those of ESRGAN's first
            files (`model.0`, `model.1.sub.0`, …). Nothing else follows from it.

    Raises: ValueError: scale * unshuffle is no power of two.
    """

    def __init__(
        self,
        *,
        scale: Literal[1, 2, 4, 8],
        unshuffle: Literal[1, 2, 4],
        num_feat: Positive,
        num_block: Positive,
        num_grow_ch: Positive,
        form: Form,
    ) -> None:
        super().__init__()
        self.doublings = (scale * unshuffle).bit_length() - 1  # that undo the unshuffling, and those that enlarge
        if scale * unshuffle != 2**self.doublings:
            raise ValueError(f"network.scale={scale} with network.unshuffle={unshuffle}: give powers of two")
        self.scale, self.unshuffle, self.form = scale, unshuffle, form
        self.multiple = unshuffle  # images are padded until both sides are multiples of it
        self.conv_first = nn.Conv2d(3 * unshuffle**2, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(ResidualInResidual(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        for i in range(1, self.doublings + 1):
            self.add_module(f"conv_up{i}", nn.Conv2d(num_feat, num_feat, 3, padding=1))
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv_last = nn.Conv2d(num_feat, 3, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        """Args:    lq: (b, 3, h, w) in [0, 1], any h and w that reflection can pad to a multiple of unshuffle.
        Returns: (b, 3, h * scale, w * scale), about [0, 1], not clamped.
        Raises:  ValueError: a side is too small to be padded.
        """
        height, width = lq.shape[-2:]
        x = F.pixel_unshuffle(self._pad(lq), self.unshuffle)
        x = self.conv_first(x.contiguous(memory_format=torch.channels_last))  # a quarter less time on a CPU
        x = x + self.conv_body(self.body(x))
        for i in range(1, self.doublings + 1):
            x = leaky(self.get_submodule(f"conv_up{i}")(F.interpolate(x, scale_factor=2.0)))  # nearest
        restored: Tensor = self.conv_last(leaky(self.conv_hr(x)))
        return restored[..., : height * self.scale, : width * self.scale]

    def _pad(self, lq: Tensor) -> Tensor:
        """Reflected, bottom and right, as Real-ESRGAN's program does."""
        height, width = lq.shape[-2:]
        bottom, right = -height % self.unshuffle, -width % self.unshuffle
        if bottom >= height or right >= width:
            raise ValueError(
                f"an image of {height}x{width} is too small to be padded by reflection to a multiple of network.unshuffle="
                f"{self.unshuffle}: give images of more than {self.unshuffle // 2} pixels a side"
            )
        return F.pad(lq, (0, right, 0, bottom), mode="reflect") if bottom or right else lq


class ResidualInResidual(nn.Module):
    """RRDB: three dense blocks, and a share of what they make added to what they were given (Wang et al. 2018, figure 4)."""

    def __init__(self, c: int, grow: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(c, grow) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w); same shape out."""
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=SHARE)


class Dense(nn.Module):
    """Five convolutions, each of which sees all before it; residual. They start at a tenth of He's values, as published."""

    def __init__(self, c: int, grow: int) -> None:
        super().__init__()
        for i in range(5):
            convolution = nn.Conv2d(c + i * grow, c if i == 4 else grow, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight)
            convolution.weight.data.mul_(0.1)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            self.add_module(f"conv{i + 1}", convolution)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w); same shape out."""
        seen = x
        for i in range(1, 5):
            seen = torch.cat([seen, leaky(self.get_submodule(f"conv{i}")(seen))], dim=1)
        return torch.add(x, self.get_submodule("conv5")(seen), alpha=SHARE)


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU of slope 0.2, in place."""
    return F.leaky_relu(x, 0.2, inplace=True)

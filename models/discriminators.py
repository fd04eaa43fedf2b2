"""Discriminators: images (b, 3, h, w) in [0, 1] to maps of logits, which are above 0 where an image looks real."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm


class UNetDiscriminatorSN(nn.Module):
    """A U-Net with spectral norm that judges every pixel (Wang et al. 2021, Real-ESRGAN, section 3.4).

    DT-BFR and HGGT use it as well. Keys are those of basicsr/archs/discriminator_arch.py.

    Args: num_in_ch: image channels. num_feat: width of the first level.
          skip_connection: whether the features of the encoder are added in the decoder.
    """

    def __init__(self, *, num_in_ch: int, num_feat: int, skip_connection: bool) -> None:
        super().__init__()
        self.skip_connection = skip_connection
        n = num_feat
        self.conv0 = nn.Conv2d(num_in_ch, n, 3, padding=1)
        self.conv1 = spectral_norm(nn.Conv2d(n, 2 * n, 4, stride=2, padding=1, bias=False))
        self.conv2 = spectral_norm(nn.Conv2d(2 * n, 4 * n, 4, stride=2, padding=1, bias=False))
        self.conv3 = spectral_norm(nn.Conv2d(4 * n, 8 * n, 4, stride=2, padding=1, bias=False))
        self.conv4 = spectral_norm(nn.Conv2d(8 * n, 4 * n, 3, padding=1, bias=False))
        self.conv5 = spectral_norm(nn.Conv2d(4 * n, 2 * n, 3, padding=1, bias=False))
        self.conv6 = spectral_norm(nn.Conv2d(2 * n, n, 3, padding=1, bias=False))
        self.conv7 = spectral_norm(nn.Conv2d(n, n, 3, padding=1, bias=False))
        self.conv8 = spectral_norm(nn.Conv2d(n, n, 3, padding=1, bias=False))
        self.conv9 = nn.Conv2d(n, 1, 3, padding=1)

    def features(self, image: Tensor) -> list[Tensor]:
        """The four levels of the encoder and the three of the decoder, after their activations; f = num_feat.

        (b, 3, h, w) to (b, f, h, w), (b, 2f, h/2, w/2), (b, 4f, h/4, w/4), (b, 8f, h/8, w/8), and back to (b, f, h, w).

        Raises: ValueError: a side is no multiple of 8.
        """
        height, width = image.shape[-2:]
        if height % 8 or width % 8:
            raise ValueError(
                f"UNetDiscriminatorSN halves an image three times, and {height}x{width} is no multiple of 8: change data.size"
            )
        levels = [_activated(self.conv0(image))]
        for conv in (self.conv1, self.conv2, self.conv3):
            levels.append(_activated(conv(levels[-1])))
        x = levels[3]
        for conv, skip in zip((self.conv4, self.conv5, self.conv6), levels[2::-1], strict=True):
            x = _activated(conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)))
            x = x + skip if self.skip_connection else x
            levels.append(x)
        return levels

    def forward(self, image: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] to logits (b, 1, h, w)."""
        return self.logits(self.features(image))

    def logits(self, features: list[Tensor]) -> Tensor:
        """The logits (b, 1, h, w) that belong to the output of `features`."""
        return self.conv9(_activated(self.conv8(_activated(self.conv7(features[-1])))))


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class VQGANDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017) with batch norm, as VQGAN and CodeFormer's stages I and III have it.

    Keys are those of CodeFormer's basicsr/archs/vqgan_arch.py. The reference's norms always use the batch's own statistics.

    Args: nc: image channels. ndf: width of the first layer. n_layers: number of layers that halve the side.
    """

    def __init__(self, *, nc: int, ndf: int, n_layers: int) -> None:
        super().__init__()
        widths = [ndf * min(2**level, 8) for level in range(n_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(nc, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, n_layers + 1):
            stride = 2 if level < n_layers else 1
            layers += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[level]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] to logits (b, 1, about h / 2 ** n_layers, about w / 2 ** n_layers)."""
        return self.main(2 * image - 1)

    def features(self, image: Tensor) -> list[Tensor]:
        """The maps (b, c, h, w) after each activation, n_layers + 1 of them."""
        x, found = 2 * image - 1, []
        for layer in self.main[:-1]:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                found.append(x)
        return found

"""VGG19's convolutions up to a layer (Simonyan and Zisserman 2015), for losses on features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # width and number of convolutions of each block
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class VGG19Features(nn.Module):
    """The output of chosen convolutions, before their ReLU. Keys are torchvision's, `features.N.weight`.

    Args:   layers: names from conv1_1 to conv5_4; no layer after the deepest of them is built.
    Raises: ValueError: a layer that VGG19 does not have.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, layers: Sequence[str]) -> None:
        super().__init__()
        names, modules = [], []
        inputs = 3
        for block, (width, convolutions) in enumerate(BLOCKS, start=1):
            for number in range(1, convolutions + 1):
                names += [f"conv{block}_{number}", ""]
                modules += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            names.append("")
            modules.append(nn.MaxPool2d(2))
        if unknown := [layer for layer in layers if layer not in names] or not layers:
            raise ValueError(f"VGG19 has no layers {unknown}: choose of {', '.join(name for name in names if name)}")
        self.places = {name: names.index(name) for name in layers}
        self.features = nn.Sequential(*modules[: max(self.places.values()) + 1])
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(b, 3, h, w) RGB in [0, 1] to the features of each chosen layer, by its name: (b, c, h / 2 ** n, w / 2 ** n).

        n is the number of poolings before the layer, which is 0 for conv1_x and 4 for conv5_x. Sides are rounded down.
        """
        x, found = (images - self.mean) / self.std, {}
        wanted = {place: name for name, place in self.places.items()}
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in wanted:
                found[wanted[place]] = x
        return found

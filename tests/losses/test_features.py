"""The loss on features by hand, with a network that gives twice its image, and its square."""

import pytest
import torch
from torch import Tensor, nn

from losses.features import FeatureLoss, gram


class Toy(nn.Module):
    weights_from = "this file"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"double": 2 * images, "square": images.square()}


RESTORED = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(1, 2, 1, 2)
HQ = torch.zeros(1, 2, 1, 2)


def loss(**changes) -> FeatureLoss:
    options = {"weight": 1.0, "network": Toy(), "layer_weights": {"double": 1.0, "square": 0.5}}
    return FeatureLoss(**{**options, "perceptual_weight": 1.0, "style_weight": 0.0, **changes})


def test_gram() -> None:
    assert torch.allclose(gram(RESTORED), torch.tensor([[[1.0, 3.0], [3.0, 13.0]]]) / 4)


def test_perceptual_and_style() -> None:
    assert loss()(RESTORED, HQ).item() == pytest.approx(2 * 1.5 + 0.5 * (0 + 1 + 4 + 9) / 4)
    style = 4 * (1 + 3 + 3 + 13) / 4 / 4 + 0.5 * (1 + 9 + 9 + (16 + 81)) / 4 / 4
    assert loss(perceptual_weight=0.0, style_weight=50.0)(RESTORED, HQ).item() == pytest.approx(50 * style)
    assert loss(style_weight=50.0)(RESTORED, HQ).item() == pytest.approx(50 * style + 3 + 1.75)


def test_hq_is_a_target_alone() -> None:
    restored, hq = RESTORED.clone().requires_grad_(), HQ.clone().requires_grad_()
    loss()(restored, hq).backward()
    assert restored.grad is not None
    # of (|2x| + 0.5 x^2) / 4
    assert restored.grad.flatten().tolist() == pytest.approx([0, 0.75, 1, 1.25])
    assert hq.grad is None


def test_refusals() -> None:
    with pytest.raises(ValueError, match="always 0"):
        loss(perceptual_weight=0.0)
    with pytest.raises(ValueError, match="the frozen network Linear has no trained weights"):
        loss(network=nn.Linear(1, 1))

"""The pyramid's term and the style of parts, by hand."""

import pytest
import torch

from losses.pyramid import Pyramid
from losses.regions import ComponentStyle


def test_pyramid_by_hand() -> None:
    hq = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 4).expand(1, 3, 4, 4)  # halved: columns 0.5, 2.5; then 1.5
    made = [torch.full((1, 3, side, side), 0.5) for side in (1, 2, 4)]
    assert Pyramid(weight=1.0)(pyramid=made, hq=hq).item() == pytest.approx(1 + 1 + (0.5 + 0.5 + 1.5 + 2.5) / 4)
    assert Pyramid(weight=1.0)(pyramid=made[1:2], hq=hq).item() == pytest.approx(1)


def test_pyramid_wants_halves() -> None:
    with pytest.raises(ValueError, match=r"an image of 3x3 in the pyramid; the HQ comes as 8x8, 4x4"):
        Pyramid(weight=1.0)(pyramid=[torch.zeros(1, 3, 3, 3)], hq=torch.zeros(1, 3, 8, 8))


def test_component_style_by_hand() -> None:
    fake = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 2, 1, 2).requires_grad_()  # gram 1, 3, 3, 13 over 4
    real = torch.ones(1, 2, 1, 2).requires_grad_()  # gram 2, 2, 2, 2 over 4
    loss = ComponentStyle(weight=1.0, of="mouth")({"mouth": [fake, 2 * fake]}, {"mouth": [real, real]})
    first, second = (1 + 1 + 1 + 11) / 16, (2 + 10 + 10 + 50) / 16
    assert loss.item() == pytest.approx(0.5 * first + second)
    loss.backward()
    assert fake.grad is not None
    assert real.grad is None

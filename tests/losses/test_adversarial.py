"""Numbers worked out by hand: logits 0, 2 of real and -1, 1 of restored images."""

from math import exp, log

import pytest
import torch
from torch import nn

from losses.adversarial import R1, Adversarial, Discriminate, FeatureMatching
from losses.weighted import Scheduled

REAL, FAKE = torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 1.0])


def softplus(x: float) -> float:
    return log(1 + exp(x))


BCE_FAKE_AS_REAL = (softplus(1) + softplus(-1)) / 2
BCE_D = (softplus(0) + softplus(-2)) / 2 + (softplus(-1) + softplus(1)) / 2


@pytest.mark.parametrize(
    ("kind", "generator", "discriminator"),
    [
        ("vanilla", BCE_FAKE_AS_REAL, BCE_D),
        ("softplus", BCE_FAKE_AS_REAL, BCE_D),
        ("hinge", 0.0, (1 + 0) / 2 + (0 + 2) / 2),
        ("lsgan", (4 + 0) / 2, (1 + 1) / 2 + (1 + 1) / 2),
    ],
)
def test_kinds(kind, generator: float, discriminator: float) -> None:
    term = Adversarial(weight=1.0, kind=kind, of="image", adaptive_at=None)
    assert term(fake_logits={"image": FAKE, "eye": REAL}).item() == pytest.approx(generator, abs=1e-6)
    assert Discriminate(weight=1.0, kind=kind)(REAL, FAKE).item() == pytest.approx(discriminator, abs=1e-6)


def test_half_precision_is_widened_first() -> None:
    logits = torch.full((2, 1, 64, 64), 0.3).bfloat16()
    assert Adversarial(weight=1.0, kind="hinge", of="d", adaptive_at=None)({"d": logits}).dtype == torch.float32


def test_r1_of_a_plane_is_its_slope() -> None:
    """D(x) = w . x has the gradient w everywhere, whatever the batch."""
    w = torch.tensor([1.0, -2.0, 2.0], requires_grad=True)
    real = torch.rand(5, 3, requires_grad=True)
    term = R1(weight=10.0, every_n_steps=16)
    penalty = term(real=real, real_logits=real @ w)
    assert penalty.item() == pytest.approx(9.0)
    penalty.backward()
    assert w.grad is not None
    assert torch.allclose(w.grad, 2 * w.detach()), "it reaches the discriminator's weights"


def test_r1_is_lazy() -> None:
    term = R1(weight=10.0, every_n_steps=16)
    assert [update for update in range(1, 50) if term.weight_at(update) is not None] == [16, 32, 48]
    assert term.weight_at(16) == pytest.approx(80), "half of 10, for 16 updates"
    late = R1(weight=Scheduled(value=10.0, from_step=20), every_n_steps=16)
    assert [update for update in range(1, 50) if late.weight_at(update) is not None] == [32, 48]


def test_adaptive_weight_by_hand() -> None:
    parameter = torch.tensor([1.0, 1.0], requires_grad=True)
    others, adversarial = (parameter * torch.tensor([3.0, 4.0])).sum(), (parameter * torch.tensor([0.0, 10.0])).sum()
    for scale in (1.0, 4096.0):
        found = Adversarial.adaptive_weight(others, adversarial, parameter, scale)
        assert found.item() == pytest.approx(5 / (10 + 1e-4))
    assert not found.requires_grad
    assert Adversarial.adaptive_weight(adversarial, others, parameter).item() == 1, "at most 1"


def test_feature_matching_by_hand() -> None:
    fake = {"image": [torch.tensor([1.0, 3.0]), torch.tensor([5.0])]}
    real = {"image": [torch.tensor([0.0, 0.0], requires_grad=True), torch.tensor([1.0])]}
    value = FeatureMatching(weight=1.0, of="image")(fake, real)
    assert value.item() == pytest.approx((2 + 4) / 2)
    assert not value.requires_grad, "what real images give is only a target"
    assert isinstance(FeatureMatching(weight=1.0, of="image"), nn.Module)

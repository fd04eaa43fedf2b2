"""Hand-worked numbers for each term and for their sum."""

import math

import pytest
import torch
from torch import nn

from losses.frozen import Frozen
from losses.perceptual import LPIPS
from losses.pixel import L1, MSE, Charbonnier
from losses.weighted import LossSet, Scheduled, grad_norms

RESTORED = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
HQ = torch.tensor([0.0, 0.0, 0.6]).view(1, 3, 1, 1)  # differences 0, 0.5, 0.4


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (MSE(weight=1, reduction="sum"), 0.25 + 0.16),
        (MSE(weight=1, reduction="mean"), (0.25 + 0.16) / 3),
        (L1(weight=1, reduction="mean"), 0.9 / 3),
        (L1(weight=1, reduction="sum"), 0.9),
        (Charbonnier(weight=1, epsilon=0.3), (0.3 + math.sqrt(0.34) + 0.5) / 3),
    ],
)
def test_pixel_terms(term: nn.Module, expected: float) -> None:
    assert term(RESTORED, HQ).item() == pytest.approx(expected, rel=1e-6)


def test_a_set_adds_weighted_terms_and_reports_raw_ones() -> None:
    loss = LossSet(terms={"mse": MSE(weight=2.0, reduction="sum"), "l1": L1(weight=0.5, reduction="sum")})
    total, terms = loss(1, restored=RESTORED.clone().requires_grad_(), hq=HQ)
    assert total.item() == pytest.approx(2 * 0.41 + 0.5 * 0.9)
    assert {name: round(term.raw.item(), 6) for name, term in terms.items()} == {"mse": 0.41, "l1": 0.9}
    assert {name: round(term.weighted.item(), 6) for name, term in terms.items()} == {"mse": 0.82, "l1": 0.45}


def test_a_set_refuses_what_it_cannot_compute() -> None:
    with pytest.raises(ValueError, match=r"loss\.terms is empty"):
        LossSet(terms={})

    class NeedsLogits(MSE):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return logits.sum()

    with pytest.raises(ValueError, match=r"loss.terms.gan needs \['logits'\], but a task offers only \['hq', 'restored'\]"):
        LossSet(terms={"gan": NeedsLogits(weight=1, reduction="sum")}).check_offered({"restored", "hq"}, "a task")
    with pytest.raises(ValueError, match=r"loss.terms: the weight of mse, l1 is 0, so there is nothing to minimise"):
        LossSet(terms={"mse": MSE(weight=0, reduction="sum"), "l1": L1(weight=0, reduction="sum")})


def test_weights_by_update() -> None:
    ramp = Scheduled(value=0.6, from_step=2, until_step=6, ramp_steps=3)
    assert [ramp.at(update) for update in range(1, 8)] == [None, None, pytest.approx(0.2), pytest.approx(0.4), 0.6, 0.6, None]
    with pytest.raises(ValueError, match="from_step=5 until_step=5 is never on"):
        Scheduled(value=1, from_step=5, until_step=5)
    restored = RESTORED.clone().requires_grad_()
    loss = LossSet(terms={"mse": MSE(weight=1.0, reduction="sum"), "l1": L1(weight=ramp, reduction="sum")})
    assert list(loss(2, restored=restored, hq=HQ)[1]) == ["mse"]
    total, terms = loss(4, restored=restored, hq=HQ)
    assert total.item() == pytest.approx(0.41 + 0.4 * 0.9)
    assert list(loss(4, {"mse"}, restored=restored, hq=HQ)[1]) == ["l1"]
    with pytest.raises(ValueError, match=r"loss.terms: no term is on in update 7"):
        LossSet(terms={"l1": L1(weight=ramp, reduction="sum")})(7, restored=restored, hq=HQ)
    assert grad_norms(terms, [restored])["l1"].item() == pytest.approx(0.4 * math.sqrt(2))


def test_weight_0_is_only_looked_at() -> None:
    restored = RESTORED.clone().requires_grad_()
    loss = LossSet(terms={"mse": MSE(weight=1.0, reduction="sum"), "l1": L1(weight=0, reduction="sum")})
    total, terms = loss(1, restored=restored, hq=HQ)
    assert total.item() == pytest.approx(0.41)
    assert terms["l1"].raw.item() == pytest.approx(0.9)
    assert list(grad_norms(terms, [restored])) == ["mse"]


def test_frozen_is_neither_trained_nor_saved_but_follows_dtype() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9))
    with pytest.raises(ValueError, match="the frozen network Sequential has no trained weights, and random ones teach nothing"):
        Frozen(network)
    network.weights_from = "this test"  # type: ignore[assignment]
    owner = nn.Sequential(nn.Linear(2, 2), Frozen(network))
    assert set(owner.state_dict()) == {"0.weight", "0.bias"}
    assert len(list(owner.parameters())) == 2
    owner.train().double()
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(owner[1](x), owner[1](x)), "dropout is on: not in eval mode"
    owner[1](x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def alexnet() -> dict[str, torch.Tensor]:
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.alexnet(weights=None).features.state_dict(prefix="features.")


def test_lpips_has_the_backbone_that_it_is_given(alexnet: dict[str, torch.Tensor]) -> None:
    term = LPIPS(weight=1, net="alex", reduction="mean", backbone=lambda: alexnet)
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64, requires_grad=True)
    assert term(a, a).item() == pytest.approx(0, abs=1e-7)
    distance = term(b, a)
    distance.backward()
    assert distance > 0
    assert b.grad is not None
    assert b.grad.abs().sum() > 0
    assert not list(term.parameters())
    assert not term.state_dict()
    inside = term.metric.frozen[0].net.state_dict()["slice2.3.weight"]
    assert torch.equal(inside, alexnet["features.3.weight"])
    summed = LPIPS(weight=1, net="alex", reduction="sum", backbone=lambda: alexnet)
    assert summed(b, a).item() == pytest.approx(2 * distance.item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lpips_in_any_precision(alexnet: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """bf16-mixed: the images come in half precision and the network stays; bf16-true: it follows. Validation gives float32."""
    term = LPIPS(weight=1, net="alex", reduction="mean", backbone=lambda: alexnet)
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    exact = term(a, b).item()
    term.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        for restored, hq in ((a.bfloat16(), b), (a, b), (a.bfloat16(), b.bfloat16())):
            assert term(restored, hq).item() == pytest.approx(exact, rel=2e-2)


def test_lpips_never_runs_with_random_weights(alexnet: dict[str, torch.Tensor]) -> None:
    def missing() -> dict[str, torch.Tensor]:
        raise FileNotFoundError("vgg16.pth does not exist")

    with pytest.raises(FileNotFoundError, match=r"vgg16.pth does not exist"):
        LPIPS(weight=1, net="vgg", reduction="mean", backbone=missing)
    with pytest.raises(ValueError, match=r"net=vgg was given the weights of another network \(features.0.weight \(64, 3, 11"):
        LPIPS(weight=1, net="vgg", reduction="mean", backbone=lambda: alexnet)
    with pytest.raises(ValueError, match=r"features.0.weight None in place of \(64, 3, 3, 3\)"):
        LPIPS(weight=1, net="vgg", reduction="mean", backbone=lambda: {"conv.weight": torch.ones(1)})

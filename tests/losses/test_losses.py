"""Hand-worked numbers for each term and for their sum."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from losses.frozen import Frozen
from losses.perceptual import LPIPS
from losses.pixel import L1, MSE, Charbonnier
from losses.weighted import LossSet

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
    total, raw = loss(restored=RESTORED, hq=HQ)
    assert total.item() == pytest.approx(2 * 0.41 + 0.5 * 0.9)
    assert {name: round(value.item(), 6) for name, value in raw.items()} == {"mse": 0.41, "l1": 0.9}


def test_a_set_refuses_what_it_cannot_compute() -> None:
    with pytest.raises(ValueError, match=r"loss\.terms is empty"):
        LossSet(terms={})

    class NeedsLogits(MSE):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return logits.sum()

    with pytest.raises(ValueError, match=r"loss.terms.gan needs \['logits'\].*offers only \['hq', 'restored'\]"):
        LossSet(terms={"gan": NeedsLogits(weight=1, reduction="sum")})(restored=RESTORED, hq=HQ)


def test_frozen_is_neither_trained_nor_saved_but_follows_dtype() -> None:
    owner = nn.Sequential(nn.Linear(2, 2), Frozen(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9))))
    assert set(owner.state_dict()) == {"0.weight", "0.bias"}
    assert len(list(owner.parameters())) == 2
    owner.train().double()
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(owner[1](x), owner[1](x)), "dropout is on: not in eval mode"
    owner[1](x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.fixture
def alexnet_file(tmp_path: Path) -> Path:
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


def test_lpips_takes_its_backbone_from_the_named_file(alexnet_file: Path) -> None:
    term = LPIPS(weight=1, net="alex", backbone=str(alexnet_file))
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64, requires_grad=True)
    assert term(a, a).item() == pytest.approx(0, abs=1e-7)
    distance = term(b, a)
    distance.backward()
    assert distance > 0
    assert b.grad is not None
    assert b.grad.abs().sum() > 0
    assert not list(term.parameters())
    assert not term.state_dict()
    inside = term.metric._network[0].net.state_dict()["slice2.3.weight"]
    assert torch.equal(inside, torch.load(alexnet_file, weights_only=True)["features.3.weight"])


def test_lpips_never_runs_with_random_weights(tmp_path: Path, alexnet_file: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"LPIPS with net=vgg needs .*nowhere.pth does not exist: put https://.*vgg16-397923af"
    ):
        LPIPS(weight=1, net="vgg", backbone=str(tmp_path / "nowhere.pth"))
    with pytest.raises(ValueError, match=r"alexnet.pth holds another network than vgg \(first layer \(64, 3, 11, 11\)\)"):
        LPIPS(weight=1, net="vgg", backbone=str(alexnet_file))
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"broken.pth is not a torchvision state dict of alex"):
        LPIPS(weight=1, net="alex", backbone=str(tmp_path / "broken.pth"))

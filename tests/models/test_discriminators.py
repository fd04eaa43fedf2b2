"""Discriminators: official keys, and outputs of the published code."""

import pytest
import torch
from torch import nn

from models.discriminators import UNetDiscriminatorSN, VQGANDiscriminator
from tests.parity.cases import folders, manifest, manifests_in

MANIFESTS = [path for folder in folders() for path in manifests_in(folder) if "vqgan_discriminator" in path.name]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name.split(".json")[0])
def test_the_patch_discriminator_has_the_official_keys(path) -> None:
    official = manifest(path)
    ours = VQGANDiscriminator(**official["config"]).state_dict()
    assert {key: list(value.shape) for key, value in ours.items()} == official["state_dict"]


@pytest.mark.parametrize("skip", [True, False])
def test_the_unet_is_basicsrs(skip: bool) -> None:
    from tests.basicsr_peer import discriminators as peer

    torch.manual_seed(0)
    theirs = peer.UNetDiscriminatorSN(3, 8, skip)
    ours = UNetDiscriminatorSN(num_in_ch=3, num_feat=8, skip_connection=skip)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image = torch.rand(2, 3, 40, 56)
    for _ in range(3):  # in training each call moves the power iteration on
        assert torch.allclose(ours(image), theirs(image), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(image), theirs.eval()(image), atol=1e-6)
    state = theirs.state_dict()
    assert all(torch.allclose(value, state[key], atol=1e-6) for key, value in ours.state_dict().items())


def test_the_unet_wants_multiples_of_8() -> None:
    with pytest.raises(ValueError, match="36x40 is no multiple of 8"):
        UNetDiscriminatorSN(num_in_ch=3, num_feat=4, skip_connection=True)(torch.rand(1, 3, 36, 40))


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (UNetDiscriminatorSN(num_in_ch=3, num_feat=4, skip_connection=True), 7),
        (VQGANDiscriminator(nc=3, ndf=4, n_layers=3), 4),
    ],
)
def test_features(network: nn.Module, count: int) -> None:
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    features = network.eval().features(image)  # type: ignore[operator]
    assert len(features) == count
    kept = [each.clone() for each in features]
    network(image).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(features, kept, strict=True)), "nothing overwrites them"
    assert image.grad is not None

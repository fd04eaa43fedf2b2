"""Embedders of faces and VGG's features: what parity does not see."""

import facenet_pytorch
import pytest
import torch
import torchvision
from torch import nn

from models.adaface import AdaFace
from models.arcface import ResNetArcFace
from models.facenet import FaceNet
from models.vgg import VGG19Features
from tests.parity.cases import folders, manifest, manifests_in
from tests.parity.families.adaface import adaface_arguments

NAMES = ("adaface", "gfpgan_arcface")
MANIFESTS = [path for folder in folders() for path in manifests_in(folder) if path.name.startswith(NAMES)]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name.split(".json")[0])
def test_official_keys(path, monkeypatch: pytest.MonkeyPatch) -> None:
    for draw in ("kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, draw, lambda values, *_, **__: values)
    official = manifest(path)
    if "model_name" in official["config"]:
        network: nn.Module = AdaFace(**adaface_arguments(official["config"]["model_name"]))
    else:
        network = ResNetArcFace(layers=official["config"]["layers"])
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == official["state_dict"]


def test_there_are_manifests() -> None:
    assert len(MANIFESTS) >= 2


def test_adaface_wants_rgb() -> None:
    torch.manual_seed(0)
    network, face = AdaFace(layers=18, mode="ir").eval(), torch.rand(2, 3, 112, 112)
    embedding, norm = network(face)
    assert embedding.shape == (2, 512)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(2), atol=1e-6)
    assert norm.shape == (2, 1)
    signed_bgr = 2 * face[:, [2, 1, 0]] - 1
    inside = network.output_layer(network.body(network.input_layer(signed_bgr)))
    assert torch.allclose(inside, norm * embedding, atol=1e-4)


def test_facenet_is_the_packages() -> None:
    torch.manual_seed(0)
    ours = FaceNet(num_classes=7).eval()
    theirs = facenet_pytorch.InceptionResnetV1(classify=True, num_classes=7)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    theirs.classify = False
    face = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.allclose(ours(face), theirs.eval()(facenet_pytorch.fixed_image_standardization(255 * face)), atol=1e-6)


def test_vgg_is_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.vgg19(weights=None).features.eval()
    ours = VGG19Features(layers=["conv3_4", "conv1_2"])
    state = {f"features.{key}": value for key, value in theirs.state_dict().items()}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not missing
    assert all(int(key.split(".")[1]) > 16 for key in unexpected), "nothing behind the deepest layer is built"
    images = torch.rand(1, 3, 32, 32)
    normal = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        found = ours(images)
        assert torch.allclose(found["conv1_2"], theirs[:3](normal), atol=1e-5)
        assert torch.allclose(found["conv3_4"], theirs[:17](normal), atol=1e-5)
    assert (found["conv3_4"] < 0).any(), "before its ReLU"
    with pytest.raises(ValueError, match=r"VGG19 has no layers \['conv6_1'\]: choose of conv1_1, conv1_2"):
        VGG19Features(layers=["conv6_1"])

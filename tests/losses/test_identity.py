"""The identity loss: where it looks, what its gradient is, and the challenge's own way of cutting and comparing."""

import cv2
import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor, nn

from data.landmarks import TEMPLATE
from losses.identity import (
    ARCFACE_112,
    FFHQ_512,
    Identity,
    aligned_faces,
    crop_to_image,
    ffhq_landmarks,
    identity_similarity,
)
from models.adaface import AdaFace


class Toy(nn.Module):
    """Embeds a face as the means of its quarters."""

    weights_from = "this file"
    face_px = 16

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        x = nn.functional.adaptive_avg_pool2d(faces, 4).flatten(1)
        return x, x.norm(dim=1)


def portrait(side: int = 512) -> np.ndarray:
    """Eileen Collins, about as FFHQ would cut her; (side, side, 3) uint8."""
    return cv2.resize(data.astronaut()[0:240, 100:340], (side, side), interpolation=cv2.INTER_AREA)


def to_tensor(photo: np.ndarray) -> Tensor:
    return torch.from_numpy(photo).permute(2, 0, 1)[None] / 255


def challenge_matrix(landmarks: np.ndarray) -> np.ndarray:
    """Image to crop, as the challenge's scorer fits it: least squares from the template to the image, then inverted."""
    rows, wanted = [], []
    for (x, y), (u, v) in zip(np.array(ARCFACE_112), landmarks, strict=True):
        rows += [[x, y, 1, 0], [y, -x, 0, 1]]
        wanted += [u, v]
    a, b, c, d = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
    return np.linalg.inv(np.array([[a, b, c], [-b, a, d], [0, 0, 1]]))[:2]


def test_the_template_is_the_aligners() -> None:
    assert np.allclose(FFHQ_512, TEMPLATE, atol=1e-3)
    assert np.allclose(ffhq_landmarks(256)[0], (np.array(FFHQ_512) + 0.5) / 2 - 0.5)


def test_the_transform_is_the_challenges() -> None:
    rng = np.random.default_rng(0)
    landmarks = np.array(FFHQ_512) + rng.normal(0, 9, (5, 2))
    ours = crop_to_image(torch.from_numpy(landmarks)[None], 112)[0].numpy()
    assert np.allclose(cv2.invertAffineTransform(ours), challenge_matrix(landmarks), atol=1e-9)
    exact = crop_to_image(torch.tensor(ARCFACE_112)[None] * 3 + 7, 112)[0]
    assert torch.allclose(exact, torch.tensor([[3.0, 0, 7], [0, 3, 7]], dtype=torch.float64), atol=1e-4)


def bilinear(photo: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(h, w, 3) float64 read at (m, n, 2) places x, y by the formula itself; black outside."""
    framed = np.pad(photo, ((1, 1), (1, 1), (0, 0)))
    last = np.array(framed.shape[1::-1]) - 1
    corner = np.floor(at).astype(int)
    read = np.zeros((*at.shape[:2], 3))
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        place = corner + np.array([dx, dy])
        share = np.prod(1 - np.abs(at - place), axis=-1)
        x, y = np.moveaxis(np.clip(place + 1, 0, last), -1, 0)
        read += share[..., None] * framed[y, x]
    return read


@pytest.mark.parametrize("face_px", [112, 160])
def test_the_crop_is_exact(face_px: int) -> None:
    """In float64 the formula to 1e-12; in float32, whose places are good to 1e-5 px or so, values to 3e-5."""
    photo = portrait() / 255
    (to_image,) = crop_to_image(ffhq_landmarks(512), face_px).numpy()
    y, x = np.mgrid[0:face_px, 0:face_px]
    wanted = bilinear(photo, np.stack([x, y, np.ones_like(x)], -1) @ to_image.T)
    image = torch.from_numpy(photo).permute(2, 0, 1)[None]
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 3e-5)):
        ours = aligned_faces(image.to(dtype), face_px)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=atol)


def test_the_crop_is_opencvs() -> None:
    """OpenCV 5.0 reads at exact places; 4.11 at whole 1/32 px, up to 0.007 off on this portrait, 0.0002 on average."""
    photo = portrait()
    (to_image,) = crop_to_image(ffhq_landmarks(512), 112).numpy()
    theirs = cv2.warpAffine(photo.astype(np.float32) / 255, cv2.invertAffineTransform(to_image), (112, 112))
    ours = aligned_faces(to_tensor(photo), 112)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() < 0.01
    assert np.abs(ours - theirs).mean() < 0.0003


def test_a_ramp_is_read_at_the_very_place() -> None:
    """Bilinear reading of x / 512 and y / 512 gives the place itself."""
    place = torch.arange(512.0) / 512
    image = torch.stack([place.expand(512, 512), place[:, None].expand(512, 512), torch.zeros(512, 512)])[None]
    crop = aligned_faces(image, 112)[0] * 512
    (to_image,) = crop_to_image(ffhq_landmarks(512), 112)
    for x, y in ((0, 0), (111, 3), (56, 71)):
        assert torch.allclose(crop[:2, y, x].double(), to_image @ torch.tensor([x, y, 1.0], dtype=torch.float64), atol=1e-3)


def test_similarity_is_the_challenges() -> None:
    """Its steps once more: 8-bit images, warpAffine, BGR in [-1, 1], unit embeddings, their product."""
    torch.manual_seed(0)
    embedder = AdaFace(layers=18, mode="ir").eval()
    sharp = portrait()
    blurred = cv2.GaussianBlur(sharp, (0, 0), 4)
    rng = np.random.default_rng(1)
    landmarks = np.array(FFHQ_512)[None] + rng.normal(0, 5, (2, 5, 2))

    def feature(photo: np.ndarray, points: np.ndarray) -> Tensor:
        crop = cv2.warpAffine(photo, challenge_matrix(points), (112, 112))
        signed_bgr = (crop[:, :, ::-1] / 255.0 - 0.5) / 0.5
        x = torch.tensor(signed_bgr.transpose(2, 0, 1).copy()).float()[None]
        x = embedder.output_layer(embedder.body(embedder.input_layer(x)))
        return x / x.norm(dim=1, keepdim=True)

    with torch.no_grad():
        theirs = [float((feature(sharp, points) @ feature(blurred, points).T).item()) for points in landmarks]
    lq, out = to_tensor(blurred).expand(2, -1, -1, -1), to_tensor(sharp).expand(2, -1, -1, -1)
    ours = identity_similarity(lq, out, embedder, torch.from_numpy(landmarks))
    assert ours.tolist() == pytest.approx(theirs, abs=1e-5)
    aligned = identity_similarity(lq[:1], out[:1], embedder)
    assert aligned.shape == (1,)
    assert 0 < aligned < 1
    assert identity_similarity(out[:1], out[:1], embedder).item() == pytest.approx(1, abs=1e-6)


def test_the_loss() -> None:
    sharp = to_tensor(portrait(128))
    term = Identity(weight=1.0, embedder=Toy())
    assert term(sharp, sharp).item() == pytest.approx(0, abs=1e-6)
    other = sharp.flip(-1) * 0.5 + 0.1
    toy = [nn.functional.normalize(Toy()(aligned_faces(image, 16))[0]) for image in (other, sharp)]
    assert term(other, sharp).item() == pytest.approx(1 - (toy[0] * toy[1]).sum().item(), rel=1e-5)
    both = term(torch.cat([other, sharp]), torch.cat([sharp, sharp]))
    assert both.item() == pytest.approx(term(other, sharp).item() / 2, rel=1e-4)


def test_its_gradient_reaches_the_image() -> None:
    """Against finite differences, in float64, at pixels of the face; nothing comes to the corner, which no crop reads."""
    torch.manual_seed(0)
    embedder = AdaFace(layers=18, mode="ir").double()
    embedder.weights_from = "this file"  # type: ignore[assignment]
    hq = to_tensor(portrait(64)).double()
    restored = (0.8 * hq + 0.1).requires_grad_()
    term = Identity(weight=1.0, embedder=embedder)
    term(restored, hq).backward()
    assert restored.grad is not None
    assert not any(p.grad is not None for p in embedder.parameters())
    for channel, y, x in ((0, 30, 24), (1, 40, 33), (2, 47, 38)):
        step = torch.zeros_like(hq)
        step[0, channel, y, x] = 1e-4
        with torch.no_grad():
            slope = (term(restored + step, hq) - term(restored - step, hq)) / 2e-4
        assert slope.item() == pytest.approx(restored.grad[0, channel, y, x].item(), rel=1e-3)
        assert slope != 0
    assert restored.grad[0, :, 0, 0].abs().sum() == 0


def test_the_embedder_stays_as_it_is() -> None:
    """Its weights are nobody's to train, and autocast does not reach it; a black restored image gives finite gradients."""
    torch.manual_seed(0)
    embedder = AdaFace(layers=18, mode="ir")
    embedder.weights_from = "this file"  # type: ignore[assignment]
    before = {key: value.clone() for key, value in embedder.state_dict().items()}
    term = Identity(weight=1.0, embedder=embedder).train()
    assert not list(term.parameters())
    assert not term.state_dict()
    hq = to_tensor(portrait(64))
    restored = (0.8 * hq).requires_grad_()
    plain = term(restored, hq)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = term(restored, hq)
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)
    black = torch.zeros_like(hq, requires_grad=True)
    term(black, hq).backward()
    assert black.grad is not None
    assert torch.isfinite(black.grad).all()
    assert all(p.grad is None for p in embedder.parameters())
    assert all(torch.equal(before[key], value) for key, value in embedder.state_dict().items()), "its norms' averages too"


def test_refusals() -> None:
    term, face = Identity(weight=1.0, embedder=Toy()), to_tensor(portrait(128))
    black = torch.cat([face, torch.zeros_like(face)])
    with pytest.raises(ValueError, match=r"no face in image 1 of the batch: its middle is of one colour"):
        term(black, black)
    assert torch.isfinite(term(torch.zeros_like(face), face)), "a black restored image is the network's to mend"
    with pytest.raises(ValueError, match=r"square aligned faces of at least 64 px, and these are 128x96"):
        term(face[..., :96, :], face[..., :96, :])
    with pytest.raises(ValueError, match=r"at least 64 px, and these are 32x32"):
        term(face[..., :32, :32], face[..., :32, :32])
    with pytest.raises(ValueError, match="the frozen network AdaFace has no trained weights"):
        Identity(weight=1.0, embedder=AdaFace(layers=18, mode="ir"))
    with pytest.raises(ValueError, match=r"lq is \(1, 3, 128, 128\) and out \(1, 3, 64, 64\): bring them to one size"):
        identity_similarity(face, face[..., :64, :64], Toy())
    with pytest.raises(ValueError, match=r"square aligned faces, not 128x96: give landmarks"):
        identity_similarity(face[..., :96, :], face[..., :96, :], Toy())

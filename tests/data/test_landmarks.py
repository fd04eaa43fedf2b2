"""The similarity transform, the crop it makes, and what is said when a detector is missing."""

import numpy as np
import pytest
import torch
from skimage.transform import SimilarityTransform

from data import landmarks
from data.landmarks import GREY_RGB, TEMPLATE, Face, Upright, affine, detector, reduced, share_outside, similarity, warp

RNG = np.random.default_rng(0)


def test_similarity_by_hand():
    points = np.array([[0, 0], [2, 0], [0, 2.0]])
    turned = np.array([[10, 5], [10, 9], [6, 5.0]])  # twice as large, a quarter turn, moved by (10, 5)
    np.testing.assert_allclose(similarity(points, turned), [[0, -2, 10], [2, 0, 5]], atol=1e-12)


def test_similarity_agrees_with_umeyama():
    points = TEMPLATE + RNG.normal(0, 30, TEMPLATE.shape)
    expected = SimilarityTransform.from_estimate(points, TEMPLATE).params[:2]
    np.testing.assert_allclose(similarity(points, TEMPLATE), expected, atol=1e-9)


def test_warp_places_pixels_and_fills_the_border():
    photo = RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    moved = warp(photo, np.array([[1.0, 0, 4], [0, 1, 2]]), 20, "grey")
    np.testing.assert_array_equal(moved[2:, 4:], photo[:-2, :-4])
    np.testing.assert_array_equal(moved[0, 0], GREY_RGB)
    mirrored = warp(photo, np.array([[1.0, 0, 4], [0, 1, 2]]), 20, "reflect")
    np.testing.assert_array_equal(mirrored[2:, 3], photo[:-2, 1])


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 8])
def test_warp_averages_where_it_shrinks(scale):
    stripes = np.zeros((512, 512, 3), dtype=np.uint8)
    stripes[:, ::2] = 200  # alone in every second column: subsampling would show 0 or 200
    shift = (scale - 1) / 2
    small = warp(stripes, np.array([[scale, 0, shift], [0, scale, shift]]), int(512 * scale), "grey")
    np.testing.assert_allclose(small[4:-4, 4:-4], 100, atol=34 if scale == 1 / 3 else 1)  # 3 columns hold 1 or 2 of them


def test_warp_keeps_places_where_it_shrinks():
    photo = np.zeros((400, 400, 3), dtype=np.uint8)
    photo[90:110, 190:210] = 255  # around (199.5, 99.5)
    small = warp(photo, np.array([[0.3, 0, 0], [0, 0.3, 0]]), 120, "reflect")[..., 0].astype(float)
    rows, columns = np.mgrid[:120, :120]
    centre = [(small * columns).sum() / small.sum(), (small * rows).sum() / small.sum()]
    np.testing.assert_allclose(centre, [59.85, 29.85], atol=0.05)


def test_share_outside():
    stay = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert share_outside(stay, 100, 100, 100) == pytest.approx(0, abs=1e-6)
    assert share_outside(stay, 100, 50, 100) == pytest.approx(0.5)
    assert share_outside(np.array([[1.0, 0, 25], [0, 1, 25]]), 100, 100, 100) == pytest.approx(1 - 0.75**2)
    assert share_outside(stay * 2, 100, 100, 100) == pytest.approx(0, abs=1e-6)


def test_reduced():
    photo = np.zeros((100, 400, 3), dtype=np.uint8)
    small, scale = reduced(photo, 200)
    assert (small.shape, scale) == ((50, 200, 3), 0.5)
    assert reduced(photo, 400)[0] is photo


def test_affine_undoes():
    points = TEMPLATE + np.array([7, -3])
    np.testing.assert_allclose(affine(similarity(points, TEMPLATE * 2), points), TEMPLATE * 2, atol=1e-9)


@pytest.mark.parametrize(("sure", "confidence"), [(0.1, 0.1), (0.9, 0.87)])
def test_what_looks_like_no_face_upright_is_as_uncertain(sure, confidence):
    def onet(looks):
        five = torch.tensor([0.3, 0.7, 0.5, 0.35, 0.65, 0.3, 0.3, 0.5, 0.7, 0.7])  # x, then y, in sides
        return None, five.expand(len(looks), 10), torch.tensor([[1 - sure, sure]]).expand(len(looks), 2)

    found = Face(np.array([0.0, 0, 99, 99]), TEMPLATE / 4, 0.87, np.nan)
    read = Upright(onet)(np.zeros((128, 128, 3), dtype=np.uint8), found)
    assert read.confidence == pytest.approx(confidence)
    assert np.isnan(read.spread_px) == (sure < 0.5)
    assert (read.points == found.points).all() == (sure < 0.5)


def test_retinaface_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="detector=retinaface needs weights=FILE"):
        detector("retinaface", None, 2048)
    monkeypatch.setattr(landmarks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package facexlib: uv pip install facexlib, or detector=mobile"):
        detector("retinaface", tmp_path / "weights.pth", 2048)


def test_weights_are_read_safely(tmp_path):
    for name, contents, said in (
        ("none.pth", None, r"none\.pth can't be read: No such file"),
        ("text.pth", b"text", r"text\.pth holds no tensors that torch can read safely"),
    ):
        if contents:
            (tmp_path / name).write_bytes(contents)
        with pytest.raises(ValueError, match=said):
            landmarks._state_dict(tmp_path / name)
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not a state dict"):
        landmarks._state_dict(tmp_path / "list.pth")
    torch.save({"module.a.weight": torch.ones(1)}, tmp_path / "good.pth")
    assert list(landmarks._state_dict(tmp_path / "good.pth")) == ["a.weight"]

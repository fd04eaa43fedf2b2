"""A face back into its photograph: exact places, a soft edge, and nothing beyond it."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.data import astronaut

from data.landmarks import TEMPLATE, similarity, warp
from restoration.paste import feathered, parsed_mask, paste, to_output
from tests.data.conftest import LANDMARKS

MATRIX = similarity(LANDMARKS, TEMPLATE)
MOVED = similarity(LANDMARKS - [180, 90], TEMPLATE)  # over the upper left corner


def smooth(height: int, width: int) -> NDArray[np.float32]:
    """(h, w, 3) in 0 to 255, whose values follow from the place alone."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([40 + x / 4, 40 + y / 4, 128 + 40 * np.sin((x + y) / 60)], axis=2)


def face_of(photo: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    return cv2.warpAffine(photo, matrix, (512, 512), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


@pytest.mark.parametrize("matrix", [MATRIX, MOVED], ids=["inside", "over_the_corner"])
@pytest.mark.parametrize("upscale", [1, 2, 4])
def test_a_face_that_was_not_changed_lies_where_it_was(upscale: int, matrix: NDArray[np.float64]) -> None:
    photo = smooth(300, 320)
    large = cv2.resize(photo, (320 * upscale, 300 * upscale), interpolation=cv2.INTER_CUBIC)
    made = np.rint(large).astype(np.uint8)
    before = made.copy()
    paste(made, face_of(photo, matrix), matrix, upscale=upscale)
    assert np.abs(made.astype(int) - before).max() <= 1
    paste(made, face_of(photo, matrix) + 50, matrix, upscale=upscale)
    assert (made != before).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_nothing_changes_beyond_the_square(dtype: type) -> None:
    photo = astronaut().astype(dtype)
    made = photo.copy()
    paste(made, np.full((512, 512, 3), np.iinfo(dtype).max, dtype=np.float32), MATRIX, upscale=1)
    y, x = np.mgrid[:512, :512]
    place = np.stack([x.ravel(), y.ravel()], axis=1) @ MATRIX[:, :2].T + MATRIX[:, 2]
    a_pixel = 512 / 170  # of the photograph
    within = ((place > -0.5 - a_pixel) & (place < 511.5 + a_pixel)).all(axis=1).reshape(512, 512)
    assert (made[~within] == photo[~within]).all()
    middle = ((place > 80) & (place < 432)).all(axis=1).reshape(512, 512)
    assert (made[middle] == np.iinfo(dtype).max).all(), "the face alone"
    assert 0.5 < (made != photo).any(axis=2)[within].mean() < 1, "the outermost of the square stays too"


def test_the_edge_is_soft() -> None:
    square = np.zeros((600, 600), dtype=np.float32)
    square[50:550, 50:550] = 1
    weights = feathered(square)[300]
    assert (np.abs(np.diff(weights)) < 0.05).all()
    assert (weights[:50] == 0).all()
    assert (weights[100:500] == 1).all()
    assert (np.diff(weights[:300]) >= -1e-6).all()


def test_a_large_face_is_averaged_where_it_becomes_smaller() -> None:
    lines = np.zeros((512, 512, 3), dtype=np.float32)
    lines[::2] = 255  # finer than the photograph can show
    small = similarity(TEMPLATE / 8 + 100, TEMPLATE)
    averaged, sampled = (np.full((300, 300, 3), 127, dtype=np.uint8) for _ in range(2))
    paste(averaged, lines, small, upscale=1)
    paste(sampled, lines, small, upscale=1, averaged=False)
    assert np.abs(averaged[120:150, 120:150].astype(int) - 127).max() <= 2
    assert np.abs(sampled[120:150, 120:150].astype(int) - 127).max() > 100


def test_a_face_beyond_the_photograph_changes_nothing() -> None:
    photo = astronaut()
    made = photo.copy()
    paste(made, np.zeros((512, 512, 3), dtype=np.float32), similarity(LANDMARKS + 5000, TEMPLATE), upscale=1)
    assert (made == photo).all()


def test_a_parser_says_what_counts() -> None:
    labels = np.zeros((512, 512), dtype=int)
    labels[200:300, 200:300] = 1
    labels[300:400, 200:300] = 16
    mask = parsed_mask(labels)
    assert mask[250, 250] > 0.95
    assert mask[390, 250] < 0.01
    made = np.zeros((512, 512, 3), dtype=np.uint8)
    paste(made, np.full((512, 512, 3), 200, dtype=np.float32), np.eye(2, 3), upscale=1, mask=mask)
    np.testing.assert_allclose(made[..., 0], 200 * mask, atol=1)


def test_faces_of_another_size_than_the_template() -> None:
    """Half of the side, the same place."""
    photo = smooth(300, 320)
    made = np.rint(photo).astype(np.uint8)
    before = made.copy()
    half = np.diag([0.5, 0.5, 1]) @ np.vstack([MATRIX, [0, 0, 1]])
    half[:2, 2] += -0.25
    face = warp(np.rint(photo).astype(np.uint8), half[:2], 256, "reflect").astype(np.float32)
    paste(made, face, half[:2], upscale=1)
    assert np.abs(made.astype(int) - before).max() <= 2
    assert to_output(half[:2], 1).tolist() == half[:2].tolist()

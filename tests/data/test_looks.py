"""Faces that are none of what training takes them for: enlarged, not in place, LQ that is HQ."""

import cv2
import numpy as np
import pytest

from data.looks import MIN_DETAIL, detail, first_look
from data.reading import Images
from data.sources.files import ImageFolder
from tests.data.prepare.conftest import textured, write


def sharp() -> np.ndarray:
    """(512, 512, 3): detail of one pixel on large shapes."""
    noise = np.random.default_rng(0).normal(0, 12, (512, 512, 1))
    return np.clip(textured(512, 512, seed=1, cell=64) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("way", [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4])
def test_what_was_enlarged_lacks_detail(way: int) -> None:
    small = cv2.resize(sharp(), (48, 48), interpolation=cv2.INTER_AREA)
    assert detail(cv2.resize(small, (512, 512), interpolation=way)) < MIN_DETAIL < detail(sharp())
    assert detail(np.full((512, 512, 3), 7, np.uint8)) == 0


def test_detail_by_hand() -> None:
    board = np.zeros((512, 512, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 200  # all of its contrast lies between neighbours
    assert detail(board) == pytest.approx(100, abs=0.5)
    board[:] = (np.arange(512) // 2)[:, None]  # hardly any
    assert detail(board) < 1


def test_a_first_look(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        write(tmp_path / name, cv2.resize(cv2.resize(sharp(), (48, 48), interpolation=cv2.INTER_AREA), (512, 512)))
    source = ImageFolder(root=str(tmp_path))
    enlarged, off = first_look(Images(source, None, None), is_degraded=True, aligned=True)
    assert enlarged.startswith("2 of 2 images looked at have no more detail than 128 px enlarged")
    assert off.startswith("2 of 2 images looked at show no face where FFHQ has it")
    (same,) = first_look(Images(source, source, None), is_degraded=False, aligned=False)
    assert same.startswith("in all 2 pairs looked at LQ and HQ are the same picture")
    assert not list(first_look(Images(source, None, None), is_degraded=True, aligned=False))

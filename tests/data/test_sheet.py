"""The drawing of a sheet: every pixel of a picture is its own, and words stand beside them."""

import numpy as np
import pytest

from data.sheet import LABEL_PX, fitted, own_size, psnr_words, sheet


def test_pictures_keep_their_pixels_and_words_stand_between_them():
    rows = list(np.random.default_rng(0).integers(0, 256, (2, 3, 150, 130, 3), np.uint8))
    side = own_size(rows)
    assert side == 150
    page = np.asarray(sheet(["LQ", "restored", "HQ"], rows, ["faces/a.png", "b.png"], side))
    height = side + 2 * LABEL_PX + 4
    assert page.shape == (LABEL_PX + 2 * height, 3 * (side + 4), 3)
    words = np.ones(page.shape[:2], dtype=bool)
    for number, row in enumerate(rows):
        for column, photo in enumerate(row):
            top, left = 2 * LABEL_PX + number * height, column * (side + 4)
            np.testing.assert_array_equal(page[top : top + 150, left : left + 130], photo)
            words[top : top + side, left : left + side] = False
            under = page[top + side : top + side + LABEL_PX, left : left + side]
            assert (under.min() < 128) == (column < 2), "PSNR of all but HQ"
            assert page[top - LABEL_PX : top, : 3 * side].min() < 128, "the row's name"
            assert page[:LABEL_PX, left : left + side].min() < 128, "the column's label"
    assert page[words].mean() > 240


@pytest.mark.parametrize(("largest", "side"), [(32, 128), (50, 150), (128, 128), (129, 129), (512, 512)])
def test_small_pictures_get_whole_squares_for_pixels(largest, side):
    photo = np.random.default_rng(0).integers(0, 256, (largest, largest, 3), np.uint8)
    assert own_size([[photo]]) == side
    page = np.asarray(sheet(["LQ"], [[photo]], [""], side))
    times = side // largest
    drawn = page[2 * LABEL_PX : 2 * LABEL_PX + side, :side]
    np.testing.assert_array_equal(drawn, photo.repeat(times, 0).repeat(times, 1))


def test_words():
    hq = np.full((4, 4, 3), 100, np.uint8)
    assert psnr_words(hq + np.uint8(51), hq) == "13.98 dB"  # a fifth of 255: 20 log10(5)
    assert psnr_words(hq.copy(), hq) == "equal to HQ"
    assert [psnr_words(hq, None), psnr_words(hq[:2], hq)] == ["", ""]
    assert [fitted("restored/long", 49), fitted("short", 49)] == ["…d/long", "short"]

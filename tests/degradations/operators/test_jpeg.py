"""JPEG: what it keeps and loses."""

import numpy as np
import pytest

from degradations.operators.jpeg import Jpeg
from tests.degradations.samples import assert_uniform, drawn, photo


def jpeg(codec="libjpeg", quality=(1, 100)):
    return Jpeg(quality=quality, codec=codec)


def test_libjpeg_reaches_low_and_not_high():
    assert set(drawn(jpeg(quality=(30, 40)), "quality").tolist()) == set(range(30, 40))
    assert set(drawn(jpeg(quality=(40, 40)), "quality").tolist()) == {40}
    assert drawn(jpeg(quality=(30, 40)), "quality").mean() == pytest.approx(34.5, abs=0.26)  # of 30 to 39; 4 standard errors


def test_diffjpeg_does_not_truncate():
    assert_uniform(drawn(jpeg("diffjpeg", (30, 40)), "quality"), 30, 40)
    assert drawn(jpeg("diffjpeg", (30, 40)), "quality").mean() == pytest.approx(35, abs=0.26)  # 4 standard errors


@pytest.mark.parametrize("codec", ["libjpeg", "diffjpeg"])
def test_a_flat_grey_is_kept_and_more_is_lost_at_low_quality(codec):
    grey = np.full((3, 16, 16), 128 / 255, dtype=np.float32)
    np.testing.assert_allclose(jpeg(codec).apply(grey, {"quality": 10}), grey, atol=1e-6)
    error = [np.abs(jpeg(codec).apply(photo(), {"quality": quality}) - photo()).mean() for quality in (10, 50, 90)]
    assert error[0] > error[1] > error[2] > 0


@pytest.mark.parametrize("codec", ["libjpeg", "diffjpeg"])
def test_the_colour_resolution_is_halved(codec):
    columns = np.zeros((3, 16, 16), dtype=np.float32)
    columns[2, :, ::2] = 1  # blue and black columns: 4:2:0 makes them one blue
    decoded = jpeg(codec).apply(columns, {"quality": 99})
    assert np.abs(np.diff(decoded[2, 4, 4:12])).max() < 0.5


def test_libjpeg_saturates_and_lies_on_the_8_bit_grid():
    wild = np.full((3, 8, 8), 1.7, dtype=np.float32)
    np.testing.assert_array_equal(jpeg().apply(wild, {"quality": 100}), np.ones_like(wild))
    decoded = jpeg().apply(photo(), {"quality": 60}) * 255
    np.testing.assert_allclose(decoded, decoded.round(), atol=1e-4)


def test_colours_stay_in_their_places():
    red = np.zeros((3, 16, 16), dtype=np.float32)
    red[0] = 1
    for codec in ("libjpeg", "diffjpeg"):
        np.testing.assert_allclose(jpeg(codec).apply(red, {"quality": 95}).mean(axis=(1, 2)), [1, 0, 0], atol=0.02)


def test_errors():
    with pytest.raises(ValueError, match=r"quality=\[0, 90\] is out of range: both ends must lie in 1 .. 100"):
        jpeg(quality=(0, 90))


def test_diffjpeg_never_reaches_100() -> None:
    with pytest.raises(ValueError, match=r"quality=\[100, 100\] with codec=diffjpeg: its tables are 0 at 100"):
        Jpeg(quality=(100, 100), codec="diffjpeg")

    class Highest:
        def uniform(self, low: float, high: float) -> float:
            return high

    assert Jpeg(quality=(30, 100), codec="diffjpeg").sample(Highest(), (8, 8)) == {"quality": 99.99}  # type: ignore[arg-type]

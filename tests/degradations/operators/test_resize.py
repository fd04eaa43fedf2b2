"""Resizing: sizes, filters and positions by hand and against torch; draws; errors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from degradations.draws import generator
from degradations.operators.resize import Downsample, RandomResize, ResizeBack, resized
from tests.degradations.samples import assert_uniform, drawn, draws, photo

FILTERS = ["area", "bilinear", "bicubic"]
COMMON = {"up_prob": 0.2, "down_prob": 0.7, "up": (1, 1.5), "down": (0.15, 1), "filters": FILTERS}


def test_bilinear_without_antialiasing_by_hand():
    ramp = np.tile(np.arange(8, dtype=np.float32), (3, 8, 1))
    shrunk = Downsample(factor=(4, 4), filter="bilinear").apply(ramp, {"height": 2, "width": 2})
    np.testing.assert_allclose(shrunk[:, 0], [[1.5, 5.5]] * 3)  # two pixels around (i + 0.5) * 4 - 0.5, nothing else


def test_area_by_hand():
    ramp = np.tile(np.arange(8, dtype=np.float32), (3, 8, 1))
    np.testing.assert_allclose(resized(ramp, 2, 2, "area")[:, 0], [[1.5, 5.5]] * 3)  # means of four
    assert resized(ramp, 3, 3, "area")[0, 0].tolist() == [1, 3.5, 6]  # pixels 0-2, 2-5 and 5-7: those that are touched count


def test_bicubic_by_hand():
    step = np.repeat(np.float32([0, 0, 0, 0, 1, 1, 1, 1])[None, None], 3, axis=0)
    # At a quarter of a pixel, Keys' weights with a = -0.75 overshoot the step.
    enlarged = resized(step, 1, 16, "bicubic")
    assert enlarged[0, 0].max() == pytest.approx(1 + 0.10546875)
    assert enlarged[0, 0].min() == pytest.approx(-0.10546875)


@pytest.mark.parametrize("filter_", FILTERS)
def test_a_scale_moves_the_positions(filter_):
    image = photo(31, 45)
    ours = resized(image, int(31 * 0.66), int(45 * 0.66), filter_, 0.66)
    options = {} if filter_ == "area" else {"align_corners": False}
    theirs = F.interpolate(torch.from_numpy(image)[None], scale_factor=0.66, mode=filter_, **options)[0]
    np.testing.assert_array_equal(ours, theirs)
    by_size = resized(image, 20, 29, filter_)
    assert (np.abs(ours - by_size).max() > 0.05) == (filter_ != "area")  # area knows no scale


def test_size_is_floor_divided():
    down = Downsample(factor=(3.7, 3.7), filter="bilinear")
    assert down.sample(generator(0, 0, "x"), (60, 72)) == {"factor": 3.7, "height": 16, "width": 19}
    assert Downsample(factor=(0.8, 0.8), filter="bilinear").sample(generator(0, 0, "x"), (512, 512))["width"] == 639


def test_factor_draws():
    down = Downsample(factor=(1, 12), filter="bilinear")
    assert_uniform(drawn(down, "factor"), 1, 12)
    widths = drawn(down, "width", size=(512, 512))
    assert widths.min() >= 42
    assert widths.mean() == pytest.approx(512 * np.log(12) / 11 - 0.5, abs=8.3)  # the mean of 512 / x; 4 standard errors


def test_resize_back_goes_to_the_hq_size():
    parameters = ResizeBack(filter="bilinear").sample(generator(0, 0, "x"), (40, 56))
    assert parameters == {"height": 40, "width": 56}
    assert ResizeBack(filter="bicubic").apply(photo(7, 9), parameters).shape == (3, 40, 56)
    ramp = np.tile(np.arange(7, dtype=np.float32), (3, 5, 1))
    back = ResizeBack(filter="bilinear").apply(ramp, parameters)  # 8 times as wide: eighths, from 1/16 on
    np.testing.assert_allclose(back[0, 20], np.clip((np.arange(56) + 0.5) / 8 - 0.5, 0, 6), atol=1e-5)


def test_random_resize_draws():
    operator = RandomResize(**COMMON, of_hq=1, positions="scale")
    every = draws(operator, count=4000, size=(512, 384))
    scales = np.array([each["scale"] for each in every])
    assert (scales > 1).mean() == pytest.approx(0.2, abs=0.025)
    assert (scales < 1).mean() == pytest.approx(0.7, abs=0.03)
    assert_uniform(scales[scales > 1], 1, 1.5)
    assert_uniform(scales[scales < 1], 0.15, 1)
    names, counts = np.unique([each["filter"] for each in every], return_counts=True)
    assert names.tolist() == sorted(FILTERS)
    assert np.abs(counts / 4000 - 1 / 3).max() < 0.03
    assert all((each["height"], each["width"]) == (int(512 * each["scale"]), int(384 * each["scale"])) for each in every)


def test_the_target_is_a_part_of_the_hq_whatever_the_size_now():
    operator = RandomResize(**COMMON, of_hq=0.25, positions="size")
    for each in draws(operator, count=20, size=(514, 386)):
        assert (each["height"], each["width"]) == (int(128 * each["scale"]), int(96 * each["scale"]))
        assert operator.apply(photo(77, 50), each).shape == (3, each["height"], each["width"])


def test_positions_by_scale_only_where_the_scale_gives_the_size():
    by_scale, by_size = (RandomResize(**COMMON, of_hq=1, positions=each) for each in ("scale", "size"))
    given = {"scale": 0.66, "filter": "bilinear", "height": 20, "width": 29}
    np.testing.assert_array_equal(by_scale.apply(photo(31, 45), given), resized(photo(31, 45), 20, 29, "bilinear", 0.66))
    np.testing.assert_array_equal(by_size.apply(photo(31, 45), given), resized(photo(31, 45), 20, 29, "bilinear"))
    np.testing.assert_array_equal(by_scale.apply(photo(60, 45), given), resized(photo(60, 45), 20, 29, "bilinear"))
    np.testing.assert_array_equal(by_scale.apply(photo(20, 29), given), photo(20, 29))


def test_a_side_never_vanishes():
    operator = RandomResize(**{**COMMON, "down_prob": 0.8}, of_hq=0.25, positions="size")
    assert {(each["height"], each["width"]) for each in draws(operator, count=50, size=(4, 8))} >= {(1, 1)}
    one = operator.apply(photo(4, 8), {"scale": 0.15, "filter": "area", "height": 1, "width": 1})
    np.testing.assert_allclose(one[:, 0, 0], photo(4, 8).mean(axis=(1, 2)), rtol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match=r"factor=\[12, 1\] has low > high"):
        Downsample(factor=(12, 1), filter="bilinear")
    with pytest.raises(ValueError, match=r"factor=\[0, 1\] is out of range"):
        Downsample(factor=(0, 1), filter="bilinear")
    with pytest.raises(
        ValueError, match=r"factor=\[1, 12\] can shrink 64x8 to less than one pixel: give a high end of at most 8"
    ):
        Downsample(factor=(1, 12), filter="bilinear").sample(generator(0, 0, "x"), (64, 8))
    with pytest.raises(ValueError, match=r"up_prob=0.5 and down_prob=0.7 are no probabilities together"):
        RandomResize(**{**COMMON, "up_prob": 0.5}, of_hq=1, positions="size")
    with pytest.raises(ValueError, match="filters is empty: give at least one of area, bilinear, bicubic"):
        RandomResize(**{**COMMON, "filters": []}, of_hq=1, positions="size")
    with pytest.raises(ValueError, match=r"up=\[0.5, 2\] is out of range"):
        RandomResize(**{**COMMON, "up": (0.5, 2)}, of_hq=1, positions="size")
    with pytest.raises(ValueError, match=r"down=\[0.5, 2\] is out of range"):
        RandomResize(**{**COMMON, "down": (0.5, 2)}, of_hq=1, positions="size")

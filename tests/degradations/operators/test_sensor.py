"""Raw noise: the sensor's pattern, its noise against the formula, and what is left of a picture without any."""

import numpy as np
import pytest

from degradations.operators.sensor import RawNoise, colour_matrix, colours_at, demosaic, mosaic
from tests.degradations.samples import assert_uniform, drawn, photo

RANGES = {
    "red_gain": (1.9, 2.4),
    "blue_gain": (1.5, 1.9),
    "mix": (0.0, 0.35),
    "full_well_e": (100, 2000),
    "read_noise_e": (1, 10),
}
NEUTRAL = {"red_gain": 1.0, "blue_gain": 1.0, "mix": 0.0, "full_well_e": 1e12, "read_noise_e": 1e-3, "field_seed": 4}


def operator(gamma=1.0, factor=1):
    return RawNoise(gamma=gamma, factor=factor, **RANGES)


def smooth(side=64):
    along = np.arange(side) / 9
    planes = [0.5 + 0.2 * np.outer(np.sin(along), np.sin(along + phase)) for phase in (0, 0.5, 1)]
    return np.array(planes, dtype=np.float32)


def test_the_pattern_is_grbg():
    where = colours_at(4, 6)
    assert (where[1, 0, 0], where[0, 0, 1], where[2, 1, 0], where[1, 1, 1]) == (1, 1, 1, 1)
    np.testing.assert_array_equal(where.sum(axis=0), 1)
    assert where.sum(axis=(1, 2)).tolist() == [6, 12, 6]


def test_mosaic_and_demosaic_by_hand():
    raw = mosaic(np.stack([np.full((4, 4), value, dtype=np.float32) for value in (0.1, 0.2, 0.3)]))
    np.testing.assert_allclose(raw[:2, :2], [[0.2, 0.1], [0.3, 0.2]])
    np.testing.assert_allclose(demosaic(raw), np.stack([np.full((4, 4), value) for value in (0.1, 0.2, 0.3)]), rtol=1e-6)
    lone = np.zeros((7, 7), dtype=np.float32)
    lone[2, 3] = 1  # a red pixel
    red = demosaic(lone)[0]
    np.testing.assert_allclose(red[1:4, 2:5], np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]))
    assert demosaic(lone)[1:].max() == 0


def test_flat_borders_stay_flat():
    for height, width in ((8, 8), (7, 9), (2, 2)):
        np.testing.assert_allclose(demosaic(np.full((height, width), 0.4, dtype=np.float32)), 0.4, rtol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.5])
def test_noise_has_the_variance_of_the_formula(value):
    well, read = 400.0, 6.0
    given = {**NEUTRAL, "full_well_e": well, "read_noise_e": read}
    noisy = operator().apply(np.full((3, 256, 256), value, dtype=np.float32), given)
    expected = value / well + (read / well) ** 2
    own = noisy[1, ::2, ::2]  # where green is measured, not averaged
    assert own.var() == pytest.approx(expected, rel=4 * np.sqrt(2 / own.size))
    assert own.mean() == pytest.approx(value, abs=4 * np.sqrt(expected / own.size))
    assert noisy[1, ::2, 1::2].var() == pytest.approx(expected / 4, rel=0.06)  # the mean of four


def test_gains_and_curve_carry_the_noise():
    """d(out) = d(raw) * gain / gamma * out^(1 - gamma) to first order; each colour where it is measured."""
    gamma, value = 2.2, 0.5
    given = {**NEUTRAL, "red_gain": 2.0, "blue_gain": 1.6, "full_well_e": 1e5, "read_noise_e": 1.0}
    noisy = operator(gamma).apply(np.full((3, 256, 256), value, dtype=np.float32), given)
    for plane, gain in ((noisy[0, ::2, 1::2], 2.0), (noisy[1, ::2, ::2], 1.0), (noisy[2, 1::2, ::2], 1.6)):
        variance = value**gamma / gain / 1e5 + 1e-10
        expected = np.sqrt(variance) * gain / gamma * value ** (1 - gamma)
        assert plane.std() == pytest.approx(expected, rel=0.03)


def test_without_noise_the_picture_comes_back_within_demosaicing():
    for gamma in (1.0, 2.2):
        result = operator(gamma).apply(smooth(), NEUTRAL)
        assert np.abs(result - smooth())[:, 2:-2, 2:-2].max() < 0.004
        coloured = operator(gamma).apply(smooth(), {**NEUTRAL, "red_gain": 2.1, "blue_gain": 1.7, "mix": 0.2})
        assert np.abs(coloured - smooth())[:, 2:-2, 2:-2].max() < 0.01
    flat = np.full((3, 8, 8), 0.3, dtype=np.float32)
    np.testing.assert_allclose(operator(2.2).apply(flat, NEUTRAL), flat, atol=1e-5)


def test_the_factor_shrinks_by_means_of_linear_light():
    halves = np.zeros((3, 16, 16), dtype=np.float32)
    halves[..., ::2] = 1
    result = operator(2.2, 4).apply(halves, NEUTRAL)
    assert result.shape == (3, 4, 4)
    np.testing.assert_allclose(result, 0.5 ** (1 / 2.2), atol=1e-4)
    assert operator(2.2, 4).apply(photo(67, 50), NEUTRAL).shape == (3, 16, 12)


def test_rows_of_the_matrix_keep_white():
    np.testing.assert_allclose(colour_matrix(0.3), [[1.6, -0.3, -0.3], [-0.3, 1.6, -0.3], [-0.3, -0.3, 1.6]])
    np.testing.assert_allclose(colour_matrix(0.3).sum(axis=1), 1)


def test_draws():
    for name in ("red_gain", "blue_gain", "mix"):
        assert_uniform(drawn(operator(), name), *RANGES[name])
    for name in ("full_well_e", "read_noise_e"):
        assert_uniform(np.log(drawn(operator(), name)), *np.log(RANGES[name]))
        assert np.median(drawn(operator(), name)) == pytest.approx(np.prod(RANGES[name]) ** 0.5, rel=0.14)  # 4 standard errors


def test_errors():
    with pytest.raises(ValueError, match=r"mix=\[0, 0.5\] is out of range: both ends must lie in 0 .. 0.45"):
        RawNoise(gamma=1, factor=1, **{**RANGES, "mix": (0, 0.5)})
    with pytest.raises(ValueError, match=r"full_well_e=\[0, 5\] is out of range"):
        RawNoise(gamma=1, factor=1, **{**RANGES, "full_well_e": (0, 5)})

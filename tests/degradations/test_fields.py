"""Random fields: the generator's known numbers, what they make, and that nothing but seed and place matters."""

import numpy as np
import pytest

from degradations.fields import bits, normals, uniforms


def test_first_outputs_of_splitmix64():
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert bits(0, 3).tolist() == known
    assert bits(1234567, 2).tolist() == [6457827717110365317, 3203168211198807973]  # printed in Rosetta Code's task
    assert bits(2**64 - 1, 1).dtype == np.uint64


def test_the_state_wraps_around():
    golden = 0x9E3779B97F4A7C15
    assert bits(2**64 - golden, 4)[1:].tolist() == bits(0, 3).tolist()


def test_fields_by_hand():
    first, second = 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4
    np.testing.assert_array_equal(uniforms(0, (2,)), np.float32([((each >> 41) + 0.5) / 2**23 for each in (first, second)]))
    radius = np.sqrt(-2 * np.log(((first >> 40) + 1) / 2**24))
    angle = 2 * np.pi * ((first >> 8) & 0xFFFFFF) / 2**24
    np.testing.assert_allclose(normals(0, (2,)), [radius * np.cos(angle), radius * np.sin(angle)], rtol=1e-5)


@pytest.mark.parametrize("field", [normals, uniforms])
def test_shape_only_folds(field):
    line = field(5, (3 * 4 * 6,))
    np.testing.assert_array_equal(field(5, (3, 4, 6)), line.reshape(3, 4, 6))
    assert line.dtype == np.float32
    assert field(5, (3, 5, 7)).shape == (3, 5, 7)  # odd


def test_moments_of_normals():
    values = normals(11, (1_000_000,)).astype(np.float64)
    assert abs(values.mean()) < 4e-3  # 4 standard errors
    assert values.var() == pytest.approx(1, abs=6e-3)
    assert abs((values**3).mean()) < 0.02
    assert (values**4).mean() == pytest.approx(3, abs=0.04)
    for limit, share in ((1, 0.3173), (2, 0.0455), (3, 0.0027)):
        assert (np.abs(values) > limit).mean() == pytest.approx(share, abs=4 * np.sqrt(share / 1e6))
    assert np.abs(values).max() < 5.8


def test_moments_of_uniforms():
    values = uniforms(11, (1_000_000,)).astype(np.float64)
    assert 0 < values.min() < 1e-5
    assert 1 > values.max() > 1 - 1e-5
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 150  # chi-square of 99 degrees of freedom, 0.1 %


def test_ends_are_never_reached():
    assert float(np.float32((2**23 - 1) + 0.5) * np.float32(2**-23)) < 1  # the largest that uniforms can give


@pytest.mark.parametrize("field", [normals, uniforms])
def test_neighbours_seeds_and_colours_are_independent(field):
    image, other = field(7, (3, 256, 256)), field(8, (3, 256, 256))
    pairs = [(image[:, 1:], image[:, :-1]), (image[..., 1:], image[..., :-1]), (image[0], image[1]), (image[1], image[2])]
    pairs += [(image, other), (image[0], image[2]), (image.ravel()[:98304], image.ravel()[98304:])]
    pairs += [(np.abs(one), np.abs(two)) for one, two in pairs]
    for one, two in pairs:
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] == pytest.approx(0, abs=4 / np.sqrt(one.size))

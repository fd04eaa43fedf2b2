"""Kernels by hand at a few points; many at once."""

import numpy as np
import pytest

from degradations import kernels

FAMILIES = {
    "gaussian": lambda size, x, y, angle, beta: kernels.gaussian(size, x, y, angle),
    "generalized": kernels.generalized,
    "plateau": kernels.plateau,
}


def test_gaussian_by_hand():
    kernel = kernels.gaussian(3, 1, 2, 0)  # sigma 1 along x, 2 along y
    assert kernel.sum() == pytest.approx(1)
    assert kernel[1, 2] / kernel[1, 1] == pytest.approx(np.exp(-0.5))
    assert kernel[2, 1] / kernel[1, 1] == pytest.approx(np.exp(-0.125))


def test_generalized_by_hand():
    kernel = kernels.generalized(5, 1, 2, 0, 0.5)  # exp(-r / 2)
    assert kernel[2, 4] / kernel[2, 2] == pytest.approx(np.exp(-1))
    assert kernel[4, 2] / kernel[2, 2] == pytest.approx(np.exp(-0.5))
    np.testing.assert_allclose(kernels.generalized(5, 1, 2, 0.3, 1), kernels.gaussian(5, 1, 2, 0.3), atol=1e-15)


def test_plateau_by_hand():
    kernel = kernels.plateau(5, 1, 2, 0, 2)  # 1 / (r^4 + 1)
    assert kernel[2, 4] / kernel[2, 2] == pytest.approx(1 / 17)
    assert kernel[4, 2] / kernel[2, 2] == pytest.approx(1 / 2)


def test_sinc_by_hand():
    cutoff = np.pi / 2
    kernel = kernels.sinc(7, cutoff)
    middle, side = cutoff**2 / (4 * np.pi), cutoff * 0.5668240889058739 / (2 * np.pi)  # J1(pi / 2)
    assert kernel[3, 4] / kernel[3, 3] == pytest.approx(side / middle)
    assert kernel.sum() == pytest.approx(1)
    assert kernel.min() < 0


def test_motion_by_hand():
    np.testing.assert_allclose(kernels.motion(5, 3, 0)[2], [0, 1 / 3, 1 / 3, 1 / 3, 0])  # three pixels in a row
    np.testing.assert_allclose(kernels.motion(5, 2, np.pi / 2)[:, 2], [0, 0.25, 0.5, 0.25, 0], atol=1e-12)
    assert kernels.motion(5, 0, 0.7)[2, 2] == pytest.approx(1)  # of length 0: the pixel itself
    diagonal = kernels.motion(9, 8, np.pi / 4)
    assert diagonal[6, 6] > 100 * max(diagonal[2, 6], 1e-9)  # right and down
    assert diagonal.sum() == pytest.approx(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quarter_turn_swaps_the_sigmas(family):
    make = FAMILIES[family]
    np.testing.assert_allclose(make(9, 1, 3, np.pi / 2, 1.3), make(9, 3, 1, 0, 1.3), atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_positive_angle_turns_from_x_towards_y_which_is_down(family):
    kernel = FAMILIES[family](9, 3, 1, np.pi / 4, 1.3)
    assert kernel[8, 8] > 4 * kernel[0, 8]
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-12)  # at 45 degrees x and y are alike


@pytest.mark.parametrize("family", FAMILIES)
def test_arrays_give_one_kernel_each(family):
    rng = np.random.default_rng(0)
    values = (rng.uniform(0.2, 4, (2, 3)), rng.uniform(0.2, 4, (2, 3)), rng.uniform(-3, 3, (2, 3)), rng.uniform(0.5, 4, (2, 3)))
    together = FAMILIES[family](11, *values)
    assert together.shape == (2, 3, 11, 11)
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(together[place], FAMILIES[family](11, *(each[place] for each in values)))


def test_arrays_of_sinc_and_motion():
    cutoffs = np.array([0.7, 2.0, np.pi])
    for cutoff, kernel in zip(cutoffs, kernels.sinc(9, cutoffs), strict=True):
        np.testing.assert_array_equal(kernel, kernels.sinc(9, cutoff))
    lengths, angles = np.array([0.0, 4.0]), np.array([0.1, 2.0])
    for *shape, kernel in zip(lengths, angles, kernels.motion(9, lengths, angles), strict=True):
        np.testing.assert_array_equal(kernel, kernels.motion(9, *shape))

"""Blurs: what they draw, and that the drawn kernel is laid on."""

import cv2
import numpy as np
import pytest

from degradations import kernels
from degradations.operators.blur import GaussianBlur, GeneralizedBlur, MotionBlur, PlateauBlur, SincBlur
from tests.degradations.samples import assert_uniform, drawn, draws, photo

MIXED = {"kernel_size_px": (7, 21), "sigma_px": (0.2, 3), "isotropic_prob": 0.3}
BLURS = [
    GaussianBlur(**MIXED),
    GeneralizedBlur(**MIXED, beta=(0.5, 4)),
    PlateauBlur(**MIXED, beta=(1, 2)),
    SincBlur(kernel_size_px=(7, 21), cutoff_rad=(1, 3)),
    MotionBlur(kernel_size_px=(7, 21), length_px=(0, 15)),
]


@pytest.mark.parametrize("blur", BLURS, ids=lambda blur: type(blur).__name__)
def test_odd_sizes_are_equally_likely(blur):
    sizes, counts = np.unique(drawn(blur, "kernel_size_px", count=4000), return_counts=True)
    assert sizes.tolist() == [7, 9, 11, 13, 15, 17, 19, 21]
    assert ((counts - 500) ** 2 / 500).sum() < 24.3  # chi-square of 7 degrees of freedom, 0.1 %


@pytest.mark.parametrize("blur", BLURS, ids=lambda blur: type(blur).__name__)
def test_the_drawn_kernel_is_laid_on(blur):
    for parameters in draws(blur, count=8):
        kernel = blur.kernel(parameters)
        assert kernel.shape == (parameters["kernel_size_px"],) * 2
        assert kernel.sum() == pytest.approx(1)
        expected = [cv2.filter2D(plane, -1, kernel, borderType=cv2.BORDER_REFLECT_101) for plane in photo()]
        np.testing.assert_allclose(blur.apply(photo(), parameters), expected, rtol=0, atol=2e-6)


def test_each_class_makes_its_family():
    shape = {"kernel_size_px": 9, "sigma_x_px": 2.0, "sigma_y_px": 1.0, "angle_rad": 0.4, "beta": 1.7}
    gaussian, generalized, plateau, sinc, motion = (
        blur.kernel({**shape, "cutoff_rad": 1.5, "length_px": 4.0}) for blur in BLURS
    )
    np.testing.assert_array_equal(gaussian, kernels.gaussian(9, 2, 1, 0.4))
    np.testing.assert_array_equal(generalized, kernels.generalized(9, 2, 1, 0.4, 1.7))
    np.testing.assert_array_equal(plateau, kernels.plateau(9, 2, 1, 0.4, 1.7))
    np.testing.assert_array_equal(sinc, kernels.sinc(9, 1.5))
    np.testing.assert_array_equal(motion, kernels.motion(9, 4, 0.4))


@pytest.mark.parametrize("blur", BLURS[:3], ids=lambda blur: type(blur).__name__)
def test_sigma_and_angle_draws(blur):
    assert_uniform(drawn(blur, "sigma_x_px"), 0.2, 3)
    assert_uniform(drawn(blur, "sigma_y_px"), 0.2, 3)
    angle = drawn(blur, "angle_rad")
    turned = angle != 0
    assert turned.mean() == pytest.approx(0.7, abs=0.04)
    assert_uniform(angle[turned], -np.pi, np.pi)
    np.testing.assert_array_equal(turned, drawn(blur, "sigma_x_px") != drawn(blur, "sigma_y_px"))
    assert abs(np.corrcoef(drawn(blur, "sigma_x_px")[turned], drawn(blur, "sigma_y_px")[turned])[0, 1]) < 0.1


@pytest.mark.parametrize(("blur", "low", "high"), [(BLURS[1], 0.5, 4), (BLURS[2], 1, 2)], ids=["generalized", "plateau"])
def test_beta_is_drawn_in_two_halves(blur, low, high):
    beta = drawn(blur, "beta", count=4000)
    lower = beta <= 1
    assert lower.mean() == pytest.approx(0.5, abs=0.032)  # 4 standard errors
    assert_uniform(beta[~lower], 1, high)
    if low < 1:
        assert_uniform(beta[lower], low, 1)
    else:
        assert set(beta[lower]) == {1.0}


def test_cutoff_and_length_draws():
    assert_uniform(drawn(BLURS[3], "cutoff_rad"), 1, 3)
    assert_uniform(drawn(BLURS[4], "length_px"), 0, 15)
    assert_uniform(drawn(BLURS[4], "angle_rad"), 0, np.pi)
    assert drawn(BLURS[3], "cutoff_rad").mean() == pytest.approx(2, abs=0.052)  # 4 standard errors
    assert drawn(BLURS[4], "length_px").mean() == pytest.approx(7.5, abs=0.39)


def test_one_size_is_no_draw():
    assert set(drawn(GaussianBlur(kernel_size_px=41, sigma_px=(1, 2), isotropic_prob=0.5), "kernel_size_px").tolist()) == {41}


def test_what_changes_nothing():
    same = {"sigma_x_px": 0.1, "sigma_y_px": 0.1, "angle_rad": 0.0, "kernel_size_px": 41}
    np.testing.assert_allclose(BLURS[0].apply(photo(), same), photo(), atol=1e-7)
    still = {"length_px": 0.0, "angle_rad": 1.0, "kernel_size_px": 9}
    np.testing.assert_allclose(BLURS[4].apply(photo(), still), photo(), atol=1e-7)


def test_errors():
    with pytest.raises(ValueError, match="kernel_size_px=40 has no centre: give an odd size such as 41"):
        GaussianBlur(kernel_size_px=40, sigma_px=(0.1, 12), isotropic_prob=0.5)
    with pytest.raises(ValueError, match="kernel_size_px=8 has no centre"):
        SincBlur(kernel_size_px=(7, 8), cutoff_rad=(1, 2))
    with pytest.raises(ValueError, match=r"kernel_size_px=\[21, 7\] has low > high"):
        MotionBlur(kernel_size_px=(21, 7), length_px=(0, 1))
    with pytest.raises(ValueError, match=r"sigma_px=\[12, 0.1\] has low > high"):
        GaussianBlur(kernel_size_px=41, sigma_px=(12, 0.1), isotropic_prob=0.5)
    with pytest.raises(ValueError, match=r"sigma_px=\[0, 12\] is out of range: both ends must lie above 0"):
        GaussianBlur(kernel_size_px=41, sigma_px=(0, 12), isotropic_prob=0.5)
    with pytest.raises(ValueError, match=r"isotropic_prob=1\.5"):
        GaussianBlur(kernel_size_px=41, sigma_px=(0.1, 12), isotropic_prob=1.5)
    with pytest.raises(ValueError, match=r"beta=\[1.5, 4\] does not hold 1"):
        GeneralizedBlur(**MIXED, beta=(1.5, 4))
    with pytest.raises(ValueError, match=r"cutoff_rad=\[0, 3\] is out of range: both ends must lie above 0"):
        SincBlur(kernel_size_px=7, cutoff_rad=(0, 3))
    with pytest.raises(ValueError, match=r"length_px=\[-1, 3\] is out of range"):
        MotionBlur(kernel_size_px=7, length_px=(-1, 3))

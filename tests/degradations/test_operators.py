"""Each operator alone: numbers worked out by hand, the ranges it reaches, the errors it raises."""

import json

import cv2
import numpy as np
import pytest

from degradations.blur import GaussianBlur, gaussian_kernel
from degradations.draws import generator
from degradations.jpeg import Jpeg
from degradations.noise import GaussianNoise, add_noise
from degradations.resize import Downsample, ResizeBack


def drawn(operator, name, count=2000, size=(64, 48)):
    return np.array([operator.sample(generator(3, position, "test"), size)[name] for position in range(count)])


def photo(height=64, width=48):
    return generator(0, 0, "photo").random((height, width, 3), dtype=np.float32)


def assert_uniform(values, low, high):
    """Both ends are come close to, none is passed, and the quartiles lie where they should."""
    assert low <= values.min() < low + 0.01 * (high - low)
    assert high >= values.max() > high - 0.01 * (high - low)
    expected = low + np.array([0.25, 0.5, 0.75]) * (high - low)
    np.testing.assert_allclose(np.quantile(values, [0.25, 0.5, 0.75]), expected, atol=0.04 * (high - low))


# blur


def test_kernel_by_hand():
    kernel = gaussian_kernel(3, 1, 2, 0)  # sigma 1 along x, 2 along y
    assert kernel.sum() == pytest.approx(1)
    assert kernel[1, 2] / kernel[1, 1] == pytest.approx(np.exp(-0.5))
    assert kernel[2, 1] / kernel[1, 1] == pytest.approx(np.exp(-0.125))


def test_a_quarter_turn_swaps_the_sigmas():
    np.testing.assert_allclose(gaussian_kernel(9, 1, 3, np.pi / 2), gaussian_kernel(9, 3, 1, 0), atol=1e-12)


def test_a_positive_angle_turns_from_x_towards_y_which_is_down():
    kernel = gaussian_kernel(9, 3, 1, np.pi / 4)
    assert kernel[8, 8] > 10 * kernel[0, 8]


@pytest.mark.parametrize("sigma", [0.1, 0.7, 3.0, 12.0])
def test_two_passes_equal_one(sigma):
    blur = GaussianBlur(kernel_size_px=41, sigma_px=(0.1, 12), isotropic_prob=1)
    fast = blur.apply(photo(), {"sigma_x_px": sigma, "sigma_y_px": sigma, "angle_rad": 0.0})
    np.testing.assert_allclose(fast, cv2.filter2D(photo(), -1, gaussian_kernel(41, sigma, sigma, 0)), rtol=0, atol=1e-6)


def test_sigma_0_1_leaves_the_photo():
    blur = GaussianBlur(kernel_size_px=41, sigma_px=(0.1, 12), isotropic_prob=1)
    parameters = {"sigma_x_px": 0.1, "sigma_y_px": 0.1, "angle_rad": 0.0}
    np.testing.assert_allclose(blur.apply(photo(), parameters), photo(), atol=1e-7)


def test_the_border_mirrors_without_the_edge():
    line = np.repeat(np.array([[0.0, 1.0, 0.0, 0.0]], dtype=np.float32)[..., None], 3, axis=2)
    blur = GaussianBlur(kernel_size_px=3, sigma_px=(1, 1), isotropic_prob=1)
    side = 1 / (2 + np.exp(0.5))  # weight of a neighbour; the pixel before the first is the second
    first = blur.apply(line, {"sigma_x_px": 1.0, "sigma_y_px": 1.0, "angle_rad": 0.0})[0, 0]
    np.testing.assert_allclose(first, 2 * side, atol=1e-6)


def test_blur_draws():
    blur = GaussianBlur(kernel_size_px=41, sigma_px=(0.1, 12), isotropic_prob=0.3)
    assert_uniform(drawn(blur, "sigma_x_px"), 0.1, 12)
    assert_uniform(drawn(blur, "sigma_y_px"), 0.1, 12)
    angle = drawn(blur, "angle_rad")
    turned = angle != 0
    assert turned.mean() == pytest.approx(0.7, abs=0.04)
    assert_uniform(angle[turned], -np.pi, np.pi)
    np.testing.assert_array_equal(turned, drawn(blur, "sigma_x_px") != drawn(blur, "sigma_y_px"))
    assert abs(np.corrcoef(drawn(blur, "sigma_x_px")[turned], drawn(blur, "sigma_y_px")[turned])[0, 1]) < 0.1


def test_blur_errors():
    with pytest.raises(ValueError, match="kernel_size_px=40 has no centre: give an odd size such as 41"):
        GaussianBlur(kernel_size_px=40, sigma_px=(0.1, 12), isotropic_prob=0.5)
    with pytest.raises(ValueError, match=r"sigma_px=\[12, 0.1\] has low > high"):
        GaussianBlur(kernel_size_px=41, sigma_px=(12, 0.1), isotropic_prob=0.5)
    with pytest.raises(ValueError, match=r"sigma_px=\[0, 12\] is out of range: both ends must lie above 0"):
        GaussianBlur(kernel_size_px=41, sigma_px=(0, 12), isotropic_prob=0.5)
    with pytest.raises(ValueError, match=r"isotropic_prob=1\.5"):
        GaussianBlur(kernel_size_px=41, sigma_px=(0.1, 12), isotropic_prob=1.5)


# resize


def test_bilinear_without_antialiasing_by_hand():
    row = np.arange(8, dtype=np.float32)
    shrunk = Downsample(factor=(4, 4), filter="bilinear").apply(
        np.tile(row[None, :, None], (8, 1, 3)), {"height": 2, "width": 2}
    )
    np.testing.assert_allclose(shrunk[0, :, 0], [1.5, 5.5])  # two pixels around (i + 0.5) * 4 - 0.5, nothing else


def test_size_is_floor_divided():
    down = Downsample(factor=(3.7, 3.7), filter="bilinear")
    assert down.sample(generator(0, 0, "x"), (60, 72)) == {"factor": 3.7, "height": 16, "width": 19}
    assert Downsample(factor=(0.8, 0.8), filter="bilinear").sample(generator(0, 0, "x"), (512, 512))["width"] == 639


def test_factor_draws():
    down = Downsample(factor=(1, 12), filter="bilinear")
    assert_uniform(drawn(down, "factor"), 1, 12)
    assert drawn(down, "width", size=(512, 512)).min() >= 42


def test_resize_back_goes_to_the_hq_size():
    parameters = ResizeBack(filter="bilinear").sample(generator(0, 0, "x"), (40, 56))
    assert parameters == {"height": 40, "width": 56}
    assert ResizeBack(filter="bicubic").apply(photo(7, 9), parameters).shape == (40, 56, 3)


def test_resize_errors():
    with pytest.raises(ValueError, match=r"factor=\[12, 1\] has low > high"):
        Downsample(factor=(12, 1), filter="bilinear")
    with pytest.raises(ValueError, match=r"factor=\[0, 1\] is out of range"):
        Downsample(factor=(0, 1), filter="bilinear")
    with pytest.raises(
        ValueError, match=r"factor=\[1, 12\] can shrink 64x8 to less than one pixel: give a high end of at most 8"
    ):
        Downsample(factor=(1, 12), filter="bilinear").sample(generator(0, 0, "x"), (64, 8))


# noise


def test_noise_by_hand():
    grey = np.full((1, 2, 3), 0.5, dtype=np.float32)
    field = np.array([[[1, -2, 0], [1000, -1000, 0.5]]], dtype=np.float32)
    np.testing.assert_allclose(add_noise(grey, field, 25.5), [[[0.6, 0.3, 0.5], [1, 0, 0.55]]], atol=1e-6)


def test_noise_is_white_and_as_strong_as_asked():
    noise = GaussianNoise(sigma_255=(10, 10))
    grey = np.full((128, 128, 3), 0.5, dtype=np.float32)
    noisy = noise.apply(grey, noise.sample(generator(0, 0, "noise"), (128, 128)))
    added = (noisy - grey) * 255
    assert added.std() == pytest.approx(10, rel=0.02)
    assert abs(added.mean()) < 0.2
    assert np.abs(np.corrcoef(added.reshape(-1, 3).T) - np.eye(3)).max() < 0.03


def test_noise_is_made_from_its_seed_alone():
    noise = GaussianNoise(sigma_255=(5, 30))
    one, two = (noise.apply(photo(), {"sigma_255": 10.0, "field_seed": seed}) for seed in (5, 6))
    np.testing.assert_array_equal(one, noise.apply(photo(), {"sigma_255": 10.0, "field_seed": 5}))
    assert np.abs(one - two).max() > 0.05


def test_noise_draws():
    noise = GaussianNoise(sigma_255=(0, 15))
    assert_uniform(drawn(noise, "sigma_255"), 0, 15)
    seeds = drawn(noise, "field_seed")
    assert len(set(seeds.tolist())) == 2000
    assert 0 <= seeds.min() <= seeds.max() < 2**63
    with pytest.raises(ValueError, match=r"sigma_255=\[-1, 15\] is out of range"):
        GaussianNoise(sigma_255=(-1, 15))


# JPEG


def test_jpeg_reaches_low_and_not_high():
    assert set(drawn(Jpeg(quality=(30, 40)), "quality").tolist()) == set(range(30, 40))
    assert set(drawn(Jpeg(quality=(40, 40)), "quality").tolist()) == {40}


def test_jpeg_keeps_a_flat_grey_and_loses_more_at_low_quality():
    grey = np.full((16, 16, 3), 128 / 255, dtype=np.float32)
    np.testing.assert_allclose(Jpeg(quality=(1, 100)).apply(grey, {"quality": 10}), grey, atol=1e-7)
    error = [np.abs(Jpeg(quality=(1, 100)).apply(photo(), {"quality": quality}) - photo()).mean() for quality in (10, 50, 90)]
    assert error[0] > error[1] > error[2] > 0


def test_jpeg_halves_the_colour_resolution():
    columns = np.zeros((16, 16, 3), dtype=np.float32)
    columns[:, ::2, 2] = 1  # blue and black columns: 4:2:0 makes them one blue
    decoded = Jpeg(quality=(1, 100)).apply(columns, {"quality": 100})
    assert np.abs(np.diff(decoded[4, 4:12, 2])).max() < 0.5


def test_jpeg_saturates_and_rounds():
    wild = np.full((8, 8, 3), 1.7, dtype=np.float32)
    np.testing.assert_array_equal(Jpeg(quality=(1, 100)).apply(wild, {"quality": 100}), np.ones_like(wild))


def test_jpeg_errors():
    with pytest.raises(ValueError, match=r"quality=\[0, 90\] is out of range: both ends must lie in 1 .. 100"):
        Jpeg(quality=(0, 90))


@pytest.mark.parametrize(
    "operator",
    [
        GaussianBlur(kernel_size_px=41, sigma_px=(0.1, 12), isotropic_prob=0.5),
        Downsample(factor=(1, 4), filter="area"),
        ResizeBack(filter="bilinear"),
        GaussianNoise(sigma_255=(0, 15)),
        Jpeg(quality=(30, 100)),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_parameters_survive_json_and_apply_is_pure(operator):
    parameters = operator.sample(generator(1, 2, "x"), (64, 48))
    assert json.loads(json.dumps(parameters)) == parameters
    given = photo()
    first = operator.apply(given, parameters)
    np.testing.assert_array_equal(given, photo())
    np.testing.assert_array_equal(first, operator.apply(given, parameters))
    assert first.dtype == np.float32

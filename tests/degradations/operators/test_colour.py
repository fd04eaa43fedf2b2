"""Colour: by hand, against torchvision and cv2, and at the edges of hue."""

import colorsys

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf

from degradations.operators.colour import (
    ChannelShift,
    ColourFade,
    ColourJitter,
    ColourShift,
    Grey,
    LowLight,
    adjust_hue,
    displaced,
    plain,
)
from tests.degradations.samples import assert_uniform, drawn, draws, photo

JITTER = ColourJitter(brightness=(0.5, 1.5), contrast=(0.5, 1.5), saturation=(0, 1.5), hue=(-0.1, 0.1))
TORCHVISION = {
    "b": ("brightness", tvf.adjust_brightness),
    "c": ("contrast", tvf.adjust_contrast),
    "s": ("saturation", tvf.adjust_saturation),
    "h": ("hue", tvf.adjust_hue),
}


def pixel(red, green, blue):
    return np.array([red, green, blue], dtype=np.float32)[:, None, None]


def hue_turned(colour, turn):
    image = torch.tensor(colour, dtype=torch.float32)[None, :, None, None]
    return adjust_hue(image, torch.tensor([turn], dtype=torch.float32)).flatten().tolist()


def test_jitter_is_torchvisions():
    seen = set()
    for parameters in draws(JITTER, count=40):
        image = torch.from_numpy(photo())
        for letter in parameters["order"]:
            name, adjust = TORCHVISION[letter]
            image = adjust(image, parameters[name])
        np.testing.assert_allclose(JITTER.apply(photo(), parameters), image, rtol=0, atol=4e-6)  # those of the four together
        seen.add(parameters["order"])
    assert len(seen) > 15  # of 24 orders


@pytest.mark.parametrize("letter", TORCHVISION)
def test_each_adjustment_is_torchvisions(letter):
    name, adjust = TORCHVISION[letter]
    for parameters in draws(JITTER, count=20):
        theirs = adjust(torch.from_numpy(photo()), parameters[name])
        np.testing.assert_allclose(
            JITTER.apply(photo(), {**parameters, "order": letter}), theirs, rtol=0, atol=1e-6 if letter != "h" else 2e-6
        )


def test_jitter_draws():
    for name, (low, high) in {
        "brightness": (0.5, 1.5),
        "contrast": (0.5, 1.5),
        "saturation": (0, 1.5),
        "hue": (-0.1, 0.1),
    }.items():
        assert_uniform(drawn(JITTER, name), low, high)
    orders, counts = np.unique(drawn(JITTER, "order", count=4800), return_counts=True)
    assert len(orders) == 24
    assert all(sorted(order) == ["b", "c", "h", "s"] for order in orders)
    assert ((counts - 200) ** 2 / 200).sum() < 49.7  # chi-square of 23 degrees of freedom, 0.1 %


def test_factors_that_change_nothing():
    same = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "order": "bcsh"}
    np.testing.assert_allclose(JITTER.apply(photo(), same), photo(), atol=1e-6)


def test_brightness_contrast_and_saturation_by_hand():
    image = np.concatenate([pixel(0.2, 0.4, 0.6), pixel(0.8, 0.8, 0.8)], axis=2)
    base = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    brighter = JITTER.apply(image, {**base, "brightness": 1.5, "order": "bcsh"})
    np.testing.assert_allclose(brighter[:, 0, 0], [0.3, 0.6, 0.9], atol=1e-6)
    np.testing.assert_array_equal(brighter[:, 0, 1], 1)  # clamped
    grey = 0.2989 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6
    np.testing.assert_allclose(JITTER.apply(image, {**base, "saturation": 0.0, "order": "s"})[:, 0, 0], grey, atol=1e-6)
    mean = (grey + 0.9999 * 0.8) / 2
    flat = JITTER.apply(image, {**base, "contrast": 0.5, "order": "c"})
    np.testing.assert_allclose(flat[:, 0, 0], [(mean + value) / 2 for value in (0.2, 0.4, 0.6)], atol=1e-6)


def test_the_order_matters():
    given = {"brightness": 1.5, "contrast": 0.5, "saturation": 1.0, "hue": 0.0}
    one, other = (JITTER.apply(photo(), {**given, "order": order}) for order in ("bcsh", "cbsh"))
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("value", [0.0, 0.37, 1.0])
def test_grey_has_no_hue(value):
    assert hue_turned((value, value, value), 0.3) == [pytest.approx(value)] * 3


@pytest.mark.parametrize(
    ("colour", "turn", "expected"),
    [
        ((1, 0, 0), 1 / 3, (0, 1, 0)),
        ((1, 0, 0), -1 / 3, (0, 0, 1)),
        ((0, 1, 0), 1 / 3, (0, 0, 1)),
        ((0, 0, 1), 1 / 3, (1, 0, 0)),
        ((1, 0, 0), 0.5, (0, 1, 1)),
        ((1, 0, 0), -0.5, (0, 1, 1)),
        ((1, 1, 0), 1 / 6, (0, 1, 0)),  # two colours are the largest
        ((0, 1, 1), 1 / 6, (0, 0, 1)),
        ((1, 0, 1), 1 / 6, (1, 0, 0)),
        ((0.5, 0.25, 0.25), 1 / 3, (0.25, 0.5, 0.25)),
    ],
)
def test_pure_colours_turn(colour, turn, expected):
    assert hue_turned(colour, turn) == pytest.approx(expected, abs=1e-6)


def test_hue_is_colorsyss():
    rng = np.random.default_rng(0)
    for colour, turn in zip(rng.random((200, 3)), rng.uniform(-0.5, 0.5, 200), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        assert hue_turned(colour, turn) == pytest.approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=2e-6)


def test_colour_shift():
    operator = ColourShift(shift_255=20)
    given = {"red_255": 20.0, "green_255": -20.0, "blue_255": 5.1}
    shifted = operator.apply(pixel(0.5, 0.05, 0.99), given)
    np.testing.assert_allclose(shifted[:, 0, 0], [0.5 + 20 / 255, 0, 1], atol=1e-6)  # clipped
    columns = [drawn(operator, name) for name in given]
    for values in columns:
        assert_uniform(values, -20, 20)
    assert np.abs(np.corrcoef(columns) - np.eye(3)).max() < 0.09


def test_channel_shift_by_hand():
    operator = ChannelShift(shift_px=2)
    given = {"red_x_px": 1.0, "red_y_px": 0.0, "blue_x_px": 0.0, "blue_y_px": -1.5}
    image, moved = photo(), operator.apply(photo(), given)
    np.testing.assert_array_equal(moved[1], image[1])
    np.testing.assert_allclose(moved[0, :, 1:], image[0, :, :-1], atol=1e-6)  # to the right
    np.testing.assert_allclose(moved[0, :, 0], image[0, :, 1], atol=1e-6)  # mirrored without the edge
    np.testing.assert_allclose(moved[2, :-2], (image[2, 1:-1] + image[2, 2:]) / 2, atol=1e-6)  # up, half a pixel between two
    for name in given:
        assert_uniform(drawn(operator, name), -2, 2)


def test_displaced_by_nothing():
    np.testing.assert_allclose(displaced(photo()[0], 0, 0), photo()[0], atol=1e-7)


def test_grey_is_cv2s():
    grey = Grey().apply(photo(), Grey().sample(np.random.default_rng(0), (64, 48)))
    expected = cv2.cvtColor(np.ascontiguousarray(photo().transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
    for plane in grey:
        np.testing.assert_allclose(plane, expected, atol=1e-6)
    np.testing.assert_allclose(plain(pixel(0.2, 0.4, 0.6)), 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6, rtol=1e-6)


def test_low_light():
    operator = LowLight(gamma=(1, 2), gain=(0.4, 1))
    dark = operator.apply(pixel(0, 0.5, 1), {"gamma": 2.0, "gain": 0.8})
    np.testing.assert_allclose(dark[:, 0, 0], [0, 0.2, 0.8], atol=1e-6)
    np.testing.assert_array_equal(operator.apply(photo(), {"gamma": 1.0, "gain": 1.0}), photo())
    assert operator.apply(pixel(-0.2, 0.5, 1.2), {"gamma": 1.5, "gain": 1.0})[:, 0, 0] == pytest.approx([0, 0.5**1.5, 1])
    assert_uniform(drawn(operator, "gamma"), 1, 2)
    assert_uniform(drawn(operator, "gain"), 0.4, 1)


def test_colour_fade():
    operator = ColourFade(fade=(0.2, 1), black=(0, 0.25))
    grey = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6
    faded = operator.apply(pixel(0.2, 0.4, 0.6), {"fade": 1.0, "black": 0.0})
    np.testing.assert_allclose(faded[:, 0, 0], [grey, 0.87 * grey, 0.66 * grey], rtol=1e-5)
    np.testing.assert_allclose(operator.apply(pixel(0, 0, 0), {"fade": 0.7, "black": 0.2}), 0.2, rtol=1e-6)
    np.testing.assert_allclose(operator.apply(pixel(1, 1, 1), {"fade": 0.0, "black": 0.2}), 1, rtol=1e-6)
    np.testing.assert_array_equal(operator.apply(photo(), {"fade": 0.0, "black": 0.0}), photo())
    assert_uniform(drawn(operator, "fade"), 0.2, 1)
    assert_uniform(drawn(operator, "black"), 0, 0.25)


def test_errors():
    ranges = {"brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "saturation": (0, 1.5), "hue": (-0.1, 0.1)}
    with pytest.raises(ValueError, match=r"hue=\[-0.6, 0.1\] is out of range: both ends must lie in -0.5 .. 0.5"):
        ColourJitter(**{**ranges, "hue": (-0.6, 0.1)})
    with pytest.raises(ValueError, match=r"contrast=\[-1, 1.5\] is out of range"):
        ColourJitter(**{**ranges, "contrast": (-1, 1.5)})
    with pytest.raises(ValueError, match=r"shift_255=\[0, -1\] has low > high"):
        ColourShift(shift_255=-1)
    with pytest.raises(ValueError, match=r"gain=\[0.4, 1.1\] is out of range"):
        LowLight(gamma=(1, 2), gain=(0.4, 1.1))
    with pytest.raises(ValueError, match=r"fade=\[0.5, 0.2\] has low > high"):
        ColourFade(fade=(0.5, 0.2), black=(0, 1))

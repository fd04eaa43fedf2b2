"""Unsharp masking by hand."""

import numpy as np
import pytest

from degradations.operators.sharpen import UsmSharpening
from tests.degradations.samples import photo


def sharpen(image, weight=0.5, threshold_255=10, size=51):
    return UsmSharpening(kernel_size_px=size, weight=weight, threshold_255=threshold_255).apply(image, {})


def test_what_changes_nothing():
    np.testing.assert_allclose(sharpen(photo(), weight=0), photo(), atol=1e-6)
    np.testing.assert_array_equal(sharpen(photo(), threshold_255=300), photo())
    flat = np.full((3, 64, 64), 0.4, dtype=np.float32)
    np.testing.assert_allclose(sharpen(flat), flat, atol=1e-6)


def test_the_sigma_follows_the_size():
    kernel = UsmSharpening(kernel_size_px=51, weight=1, threshold_255=0).kernel  # sigma 8
    assert kernel[25, 26] / kernel[25, 25] == pytest.approx(np.exp(-0.5 / 64))


def test_an_edge_by_hand():
    edge = np.zeros((3, 9, 9), dtype=np.float32)
    edge[..., 5:] = 0.6
    kernel = UsmSharpening(kernel_size_px=3, weight=1, threshold_255=0).kernel  # sigma 0.8
    side = kernel.sum(axis=0)[0]
    sharp = sharpen(edge, weight=1, threshold_255=10, size=3)
    # Pixels 4 and 5 are off the blurred edge by side * 0.6; the mask is 1 there, and after its blur 1 - side.
    np.testing.assert_allclose(sharp[0, 4, 5], 0.6 + (1 - side) * side * 0.6, rtol=1e-5)
    assert sharp[0, 4, 4] == 0  # below 0 is clipped
    np.testing.assert_array_equal(sharp[0, 4, :3], 0)


def test_errors():
    with pytest.raises(ValueError, match="kernel_size_px=50 has no centre: give an odd size such as 51"):
        UsmSharpening(kernel_size_px=50, weight=0.5, threshold_255=10)

"""Filters against cv2's, each of the ways that a kernel may go."""

import cv2
import numpy as np
import pytest

from degradations import filters, kernels
from degradations.filters import EXACT, factors, filtered, filtered_and_shrunk, reads, trimmed
from tests.degradations.samples import photo

ASYMMETRIC = np.random.default_rng(0).random((13, 13))
KERNELS = {
    "delta": kernels.gaussian(41, 0.1, 0.1, 0),
    "narrow": kernels.gaussian(41, 0.7, 0.7, 0),
    "wide": kernels.gaussian(41, 12, 12, 0),
    "upright": kernels.gaussian(41, 2, 7, 0),
    "turned": kernels.gaussian(41, 2, 7, 0.7),
    "very turned": kernels.gaussian(41, 0.3, 12, 0.8),
    "plateau": kernels.plateau(21, 2, 1, 0.4, 1.5),
    "sinc": kernels.sinc(21, 1.2),
    "small sinc": kernels.sinc(7, 1.2),
    "motion": kernels.motion(21, 12, 0.5),
    "asymmetric": ASYMMETRIC / ASYMMETRIC.sum(),
    "one pixel": np.ones((1, 1)),
}
SIZES = [(64, 48), (63, 51), (23, 23), (21, 40), (5, 7), (1, 1)]


def by_cv2(image, kernel):
    return np.stack([cv2.filter2D(plane, -1, kernel, borderType=cv2.BORDER_REFLECT_101) for plane in image])


@pytest.fixture
def ways(monkeypatch):
    """Which ways were taken."""
    taken = set()

    def watched(owner, name, way):
        original = getattr(owner, name)

        def call(*arguments, **options):
            taken.add(way)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    watched(filters.cv2, "filter2D", "direct")
    watched(filters.cv2, "sepFilter2D", "passes")
    watched(filters, "_by_fourier", "fourier")
    watched(filters, "_by_products", "products")
    return taken


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_filtered_is_cv2s(name, size):
    image = photo(*size)
    result = filtered(image, KERNELS[name])
    np.testing.assert_allclose(result, by_cv2(image, KERNELS[name]), rtol=0, atol=2e-6)
    assert result.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "size", "way"),
    [
        ("narrow", (64, 48), "direct"),
        ("delta", (64, 48), "direct"),
        ("wide", (64, 48), "passes"),
        ("upright", (64, 48), "passes"),
        ("turned", (64, 48), "fourier"),
        ("asymmetric", (64, 48), "fourier"),
        ("turned", (9, 64), "direct"),  # a border that mirrors more than once
    ],
)
def test_the_way_of_a_kernel(name, size, way, ways):
    result = filtered(photo(*size), KERNELS[name])
    assert ways == {way}
    np.testing.assert_allclose(result, by_cv2(photo(*size), KERNELS[name]), rtol=0, atol=2e-6)


SHRUNK = [(64, 48, 20, 15), (63, 51, 63, 51), (63, 51, 79, 64), (60, 52, 1, 1), (23, 23, 5, 5), (5, 7, 2, 3)]


@pytest.mark.parametrize("whole", ["by what it costs", "always by products"])
@pytest.mark.parametrize("sizes", SHRUNK, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_shrunk_is_cv2s(name, sizes, whole, monkeypatch, ways):
    if whole == "always by products":
        monkeypatch.setattr(filters, "PRODUCT_S_A_MAC", 0)
        monkeypatch.setattr(filters, "PRODUCTS_S", 0)
    height, width, low, short = sizes
    image = photo(height, width)
    result = filtered_and_shrunk(image, KERNELS[name], low, short)
    expected = np.stack([cv2.resize(plane, (short, low)) for plane in by_cv2(image, KERNELS[name])])
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-3)
    assert result.shape == (3, low, short)
    if whole == "always by products":
        assert ("products" in ways) == (min(height, width) > len(trimmed(KERNELS[name])))


def test_products_are_taken_where_they_are_cheap(ways):
    filtered_and_shrunk(photo(512, 512), KERNELS["turned"], 64, 64)
    assert ways == {"products"}
    ways.clear()
    filtered_and_shrunk(photo(512, 512), KERNELS["turned"], 512, 512)
    assert ways == {"fourier"}


def test_a_smooth_photo_is_shrunk_closely():
    smooth = by_cv2(photo(256, 256), kernels.gaussian(21, 2, 2, 0))
    result = filtered_and_shrunk(smooth, KERNELS["turned"], 40, 40)
    expected = np.stack([cv2.resize(plane, (40, 40)) for plane in by_cv2(smooth, KERNELS["turned"])])
    assert np.abs(result - expected).mean() < 1e-4


def test_rings_that_weigh_nothing_are_cut():
    assert trimmed(kernels.gaussian(41, 0.1, 0.1, 0)).shape == (1, 1)
    assert trimmed(kernels.gaussian(41, 12, 12, 0)).shape == (41, 41)
    assert len(trimmed(kernels.gaussian(41, 1, 1, 0))) in (11, 13)  # beyond 5 sigma lie 6e-7, beyond 6 sigma 2e-9
    padded = np.pad(ASYMMETRIC, 4)
    np.testing.assert_array_equal(trimmed(padded), ASYMMETRIC)
    assert np.abs(kernels.gaussian(41, 1, 1, 0)).sum() - trimmed(kernels.gaussian(41, 1, 1, 0)).sum() < EXACT


def test_factors_make_the_kernel():
    for name, rank in (("wide", 1), ("upright", 1), ("asymmetric", 13)):
        columns, rows = factors(KERNELS[name], EXACT)
        assert len(columns) == len(rows) == rank
        np.testing.assert_allclose(columns.T @ rows, KERNELS[name], atol=1e-9)
    loose = factors(KERNELS["turned"], 1e-2)
    assert 1 < len(loose[0]) < len(factors(KERNELS["turned"], EXACT)[0])
    assert np.abs(loose[0].T @ loose[1] - KERNELS["turned"]).sum() <= 1e-2


def test_reads_by_hand():
    lower, upper_weight = reads(8, 2)
    assert (lower.tolist(), upper_weight.tolist()) == ([1, 5], [0.5, 0.5])
    lower, upper_weight = reads(2, 4)  # positions -0.25, 0.25, 0.75, 1.25, kept within 0 to 1
    assert ((lower + upper_weight).tolist(), lower.tolist()) == ([0, 0.25, 0.75, 1], [0, 0, 0, 1])


def test_the_border_mirrors_without_the_edge():
    line = np.repeat(np.array([[0.0, 1.0, 0.0, 0.0]], dtype=np.float32)[None], 3, axis=0)
    side = 1 / (2 + np.exp(0.5))  # weight of a neighbour; the pixel before the first is the second
    np.testing.assert_allclose(filtered(line, kernels.gaussian(3, 1, 1, 0))[:, 0, 0], 2 * side, atol=1e-6)

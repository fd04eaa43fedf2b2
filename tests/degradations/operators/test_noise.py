"""Noise: strength and colour, and Poisson's counts against numpy's."""

import numpy as np
import pytest
from scipy.stats import poisson

from degradations.operators import noise
from degradations.operators.noise import GaussianNoise, PoissonNoise, add_noise, luminance, poisson_table
from tests.degradations.samples import assert_uniform, drawn, photo

GAUSSIAN = GaussianNoise(sigma_255=(0, 15), grey_prob=0.4)
POISSON = PoissonNoise(scale=(0.05, 3), grey_prob=0.4)


def flat(value, side=128):
    return np.full((3, side, side), value, dtype=np.float32)


def test_noise_by_hand():
    field = np.array([[[1, -2, 0], [1000, -1000, 0.5]]], dtype=np.float32)
    expected = np.repeat([[[0.6, 0.3, 0.5], [1, 0, 0.55]]], 3, axis=0)  # one field for the three colours
    np.testing.assert_allclose(add_noise(np.full((3, 2, 3), 0.5, dtype=np.float32), field, 25.5), expected, atol=1e-6)


def test_noise_is_white_and_as_strong_as_asked():
    noisy = GAUSSIAN.apply(flat(0.5), {"sigma_255": 10.0, "grey": 0, "field_seed": 3})
    added = (noisy - 0.5) * 255
    assert added.std() == pytest.approx(10, rel=0.02)
    assert abs(added.mean()) < 0.2
    assert np.abs(np.corrcoef(added.reshape(3, -1)) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(added[:, 1:].ravel(), added[:, :-1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("operator", [GAUSSIAN, POISSON], ids=["gaussian", "poisson"])
def test_grey_noise_is_the_same_in_every_colour(operator):
    given = {"sigma_255": 10.0, "scale": 1.0, "field_seed": 3}
    grey, colour = (operator.apply(flat(0.5), {**given, "grey": each}) - 0.5 for each in (1, 0))
    np.testing.assert_array_equal(grey[0], grey[1])
    np.testing.assert_array_equal(grey[0], grey[2])
    assert abs(np.corrcoef(colour[0].ravel(), colour[1].ravel())[0, 1]) < 0.03
    assert grey.std() == pytest.approx(colour.std(), rel=0.05)


@pytest.mark.parametrize("operator", [GAUSSIAN, POISSON], ids=["gaussian", "poisson"])
def test_noise_is_made_from_its_seed_alone(operator):
    given = {"sigma_255": 10.0, "scale": 1.0, "grey": 0}
    one, again, two = (operator.apply(photo(), {**given, "field_seed": seed}) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 0.05


@pytest.mark.parametrize(("operator", "name", "low", "high"), [(GAUSSIAN, "sigma_255", 0, 15), (POISSON, "scale", 0.05, 3)])
def test_draws(operator, name, low, high):
    assert_uniform(drawn(operator, name), low, high)
    seeds, grey = drawn(operator, "field_seed"), drawn(operator, "grey")
    assert len(set(seeds.tolist())) == 2000
    assert 0 <= seeds.min() <= seeds.max() < 2**63
    assert set(grey.tolist()) == {0, 1}
    assert grey.mean() == pytest.approx(0.4, abs=0.045)


@pytest.mark.parametrize("values", [1, 2, 32, 256])
def test_the_table_holds_every_probability(values):
    line, starts = poisson_table(values)
    assert (np.diff(line) >= 0).all()
    ends = np.append(starts[1:], len(line))
    for level in (0, 1, 77, 128, 255):
        cumulative = line[starts[level] : ends[level]] - level
        assert cumulative[-1] == 1
        chances, mean = np.diff(cumulative, prepend=0), level / 255 * values
        np.testing.assert_allclose(chances, poisson.pmf(np.arange(len(chances)), mean), atol=2e-9)
        assert chances.sum() == pytest.approx(1)
        assert (chances * np.arange(len(chances))).sum() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("level", [0, 1, 20, 128, 255])
def test_counts_are_spread_as_numpys(level):
    image = np.repeat(np.arange(256, dtype=np.float32)[None, :, None], 3, axis=0).repeat(1000, axis=2) / 255  # all 256 levels
    noisy = apply_unclipped(image, {"scale": 1.0, "grey": 0, "field_seed": 9})
    counts = np.rint((noisy[:, level].ravel() - image[0, level, 0] + level / 255) * 256).astype(int)
    theirs = np.random.default_rng(1).poisson(level / 255 * 256, counts.size)
    assert counts.mean() == pytest.approx(level / 255 * 256, abs=4 * np.sqrt(level * 256 / 255 / counts.size) + 1e-9)
    assert counts.var() == pytest.approx(level / 255 * 256, rel=0.11)
    values = np.arange(max(counts.max(), theirs.max()) + 1)
    ours_at, theirs_at = ((each[:, None] <= values).mean(axis=0) for each in (counts, theirs))
    assert np.abs(ours_at - theirs_at).max() < 1.95 * np.sqrt(2 / counts.size)  # Kolmogorov-Smirnov, 0.1 %


def apply_unclipped(image, parameters):
    """Poisson noise before it is clipped: the clip would hide how counts are spread near black and white."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise.np, "clip", lambda values, *bounds, **_: values)
        return POISSON.apply(image, parameters)


@pytest.mark.parametrize(("levels", "values"), [(1, 1), (2, 2), (3, 4), (128, 128), (129, 256), (256, 256)])
def test_the_number_of_levels_sets_the_strength(levels, values, monkeypatch):
    asked = []
    monkeypatch.setattr(noise, "poisson_table", lambda each: asked.append(each) or poisson_table(each))
    image = np.resize(np.arange(levels, dtype=np.float32) / 255, (3, 16, 32))
    noisy = POISSON.apply(image, {"scale": 1.0, "grey": 0, "field_seed": 9})
    assert asked == [values]
    np.testing.assert_allclose(noisy * values, np.rint(noisy * values), atol=1e-4)  # counts of photons


def test_no_scale_no_noise():
    np.testing.assert_array_equal(POISSON.apply(photo(), {"scale": 0.0, "grey": 1, "field_seed": 1}), photo())
    np.testing.assert_array_equal(GAUSSIAN.apply(photo(), {"sigma_255": 0.0, "grey": 1, "field_seed": 1}), photo())


def test_luminance_by_hand():
    np.testing.assert_allclose(luminance(np.float32([[[1]], [[0]], [[0.5]]])), [[[0.2989 + 0.057]]], rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match=r"sigma_255=\[-1, 15\] is out of range"):
        GaussianNoise(sigma_255=(-1, 15), grey_prob=0)
    with pytest.raises(ValueError, match=r"grey_prob=2 is no probability"):
        GaussianNoise(sigma_255=(1, 15), grey_prob=2)
    with pytest.raises(ValueError, match=r"scale=\[3, 1\] has low > high"):
        PoissonNoise(scale=(3, 1), grey_prob=0)
    with pytest.raises(ValueError, match=r"grey_prob=-0.1 is no probability"):
        PoissonNoise(scale=(1, 3), grey_prob=-0.1)

"""Random numbers depend on seed, position and stream, and on nothing else."""

import numpy as np
import pytest

from degradations.draws import checked_prob, checked_range, field_seed, generator


def numbers(*key):
    return generator(*key).random(2000)


def test_same_key_gives_the_same_numbers():
    np.testing.assert_array_equal(numbers(7, 123, "blur"), numbers(7, 123, "blur"))


def test_numbers_stay_as_they_are():
    assert generator(1, 2, "blur").integers(10**9, size=3).tolist() == [773700115, 613210518, 734612384]


@pytest.mark.parametrize("other", [(8, 123, "blur"), (7, 124, "blur"), (7, 123, "noise"), (123, 7, "blur")])
def test_other_keys_are_independent(other):
    assert abs(np.corrcoef(numbers(7, 123, "blur"), numbers(*other))[0, 1]) < 0.08  # 3.5 standard deviations


def test_neighbouring_positions_are_uniform_together():
    first = np.array([generator(0, position, "blur").random() for position in range(4000)])
    assert abs(first.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.06


def test_large_keys():
    assert generator(2**63, 2**63, "x").random() != generator(2**63 - 1, 2**63, "x").random()


@pytest.mark.parametrize(("seed", "position", "wrong"), [(-1, 0, "seed=-1"), (0, 2**64, f"position={2**64}")])
def test_keys_out_of_range(seed, position, wrong):
    with pytest.raises(ValueError, match=wrong):
        generator(seed, position, "blur")


def test_ranges():
    assert checked_range("factor", (1, 1), 0) == (1, 1)
    with pytest.raises(ValueError, match=r"factor=\[12, 1\] has low > high: give \[1, 12\]"):
        checked_range("factor", (12, 1), 0)
    with pytest.raises(ValueError, match=r"quality=\[30, 101\] is out of range: both ends must lie in 1 .. 100"):
        checked_range("quality", (30, 101), 1, 100)
    with pytest.raises(ValueError, match=r"factor=\[1, 2, 3\] has 3 entries"):
        checked_range("factor", (1, 2, 3), 0)  # type: ignore[arg-type]


def test_field_seeds_fit_an_int64():
    seeds = [field_seed(generator(0, position, "noise")) for position in range(500)]
    assert len(set(seeds)) == 500
    assert 0 <= min(seeds) < 2**57
    assert 2**63 > max(seeds) > 2**63 - 2**57
    assert all(type(seed) is int for seed in seeds)
    assert np.mean(seeds) / 2**63 == pytest.approx(0.5, abs=0.052)  # 4 standard errors of a uniform draw


def test_probabilities():
    assert [checked_prob("prob", prob) for prob in (0, 0.3, 1)] == [0, 0.3, 1]
    with pytest.raises(ValueError, match=r"grey_prob=1.01 is no probability: give a value in 0 .. 1"):
        checked_prob("grey_prob", 1.01)

"""The comparison of distributions itself: by hand, and on pipelines that are wrong on purpose."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from degradations.draws import generator
from degradations.operators.blur import PlateauBlur
from tests.degradations.sets import composed
from tests.parity import distributions
from tests.parity.cases import GOLDEN, Case
from tests.parity.distributions import (
    chi_square,
    complaints,
    event_complaints,
    ks_distance,
    of_set,
    quantile_distance,
    second_moments,
    shape_observables,
    shapes,
    value_complaints,
)

UNIFORM = list(np.linspace(0, 1, 101))


def case(name: str) -> Case:
    return Case(GOLDEN / "degradations" / f"dist_{name}.json")


def named(found: list[str]) -> set[str]:
    return {text.split(":")[0].split(" ")[0] for text in found}


def test_ranges_that_are_a_little_wrong_are_seen() -> None:
    wrong = {"blur.sigma_px": "[0.1,11]", "downsample.factor": "[1,11.5]", "jpeg.quality": "[30,95]"}  # 12, 12 and 100
    found = complaints(case("diffbir_stage1"), of_set("diffbir", *(f"degradation.operators.{k}={v}" for k, v in wrong.items())))
    seen = named(found)
    kernel = {"kernel_sigma_major", "kernel_sigma_minor", "kernel_sigma_rms", "kernel_center_weight"}
    assert seen >= kernel | {"low_resolution_side", "jpeg_quality"}, found
    assert seen <= kernel | {"low_resolution_side", "jpeg_quality", "kernel_axis_ratio"}, found


def test_probabilities_that_are_a_little_wrong_are_seen() -> None:
    wrong = ["blur.isotropic_prob=0.53", "colour_shift.prob=0.32", "grey.prob=0.015", "noise.sigma_255=[0,19]"]
    found = complaints(case("gfpgan"), of_set("gfpgan", *(f"degradation.operators.{each}" for each in wrong)))
    assert named(found) >= {"kernel_type", "color_jitter_numpy", "gray", "noise_std_255"}, found
    assert "color_jitter_torch" not in named(found)


def test_a_plateau_of_uniform_beta_is_seen() -> None:
    class Uniform(PlateauBlur):
        def sample(self, rng, size):
            return {**super().sample(rng, size), "beta": rng.uniform(*self.beta)}

    stored = case("mixed_kernels_by_type").facts["observables"]["plateau_iso.sigma_major"]
    found = {}
    for kind in (Uniform, PlateauBlur):
        blur = kind(kernel_size_px=21, sigma_px=(0.2, 3), isotropic_prob=1, beta=(1, 2))
        drawn = [blur.sample(generator(0, position, "beta"), (64, 64)) for position in range(5000)]
        shape = shape_observables(lambda _, blur=blur: blur, drawn)
        found[kind] = list(value_complaints("plateau_iso.sigma_major", stored, shape["sigma_major"]))
    assert found[PlateauBlur] == []
    assert len(found[Uniform]) == 2, found  # Kolmogorov-Smirnov and a quantile


def test_observables_that_are_missing() -> None:
    drawn = distributions.Drawn({"kernel_sigma_major": np.ones(3)}, {})
    with pytest.raises(AssertionError, match=r"degradations/dist_gfpgan: .*jpeg_quality"):
        complaints(case("gfpgan"), drawn)


def test_ks_distance_by_hand() -> None:
    even = (np.arange(1000) + 0.5) / 1000
    assert ks_distance(UNIFORM, even) == pytest.approx(0, abs=1e-9)
    assert ks_distance(UNIFORM, even * 0.9) == pytest.approx(0.1, abs=0.01)  # at 0.9 all is drawn there, nine tenths here
    assert ks_distance(UNIFORM, even + 0.1) == pytest.approx(0.1, abs=0.01)
    jump = [0.0] * 50 + [1.0] * 51
    assert ks_distance(jump, np.repeat([0.0, 1.0], 50)) == 0
    assert ks_distance(jump, np.repeat([0.0, 1.0], [60, 40])) == pytest.approx(0.11, abs=0.011)
    assert ks_distance(jump, np.repeat([1e-9, 1.0], 50)) == 0  # what rounding leaves of 0


def test_quantile_distance_by_hand() -> None:
    even = (np.arange(10000) + 0.5) / 10000
    assert quantile_distance(UNIFORM, even)[0] == pytest.approx(0, abs=1e-4)
    assert quantile_distance(UNIFORM, even * 0.96) == (pytest.approx(0.038, abs=1e-4), 95)
    whole = [float(n) for n in range(101)]
    assert quantile_distance(whole, np.arange(101) + 1)[0] == pytest.approx(0, abs=1e-9)  # whole numbers hide up to one
    assert quantile_distance(whole, np.arange(101) + 3)[0] == pytest.approx(0.02)


def test_chi_square_by_hand() -> None:
    histogram = {"range": [0.0, 2.0], "counts": [30, 70]}
    surprise, freedom = chi_square(histogram, np.repeat([0.5, 1.5], [50, 50]))
    assert freedom == 1
    assert surprise == pytest.approx((30 - 50) ** 2 / 80 + (70 - 50) ** 2 / 120)
    assert chi_square(histogram, np.repeat([0.5, 1.5], [60, 140]))[0] == pytest.approx(0)  # twice as many of each
    sparse = {"range": [0.0, 4.0], "counts": [50, 4, 4, 42]}
    assert chi_square(sparse, np.repeat([0.5, 1.5, 2.5, 3.5], [50, 4, 4, 42])) == (pytest.approx(0), 1)


def test_event_complaints_by_hand() -> None:
    stored = {"yes": 2000, "no": 18000}  # 4 standard errors of a difference are 240
    assert list(event_complaints("grey", stored, {"yes": 2239, "no": 17761})) == []
    assert len(list(event_complaints("grey", stored, {"yes": 2241, "no": 17759}))) == 2
    assert list(event_complaints("noise", {"colour": 100}, {"colour": 99, "grey": 1})) != []


def test_shapes_by_hand() -> None:
    kernel = np.zeros((1, 5, 5))
    kernel[0, 2, [0, 4]] = 0.5  # two points, 2 px left and right of the middle
    found = shapes(*second_moments(kernel))
    assert [float(found[name][0]) for name in ("sigma_major", "sigma_minor", "angle", "axis_ratio")] == [2, 0, 0, 0]
    assert found["sigma_rms"] == pytest.approx(2**0.5)
    diagonal = np.eye(5)[None] / 5  # right and down
    found = shapes(*second_moments(diagonal))
    assert (found["sigma_major"], found["sigma_minor"]) == (pytest.approx(2), pytest.approx(0, abs=1e-7))
    assert (found["angle"], found["center_weight"]) == (pytest.approx(np.pi / 4), 0.2)


STORED = sorted((GOLDEN / "degradations").glob("dist_*.json"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_the_published_sets_are_as_their_cases_say(path: Path) -> None:
    assert len(STORED) == 6
    stored = Case(path)
    if "random_mixed_kernels" not in stored.reference:  # no set of conf/degradation
        _, name = distributions.set_of(stored)
        overrides = distributions.overrides_of(stored)
        assert len(overrides) >= 6
        as_cased = OmegaConf.to_container(composed(name, *overrides), resolve=True)
        assert as_cased == OmegaConf.to_container(composed(name), resolve=True)


@pytest.mark.parametrize(
    ("name", "changes", "override"),
    [
        ("gfpgan", {"noise_range": [0, 30]}, "degradation.operators.noise.sigma_255=[0,30]"),
        ("diffbir_stage1", {"kernel_prob": [1, 3]}, "degradation.operators.blur.isotropic_prob=0.25"),
        ("codeformer_stage3", {"jpeg_range_large": [20, 40]}, "degradation.branches.lq_large.operators.jpeg.quality=[20,40]"),
        (
            "diffbir_realesrgan_kernels",
            {"betag_range": [1, 2]},
            "degradation.operators.blur.ways.generalized_iso.blur.beta=[1,2]",
        ),
        ("diffbir_realesrgan_batch", {"resize_range2": [0.5, 3]}, "degradation.operators.resize2.up=[1,3]"),
    ],
)
def test_other_settings_of_a_case_are_followed(name: str, changes: dict[str, Any], override: str) -> None:
    changed = case(name)
    changed.facts["config"] |= changes
    _, set_ = distributions.set_of(changed)
    overrides = distributions.overrides_of(changed)
    assert override in overrides
    assert composed(set_, *overrides) != composed(set_)


def test_other_ranges_of_mixed_kernels_are_drawn() -> None:
    config = case("mixed_kernels_by_type").facts["config"]
    narrow = {"kernel_size": 9, "sigma_x_range": [1, 1.001], "sigma_y_range": [1, 1.001], "betap_range": [1, 1.001]}
    found = distributions.kernels_by_type(config | narrow, draws=20).observables
    gaussian = found["aniso.sigma_major"]
    assert gaussian.max() - gaussian.min() < 0.01
    assert gaussian.mean() == pytest.approx(1, abs=0.01)
    assert np.ptp(found["plateau_iso.center_weight"]) < 1e-3

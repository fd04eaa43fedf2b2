"""Operators in a row, and the published sets in conf/degradation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from degradations.jpeg import Jpeg
from degradations.noise import GaussianNoise
from degradations.pipeline import Operator, Pipeline

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "degradation").glob("*.yaml"))


def composed(name, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+degradation={name}", *overrides]).degradation


@pytest.fixture
def hq():
    return torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))


def test_all_sets_are_seen():
    assert {"challenge", "demo", "diffbir", "heavy", "light", "medium"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_set(name, hq):
    pipeline = instantiate(composed(name), _convert_="all")
    assert all(isinstance(operator, Operator) for operator in pipeline.operators.values())
    for position in range(20):
        lq = pipeline.apply(hq, pipeline.sample(0, position, (48, 64)))
        assert lq.shape == hq.shape
        assert lq.dtype == torch.float32
        assert 0 <= lq.min() <= lq.max() <= 1
        if pipeline.quantize:
            torch.testing.assert_close(lq, (lq * 255).round() / 255, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "ranges", "quantize"),
    [
        ("diffbir", ([0.1, 12], [1, 12], [0, 15], [30, 100]), False),
        ("challenge", ([0.1, 12], [1, 12], [0, 15], [30, 100]), True),
        ("light", ([0.1, 10], [1, 12], [0, 15], [60, 100]), True),
        ("medium", ([0.1, 12], [1, 12], [0, 15], [30, 100]), False),
        ("heavy", ([1, 15], [4, 30], [0, 20], [30, 80]), True),
        ("demo", ([0.2, 2.0], [1, 2], [5, 30], [50, 95]), True),
    ],
)
def test_published_values(name, ranges, quantize):
    config = composed(name)
    operators = config.operators
    assert list(operators) == ["blur", "downsample", "noise", "jpeg", "resize_back"]
    found = (operators.blur.sigma_px, operators.downsample.factor, operators.noise.sigma_255, operators.jpeg.quality)
    assert found == ranges
    assert (operators.blur.kernel_size_px, operators.blur.isotropic_prob, config.quantize) == (41, 0.5, quantize)


def test_one_operator_is_changed_from_the_command_line():
    pipeline = instantiate(composed("diffbir", "degradation.operators.blur.sigma_px=[5,5]"), _convert_="all")
    plain = instantiate(composed("diffbir"), _convert_="all")
    ours, theirs = (each.sample(1, 2, (64, 64)) for each in (pipeline, plain))
    assert ours.pop("blur")["sigma_x_px"] == 5
    theirs.pop("blur")
    assert ours == theirs


def test_an_operator_left_out_does_not_move_the_others():
    whole = Pipeline(operators={"noise": GaussianNoise(sigma_255=(0, 15)), "jpeg": Jpeg(quality=(30, 100))}, quantize=False)
    part = Pipeline(operators={"jpeg": Jpeg(quality=(30, 100))}, quantize=False)
    for position in range(10):
        assert whole.sample(4, position, (8, 8))["jpeg"] == part.sample(4, position, (8, 8))["jpeg"]


def test_the_same_position_gives_the_same_lq(hq):
    pipeline = instantiate(composed("challenge"), _convert_="all")
    first = pipeline.apply(hq, pipeline.sample(9, 77, (48, 64)))
    again = pipeline.apply(hq, pipeline.sample(9, 77, (48, 64)))
    other = pipeline.apply(hq, pipeline.sample(9, 78, (48, 64)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_operator_is_the_identity_and_quantize_rounds_half_to_even():
    values = torch.tensor([0.5, 1.5, 2.4, 254.6]).div(255).expand(3, 1, 4)
    assert torch.equal(Pipeline(operators={}, quantize=False).apply(values, {}), values)
    rounded = Pipeline(operators={}, quantize=True).apply(values, {})
    np.testing.assert_allclose(rounded[0, 0] * 255, [0, 2, 2, 255], atol=1e-4)


def test_parameters_of_another_pipeline(hq):
    pipeline = Pipeline(operators={"jpeg": Jpeg(quality=(30, 100))}, quantize=False)
    with pytest.raises(ValueError, match=r"parameters of \['noise'\] were given to a pipeline of \['jpeg'\]"):
        pipeline.apply(hq, {"noise": {"sigma_255": 1.0}})

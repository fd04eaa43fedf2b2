"""Operators in a row, and the published sets in conf/degradation."""

import json
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from degradations import pipeline as pipelines
from degradations.operators.blur import GaussianBlur
from degradations.operators.choose import OneOf, Sometimes
from degradations.operators.colour import Grey
from degradations.operators.jpeg import Jpeg
from degradations.operators.noise import GaussianNoise
from degradations.operators.operator import Operator
from degradations.operators.resize import Downsample, ResizeBack
from degradations.pipeline import Branches, Pipeline
from tests.degradations.sets import NAMES, built, composed

FACE = ["blur", "downsample", "noise", "jpeg", "resize_back"]
SIZE = (64, 80)


def row(*, quantize=False, hq_too=(), **operators):
    return Pipeline(operators=operators, quantize=quantize, hq_too=list(hq_too), device="cpu")


@pytest.fixture
def hq():
    return torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))


def branches_of(degradation):
    return degradation.branches if isinstance(degradation, Branches) else {"lq": degradation}


def operators_in(operator):
    """The operator and those within it."""
    inner = [operator.operator] if isinstance(operator, Sometimes) else []
    inner += [each for way in operator.ways.values() for each in way.values()] if isinstance(operator, OneOf) else []
    return [operator, *(each for part in inner for each in operators_in(part))]


def structure(parameters):
    """Names and types, without the values."""
    return {name: structure(each) if isinstance(each, dict) else type(each) for name, each in parameters.items()}


# The sets --------------------------------------------------------------------------------------------------------------


def test_all_sets_are_seen():
    published = {"challenge", "codeformer_stage2", "codeformer_stage3", "diffbir", "dtbfr", "gfpgan", "realesrgan"}
    assert published | {"demo", "dtbfr_raw", "heavy", "light", "medium", "old_photo"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_set_keeps_its_domain(name, hq):
    degradation = built(name)
    given = hq.clone()
    for position in range(20):
        degraded = degradation.apply(hq, degradation.sample(0, position, SIZE))
        target_changes = [each.hq_too for each in branches_of(degradation).values()] != [[]] * len(branches_of(degradation))
        assert set(degraded) == {*branches_of(degradation), *(["hq"] if target_changes else [])}
        for key, image in degraded.items():
            assert (image.shape, image.dtype) == (hq.shape, torch.float32)
            assert image.is_contiguous()
            assert 0 <= image.min() <= image.max() <= 1
            if key in branches_of(degradation) and branches_of(degradation)[key].quantize:
                torch.testing.assert_close(image, (image * 255).round() / 255, rtol=0, atol=1e-7)
    assert torch.equal(hq, given)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_every_set_are_json_and_alike(name):
    degradation = built(name)
    every = [degradation.sample(5, position, SIZE) for position in range(60)]
    assert all(json.loads(json.dumps(each)) == each for each in every)
    assert all(structure(each) == structure(every[0]) for each in every)
    assert structure(default_collate(every)).keys() == every[0].keys()
    assert every[0] == degradation.sample(5, 0, SIZE)
    assert (every[0] != degradation.sample(6, 0, SIZE)) == (name != "none"), "none draws nothing"


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_of_every_set_is_pure(name, hq):
    photo = hq.numpy()
    for branch in branches_of(built(name)).values():
        parameters = branch.sample(1, 2, SIZE)
        for own, operator in branch.operators.items():
            assert all(isinstance(each, Operator) for each in operators_in(operator))
            before = photo.copy()
            once = operator.apply(photo, parameters[own])
            np.testing.assert_array_equal(photo, before)
            np.testing.assert_array_equal(operator.apply(photo, parameters[own]), once)
            assert once.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "ranges", "quantize"),
    [
        ("diffbir", ([0.1, 12], [1, 12], [0, 15], [30, 100]), False),
        ("challenge", ([0.1, 12], [1, 12], [0, 15], [30, 100]), True),
        ("light", ([0.1, 10], [1, 12], [0, 15], [60, 100]), True),
        ("medium", ([0.1, 12], [1, 12], [0, 15], [30, 100]), False),
        ("heavy", ([1, 15], [4, 30], [0, 20], [30, 80]), True),
        ("codeformer_stage2", ([1, 15], [4, 30], [0, 20], [30, 80]), True),
        ("gfpgan", ([0.1, 10], [0.8, 8], [0, 20], [60, 100]), True),
        ("dtbfr", ([0.1, 15], [0.8, 32], [0, 20], [30, 100]), True),
        ("demo", ([0.2, 2.0], [1, 2], [5, 30], [50, 95]), True),
    ],
)
def test_published_values(name, ranges, quantize):
    config = composed(name)
    operators = config.operators
    later = {"gfpgan": ["colour_shift", "grey", "colour_jitter"], "dtbfr": ["grey"]}
    assert list(operators) == FACE + later.get(name, [])
    found = (operators.blur.sigma_px, operators.downsample.factor, operators.noise.sigma_255, operators.jpeg.quality)
    assert found == ranges
    assert (operators.blur.kernel_size_px, operators.blur.isotropic_prob, config.quantize) == (41, 0.5, quantize)
    assert (operators.noise.grey_prob, operators.jpeg.codec, config.device) == (0, "libjpeg", "cpu")
    assert config.hq_too == (["grey"] if name == "dtbfr" else [])


def test_the_two_branches_of_codeformer():
    config = composed("codeformer_stage3")
    assert config.branches.lq == composed("light")
    assert config.branches.lq_large == composed("codeformer_stage2")


def test_one_operator_is_changed_from_the_command_line():
    ours, theirs = (
        each.sample(1, 2, SIZE) for each in (built("diffbir", "degradation.operators.blur.sigma_px=[5,5]"), built("diffbir"))
    )
    assert ours.pop("blur")["sigma_x_px"] == 5
    theirs.pop("blur")
    assert ours == theirs


# Draws -----------------------------------------------------------------------------------------------------------------


def test_an_operator_left_out_does_not_move_the_others():
    noise, jpeg = GaussianNoise(sigma_255=(0, 15), grey_prob=0), Jpeg(quality=(30, 100), codec="libjpeg")
    for position in range(10):
        assert row(noise=noise, jpeg=jpeg).sample(4, position, SIZE)["jpeg"] == row(jpeg=jpeg).sample(4, position, SIZE)["jpeg"]


def test_the_same_position_gives_the_same_lq(hq):
    pipeline = built("challenge")
    first, again, other = (pipeline.apply(hq, pipeline.sample(9, position, SIZE))["lq"] for position in (77, 77, 78))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_branches_draw_apart():
    light = built("light")
    both = Branches(branches={"lq": light, "lq_large": light})
    pairs = [[both.sample(0, position, SIZE)[name]["noise"]["sigma_255"] for name in both.branches] for position in range(1000)]
    assert abs(np.corrcoef(np.transpose(pairs))[0, 1]) < 0.13
    alone = Branches(branches={"lq": light})
    assert alone.sample(0, 5, SIZE)["lq"] == both.sample(0, 5, SIZE)["lq"]


# What is done ----------------------------------------------------------------------------------------------------------


def in_turn(pipeline, hq, parameters):
    """Operator after operator, without the shortcut from blur to a small photo."""
    photo = hq.numpy()
    for name, operator in pipeline.operators.items():
        photo = operator.apply(photo, parameters[name])
    return np.clip(photo, 0, 1)


def test_operators_are_done_in_turn(hq):
    pipeline = row(
        blur=GaussianBlur(kernel_size_px=41, sigma_px=(0.1, 12), isotropic_prob=0.5), back=ResizeBack(filter="bilinear")
    )
    for position in range(10):
        parameters = pipeline.sample(0, position, SIZE)
        np.testing.assert_allclose(pipeline.apply(hq, parameters)["lq"], in_turn(pipeline, hq, parameters), rtol=0, atol=2e-6)


def test_a_blur_before_downsampling_is_done_where_it_is_read(hq):
    blur = GaussianBlur(kernel_size_px=41, sigma_px=(0.1, 12), isotropic_prob=0.5)
    pipeline = row(blur=blur, downsample=Downsample(factor=(1, 12), filter="bilinear"))
    with mock.patch.object(pipelines, "filtered_and_shrunk", wraps=pipelines.filtered_and_shrunk) as shrunk:
        for position in range(10):
            parameters = pipeline.sample(0, position, SIZE)
            np.testing.assert_allclose(
                pipeline.apply(hq, parameters)["lq"], in_turn(pipeline, hq, parameters), rtol=0, atol=1e-3
            )
    assert shrunk.call_count == 10


@pytest.mark.parametrize(
    "operators",
    [
        {"blur": GaussianBlur(kernel_size_px=9, sigma_px=(1, 2), isotropic_prob=0)},
        {
            "a": GaussianBlur(kernel_size_px=9, sigma_px=(1, 2), isotropic_prob=0),
            "b": GaussianBlur(kernel_size_px=9, sigma_px=(1, 2), isotropic_prob=0),
        },
        {
            "blur": GaussianBlur(kernel_size_px=9, sigma_px=(1, 2), isotropic_prob=0),
            "down": Downsample(factor=(2, 3), filter="area"),
        },
    ],
    ids=["alone", "two", "before an area filter"],
)
def test_a_blur_that_nothing_follows_up_is_done(operators, hq):
    pipeline = row(**operators)
    parameters = pipeline.sample(0, 3, SIZE)
    np.testing.assert_allclose(pipeline.apply(hq, parameters)["lq"], in_turn(pipeline, hq, parameters), rtol=0, atol=2e-6)


def test_no_operator_is_the_identity_and_quantize_rounds_half_to_even():
    values = torch.tensor([0.5, 1.5, 2.4, 254.6]).div(255).expand(3, 1, 4)
    assert torch.equal(row().apply(values, {})["lq"], values)
    rounded = row(quantize=True).apply(values, {})["lq"]
    np.testing.assert_allclose(rounded[0, 0] * 255, [0, 2, 2, 255], atol=1e-4)


def test_the_result_is_clipped(hq):
    wide = row(back=ResizeBack(filter="bicubic"))
    step = (hq > 0.5).float()[:, ::8, ::8]
    overshot = wide.operators["back"].apply(step.numpy(), {"height": 64, "width": 80})
    assert overshot.max() > 1.05 > -0.05 > overshot.min()
    lq = wide.apply(step, {"back": {"height": 64, "width": 80}})["lq"]
    np.testing.assert_array_equal(lq, overshot.clip(0, 1))


def test_the_lq_never_shares_the_memory_of_the_hq(hq):
    given = hq.clone()
    for degraded in (
        row(quantize=True).apply(hq, {}),
        row(grey=Grey(), hq_too=["grey"], quantize=True).apply(hq, {"grey": {}}),
    ):
        assert torch.equal(hq, given)
        assert not torch.equal(degraded["lq"], degraded.get("hq", hq))


# The target ------------------------------------------------------------------------------------------------------------

NOISE = GaussianNoise(sigma_255=(20, 20), grey_prob=0)


def test_only_named_operators_change_the_target(hq):
    pipeline = row(grey=Grey(), noise=NOISE, hq_too=["grey"])
    parameters = pipeline.sample(0, 0, SIZE)
    degraded = pipeline.apply(hq, parameters)
    grey = Grey().apply(hq.numpy(), {})
    np.testing.assert_array_equal(degraded["hq"], grey)
    np.testing.assert_array_equal(degraded["lq"], NOISE.apply(grey, parameters["noise"]))


def test_the_target_is_changed_after_the_lq_went_its_own_way(hq):
    blur = GaussianBlur(kernel_size_px=9, sigma_px=(2, 2), isotropic_prob=1)
    pipeline = row(blur=blur, grey=Grey(), noise=NOISE, hq_too=["grey"])
    parameters = pipeline.sample(0, 0, SIZE)
    degraded = pipeline.apply(hq, parameters)
    np.testing.assert_array_equal(degraded["hq"], Grey().apply(hq.numpy(), {}))
    blurred = Grey().apply(blur.apply(hq.numpy(), parameters["blur"]), {})
    np.testing.assert_allclose(degraded["lq"], NOISE.apply(blurred, parameters["noise"]), rtol=0, atol=2e-6)


def test_a_blur_may_change_the_target(hq):
    blur = GaussianBlur(kernel_size_px=9, sigma_px=(2, 2), isotropic_prob=1)
    pipeline = row(blur=blur, noise=NOISE, hq_too=["blur"])
    parameters = pipeline.sample(0, 0, SIZE)
    degraded = pipeline.apply(hq, parameters)
    np.testing.assert_array_equal(degraded["hq"], blur.apply(hq.numpy(), parameters["blur"]))
    np.testing.assert_array_equal(degraded["lq"], NOISE.apply(degraded["hq"].numpy(), parameters["noise"]))


def test_both_are_grey_or_none(hq):
    pipeline = row(grey=Sometimes(prob=0.5, operator=Grey()), hq_too=["grey"])
    seen = set()
    for position in range(20):
        degraded = pipeline.apply(hq, pipeline.sample(0, position, SIZE))
        are_grey = {key: bool((image[0] == image[1]).all()) for key, image in degraded.items()}
        assert are_grey["lq"] == are_grey["hq"]
        seen.add(are_grey["hq"])
        luma = np.tensordot([0.299, 0.587, 0.114], hq.numpy(), 1)
        np.testing.assert_allclose(degraded["lq"][1], luma if are_grey["lq"] else hq[1], atol=1e-6)
    assert seen == {True, False}


# Errors ----------------------------------------------------------------------------------------------------------------


def test_parameters_of_another_pipeline(hq):
    pipeline = row(jpeg=Jpeg(quality=(30, 100), codec="libjpeg"))
    with pytest.raises(ValueError, match=r"parameters of \['noise'\] were given to a pipeline of \['jpeg'\]"):
        pipeline.apply(hq, {"noise": {"sigma_255": 1.0}})


def test_hq_too_must_name_an_operator():
    with pytest.raises(ValueError, match=r"hq_too=\['gray'\] names no operator: the operators are grey"):
        row(grey=Grey(), hq_too=["gray"])


def test_branches_that_do_not_fit_together():
    cpu, gpu = (Pipeline(operators={}, quantize=True, hq_too=[], device=device) for device in ("cpu", "gpu"))
    with pytest.raises(ValueError, match=r"branches=\['large', 'small'\] has no lq"):
        Branches(branches={"small": cpu, "large": cpu})
    with pytest.raises(ValueError, match="branches have different devices"):
        Branches(branches={"lq": cpu, "lq_large": gpu})
    with pytest.raises(ValueError, match=r"branches.lq.hq_too=\['grey'\]: all branches share one HQ"):
        Branches(branches={"lq": row(grey=Grey(), hq_too=["grey"])})

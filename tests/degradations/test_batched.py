"""Whole batches on a device: each operator, and each published set, gives what it gives sample by sample on the CPU."""

import contextlib
import importlib
import inspect
import json
import pkgutil

import numpy as np
import pytest
import torch
from skimage import data
from torch.utils.data import default_collate

import degradations
from degradations import batched
from degradations.dct import integer_basis, libjpeg
from degradations.draws import generator
from degradations.fields import normals, uniforms
from degradations.operators.blur import GaussianBlur, GeneralizedBlur, MotionBlur, PlateauBlur, SincBlur
from degradations.operators.choose import OneOf, Sometimes
from degradations.operators.colour import ChannelShift, ColourFade, ColourJitter, ColourShift, Grey, LowLight
from degradations.operators.jpeg import Jpeg
from degradations.operators.jpeg import libjpeg as opencv_jpeg
from degradations.operators.noise import GaussianNoise, PoissonNoise
from degradations.operators.operator import Operator
from degradations.operators.resize import Downsample, RandomResize, ResizeBack
from degradations.operators.sensor import RawNoise
from degradations.operators.sharpen import UsmSharpening
from degradations.pipeline import Branches, Pipeline
from tests.degradations.sets import NAMES, built

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = [(64, 64), (64, 96), (33, 57), (96, 101), (8, 8), (17, 9), (90, 30), (5, 7), (140, 77)]
PORTRAIT = data.astronaut().transpose(2, 0, 1).astype(np.float32) / 255
SHAPE = {"sigma_px": (0.2, 8.0), "isotropic_prob": 0.5}
RAW = {"red_gain": (1.9, 2.4), "blue_gain": (1.5, 1.9), "mix": (0.0, 0.35), "full_well_e": (100, 2000), "read_noise_e": (1, 10)}
JITTER = {"brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "saturation": (0.0, 1.5), "hue": (-0.1, 0.1)}
SCALES = {"up_prob": 0.3, "down_prob": 0.5, "up": (1.0, 1.5), "down": (0.3, 1.0)}
ALL_FILTERS = ["area", "bilinear", "bicubic"]
HALVES = {"shrunk": 0.4, "enlarged": 0.4, "kept": 0.2}

# name -> operator, and the mean and greatest absolute difference allowed, for values of 0 to 1
OPERATORS = {
    "gaussian": (GaussianBlur(kernel_size_px=41, **SHAPE), 3e-7, 2e-6),
    "gaussian of drawn size": (GaussianBlur(kernel_size_px=(7, 21), **SHAPE), 3e-7, 2e-6),
    "generalized": (GeneralizedBlur(kernel_size_px=(7, 21), beta=(0.5, 4), **SHAPE), 3e-7, 2e-6),
    "plateau": (PlateauBlur(kernel_size_px=(7, 21), beta=(1, 2), **SHAPE), 3e-7, 2e-6),
    "sinc": (SincBlur(kernel_size_px=(7, 21), cutoff_rad=(1, 3)), 3e-7, 2e-6),
    "motion": (MotionBlur(kernel_size_px=(7, 21), length_px=(0, 20)), 3e-7, 2e-6),
    "down by area": (Downsample(factor=(0.8, 5), filter="area"), 1e-7, 1e-6),
    "down bilinear": (Downsample(factor=(0.8, 5), filter="bilinear"), 1e-7, 1e-6),
    "down bicubic": (Downsample(factor=(0.8, 5), filter="bicubic"), 2e-6, 2e-5),
    "resize at a scale": (RandomResize(of_hq=1, filters=ALL_FILTERS, positions="scale", **SCALES), 2e-6, 2e-5),
    "resize to a size": (RandomResize(of_hq=0.6, filters=ALL_FILTERS, positions="size", **SCALES), 2e-6, 2e-5),
    "gaussian noise": (GaussianNoise(sigma_255=(0, 30), grey_prob=0.5), 1e-7, 2e-6),
    "poisson noise": (PoissonNoise(scale=(0, 3), grey_prob=0.5), 1e-7, 1e-6),
    "jpeg": (Jpeg(quality=(5, 100), codec="libjpeg"), 0, 0),
    "diffjpeg": (Jpeg(quality=(5, 99), codec="diffjpeg"), 1e-7, 1e-6),
    "jitter": (ColourJitter(**JITTER), 1e-7, 1e-6),
    "colour shift": (ColourShift(shift_255=20), 1e-7, 1e-6),
    "channel shift": (ChannelShift(shift_px=2), 1e-2, 1e-1),  # OpenCV before 5 reads at 1/32 of a pixel; 5 to 5e-7
    "grey": (Grey(), 1e-7, 1e-6),
    "low light": (LowLight(gamma=(0.5, 2), gain=(0.4, 1)), 1e-7, 1e-6),
    "fade": (ColourFade(fade=(0.2, 1), black=(0, 0.25)), 1e-7, 1e-6),
    "sharpening": (UsmSharpening(kernel_size_px=51, weight=0.5, threshold_255=10), 3e-7, 2e-3),  # a threshold
    "raw": (RawNoise(gamma=2.2, factor=1, **RAW), 5e-6, 3e-3),  # x ^ (1 / 2.2) is steep at black
    "smaller raw": (RawNoise(gamma=2.2, factor=4, **RAW), 5e-6, 3e-3),
    "sometimes": (Sometimes(prob=0.5, operator=Downsample(factor=(0.8, 5), filter="bilinear")), 1e-7, 1e-6),
    "sometimes a blur": (Sometimes(prob=0.5, operator=SincBlur(kernel_size_px=(7, 21), cutoff_rad=(1, 3))), 3e-7, 2e-6),
    "one of several blurs": (
        OneOf(
            probs={"sinc": 0.5, "motion": 0.5},
            ways={
                "sinc": {"blur": SincBlur(kernel_size_px=(7, 21), cutoff_rad=(1, 3))},
                "motion": {"blur": MotionBlur(kernel_size_px=5, length_px=(0, 5))},
            },
        ),
        *(3e-7, 2e-6),
    ),
    "one of several ways": (
        OneOf(
            probs=HALVES,
            ways={
                "shrunk": {
                    "down": Downsample(factor=(2, 5), filter="area"),
                    "noise": GaussianNoise(sigma_255=(1, 9), grey_prob=0),
                },
                "enlarged": {"up": Downsample(factor=(0.5, 0.8), filter="bicubic")},
                "kept": {},
            },
        ),
        *(2e-6, 2e-5),
    ),
}


def photos(sizes):
    """Parts of a photograph, and every third one pure noise that leaves [0, 1]."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        top, left = rng.integers(0, 372, 2)
        crop = PORTRAIT[:, top : top + height, left : left + width]
        yield np.ascontiguousarray(crop) if number % 3 else rng.random((3, height, width), dtype=np.float32) * 1.2 - 0.1


def canvas_of(images):
    """Each in the upper left corner; beyond it values that would show anywhere else."""
    sizes = np.array([image.shape[1:] for image in images])
    image = torch.rand(len(images), 3, *sizes.max(axis=0), generator=torch.Generator().manual_seed(1)) * 9 - 4
    for place, each in zip(image, images, strict=True):
        place[:, : each.shape[1], : each.shape[2]] = torch.from_numpy(each)
    return batched.laid(image.to(DEVICE), sizes)


def done(operator, images, draws):
    """What the batched form gives for each image, cut to its size."""
    canvas = batched.applied(operator, canvas_of(images), batched.on_cpu(default_collate(draws)))
    assert torch.isfinite(canvas.image).all()
    assert canvas.image.device.type == DEVICE.type
    return [image[:, :height, :width].cpu().numpy() for image, (height, width) in zip(canvas.image, canvas.sizes, strict=True)]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator(name):
    operator, mean, greatest = OPERATORS[name]
    images = [*photos([size for size in SIZES if min(size) >= 5 or name != "smaller raw"])]
    draws = [operator.sample(generator(7, number, name), image.shape[1:]) for number, image in enumerate(images)]
    together = done(operator, images, draws)
    for image, drawn, ours in zip(images, draws, together, strict=True):
        expected = operator.apply(image, drawn)
        assert ours.shape == expected.shape
        assert np.abs(ours - expected).mean() <= mean
        np.testing.assert_allclose(ours, expected, rtol=0, atol=greatest)
    for number in (0, 2, len(images) - 1):  # alone as in the batch
        [alone] = done(operator, images[number : number + 1], draws[number : number + 1])
        assert np.abs(alone - together[number]).mean() <= mean


def test_every_operator_of_the_package_has_a_batched_form_and_is_seen():
    names = [each.name for each in pkgutil.walk_packages(degradations.__path__, "degradations.")]
    modules = [importlib.import_module(name) for name in names]
    classes = {
        kind for module in modules for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, Operator)
    }
    steps = {
        kind
        for kind in classes - {Pipeline, Branches}
        if not (inspect.isabstract(kind) or getattr(kind, "_is_protocol", False))
    }
    kinds = {kind for kind in steps if kind.__module__.startswith("degradations.")}
    assert len(kinds) == 21
    assert kinds == {type(operator) for operator, *_ in OPERATORS.values()} | {ResizeBack}
    assert batched.applied.dispatch(object) not in {batched.applied.dispatch(kind) for kind in kinds}


@pytest.mark.parametrize("filter_", ALL_FILTERS)
def test_resize_back(filter_):
    operator, images = ResizeBack(filter=filter_), [*photos(SIZES)]
    draws = [operator.sample(generator(0, 0, "back"), (96, 80)) for _ in images]
    for image, ours in zip(images, done(operator, images, draws), strict=True):
        assert np.abs(ours - operator.apply(image, draws[0])).mean() < 2e-6


def test_a_field_is_the_same_numbers():
    canvas = canvas_of([*photos(SIZES)])
    seeds, colours = np.array([2**63 - 1 - 7 * number for number in range(len(SIZES))]), np.array([3, 1, 3, 1, 3, 1, 3, 1, 3])
    flat, bell = batched.uniforms(canvas, seeds, colours).cpu(), batched.normals(canvas, seeds, colours).cpu()
    for number, (height, width) in enumerate(SIZES):
        shape = (int(colours[number]), height, width)
        own = (number, slice(shape[0]), slice(height), slice(width))
        np.testing.assert_array_equal(flat[own].numpy(), uniforms(int(seeds[number]), shape))
        np.testing.assert_allclose(bell[own].numpy(), normals(int(seeds[number]), shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", [1, 26, 51, 76])
def test_jpeg_is_libjpeg_at_every_quality(start):
    """No value of any picture differs from OpenCV's, down to one pixel."""
    images = [*photos([(40, 40), (23, 37), (16, 17), (9, 5), (3, 4), (2, 2), (1, 1)])]
    canvas = canvas_of(images)
    for quality in range(start, start + 25):
        ours = libjpeg(canvas.image, torch.full((len(images),), quality, device=DEVICE), canvas.sizes_there).cpu().numpy()
        for image, (height, width), coded in zip(images, canvas.sizes, ours, strict=True):
            np.testing.assert_array_equal(np.rint(coded[:, :height, :width] * 255), np.rint(opencv_jpeg(image, quality) * 255))


def test_the_integer_transform_is_the_cosine_one():
    rows = integer_basis(torch.device("cpu")) / 2**13 / 8**0.5
    np.testing.assert_allclose((rows @ rows.T).numpy(), np.eye(8), atol=2e-4)


def compared(pipeline, hq, draws):
    """Mean and greatest difference from Pipeline.apply in grey levels of 255, over all that it returns."""
    ours = pipeline.apply_batch(hq.to(DEVICE), default_collate(draws))
    theirs = default_collate([pipeline.apply(image, drawn) for image, drawn in zip(hq, draws, strict=True)])
    assert ours.keys() == theirs.keys()
    for name, image in ours.items():
        assert image.device.type == DEVICE.type
        assert image.dtype == torch.float32
        assert image.shape == theirs[name].shape
        assert 0 <= image.min() <= image.max() <= 1
    differences = [(ours[name].cpu() - theirs[name]).abs() * 255 for name in ours]
    return max(each.mean().item() for each in differences), max(each.max().item() for each in differences)


@pytest.mark.parametrize("name", NAMES)
def test_every_set(name):
    pipeline = built(name)
    hq = torch.stack([torch.from_numpy(PORTRAIT[:, 30 * i : 30 * i + 131, 99:202].copy()) for i in range(8)])
    draws = [pipeline.sample(0, position, hq.shape[2:]) for position in range(len(hq))]
    mean, _ = compared(pipeline, hq, draws)
    assert mean < 0.02  # what differs at all is a tie that rounds to the other neighbour
    if name != "codeformer_stage3":
        mean, greatest = compared(built(name, "degradation.quantize=false"), hq, draws)
        assert mean < 0.005
        assert greatest < 8  # where one of JPEG's coefficients did so


def test_sets_are_seen():
    assert {"challenge", "codeformer_stage3", "dtbfr_raw", "gfpgan", "old_photo", "realesrgan"} <= set(NAMES)


def test_the_batch_is_left_as_it_is():
    hq = torch.rand(2, 3, 24, 24)
    before = hq.clone()
    pipeline = Pipeline(
        operators={"grey": Grey(), "noise": GaussianNoise(sigma_255=(9, 9), grey_prob=0)},
        quantize=True,
        hq_too=["grey"],
        device="gpu",
    )
    made = pipeline.apply_batch(hq, default_collate([pipeline.sample(0, position, (24, 24)) for position in range(2)]))
    assert torch.equal(hq, before)
    torch.testing.assert_close(made["hq"][:, 0], 0.299 * hq[:, 0] + 0.587 * hq[:, 1] + 0.114 * hq[:, 2])
    torch.testing.assert_close(made["hq"][:, 0], made["hq"][:, 2])


def test_a_target_changes_with_operators_that_come_late():
    pipeline = Pipeline(
        operators={"shift": ColourShift(shift_255=30), "grey": Grey()}, quantize=False, hq_too=["grey"], device="gpu"
    )
    hq = torch.rand(3, 3, 16, 16)
    mean, greatest = compared(pipeline, hq, [pipeline.sample(0, position, (16, 16)) for position in range(3)])
    assert mean < 1e-4
    assert greatest < 1e-3


def test_different_sizes_in_the_end():
    pipeline = Pipeline(operators={"down": Downsample(factor=(2, 4), filter="area")}, quantize=False, hq_too=[], device="gpu")
    draws = [{"down": {"factor": 2.0, "height": size, "width": 9}} for size in (8, 7)]
    with pytest.raises(ValueError, match=r"different sizes \(height x width: 7x9, 8x9, \.\.\.\): end the pipeline with"):
        pipeline.apply_batch(torch.rand(2, 3, 16, 18), default_collate(draws))
    hq = torch.rand(2, 3, 16, 18)
    lq = pipeline.apply_batch(hq, default_collate(draws[:1] * 2))["lq"]
    torch.testing.assert_close(lq, torch.nn.functional.avg_pool2d(hq, 2))  # the mean of four


class Mirrored:
    """An operator of a user."""

    def sample(self, rng, size):
        return {}

    def apply(self, photo, parameters):
        return photo[..., ::-1]


def test_an_operator_without_a_batched_form():
    pipeline = Pipeline(operators={"mirror": Mirrored()}, quantize=False, hq_too=[], device="gpu")
    with pytest.raises(ValueError, match=r"Mirrored has no batched form: set degradation\.device=cpu, or write one"):
        pipeline.apply_batch(torch.rand(2, 3, 8, 8), {"mirror": {}})


def test_parameters_survive_json_and_may_be_arrays():
    pipeline, hq = built("challenge"), torch.rand(2, 3, 32, 32)
    draws = [json.loads(json.dumps(pipeline.sample(0, position, (32, 32)))) for position in range(2)]
    collated = default_collate(draws)
    arrays = {name: {key: np.asarray(value) for key, value in each.items()} for name, each in collated.items()}
    assert torch.equal(pipeline.apply_batch(hq, collated)["lq"], pipeline.apply_batch(hq, arrays)["lq"])


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
def test_parameters_may_come_from_the_gpu():
    pipeline, hq = built("realesrgan"), torch.rand(4, 3, 64, 64, device=DEVICE)
    collated = default_collate([pipeline.sample(0, position, (64, 64)) for position in range(4)])
    there = torch.utils._pytree.tree_map(lambda leaf: leaf.to(DEVICE) if isinstance(leaf, torch.Tensor) else leaf, collated)
    assert torch.equal(pipeline.apply_batch(hq, collated)["lq"], pipeline.apply_batch(hq, there)["lq"])


@pytest.mark.parametrize("name", ["gfpgan", "old_photo", "realesrgan", "dtbfr_raw"])
def test_nothing_waits_for_the_device(name, monkeypatch):
    """On the meta device tensors have no values: reading one, or mixing it with one on the CPU, raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # there is none for meta
    pipeline = built(name)
    draws = [pipeline.sample(0, position, (160, 160)) for position in range(12)]
    made = pipeline.apply_batch(torch.rand(12, 3, 160, 160, device="meta"), default_collate(draws))
    assert {image.shape for image in made.values()} == {(12, 3, 160, 160)}

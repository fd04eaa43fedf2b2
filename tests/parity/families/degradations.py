"""How the degradation cases are run on our operators, with every drawn number given.

Their photos are (h, w, 3) BGR, ours (3, h, w) RGB.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from degradations import kernels
from degradations.dct import diffjpeg
from degradations.draws import Parameters, generator
from degradations.filters import filtered
from degradations.operators.blur import GaussianBlur
from degradations.operators.colour import ColourJitter, ColourShift, Grey
from degradations.operators.jpeg import Jpeg, libjpeg
from degradations.operators.noise import GaussianNoise, PoissonNoise, add_noise
from degradations.operators.operator import Operator
from degradations.operators.resize import Downsample, RandomResize, ResizeBack
from degradations.operators.sharpen import UsmSharpening
from degradations.pipeline import Pipeline
from tests.parity import distributions, fill
from tests.parity.cases import Apart, Case
from tests.parity.runners import Kind, gives, refers

Outputs = dict[str, Tensor]
BLUR = GaussianBlur(kernel_size_px=41, sigma_px=(0.1, 15), isotropic_prob=0.5)
NOISE = GaussianNoise(sigma_255=(0, 30), grey_prob=0.4)
JPEG = Jpeg(quality=(30, 100), codec="libjpeg")
BACK = ResizeBack(filter="bilinear")
SHIFT = ColourShift(shift_255=20)
JITTER_BOUNDS = {"brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "saturation": (0, 1.5), "hue": (-0.1, 0.1)}
JITTER = ColourJitter(**JITTER_BOUNDS)  # type: ignore[arg-type]


def planar(photo_hwc: Tensor) -> np.ndarray:
    """BGR (..., h, w, 3) to float32 RGB (..., 3, h, w); the range stays."""
    return np.ascontiguousarray(np.moveaxis(photo_hwc.numpy()[..., ::-1], -1, -3), dtype=np.float32)


def ours(photo_255_hwc: Tensor) -> np.ndarray:
    """The same, and 0 to 255 becomes 0 to 1."""
    return planar(photo_255_hwc) / np.float32(255)


def theirs(photo: np.ndarray | Tensor) -> Tensor:
    """RGB (..., 3, h, w) to BGR (..., h, w, 3); the range stays."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(photo), -3, -1)[..., ::-1]))


def levels(photo: np.ndarray) -> Tensor:
    """As theirs, in uint8: of photos on the grid of k / 255 alone."""
    grid = theirs(photo) * 255
    torch.testing.assert_close(grid, grid.round(), rtol=0, atol=1e-4)
    return grid.round().to(torch.uint8)


def field(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The normals that a case gave to the reference for an (h, w, 3) BGR or (h, w) grey photo, as ours: (3 or 1, h, w)."""
    drawn = fill.tensor(name, shape).numpy()
    return drawn[None] if drawn.ndim == 2 else np.ascontiguousarray(drawn[..., ::-1].transpose(2, 0, 1))


@contextmanager
def events_without_spread() -> Iterator[None]:
    """Poisson draws become the mean, rounded half up, as in the cases that say floor(lam + 0.5)."""

    def table(values: int) -> tuple[np.ndarray, np.ndarray]:
        counts = np.floor(np.arange(256) / 255 * values + 0.5).astype(np.int64)
        line = np.concatenate([[level] * count + [level + 1] for level, count in enumerate(counts)])
        return line, np.concatenate([[0], np.cumsum(counts + 1)[:-1]])

    with mock.patch("degradations.operators.noise.poisson_table", table):
        yield


# Parts -----------------------------------------------------------------------------------------------------------------


def made_kernel(config: dict[str, Any]) -> np.ndarray:
    size, kind = config["kernel_size"], config["type"]
    if kind == "sinc":
        pad = (config.get("pad_to", size) - size) // 2
        return np.pad(kernels.sinc(size, config["cutoff"]), pad)  # ours are never padded, and needn't be
    sigmas = (config["sigma"],) * 2 if "sigma" in config else (config["sigma_x"], config["sigma_y"])
    shape = (*sigmas, config.get("theta", 0.0))
    if kind in ("iso", "aniso"):
        return kernels.gaussian(size, *shape)
    family = {"generalized": kernels.generalized, "plateau": kernels.plateau}[kind.split("_")[0]]
    return family(size, *shape, config["beta"])


def kernel_values(case: Case) -> Outputs:
    wanted = {entry["name"] for entry in case.facts["outputs"]}
    return {name: torch.from_numpy(made_kernel(config)) for name, config in case.facts["config"].items() if name in wanted}


def blur(case: Case) -> Outputs:
    photo = ours(case.stored["input"])
    given = {name.removeprefix("kernel."): kernel.numpy() for name, kernel in case.stored.items() if name.startswith("kernel.")}
    return {f"blur.{name}": theirs(filtered(photo, kernel)) for name, kernel in given.items()}


def resize(case: Case) -> Outputs:
    photo, produced = ours(case.stored["input"]), {}
    for factor in case.facts["config"]["scales"]:
        down = Downsample(factor=(float(factor), float(factor)), filter="bilinear")
        drawn = down.sample(generator(0, 0, "unused"), photo.shape[1:])
        small = down.apply(photo, drawn)
        back = BACK.apply(small, BACK.sample(generator(0, 0, "unused"), photo.shape[1:]))
        produced |= {f"down.{factor}": theirs(small), f"back.{factor}": theirs(back)}
    return produced


def jpeg_bytes(case: Case) -> Outputs:
    plain = ours(case.stored["input"])
    photos = {"u8": plain, "float": plain * np.float32(1.04) - np.float32(0.013)}
    qualities = case.facts["config"]["qualities"]
    return {f"{name}.q{q}": levels(libjpeg(photo, q)) for name, photo in photos.items() for q in qualities}


def numbers(text: str, after: str) -> list[float]:
    """The list that a json has in words: "hard.batch: quality tensor [30.0, 95.0]"."""
    found = re.search(rf"{after} (\[[^]]*\])", text)
    assert found, f"no {after} in {text!r}"
    return [float(each) for each in json.loads(found[1])]


def jpeg_approximated(case: Case) -> Outputs:
    image = torch.from_numpy(ours(case.stored["input"]))
    config = case.facts["config"]
    given = {f"q{q}": [q] * len(image) for q in config["qualities"]}
    if "batch" in config:
        given["batch"] = numbers(config["batch"], "quality tensor")
    return {f"hard.{name}": diffjpeg(image, torch.tensor(q, dtype=torch.float32)) for name, q in given.items()}


def poisson(photo: np.ndarray, scale: float, grey: int) -> np.ndarray:
    operator = PoissonNoise(scale=(0, 3), grey_prob=0.4)
    with events_without_spread():
        return operator.apply(photo, {"scale": scale, "grey": grey, "field_seed": 0})


def noise(case: Case) -> Outputs:
    """NumPy's forms on the first photo, torch's on the batch; "mixed" has a sigma, a scale and a colour for each photo."""
    batch, config = ours(case.stored["input"]), case.facts["config"]
    photo, sigma, scale = batch[0], config["sigma"], config["poisson_scale"]
    height, width = photo.shape[1:]
    drawn = {call: str(text).split("'")[1] for call, text in config["replaced"].items() if "fill.tensor" in str(text)}
    colour = field(drawn["np.random.randn(h,w,3)"], (height, width, 3))
    grey = field(drawn["np.random.randn(h,w) (gray)"], (height, width))
    colours = fill.tensor(drawn["torch.randn(b,3,h,w)"], batch.shape).numpy()
    one = fill.tensor(drawn["torch.randn(h,w) (gray)"], (height, width)).numpy()[None]
    noisy = add_noise(photo, colour, sigma)
    rounded = Pipeline(operators={}, quantize=True, hq_too=[], device="cpu").apply(torch.from_numpy(noisy), {})["lq"]
    alone = {"np.gauss.clip": noisy, "np.gauss.clip_round": rounded, "np.gauss.gray": add_noise(photo, grey, sigma)}
    alone |= {"np.poisson": poisson(photo, scale, 0), "np.poisson.gray": poisson(photo, scale, 1)}

    sigmas, scales = numbers(config["pt.gauss.mixed"], "sigma tensor"), numbers(config["pt.poisson"], "scale tensor")
    are_grey = [int(each) for each in numbers(config["pt.gauss.mixed"], "gray flags")]
    fields = [one if is_grey else each for is_grey, each in zip(are_grey, colours, strict=True)]
    together = {
        "pt.gauss": [add_noise(*both, sigma) for both in zip(batch, colours, strict=True)],
        "pt.gauss.mixed": [add_noise(*each) for each in zip(batch, fields, sigmas, strict=True)],
        "pt.poisson": [poisson(*both, 0) for both in zip(batch, scales, strict=True)],
        "pt.poisson.mixed": [poisson(*each) for each in zip(batch, scales, are_grey, strict=True)],
    }
    return {name: theirs(each) for name, each in alone.items()} | {
        name: torch.from_numpy(np.stack(every)) for name, every in together.items()
    }


def sharpener(weight: float, threshold_255: float, kernel_size_px: int = 51) -> UsmSharpening:
    return UsmSharpening(kernel_size_px=kernel_size_px, weight=weight, threshold_255=threshold_255)


def sharpened(batch: np.ndarray, operator: UsmSharpening) -> np.ndarray:
    return np.stack([operator.apply(photo, {}) for photo in batch])


def filter_and_sharpen(case: Case) -> Outputs:
    batch, given = ours(case.stored["input"]), case.stored["kernel"].numpy().astype(np.float64)
    config = case.facts["config"]
    radius = int(re.search(r"radius=(\d+)", config["usm.torch"])[1])  # type: ignore[index]
    texts = {
        name: re.search(r"weight[ =]([\d.]+), threshold[ =]([\d.]+)", config[name]) for name in config if "usm.torch" in name
    }
    ways = {name: sharpener(float(w[1]), float(w[2]), radius // 2 * 2 + 1) for name, w in texts.items() if w}
    produced = {
        "filter2D.per_sample": np.stack([filtered(photo, kernel) for photo, kernel in zip(batch, given, strict=True)]),
        "filter2D.shared": np.stack([filtered(photo, given[0]) for photo in batch]),
        "usm.kernel": ways["usm.torch"].kernel[None].astype(np.float32),
        **{name: sharpened(batch, way) for name, way in ways.items()},
    }
    by_default = sharpened(batch[:1], sharpener(0.5, 10))[0]  # the reference's own values
    return {name: torch.from_numpy(each) for name, each in produced.items()} | {"usm.numpy_bgr": theirs(by_default)}


# Whole pipelines -------------------------------------------------------------------------------------------------------


class Trace:
    """The random calls of a reference in the order in which it made them."""

    def __init__(self, case: Case) -> None:
        self.calls = list(case.facts["rng_trace"])

    def next(self, call: str, *bounds: float) -> Any:
        """What the next call returned. It must be this one, with these arguments if any are given."""
        made = self.calls.pop(0)
        assert made["call"] == call, f"{made} instead of {call}"
        if bounds:
            np.testing.assert_allclose(made["args"], bounds, err_msg=str(made))
        return made["returned"]

    def bernoulli(self, prob: float) -> int:
        return int(self.next("np.random.uniform", 0, 1) < prob)

    def field(self) -> np.ndarray:
        shape, name = tuple(self.calls[0]["args"]), self.next("np.random.randn").split("'")[1]
        return field(name, shape)


def stages(case: Case, photo: np.ndarray, given: Parameters, field: np.ndarray, branch: int = 0) -> Outputs:
    """kernel, blur, shrink, noise, JPEG, enlarge: each from the stored result of the one before it."""
    side, stored = photo.shape[1:], case.stored
    one, two = branch + 1, 2 * branch + 1
    kernel = BLUR.kernel(given["blur"])
    blurred = BLUR.apply(photo, given["blur"])
    down = Downsample(factor=(given["factor"],) * 2, filter="bilinear")
    shrunk = down.apply(blurred, down.sample(generator(0, 0, "unused"), side))
    noisy = add_noise(planar(stored[f"stage.resize{two}"]), field, given["sigma_255"])
    decoded = JPEG.apply(ours(stored[f"stage.jpeg_in{one}"]), {"quality": int(given["quality"])})
    enlarged = BACK.apply(ours(stored[f"stage.jpeg_out{one}"]), {"height": side[0], "width": side[1]})
    return {
        f"stage.kernel{one}": torch.from_numpy(kernel),
        f"stage.blur{one}": theirs(blurred),
        f"stage.resize{two}": theirs(shrunk),
        f"stage.jpeg_in{one}": theirs(noisy) * 255,
        f"stage.jpeg_out{one}": levels(decoded),
        f"stage.resize{two + 1}": theirs(enlarged),
    }


def finished(
    case: Case, photo: np.ndarray, *, quantize: bool, branch: int = 0, operators: dict[str, Operator] | None = None,
    given: Parameters | None = None
) -> np.ndarray:  # fmt: skip
    """From the stored JPEG to the LQ: enlarged, then whatever a pipeline does after it."""
    small = torch.from_numpy(ours(case.stored[f"stage.jpeg_out{branch + 1}"]))
    pipeline = Pipeline(operators={"back": BACK, **(operators or {})}, quantize=quantize, hq_too=[], device="cpu")
    drawn = {"back": {"height": photo.shape[1], "width": photo.shape[2]}, **(given or {})}
    return pipeline.apply(small, drawn)["lq"].numpy()


def blur_draws(trace: Trace, config: dict[str, Any], suffix: str = "") -> Parameters:
    bounds = config[f"blur_sigma{suffix}"]
    kind = trace.next("random.choices")
    sigma_x = sigma_y = trace.next("np.random.uniform", *bounds)
    angle = 0.0
    if kind == "aniso":
        sigma_y, angle = trace.next("np.random.uniform", *bounds), trace.next("np.random.uniform", -np.pi, np.pi)
    return {"sigma_x_px": sigma_x, "sigma_y_px": sigma_y, "angle_rad": angle, "kernel_size_px": config["blur_kernel_size"]}


def drawn_by_codeformer(trace: Trace, config: dict[str, Any], suffix: str = "") -> tuple[Parameters, np.ndarray]:
    """Its noise range counts parts of 1, and grey is not asked for."""
    given: Parameters = {"blur": blur_draws(trace, config, suffix)}
    given["factor"] = trace.next("np.random.uniform", *config[f"downsample_range{suffix}"])
    given["sigma_255"] = 255 * trace.next("np.random.uniform", *np.divide(config[f"noise_range{suffix}"], 255))
    field = trace.field()
    given["quality"] = trace.next("np.random.uniform", *config[f"jpeg_range{suffix}"])
    return given, field


def drawn_by_basicsr(trace: Trace, config: dict[str, Any]) -> tuple[Parameters, np.ndarray]:
    """GFPGAN, DT-BFR and DiffBIR: a draw more, for grey noise of probability 0."""
    given: Parameters = {"blur": blur_draws(trace, config)}
    given["factor"] = trace.next("np.random.uniform", *config["downsample_range"])
    given["sigma_255"] = trace.next("np.random.uniform", *config["noise_range"])
    assert not trace.bernoulli(0)
    field = trace.field()
    given["quality"] = trace.next("np.random.uniform", *config["jpeg_range"])
    return given, field


def flipped(case: Case, trace: Trace) -> np.ndarray:
    """The HQ; flips are drawn by the data set, in ours as in theirs."""
    photo = ours(case.stored["input"])
    return np.ascontiguousarray(photo[..., ::-1]) if trace.next("random.random") < 0.5 else photo


def normalised(photo: np.ndarray, config: dict[str, Any]) -> Tensor:
    """CHW RGB as the data set returns it."""
    mean, std = (np.float32(config[name])[:, None, None] for name in ("mean", "std"))
    return torch.from_numpy((photo - mean) / std)


def codeformer_stage2(case: Case) -> Outputs:
    trace, config = Trace(case), case.facts["config"]
    photo = flipped(case, trace)
    produced = stages(case, photo, *drawn_by_codeformer(trace, config))
    assert not trace.calls
    return produced | {"in": normalised(finished(case, photo, quantize=True), config), "gt": normalised(photo, config)}


def codeformer_stage3(case: Case) -> Outputs:
    trace, config = Trace(case), case.facts["config"]
    photo = flipped(case, trace)
    produced = stages(case, photo, *drawn_by_codeformer(trace, config))
    produced |= stages(case, photo, *drawn_by_codeformer(trace, config, "_large"), branch=1)
    assert not trace.calls
    lqs = {
        name: normalised(finished(case, photo, quantize=True, branch=n), config) for n, name in enumerate(("in", "in_large_de"))
    }
    return produced | lqs | {"gt": normalised(photo, config)}


def diffbir_stage1(case: Case) -> Outputs:
    trace, photo = Trace(case), ours(case.stored["input"])
    trace.bernoulli(0.5)  # whether the prompt is dropped
    produced = stages(case, photo, *drawn_by_basicsr(trace, case.facts["config"]))
    assert not trace.calls
    lq = theirs(finished(case, photo, quantize=False)).flip(-1)
    return produced | {"lq": lq, "gt": theirs(photo * 2 - 1).flip(-1)}


def dtbfr_test(case: Case) -> Outputs:
    trace, photo, config = Trace(case), ours(case.stored["input"]), case.facts["config"]
    turned = {"sigma_x_px": config["sig_x"], "sigma_y_px": config["sig_y"], "angle_rad": config["theta"], "kernel_size_px": 41}
    given = {"blur": turned, "factor": config["sf"], "sigma_255": config["nf"], "quality": config["qf"]}
    return stages(case, photo, given, trace.field()) | {"lq": theirs(finished(case, photo, quantize=True))}


def colour_chain(case: Case) -> Outputs:
    """GFPGAN's data set and DT-BFR's copy of it: the classical chain, then whatever changes of colour the draws ask for."""
    trace, config = Trace(case), case.facts["config"]
    photo = flipped(case, trace)
    produced = stages(case, photo, *drawn_by_basicsr(trace, config))
    operators: dict[str, Operator] = {}
    given: Parameters = {}
    if config["color_jitter_prob"] is not None and trace.bernoulli(config["color_jitter_prob"]):
        limit = config["color_jitter_shift"] / 255
        blue, green, red = np.multiply(trace.next("np.random.uniform", -limit, limit, 3), 255)
        operators["shift"], given["shift"] = SHIFT, {"red_255": red, "green_255": green, "blue_255": blue}
    if config["gray_prob"] and trace.bernoulli(config["gray_prob"]):
        operators["grey"], given["grey"] = Grey(), {}
    if config["color_jitter_pt_prob"] is not None and trace.bernoulli(config["color_jitter_pt_prob"]):
        operators["jitter"], given["jitter"] = JITTER, jitter_draws(trace, config)
    assert not trace.calls
    lq = finished(case, photo, quantize=True, operators=operators, given=given)
    if "grey" in operators and config.get("gt_gray"):
        both = Pipeline(operators={"grey": Grey()}, quantize=True, hq_too=["grey"], device="cpu")
        photo = both.apply(torch.from_numpy(photo), {"grey": {}})["hq"].numpy()
    return produced | {"lq": normalised(lq, config), "gt": normalised(photo, config)}


def jitter_draws(trace: Trace, config: dict[str, Any]) -> Parameters:
    bounds = {name: config.get(name, default) for name, default in JITTER_BOUNDS.items()}
    order = [list(bounds)[index] for index in trace.next("torch.randperm")]
    drawn: Parameters = {"order": "".join(name[0] for name in order)}
    for name in order:
        assert trace.calls[0]["args"] == [*bounds[name], []]
        drawn[name] = trace.next("tensor.uniform_")
    return drawn


# Real-ESRGAN -----------------------------------------------------------------------------------------------------------


def gaussian_batch(trace: Trace, batch: np.ndarray, bounds: tuple[float, float], grey_prob: float) -> np.ndarray:
    """One grey field serves all grey samples of their batch, and colour noise is drawn for them too."""
    sigmas = bounds[0] + (bounds[1] - bounds[0]) * np.array(trace.next("torch.rand"))
    grey = np.array(trace.next("torch.rand")) < grey_prob
    fields = []
    for _ in range(2):
        shape, name = tuple(trace.calls[0]["args"]), trace.next("torch.randn").split("'")[1]
        fields.append(fill.tensor(name, shape).numpy())
    chosen = [fields[0][None] if is_grey else colour for is_grey, colour in zip(grey, fields[1], strict=True)]
    return np.stack([add_noise(*each) for each in zip(batch, chosen, sigmas, strict=True)])


def poisson_batch(trace: Trace, batch: np.ndarray, bounds: tuple[float, float], grey_prob: float) -> np.ndarray:
    scales = bounds[0] + (bounds[1] - bounds[0]) * np.array(trace.next("torch.rand"))
    grey = np.array(trace.next("torch.rand")) < grey_prob
    assert [trace.next("torch.poisson") for _ in range(2)] == ["floor(lam + 0.5)"] * 2
    return np.stack([poisson(photo, scale, int(is_grey)) for photo, scale, is_grey in zip(batch, scales, grey, strict=True)])


def resizing(positions: Literal["scale", "size"]) -> RandomResize:
    """What it would draw is given."""
    filters = ["area", "bilinear", "bicubic"]
    return RandomResize(up_prob=0.2, down_prob=0.7, up=(1, 1.5), down=(0.15, 1), of_hq=1, filters=filters, positions=positions)  # type: ignore[arg-type]


class Chain:
    """The second-order chain, each step from the stored result of the one before it.

    Their one draw a batch for kinds, filters and noise types is given to each of our samples.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.trace, self.config = case, Trace(case), case.facts["config"]
        self.batch = (planar(case.stored["hq"].flip(-1)) + 1) / 2
        self.side: tuple[int, int] = self.batch.shape[2:]  # of the HQ  # type: ignore[assignment]
        self.produced: dict[str, np.ndarray] = {}

    def step(self, operation: str, made: list[np.ndarray]) -> None:
        name = f"stage.{len(self.produced)}.{operation}"
        self.produced[name] = np.stack(made)
        self.batch = self.case.stored[name].numpy()

    def blur(self, name: str) -> None:
        kernels_ = self.case.stored[name].numpy().astype(np.float64)
        self.step("filter2D", [filtered(photo, kernel) for photo, kernel in zip(self.batch, kernels_, strict=True)])

    def scale(self, suffix: str) -> float:
        kind, (low, high) = self.trace.next("random.choices"), self.config[f"resize_range{suffix}"]
        bounds = {"up": (1, high), "down": (low, 1)}
        return self.trace.next("np.random.uniform", *bounds[kind]) if kind in bounds else 1.0  # type: ignore[no-any-return]

    def resize(self, operator: RandomResize | ResizeBack, height: int, width: int, filter_: str, scale: float = 1.0) -> None:
        given: Parameters = {"scale": scale, "filter": filter_, "height": height, "width": width}
        self.step("interpolate", [operator.apply(photo, given) for photo in self.batch])

    def noise(self, suffix: str) -> None:
        grey = self.config[f"gray_noise_prob{suffix}"]
        if self.trace.bernoulli(self.config[f"gaussian_noise_prob{suffix}"]):
            self.batch = gaussian_batch(self.trace, self.batch, self.config[f"noise_range{suffix}"], grey)
        else:
            self.batch = poisson_batch(self.trace, self.batch, self.config[f"poisson_scale_range{suffix}"], grey)

    def jpeg(self) -> None:
        operator, qualities = Jpeg(quality=(30, 95), codec="diffjpeg"), self.trace.next("tensor.uniform_")
        self.step("jpeg", [operator.apply(photo, {"quality": q}) for photo, q in zip(self.batch, qualities, strict=True)])


def realesrgan(case: Case) -> Outputs:
    chain = Chain(case)
    trace, config, (height, width) = chain.trace, chain.config, chain.side
    chain.blur("kernel1")
    first = chain.scale("")
    chain.resize(resizing("scale"), int(height * first), int(width * first), trace.next("random.choice"), first)
    chain.noise("")
    chain.jpeg()
    if trace.bernoulli(config["second_blur_prob"]):
        chain.blur("kernel2")
    second = chain.scale("2") / config["stage2_scale"]
    chain.resize(resizing("size"), int(height * second), int(width * second), trace.next("random.choice"))
    chain.noise("2")
    small = height // config["stage2_scale"], width // config["stage2_scale"]
    jpeg_is_last = trace.bernoulli(0.5)
    if not jpeg_is_last:
        chain.jpeg()
    chain.resize(resizing("size"), *small, trace.next("random.choice"))
    chain.blur("sinc_kernel")
    if jpeg_is_last:
        chain.jpeg()
    assert not trace.calls
    chain.resize(ResizeBack(filter="bicubic"), height, width, "bicubic")
    rounding = Pipeline(operators={}, quantize=True, hq_too=[], device="cpu")
    lq = rounding.apply(torch.from_numpy(chain.batch), {})["lq"]
    hq = ours(case.stored["input"])
    hq = sharpened(hq, sharpener(0.5, 10)) if config["use_sharpener"] else hq
    final = {"hq": theirs(hq * 2 - 1).flip(-1), "lq": theirs(lq).flip(-1)}
    return {name: torch.from_numpy(each) for name, each in chain.produced.items()} | final


def compare_drawn(case: Case, made: distributions.Drawn, _apart: object) -> None:
    assert distributions.complaints(case, made) == []


def is_drawn(pattern: str) -> Callable[[Case], bool]:
    """Whether a case holds the draws of such a reference."""
    return lambda case: "observables" in case.facts and refers(pattern)(case)


def is_run(pattern: str) -> Callable[[Case], bool]:
    """Whether a case is one run of such a reference, with each random number listed."""
    return lambda case: "rng_trace" in case.facts and refers(pattern)(case)


KEPT = 12  # cases in tests/golden
JPEG_IN = {"stage.jpeg_in?": Apart(atol=5e-4)}  # times 255; the notes of the jsons say it in words, as all below
FLIPS = "flips: drawn by data/, not by a degradation"
PROMPTS = "prompts: not drawn by a degradation"
KINDS = [
    Kind(
        tells=lambda case: all(isinstance(each, dict) and "type" in each for each in case.facts["config"].values()),
        run=kernel_values,
    ),
    Kind(tells=gives("blur.", "kernel."), run=blur),
    Kind(tells=gives("down.", "back."), run=resize),
    Kind(tells=gives("u8.q"), run=jpeg_bytes),
    Kind(
        tells=gives("hard."),
        run=jpeg_approximated,
        apart={"soft.*": Apart(skip=True)},
        less="soft.*: differentiable rounding, which no recipe trains through, isn't here; hard.* are compared",
    ),
    Kind(
        tells=gives("np.gauss", "pt.gauss"),
        run=noise,
        apart={"np.poisson.gray": Apart(share=0.02, most=1e-4)},
        less="np.poisson.gray to 1e-4: numpy's grey weighs red 0.299, torch's, which is ours, 0.2989",
    ),
    Kind(tells=gives("filter2D.", "usm."), run=filter_and_sharpen),
    Kind(tells=is_run(r"\bFFHQBlindDataset\b"), run=codeformer_stage2, apart=JPEG_IN),
    Kind(tells=is_run(r"\bFFHQBlindJointDataset\b"), run=codeformer_stage3, apart=JPEG_IN),
    Kind(tells=is_run(r"\bCodeformerDataset\b"), run=diffbir_stage1, apart=JPEG_IN),
    Kind(tells=is_run(r"\bFFHQDegradationDataset\b"), run=colour_chain, apart=JPEG_IN),
    Kind(tells=is_run(r"\bface_degradation\b"), run=dtbfr_test, apart=JPEG_IN),
    Kind(
        tells=is_run(r"\bRealESRGANBatchTransform\b"),
        run=realesrgan,
        # A residual of 9.99994 grey levels, at a threshold of 10: its mask spreads over 51 pixels.
        apart={"hq": Apart(share=0.005, most=1e-3)},
        less="that resize kind, filter, noise type and a grey field serve a whole batch: ours are drawn for each sample; all "
        "values are compared",
    ),
    Kind(
        tells=is_drawn(r"\b(FFHQBlind(Joint)?|FFHQDegradation)Dataset\b"),
        run=distributions.drawn_by,
        check=compare_drawn,
        less=FLIPS,
    ),
    Kind(tells=is_drawn(r"\bCodeformerDataset\b"), run=distributions.drawn_by, check=compare_drawn, less=PROMPTS),
    Kind(tells=is_drawn(r"\bRealESRGANDataset\b"), run=distributions.drawn_by, check=compare_drawn, less=PROMPTS),
    Kind(
        tells=is_drawn(r"\bRealESRGANBatchTransform\b"),
        run=distributions.drawn_by,
        check=compare_drawn,
        less="quality of conf's libjpeg, which is truncated: compared with codec=diffjpeg",
    ),
    Kind(tells=is_drawn(r"\brandom_mixed_kernels\b"), run=distributions.drawn_by, check=compare_drawn),
]

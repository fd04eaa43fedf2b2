"""How the degradation cases are run on our operators, with every drawn number given.

Their photos are (h, w, 3) BGR, ours (3, h, w) RGB.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
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
from tests.parity import fill
from tests.parity.cases import Apart, Case

Outputs = dict[str, Tensor]
BLUR = GaussianBlur(kernel_size_px=41, sigma_px=(0.1, 15), isotropic_prob=0.5)
NOISE = GaussianNoise(sigma_255=(0, 30), grey_prob=0.4)
JPEG = Jpeg(quality=(30, 100), codec="libjpeg")
BACK = ResizeBack(filter="bilinear")
SHIFT = ColourShift(shift_255=20)
JITTER = ColourJitter(brightness=(0.5, 1.5), contrast=(0.5, 1.5), saturation=(0, 1.5), hue=(-0.1, 0.1))


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


def jpeg_approximated(case: Case) -> Outputs:
    image = torch.from_numpy(ours(case.stored["input"]))
    given = {f"q{q}": [q, q] for q in case.facts["config"]["qualities"]} | {"batch": [30, 95]}
    return {f"hard.{name}": diffjpeg(image, torch.tensor(q, dtype=torch.float32)) for name, q in given.items()}


def poisson(photo: np.ndarray, scale: float, grey: int) -> np.ndarray:
    operator = PoissonNoise(scale=(0, 3), grey_prob=0.4)
    with events_without_spread():
        return operator.apply(photo, {"scale": scale, "grey": grey, "field_seed": 0})


def noise(case: Case) -> Outputs:
    batch, config = ours(case.stored["input"]), case.facts["config"]
    photo, sigma, scale = batch[0], config["sigma"], config["poisson_scale"]
    height, width = photo.shape[1:]
    colour, grey = (
        field(f"randn/noise_given/{name}", shape) for name, shape in (("color", (height, width, 3)), ("gray", (height, width)))
    )
    noisy = add_noise(photo, colour, sigma)
    rounded = Pipeline(operators={}, quantize=True, hq_too=[], device="cpu").apply(torch.from_numpy(noisy), {})["lq"]
    alone = {"np.gauss.clip": noisy, "np.gauss.clip_round": rounded, "np.gauss.gray": add_noise(photo, grey, sigma)}
    alone |= {"np.poisson": poisson(photo, scale, 0), "np.poisson.gray": poisson(photo, scale, 1)}

    colours = fill.tensor("randn/noise_given/pt_color", batch.shape).numpy()
    one = fill.tensor("randn/noise_given/pt_gray", (height, width)).numpy()[None]
    together = {
        "pt.gauss": [add_noise(*both, sigma) for both in zip(batch, colours, strict=True)],
        "pt.gauss.mixed": [add_noise(batch[0], colours[0], 17.5), add_noise(batch[1], one, 8.75)],
        "pt.poisson": [poisson(batch[0], 1.7, 0), poisson(batch[1], 0.6, 0)],
        "pt.poisson.mixed": [poisson(batch[0], 1.7, 0), poisson(batch[1], 0.6, 1)],
    }
    return {name: theirs(each) for name, each in alone.items()} | {
        name: torch.from_numpy(np.stack(pair)) for name, pair in together.items()
    }


def sharpened(batch: np.ndarray, weight: float, threshold_255: float) -> np.ndarray:
    operator = UsmSharpening(kernel_size_px=51, weight=weight, threshold_255=threshold_255)
    return np.stack([operator.apply(photo, {}) for photo in batch])


def filter_and_sharpen(case: Case) -> Outputs:
    batch, given = ours(case.stored["input"]), case.stored["kernel"].numpy().astype(np.float64)
    plain = sharpened(batch, 0.5, 10)
    produced = {
        "filter2D.per_sample": np.stack([filtered(photo, kernel) for photo, kernel in zip(batch, given, strict=True)]),
        "filter2D.shared": np.stack([filtered(photo, given[0]) for photo in batch]),
        "usm.kernel": UsmSharpening(kernel_size_px=51, weight=0.5, threshold_255=10).kernel[None].astype(np.float32),
        "usm.torch": plain,
        "usm.torch_w0.8_t4": sharpened(batch, 0.8, 4),
    }
    return {name: torch.from_numpy(each) for name, each in produced.items()} | {"usm.numpy_bgr": theirs(plain[0])}


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


def signed(photo: np.ndarray) -> Tensor:
    """CHW RGB in [-1, 1]."""
    return torch.from_numpy((photo - np.float32(0.5)) / np.float32(0.5))


def codeformer_stage2(case: Case) -> Outputs:
    trace = Trace(case)
    photo = flipped(case, trace)
    produced = stages(case, photo, *drawn_by_codeformer(trace, case.facts["config"]))
    assert not trace.calls
    return produced | {"in": signed(finished(case, photo, quantize=True)), "gt": signed(photo)}


def codeformer_stage3(case: Case) -> Outputs:
    trace, config = Trace(case), case.facts["config"]
    photo = flipped(case, trace)
    produced = stages(case, photo, *drawn_by_codeformer(trace, config))
    produced |= stages(case, photo, *drawn_by_codeformer(trace, config, "_large"), branch=1)
    assert not trace.calls
    lqs = {name: signed(finished(case, photo, quantize=True, branch=n)) for n, name in enumerate(("in", "in_large_de"))}
    return produced | lqs | {"gt": signed(photo)}


def diffbir_stage1(case: Case) -> Outputs:
    trace, photo = Trace(case), ours(case.stored["input"])
    trace.bernoulli(0.5)  # whether the prompt is dropped
    produced = stages(case, photo, *drawn_by_basicsr(trace, case.facts["config"]))
    assert not trace.calls
    lq = theirs(finished(case, photo, quantize=False)).flip(-1)
    return produced | {"lq": lq, "gt": theirs(photo * 2 - 1).flip(-1)}


def dtbfr_grey(case: Case) -> Outputs:
    trace, config = Trace(case), case.facts["config"]
    photo = flipped(case, trace)
    produced = stages(case, photo, *drawn_by_basicsr(trace, config))
    assert trace.bernoulli(config["gray_prob"])
    assert not trace.calls
    lq = finished(case, photo, quantize=True, operators={"grey": Grey()}, given={"grey": {}})
    both = Pipeline(operators={"grey": Grey()}, quantize=True, hq_too=["grey"], device="cpu")
    return produced | {"lq": torch.from_numpy(lq), "gt": both.apply(torch.from_numpy(photo), {"grey": {}})["hq"]}


def dtbfr_test(case: Case) -> Outputs:
    trace, photo, config = Trace(case), ours(case.stored["input"]), case.facts["config"]
    turned = {"sigma_x_px": config["sig_x"], "sigma_y_px": config["sig_y"], "angle_rad": config["theta"], "kernel_size_px": 41}
    given = {"blur": turned, "factor": config["sf"], "sigma_255": config["nf"], "quality": config["qf"]}
    return stages(case, photo, given, trace.field()) | {"lq": theirs(finished(case, photo, quantize=True))}


def gfpgan(case: Case) -> Outputs:
    trace, config = Trace(case), case.facts["config"]
    photo = flipped(case, trace)
    produced = stages(case, photo, *drawn_by_basicsr(trace, config))
    assert trace.bernoulli(config["color_jitter_prob"])
    limit = config["color_jitter_shift"] / 255
    blue, green, red = np.multiply(trace.next("np.random.uniform", -limit, limit, 3), 255)
    assert not trace.bernoulli(config["gray_prob"])
    assert trace.bernoulli(config["color_jitter_pt_prob"])
    bounds = {"brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "saturation": (0, 1.5), "hue": (-0.1, 0.1)}
    order = [list(bounds)[index] for index in trace.next("torch.randperm")]
    jitter: Parameters = {"order": "".join(name[0] for name in order)}
    for name in order:
        assert trace.calls[0]["args"] == [*bounds[name], []]
        jitter[name] = trace.next("tensor.uniform_")
    assert not trace.calls
    given = {"shift": {"red_255": red, "green_255": green, "blue_255": blue}, "jitter": jitter}
    lq = finished(case, photo, quantize=True, operators={"shift": SHIFT, "jitter": JITTER}, given=given)
    return produced | {"lq": signed(lq), "gt": signed(photo)}


# Real-ESRGAN -----------------------------------------------------------------------------------------------------------


def resizing(positions: str, of_hq: float) -> RandomResize:
    filters = ["area", "bilinear", "bicubic"]
    return RandomResize(
        up_prob=0.2, down_prob=0.7, up=(1, 1.5), down=(0.15, 1), of_hq=of_hq, filters=filters, positions=positions
    )  # type: ignore[arg-type]


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


def realesrgan(case: Case) -> Outputs:
    """Their one draw a batch for kinds, filters and noise types is given to each of our samples."""
    trace, stored, config = Trace(case), case.stored, case.facts["config"]
    at = {entry["stage"]: stored[f"stage.{entry['stage']}.{entry['op']}"].numpy() for entry in case.facts["ops"]}
    blurs = {name: stored[name].numpy().astype(np.float64) for name in ("kernel1", "kernel2", "sinc_kernel")}

    def blurred(batch: np.ndarray, name: str) -> np.ndarray:
        return np.stack([filtered(photo, kernel) for photo, kernel in zip(batch, blurs[name], strict=True)])

    def resized(batch: np.ndarray, operator: RandomResize | ResizeBack, scale: float, filter_: str, side: int) -> np.ndarray:
        given = {"scale": scale, "filter": filter_, "height": side, "width": side}
        return np.stack([operator.apply(photo, given) for photo in batch])

    def compressed(batch: np.ndarray, qualities: list[float]) -> np.ndarray:
        jpeg = Jpeg(quality=(30, 95), codec="diffjpeg")
        return np.stack([jpeg.apply(photo, {"quality": q}) for photo, q in zip(batch, qualities, strict=True)])

    hq = sharpened(ours(stored["input"]), 0.5, 10)
    produced = {"stage.0.filter2D": blurred((planar(stored["hq"].flip(-1)) + 1) / 2, "kernel1")}
    assert trace.next("random.choices") == "down"
    scale, filter_ = trace.next("np.random.uniform", config["resize_range"][0], 1), trace.next("random.choice")
    produced["stage.1.interpolate"] = resized(at[0], resizing("scale", 1), scale, filter_, int(96 * scale))
    assert trace.bernoulli(config["gaussian_noise_prob"])
    noisy = gaussian_batch(trace, at[1], config["noise_range"], config["gray_noise_prob"])
    produced["stage.2.jpeg"] = compressed(noisy, trace.next("tensor.uniform_"))
    assert trace.bernoulli(config["second_blur_prob"])
    produced["stage.3.filter2D"] = blurred(at[2], "kernel2")
    assert trace.next("random.choices") == "keep"
    small = resizing("size", 1 / config["stage2_scale"])
    produced["stage.4.interpolate"] = resized(at[3], small, 1, trace.next("random.choice"), 24)
    assert not trace.bernoulli(config["gaussian_noise_prob2"])
    noisy = poisson_batch(trace, at[4], config["poisson_scale_range2"], config["gray_noise_prob2"])
    assert trace.bernoulli(0.5)  # resize and sinc before JPEG
    produced["stage.5.interpolate"] = resized(noisy, small, 1, trace.next("random.choice"), 24)
    produced["stage.6.filter2D"] = blurred(at[5], "sinc_kernel")
    produced["stage.7.jpeg"] = compressed(at[6], trace.next("tensor.uniform_"))
    assert not trace.calls
    back = ResizeBack(filter="bicubic")
    produced["stage.8.interpolate"] = resized(at[7], back, 1, "bicubic", 96)
    rounding = Pipeline(operators={}, quantize=True, hq_too=[], device="cpu")
    lq = rounding.apply(torch.from_numpy(at[8]), {})["lq"]
    final = {"hq": theirs(hq * 2 - 1).flip(-1), "lq": theirs(lq).flip(-1)}
    return {name: torch.from_numpy(each) for name, each in produced.items()} | final


RUNNERS: dict[str, Callable[[Case], Outputs]] = {
    "degradations/kernels": kernel_values,
    "degradations/blur_cv2": blur,
    "degradations/resize_cv2": resize,
    "degradations/cv2_jpeg": jpeg_bytes,
    "degradations/diffjpeg*": jpeg_approximated,
    "degradations/noise_given": noise,
    "degradations/torch_ops": filter_and_sharpen,
    "degradations/pipeline_codeformer_stage2": codeformer_stage2,
    "degradations/pipeline_codeformer_stage3": codeformer_stage3,
    "degradations/pipeline_diffbir_stage1": diffbir_stage1,
    "degradations/pipeline_dtbfr_gray": dtbfr_grey,
    "degradations/pipeline_dtbfr_test": dtbfr_test,
    "degradations/pipeline_gfpgan": gfpgan,
    "degradations/pipeline_realesrgan_batch": realesrgan,
}

# What the notes of the jsons say in words
APART: dict[str, Apart] = {
    "degradations/pipeline_* stage.jpeg_in?": Apart(atol=5e-4),  # times 255
    "degradations/diffjpeg* soft.*": Apart(skip=True),
    "degradations/noise_given np.poisson.gray": Apart(share=0.02, most=1e-4),
    # A residual of 9.99994 grey levels, at a threshold of 10: its mask spreads over 51 pixels.
    "degradations/pipeline_realesrgan_batch hq": Apart(share=0.005, most=1e-3),
}
LESS = {
    **dict.fromkeys(
        ("degradations/diffjpeg", "degradations/diffjpeg_odd_size"),
        "soft.*: differentiable rounding, which no recipe trains through, isn't here; hard.* are compared",
    ),
    "degradations/noise_given": "np.poisson.gray to 1e-4: numpy's grey weighs red 0.299, torch's, which is ours, 0.2989",
    "degradations/pipeline_realesrgan_batch": "that resize kind, filter, noise type and a grey field serve a whole batch: "
    "ours are drawn for each sample; all values are compared",
}

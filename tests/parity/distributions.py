"""What our pipelines draw against 20,000 draws of the references: observables in, complaints out.

A reference is stored as percentiles, a histogram and moments of each observable, and as counts of events (FACTS.md, section 4).
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from scipy.stats import chi2

from degradations.draws import Parameters, generator
from degradations.kernels import sinc
from degradations.operators.blur import Blur, GaussianBlur, GeneralizedBlur, PlateauBlur
from degradations.operators.operator import Operator
from tests.degradations.sets import built
from tests.parity.cases import Case

DRAWS = 20_000
SEED = 0
SIDE = 512
CHUNK = 64  # kernels of 41 px made at a time stay in the cache
TINY = 1e-6  # moments below come from the rounding of float64 and are 0 for both
NOT_OURS = {"hflip", "prompt", "prompt_dropped"}  # drawn by the data set there, and by data/ and train/ here
STEPPED = ("axis_ratio", "low_resolution_side", "jpeg_quality", "resize1_scale", "resize2_scale")  # point masses, integers
QUANTILES = np.arange(5, 100, 5)
OF_RANGE = 0.02  # how far a quantile may lie off, as a part of the observable's range
WITH_QUANTILES = ("sigma_major", "sigma_minor", "sigma_rms", "_std_255", "low_resolution_side", "jpeg_quality", "_scale")


@dataclass
class Drawn:
    """observable -> values; event -> how often each way of it came."""

    observables: dict[str, np.ndarray] = field(default_factory=dict)
    events: dict[str, dict[str, int]] = field(default_factory=dict)

    def under(self, prefix: str) -> "Drawn":
        """The same with a prefix to every name."""
        return Drawn(*({prefix + name: each for name, each in every.items()} for every in (self.observables, self.events)))

    def __or__(self, other: "Drawn") -> "Drawn":
        return Drawn(self.observables | other.observables, self.events | other.events)


# Comparison ------------------------------------------------------------------------------------------------------------


def complaints(case: Case, drawn: Drawn) -> list[str]:
    """What lies further from the reference than chance allows; empty if nothing does."""
    facts = case.facts
    stored, events = facts["observables"], {n: e for n, e in facts.get("events", {}).items() if n not in NOT_OURS}
    assert set(stored) == set(drawn.observables), f"{case.name}: {set(stored) ^ set(drawn.observables)}"
    assert set(events) == set(drawn.events), f"{case.name}: {set(events) ^ set(drawn.events)}"
    found = [text for name, counts in events.items() for text in event_complaints(name, counts, drawn.events[name])]
    return found + [text for name, each in stored.items() for text in value_complaints(name, each, drawn.observables[name])]


def event_complaints(name: str, stored: dict[str, int], drawn: dict[str, int]) -> Iterator[str]:
    """Shares within 4 standard errors."""
    theirs, ours = sum(stored.values()), sum(drawn.values())
    for way in stored.keys() | drawn.keys():
        share = stored.get(way, 0) / theirs
        bound = 4 * np.sqrt(share * (1 - share) * (1 / theirs + 1 / ours))
        if abs(drawn.get(way, 0) / ours - share) > bound:
            yield f"{name} {way}: {drawn.get(way, 0)} of {ours}, not {stored.get(way, 0)} of {theirs}"


def value_complaints(name: str, stored: dict[str, Any], drawn: np.ndarray) -> Iterator[str]:
    """Kolmogorov-Smirnov, or chi-square and mean where values repeat; and quantiles."""
    error = np.sqrt(1 / stored["n"] + 1 / len(drawn))
    if name.endswith(STEPPED):
        surprise, freedom = chi_square(stored["histogram_20_bins"], drawn)
        if surprise > (bound := chi2.ppf(0.999, freedom)):
            yield f"{name}: chi-square {surprise:.1f} of {freedom} degrees of freedom, above {bound:.1f}"
        if abs(drawn.mean() - stored["mean"]) > 4 * stored["std"] * error:
            yield f"{name}: mean {drawn.mean():.5g}, not {stored['mean']:.5g}"
    elif (distance := ks_distance(stored["percentiles_0_to_100"], drawn)) > 1.95 * error:
        yield f"{name}: Kolmogorov-Smirnov distance {distance:.4f}, above {1.95 * error:.4f}"
    if name.endswith(WITH_QUANTILES):
        off, at = quantile_distance(stored["percentiles_0_to_100"], drawn)
        if off > OF_RANGE:
            yield f"{name}: quantile {at} % lies off by {100 * off:.2f} % of the range"


def ks_distance(percentiles: Sequence[float], drawn: np.ndarray) -> float:
    """The largest difference of the two cumulative distributions at the 101 percentiles, 0 where both jump across one."""
    at, theirs = without_noise(np.array(percentiles)), np.linspace(0, 1, 101)
    values = np.sort(without_noise(drawn))
    below, upto = (np.searchsorted(values, at, side) / len(values) for side in ("left", "right"))
    inner = slice(1, -1)  # the ends are those of a sample
    return float(np.maximum(below - theirs, theirs - upto)[inner].max(initial=0))


def quantile_distance(percentiles: Sequence[float], drawn: np.ndarray) -> tuple[float, int]:
    """The largest difference of the quantiles 5 % to 95 %, as a part of the stored range, and where it is.

    Whole numbers are cut off there and here: of their difference 1 may come from that, and isn't counted.
    """
    theirs, hidden = np.array(percentiles), float(drawn.dtype.kind == "i")
    off = np.abs(np.percentile(drawn, QUANTILES) - theirs[QUANTILES]) - hidden
    off = np.clip(off, 0, None) / (theirs[-1] - theirs[0])
    return float(off.max()), int(QUANTILES[off.argmax()])


def chi_square(histogram: dict[str, Any], drawn: np.ndarray) -> tuple[float, int]:
    """Two-sample chi-square over the bins, those with few counts joined to the one before; and its degrees of freedom."""
    low, high = histogram["range"]
    theirs = np.array(histogram["counts"])
    ours = np.histogram(np.clip(drawn, low, high), bins=len(theirs), range=(low, high))[0]
    both = [theirs, ours]
    starts = [0]
    for index in range(1, len(theirs)):
        if min(counts[starts[-1] : index].sum() for counts in both) >= 10:
            starts.append(index)
    if min(counts[starts[-1] :].sum() for counts in both) < 10:
        starts.pop()
    theirs, ours = (np.add.reduceat(counts, starts) for counts in both)
    ratio = np.sqrt(ours.sum() / theirs.sum())
    return float(((theirs * ratio - ours / ratio) ** 2 / (theirs + ours)).sum()), len(starts) - 1


def without_noise(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < TINY, 0, values)


# Observables -----------------------------------------------------------------------------------------------------------


def shape_observables(blur: Callable[[Parameters], Blur], drawn: list[Parameters]) -> dict[str, np.ndarray]:
    """sigma_major, sigma_minor, sigma_rms, center_weight, axis_ratio and angle of the kernels that each draw gives.

    Kernels are made many at a time: those of one size from one operator.
    """
    moments = np.empty((4, len(drawn)))
    key = lambda index: (id(blur(drawn[index])), drawn[index]["kernel_size_px"])  # noqa: E731
    for (_, size), indices in groupby(sorted(range(len(drawn)), key=key), key=key):
        every = list(indices)
        for start in range(0, len(every), CHUNK):
            chosen = every[start : start + CHUNK]
            operator, one = blur(drawn[chosen[0]]), drawn[chosen[0]]
            columns = {name: np.array([drawn[n][name] for n in chosen]) for name in one if isinstance(one[name], float)}
            moments[:, chosen] = second_moments(operator.kernel({**columns, "kernel_size_px": size}))
    return shapes(*moments)


def second_moments(kernels: np.ndarray) -> np.ndarray:
    """(n, k, k) to (4, n): those along x and y, the mixed one, and the weight in the middle."""
    size = kernels.shape[-1]
    span = np.arange(size) - size // 2
    by_x, by_y = kernels.sum(axis=1), kernels.sum(axis=2)
    mixed = np.einsum("nyx,y,x->n", kernels, span, span, optimize=True)
    return np.stack([by_x @ span**2, by_y @ span**2, mixed, kernels[:, size // 2, size // 2]])


def shapes(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, middle: np.ndarray) -> dict[str, np.ndarray]:
    mean, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    with np.errstate(invalid="ignore"):  # sinc has no second moment to speak of
        major, minor = np.sqrt(mean + spread), np.sqrt(np.clip(mean - spread, 0, None))
        found = {"sigma_major": major, "sigma_minor": minor, "sigma_rms": np.sqrt(mean), "center_weight": middle}
        found["axis_ratio"] = np.where(major > 0, minor / np.where(major > 0, major, 1), 1)
        longish = major > 1.02 * minor
    return {**found, "angle": (np.arctan2(2 * xy, xx - yy) / 2)[longish]}


def kernel_observables(blur: Blur, drawn: list[Parameters]) -> dict[str, np.ndarray]:
    names = {"angle": "kernel_angle_of_anisotropic"}
    return {names.get(name, f"kernel_{name}"): each for name, each in shape_observables(lambda _: blur, drawn).items()}


def noise_std_255(operator: Operator, drawn: list[Parameters], photo: np.ndarray) -> np.ndarray:
    """Standard deviation of what is added to a photo, in grey levels of 255."""
    return np.array([255 * (operator.apply(photo, each) - photo).std() for each in drawn])


def counted(values: Sequence[str]) -> dict[str, int]:
    return dict(Counter(values))


def yes_no(values: Sequence[int]) -> dict[str, int]:
    return counted(["yes" if each else "no" for each in values])


# Pipelines -------------------------------------------------------------------------------------------------------------


@cache
def sampled(name: str, *overrides: str) -> tuple[Any, list[Parameters]]:
    """A set of conf/degradation, and what it draws at 20,000 positions."""
    pipeline = built(name, *overrides)
    return pipeline, [pipeline.sample(SEED, position, (SIDE, SIDE)) for position in range(DRAWS)]


def face(operators: dict[str, Operator], every: list[Parameters]) -> Drawn:
    """The classical chain, and the colour steps where it has them."""
    drawn = {name: [each[name] for each in every] for name in operators}
    flat = np.full((3, 24, 24), 0.5, dtype=np.float32)
    found = Drawn()
    found.observables = kernel_observables(operators["blur"], drawn["blur"])  # type: ignore[arg-type]
    found.observables["low_resolution_side"] = np.array([each["height"] for each in drawn["downsample"]])
    found.observables["noise_std_255"] = noise_std_255(operators["noise"], drawn["noise"], flat)
    found.observables["jpeg_quality"] = np.array([each["quality"] for each in drawn["jpeg"]])
    found.events["kernel_type"] = counted(
        ["iso" if each["sigma_x_px"] == each["sigma_y_px"] else "aniso" for each in drawn["blur"]]
    )
    found.events["noise"] = counted(["grey" if each["grey"] else "colour" for each in drawn["noise"]])
    if "grey" in operators:
        found.events["gray"] = yes_no([each["done"] for each in drawn["grey"]])
    if "colour_jitter" in operators:
        found |= colours(drawn["colour_shift"], drawn["colour_jitter"])
    return found


def colours(shifts: list[Parameters], jitters: list[Parameters]) -> Drawn:
    found = Drawn()
    found.events["color_jitter_numpy"] = yes_no([each["done"] for each in shifts])
    found.events["color_jitter_torch"] = yes_no([each["done"] for each in jitters])
    done = [each for each in jitters if each["done"]]
    names = ("brightness", "contrast", "saturation", "hue")
    found.observables = {f"torch_jitter_{name}": np.array([each[name] for each in done]) for name in names}
    initial = {name[0]: name for name in names}
    found.events["color_jitter_torch_first_op"] = counted([initial[each["order"][0]] for each in done])
    shifted = [each[f"{name}_255"] for each in shifts if each["done"] for name in ("red", "green", "blue")]
    found.observables["color_jitter_shift_255"] = np.array(shifted)
    return found


def of_set(name: str, *overrides: str) -> Drawn:
    pipeline, every = sampled(name, *overrides)
    return face(pipeline.operators, every)


def both_branches(*overrides: str) -> Drawn:
    pipeline, every = sampled("codeformer_stage3", *overrides)
    found = Drawn()
    for prefix, name in (("b1.", "lq"), ("b2.", "lq_large")):
        found |= face(pipeline.branches[name].operators, [each[name] for each in every]).under(prefix)
    return found


WITH_DIFFJPEG = [
    f"degradation.operators.{name}.codec=diffjpeg"
    for name in ("jpeg", "end.ways.sinc_then_jpeg.jpeg", "end.ways.jpeg_then_sinc.jpeg")
]


def realesrgan_kernels(*overrides: str) -> Drawn:
    """Which kernels the second-order chain lays on."""
    pipeline, every = sampled("realesrgan", *WITH_DIFFJPEG, *overrides)
    found = Drawn()
    for number, blurs, drawn in (
        (1, pipeline.operators["blur"], [each["blur"] for each in every]),
        (2, pipeline.operators["blur2"].operator, [each["blur2"] for each in every]),
    ):
        found |= mixed_kernels(blurs.ways, drawn).under(f"kernel{number}_")
    ends = [each["end"][each["end"]["way"]]["sinc"] for each in every]
    done = [each for each in ends if each["done"]]
    found.events["final_sinc"] = counted(["sinc" if each["done"] else "pulse" for each in ends])
    found.events["final_sinc_size"] = counted([str(each["kernel_size_px"]) for each in done])
    found.observables["final_sinc_center_weight"] = sinc_middles(done)
    return found


def mixed_kernels(ways: dict[str, dict[str, Blur]], drawn: list[Parameters]) -> Drawn:
    short = {"gaussian_iso": "iso", "gaussian_aniso": "aniso", "sinc_small": "sinc", "sinc_large": "sinc"}
    kinds = [short.get(each["way"], each["way"]) for each in drawn]
    own = [{**each[each["way"]]["blur"], "way": each["way"]} for each in drawn]
    found = Drawn(events={"type": counted(kinds), "size": counted([str(each["kernel_size_px"]) for each in own])})
    gaussians = [each for each, kind in zip(own, kinds, strict=True) if kind != "sinc"]
    shape = shape_observables(lambda each: ways[each["way"]]["blur"], gaussians)
    found.observables = {name: shape[name] for name in ("sigma_major", "sigma_minor", "sigma_rms", "center_weight")}
    found.observables["sinc_center_weight"] = sinc_middles([e for e, kind in zip(own, kinds, strict=True) if kind == "sinc"])
    return found


def sinc_middles(drawn: list[Parameters]) -> np.ndarray:
    """The weight in the middle of each kernel."""
    return np.array([sinc(size := each["kernel_size_px"], each["cutoff_rad"])[size // 2, size // 2] for each in drawn])


def realesrgan_chain(*overrides: str) -> Drawn:
    """The other steps of the second-order chain."""
    pipeline, every = sampled("realesrgan", *WITH_DIFFJPEG, *overrides)
    found = Drawn()
    for number, suffix, target in ((1, "", SIDE), (2, "2", SIDE // 4)):
        sides = np.array([each[f"resize{suffix}"]["height"] for each in every])
        scales = np.array([each["resize"]["scale"] for each in every]) if number == 1 else sides / target
        found.observables[f"resize{number}_scale"] = scales
        found.events[f"resize{number}_kind"] = counted(np.choose(np.sign(scales - 1).astype(int) + 1, ["down", "keep", "up"]))
        found.events[f"resize{number}_mode"] = counted([each[f"resize{suffix}"]["filter"] for each in every])
        found |= noises(pipeline.operators[f"noise{suffix}"].ways, [each[f"noise{suffix}"] for each in every]).under(
            f"noise{number}"
        )
    ends = [each["end"][each["end"]["way"]] for each in every]
    found.observables["jpeg1_quality"] = np.array([each["jpeg"]["quality"] for each in every])
    found.observables["jpeg2_quality"] = np.array([each["jpeg"]["quality"] for each in ends])
    found.events["resize_back_mode"] = counted([each["resize"]["filter"] for each in ends])
    found.events["second_blur"] = yes_no([each["blur2"]["done"] for each in every])
    order = {"jpeg_then_sinc": "jpeg then resize+sinc", "sinc_then_jpeg": "resize+sinc then jpeg"}
    found.events["order"] = counted([order[each["end"]["way"]] for each in every])
    return found


def noises(ways: dict[str, dict[str, Operator]], drawn: list[Parameters]) -> Drawn:
    index = np.arange(48 * 48)
    ramp = 0.25 + 0.5 * np.round(index * 255 / 2303) / 255
    photo = np.repeat(ramp.reshape(1, 48, 48), 3, axis=0).astype(np.float32)
    found = Drawn()
    for kind in ways:
        own = [each[kind]["noise"] for each in drawn if each["way"] == kind]
        found.observables[f"_{kind}_std_255"] = noise_std_255(ways[kind]["noise"], own, photo)
    grey = ["gray" if each[each["way"]]["noise"]["grey"] else "colour" for each in drawn]
    found.events[""] = counted([f"{each['way']} {colour}" for each, colour in zip(drawn, grey, strict=True)])
    return found


def kernels_by_type(config: dict[str, Any], draws: int = DRAWS, plateau: type[PlateauBlur] = PlateauBlur) -> Drawn:
    """One kind of kernel at a time, under the settings of random_mixed_kernels."""
    assert config["sigma_x_range"] == config["sigma_y_range"], "ours have one range for both"
    assert config["noise_range"] is None, "ours have no noise in a kernel"
    assert np.allclose(config["rotation_range"], [-np.pi, np.pi])
    common: dict[str, Any] = {"kernel_size_px": config["kernel_size"], "sigma_px": tuple(config["sigma_x_range"])}
    of_generalized, of_plateau = tuple(config["betag_range"]), tuple(config["betap_range"])
    found = Drawn()
    for suffix, isotropic in (("iso", 1), ("aniso", 0)):
        blurs = {
            suffix: GaussianBlur(**common, isotropic_prob=isotropic),
            f"generalized_{suffix}": GeneralizedBlur(**common, isotropic_prob=isotropic, beta=of_generalized),
            f"plateau_{suffix}": plateau(**common, isotropic_prob=isotropic, beta=of_plateau),
        }
        for name, blur in blurs.items():
            drawn = [blur.sample(generator(SEED, position, name), (SIDE, SIDE)) for position in range(draws)]
            shape = shape_observables(lambda _, blur=blur: blur, drawn)  # type: ignore[misc]
            names = ["sigma_major", "sigma_minor", "center_weight", *(["angle"] if isotropic == 0 else [])]
            found.observables |= {f"{name}.{each}": shape[each] for each in names}
    return found


# What ours draws for a case --------------------------------------------------------------------------------------------


def drawn_by(case: Case) -> Drawn:
    """Ours under the settings of a case: its reference tells which set of conf/degradation, the settings override it."""
    config = case.facts["config"]
    if "random_mixed_kernels" in case.reference:
        return kernels_by_type(config)
    run, name = set_of(case)
    return run(name, *overrides_of(case))


def set_of(case: Case) -> tuple[Callable[..., Drawn], str]:
    """What observes the draws of a case's reference, and the set of conf/degradation that is its like."""
    config, reference = case.facts["config"], case.reference
    sets: dict[str, tuple[Callable[..., Drawn], str]] = {
        "FFHQBlindJointDataset": (lambda _name, *overrides: both_branches(*overrides), "codeformer_stage3"),
        # With changes of colour it is for colourisation: GFPGAN's, on ranges of its own.
        "FFHQBlindDataset": (of_set, "gfpgan" if config.get("color_jitter_prob") else "codeformer_stage2"),
        "CodeformerDataset": (of_set, "diffbir"),
        "GFPGAN FFHQDegradationDataset": (of_set, "gfpgan"),
        "FFHQDegradationDataset": (of_set, "gfpgan" if config.get("color_jitter_prob") else "dtbfr"),
        "RealESRGANDataset": (lambda _name, *overrides: realesrgan_kernels(*overrides), "realesrgan"),
        "RealESRGANBatchTransform": (lambda _name, *overrides: realesrgan_chain(*overrides), "realesrgan"),
    }
    found = [way for words, way in sets.items() if set(words.split()) <= set(re.findall(r"\w+", reference))]
    assert found, f"{case.name}: no set of conf/degradation is known for {reference}"
    return found[0]


def overrides_of(case: Case) -> list[str]:
    """A case's settings as overrides of its set. Those of the published cases change nothing, which a test holds."""
    config = case.facts["config"]
    if "FFHQBlindJointDataset" in case.reference:
        return face_overrides(config, "branches.lq.") + face_overrides(config, "branches.lq_large.", "_large")
    if "RealESRGANDataset" in case.reference:
        return kernel_overrides(config)
    return chain_overrides(config) if "RealESRGANBatchTransform" in case.reference else face_overrides(config)


def as_overrides(keys: dict[str, Any]) -> list[str]:
    return [f"degradation.{key}={json.dumps(value, separators=(',', ':'))}" for key, value in keys.items()]


def face_overrides(config: dict[str, Any], branch: str = "", suffix: str = "") -> list[str]:
    assert config["kernel_list"] == ["iso", "aniso"], config["kernel_list"]
    keys = {
        "blur.kernel_size_px": config["blur_kernel_size"],
        "blur.isotropic_prob": config["kernel_prob"][0] / sum(config["kernel_prob"]),
        "blur.sigma_px": config[f"blur_sigma{suffix}"],
        "downsample.factor": config[f"downsample_range{suffix}"],
        "noise.sigma_255": config[f"noise_range{suffix}"],
        "jpeg.quality": config[f"jpeg_range{suffix}"],
    }
    if config.get("gray_prob"):
        keys["grey.prob"] = config["gray_prob"]
    if config.get("color_jitter_prob"):
        keys |= {"colour_shift.prob": config["color_jitter_prob"], "colour_jitter.prob": config["color_jitter_pt_prob"]}
        keys["colour_shift.operator.shift_255"] = config["color_jitter_shift"]
    return as_overrides({f"{branch}operators.{key}": value for key, value in keys.items()})


WAYS = {"iso": "gaussian_iso", "aniso": "gaussian_aniso"}  # the reference's names of kernels, where ours differ


def kernel_overrides(config: dict[str, Any]) -> list[str]:
    """Of the second-order chain's kernels. Sizes and cutoffs are fixed in the reference, and so here."""
    keys: dict[str, Any] = {}
    for suffix, node in (("", "operators.blur"), ("2", "operators.blur2.operator")):
        assert config[f"blur_kernel_size{suffix}"] == 21
        plain = 1 - config[f"sinc_prob{suffix}"]
        for name, prob in zip(config[f"kernel_list{suffix}"], config[f"kernel_prob{suffix}"], strict=True):
            way = WAYS.get(name, name)
            keys[f"{node}.probs.{way}"] = round(plain * prob, 9)
            keys[f"{node}.ways.{way}.blur.sigma_px"] = config[f"blur_sigma{suffix}"]
            if not way.startswith("gaussian"):
                keys[f"{node}.ways.{way}.blur.beta"] = config[f"beta{name[0]}_range{suffix}"]
        for way, share in (("sinc_small", 3 / 8), ("sinc_large", 5 / 8)):
            keys[f"{node}.probs.{way}"] = round(config[f"sinc_prob{suffix}"] * share, 9)
    for way in ("sinc_then_jpeg", "jpeg_then_sinc"):
        keys[f"operators.end.ways.{way}.sinc.prob"] = config["final_sinc_prob"]
    return as_overrides(keys)


def chain_overrides(config: dict[str, Any]) -> list[str]:
    """Of the other steps of the second-order chain."""
    assert config["stage2_scale"] == 4
    keys: dict[str, Any] = {"operators.blur2.prob": config["second_blur_prob"]}
    for suffix in ("", "2"):
        up, down, _ = config[f"resize_prob{suffix}"]
        low, high = config[f"resize_range{suffix}"]
        resize, noise = f"operators.resize{suffix}", f"operators.noise{suffix}"
        keys |= {f"{resize}.up_prob": up, f"{resize}.down_prob": down, f"{resize}.up": [1, high], f"{resize}.down": [low, 1]}
        gaussian = config[f"gaussian_noise_prob{suffix}"]
        keys |= {f"{noise}.probs.gaussian": gaussian, f"{noise}.probs.poisson": round(1 - gaussian, 9)}
        keys[f"{noise}.ways.gaussian.noise.sigma_255"] = config[f"noise_range{suffix}"]
        keys[f"{noise}.ways.poisson.noise.scale"] = config[f"poisson_scale_range{suffix}"]
        for way in ("gaussian", "poisson"):
            keys[f"{noise}.ways.{way}.noise.grey_prob"] = config[f"gray_noise_prob{suffix}"]
    keys["operators.jpeg.quality"] = config["jpeg_range"]
    for way in ("sinc_then_jpeg", "jpeg_then_sinc"):
        keys[f"operators.end.ways.{way}.jpeg.quality"] = config["jpeg_range2"]
    return as_overrides(keys)

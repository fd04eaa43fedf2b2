"""The score and the identity gate of the NTIRE challenges on real-world face restoration, both editions.

Source: eval.py of zhengchen1999/NTIRE2025_RealWorld_Face_Restoration (3b1903d) and of
jkwang28/NTIRE2026_RealWorld_Face_Restoration (7ca192d). Where these go on without a word (a missing set, NaN, images that were
not scored), this stops.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WEIGHTS = {"CelebA": 100, "LFW-Test": 100, "CelebChild-Test": 50, "WebPhoto-Test": 100, "Wider-Test": 100}  # fixed
MOST_LOW = 10  # an entry with more images below their threshold is not valid
THRESHOLDS = {
    2025: {"CelebA": 0.5, "LFW-Test": 0.6, "CelebChild-Test": 0.6, "WebPhoto-Test": 0.3, "Wider-Test": 0.3},
    2026: {"CelebA": 0.5, "LFW-Test": 0.6, "CelebChild-Test": 0.6, "WebPhoto-Test": 0.25, "Wider-Test": 0.2},
}
# Each term from the metric's value over all sets; the published formula clamps NIQE and FID from below alone.
TERMS = {
    "clipiqa": lambda value: value,
    "maniqa": lambda value: value,
    "musiq": lambda value: value / 100,
    "niqe": lambda value: max(0.0, (10 - value) / 10),
    "qalign": lambda value: value / 5,
    "fid": lambda value: max(0.0, (100 - value) / 100),
}


@dataclass(frozen=True)
class Score:
    """The challenge's score of one folder of outputs."""

    total: float  # S, the sum of the terms
    terms: dict[str, float]
    sets: dict[str, dict[str, float]]  # set -> metric -> mean over its images
    overall: dict[str, float]  # metric -> mean over the sets, by their fixed weights


def score(values: Mapping[str, Sequence[float]], sets: Sequence[str], fid: float, terms: Sequence[str] = tuple(TERMS)) -> Score:
    """S of images with their metrics.

    Args:    values: metric -> a value for each image. Metrics beside the terms (identity) are averaged alike.
             sets: the set of each image. fid: over all images.
             terms: all six, or without qalign the five of the organisers' --use_qalign False.
    Raises:  ValueError: a set without an image, an unknown set, a metric that is missing or not finite.
    """
    if lacking := [name for name in WEIGHTS if name not in set(sets)]:
        raise ValueError(f"no image of {', '.join(lacking)}: the score is over all five sets")
    if unknown := sorted(set(sets) - WEIGHTS.keys()):
        raise ValueError(f"{unknown[0]} is no set of the challenge (there are {', '.join(WEIGHTS)})")
    if missing := [term for term in terms if term != "fid" and term not in values]:
        raise ValueError(f"no values of {', '.join(missing)}: the score needs {', '.join(terms)}")
    for name, of in [*values.items(), ("fid", [fid])]:
        if bad := sum(not math.isfinite(value) for value in of):
            raise ValueError(f"{name} is not finite for {bad} images: the score would hide it")
    where = np.array(sets)
    means = {
        name: {metric: float(np.mean(np.asarray(of, dtype=float)[where == name])) for metric, of in values.items()}
        for name in WEIGHTS
    }
    whole = sum(WEIGHTS.values())
    overall = {metric: sum(WEIGHTS[name] * means[name][metric] for name in WEIGHTS) / whole for metric in values} | {"fid": fid}
    parts = {term: TERMS[term](overall[term]) for term in terms}
    return Score(sum(parts.values()), parts, means, overall)


def low(identities: Sequence[float], sets: Sequence[str], edition: int) -> list[int]:
    """Numbers of the images whose cosine between LQ and output lies below their set's threshold; equal passes."""
    thresholds = THRESHOLDS[edition]
    return [i for i, (cosine, name) in enumerate(zip(identities, sets, strict=True)) if cosine < thresholds[name]]


def is_valid(low_images: Sequence[object]) -> bool:
    """Whether an entry passes the identity gate."""
    return len(low_images) <= MOST_LOW

"""One or several folders of outputs, scored: values, means with their intervals, the challenge's score, and a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge

from data.sources.files import first_few
from data.writing import refuse_links_out
from evaluation import challenge, gate
from evaluation.certainty import Comparison, Interval, compared, interval, interval_of
from evaluation.images import Pair, pairs
from evaluation.metrics import Metric, OfFeatures
from evaluation.scoring import Cache, Values, measured


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys of conf/evaluate.yaml, which says what each is."""

    outputs: str | list[str]
    hq: str | None
    lq: str | None
    report: str
    edition: Literal[2025, 2026] | None
    terms: Literal[5, 6]
    landmarks: str | None
    show: Annotated[int, Ge(0)]
    workers: Annotated[int, Ge(1)]
    device: str
    seed: Annotated[int, Ge(0)]


@dataclass
class Scored:
    """One folder with all its numbers."""

    folder: str
    values: Values
    means: dict[str, Interval] = field(default_factory=dict)  # metric -> mean over the images
    sets: dict[str, dict[str, float]] = field(default_factory=dict)  # set -> metric -> mean, where there are sets
    of_folder: dict[str, float] = field(default_factory=dict)  # metric of the whole, such as fid
    score: challenge.Score | None = None
    score_between: tuple[float, float] | None = None
    no_score: str = ""  # why there is none
    low: dict[int, list[str]] = field(default_factory=dict)  # edition -> images below their threshold

    @property
    def pairs(self) -> list[Pair]:
        return self.values.pairs


@dataclass
class Result:
    """What a report is made of."""

    settings: Settings
    protocol: str
    metrics: Mapping[str, Any]
    missing: dict[str, str]  # metric -> why it is not there, with the line that fetches it
    folders: list[Scored]
    comparisons: dict[str, Comparison] = field(default_factory=dict)  # metric -> of the first two folders
    published: Sequence[Mapping[str, Any]] = ()

    @property
    def wrong(self) -> list[str]:
        return [f"{each.folder}: {sentence}" for each in self.folders for sentence in each.values.wrong]


def evaluate(settings: Settings, protocol: str, metrics: Mapping[str, Any], published: Sequence[Mapping[str, Any]]) -> Result:
    """Scores every folder.

    Raises: ValueError: images that are missing, extra or there twice, or a metric whose settings are wrong.
    """
    folders = [settings.outputs] if isinstance(settings.outputs, str) else settings.outputs
    rows = None
    if settings.edition is not None:
        if settings.landmarks is None:
            raise ValueError("landmarks is not set: give landmarks=FILE, the organisers' CSV (test_face.csv)")
        rows = gate.read_landmarks(Path(settings.landmarks))
    for reference in ("hq", "lq"):
        needing = [name for name, metric in metrics.items() if metric.reference == reference]
        if needing and getattr(settings, reference) is None:
            raise ValueError(f"{reference} is not set, which {first_few(needing)} compare with: give {reference}=DIR")
    refuse_links_out(Path(settings.report))
    images = {folder: pairs(folder, hq=settings.hq, lq=settings.lq, rows=rows) for folder in folders}
    torch.set_num_threads(1)  # so that sums are the same, whatever runs beside
    opened, missing = opened_metrics(metrics, torch.device(settings.device))
    cache = Cache(Path(settings.report) / "cache.jsonl")
    scored = []
    for folder in folders:
        values = measured(images[folder], opened, cache, settings.device, settings.workers)
        scored.append(summed(folder, values, opened, settings))
    result = Result(settings, protocol, metrics, missing, scored, published=published)
    if len(scored) > 1:
        one, other = scored[:2]
        if [pair.name for pair in one.pairs] != [pair.name for pair in other.pairs]:
            raise ValueError(f"{one.folder} and {other.folder} hold other images: they can't be compared")
        result.comparisons = {
            name: compared(
                in_order(one, name), in_order(other, name), higher_is_better=metric.higher_is_better, seed=settings.seed
            )
            for name, metric in opened.items()
            if name in one.means and name in other.means
        }
    return result


def opened_metrics(metrics: Mapping[str, Any], device: torch.device) -> tuple[dict[str, Metric | OfFeatures], dict[str, str]]:
    """Those that can be computed here, and why the others can't."""
    opened, missing = {}, {}
    for name, metric in metrics.items():
        try:
            metric.open(device)
            opened[name] = metric
        except FileNotFoundError as error:
            missing[name] = str(error)
    return opened, missing


def summed(folder: str, values: Values, metrics: Mapping[str, Metric | OfFeatures], settings: Settings) -> Scored:
    """Means and scores. A metric that could not score an image has no mean."""
    scored = Scored(folder, values)
    whole = {name for name, of in values.of_images.items() if len(of) == len(values.pairs)}
    for name in metrics:
        if name in whole:
            scored.means[name] = interval(in_order(scored, name), settings.seed)
        elif isinstance(metric := metrics[name], OfFeatures) and name in values.features:
            scored.of_folder[name] = metric.of(values.features[name])
    sets = [pair.dataset for pair in values.pairs]
    if settings.edition is not None:
        for name in challenge.WEIGHTS:
            chosen = [i for i, each in enumerate(sets) if each == name]
            scored.sets[name] = {
                key: float(np.mean([in_order(scored, key)[i] for i in chosen])) for key in scored.means if chosen
            }
        _challenge(scored, sets, settings)
    return scored


def _challenge(scored: Scored, sets: list[str], settings: Settings) -> None:
    terms = [term for term in challenge.TERMS if settings.terms == 6 or term != "qalign"]
    if "identity" in scored.means:
        cosines = in_order(scored, "identity")
        scored.low = {
            edition: [scored.pairs[i].name for i in challenge.low(cosines, sets, edition)] for edition in challenge.THRESHOLDS
        }
    lacking = [term for term in terms if term not in scored.means and term not in scored.of_folder]
    if lacking:
        scored.no_score = f"S needs {', '.join(lacking)} too" + (
            " (terms=5 leaves out qalign)" if lacking == ["qalign"] else ""
        )
        return
    columns = {term: np.array(in_order(scored, term)) for term in terms if term != "fid"}
    fid = scored.of_folder["fid"]

    def total(chosen: np.ndarray) -> float:
        chosen_values = {term: column[chosen].tolist() for term, column in columns.items()}
        return challenge.score(chosen_values, [sets[i] for i in chosen], fid, terms).total

    try:
        scored.score = challenge.score({term: column.tolist() for term, column in columns.items()}, sets, fid, terms)
        scored.score_between = interval_of(total, sets, settings.seed)
    except ValueError as error:
        scored.no_score = str(error)


def in_order(scored: Scored, metric: str) -> list[float]:
    """The values of a metric in the order of the images' names."""
    return [scored.values.of_images[metric][pair.name] for pair in scored.pairs]

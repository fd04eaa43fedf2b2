"""The values of every metric for every image: computed once, kept by content, the same in any order and number of processes."""

import base64
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.images import decode
from data.writing import open_own
from evaluation.images import Pair
from evaluation.metrics import Metric, OfFeatures


@dataclass
class Values:
    """What was measured of one folder."""

    pairs: list[Pair]
    of_images: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> name -> value
    features: dict[str, np.ndarray] = field(default_factory=dict)  # metric of a folder -> (images, c), in the pairs' order
    wrong: list[str] = field(default_factory=list)  # a sentence for each image that a metric could not score


class Cache:
    """Values by key, a line each: a process that is killed loses the line that it wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.of: dict[str, dict[str, Any]] = defaultdict(dict)  # name of an image -> key -> value
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # the last line of a killed process
                    name, key, value = json.loads(line)
                    self.of[name][key] = value

    def add(self, name: str, new: Mapping[str, Any]) -> None:
        """What was computed of an image, by key."""
        self.of[name] |= new
        with open_own(self.path) as file:
            file.write("".join(f"\n{json.dumps([name, key, value])}" for key, value in new.items()).encode())


def measured(
    pairs: Sequence[Pair], metrics: Mapping[str, Metric | OfFeatures], cache: Cache, device: str, workers: int
) -> Values:
    """Every metric of every image. Metrics are open; workers: processes, which open them anew (on the CPU)."""
    keys = {name: metric.key() for name, metric in metrics.items()}
    found = Values(list(pairs))
    lists: dict[str, list[np.ndarray]] = {name: [] for name, metric in metrics.items() if isinstance(metric, OfFeatures)}
    with Pool(metrics, keys, device, workers) as pool:
        work = [(pair, cache.of[pair.name]) for pair in pairs]
        bar = tqdm(pool.map(work), total=len(work), unit="image", disable=None, leave=False)
        for pair, (values, new, wrong) in zip(pairs, bar, strict=True):
            cache.add(pair.name, new)
            found.wrong += wrong
            for name, value in values.items():
                if name in lists:
                    lists[name].append(unpacked(value))
                else:
                    found.of_images.setdefault(name, {})[pair.name] = value
    found.features = {name: np.stack(each) for name, each in lists.items() if len(each) == len(pairs)}
    return found


class Pool:
    """Images through the metrics, in order, here or in other processes."""

    def __init__(self, metrics: Mapping[str, Metric | OfFeatures], keys: Mapping[str, str], device: str, workers: int) -> None:
        self.metrics, self.keys = metrics, keys
        self.executor = None
        if workers > 1:
            self.executor = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (metrics_closed(metrics), keys, device))

    def map(self, work: Sequence[Any]) -> Iterator[Any]:
        if self.executor:
            return self.executor.map(_in_worker, work)
        return (measure(self.metrics, self.keys, pair, known) for pair, known in work)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        if self.executor:
            self.executor.shutdown(cancel_futures=True)


def metrics_closed(metrics: Mapping[str, Metric | OfFeatures]) -> dict[str, Metric | OfFeatures]:
    """The same without their networks, to be sent to another process."""
    closed = {}
    for name, metric in metrics.items():
        copy = object.__new__(type(metric))
        copy.__dict__ = {
            key: value for key, value in vars(metric).items() if not hasattr(value, "parameters") and key != "embedder"
        }
        closed[name] = copy
    return closed


_OPEN: dict[str, Any] = {}


def _begin(metrics: Mapping[str, Metric | OfFeatures], keys: Mapping[str, str], device: str) -> None:
    torch.set_num_threads(1)
    for metric in metrics.values():
        metric.open(torch.device(device))
    _OPEN.update(metrics=metrics, keys=keys)


def _in_worker(work: tuple[Pair, dict[str, Any]]) -> Any:
    return measure(_OPEN["metrics"], _OPEN["keys"], *work)


def measure(
    metrics: Mapping[str, Metric | OfFeatures], keys: Mapping[str, str], pair: Pair, known: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Metric -> value of one image; what of it is new, by key; and what went wrong."""
    values: dict[str, Any] = {}
    new: dict[str, Any] = {}
    wrong: list[str] = []
    files = {"hq": pair.hq, "lq": pair.lq, "output": pair.output}
    try:
        contents = {of: path.read_bytes() for of, path in files.items() if path is not None}
    except OSError as error:
        return {}, {}, [f"{pair.name} can't be read: {error}"]
    hashes = {of: hashlib.sha256(content).hexdigest()[:16] for of, content in contents.items()}
    images: dict[str, np.ndarray] = {}
    for name, metric in metrics.items():
        reference = metric.reference
        key = "|".join([keys[name], hashes["output"], hashes.get(reference or "", "")])
        if key in known:
            values[name] = known[key]
            continue
        try:
            for of in ("output", *([reference] if reference else [])):
                if of not in images:
                    images[of] = decode(contents[of], str(files[of]))
            image, other = images["output"], images[reference] if reference else None
            if reference == "hq" and other is not None and image.shape != other.shape:
                sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (image, other)]
                raise ValueError(f"it has {sizes[0]} pixels, its ground truth {sizes[1]}")
            value: Any = packed(metric.features(image)) if isinstance(metric, OfFeatures) else metric(image, other, pair.name)
            if not isinstance(metric, OfFeatures) and not np.isfinite(value):
                raise ValueError("the value is not finite")
        except ValueError as error:
            wrong.append(f"{pair.name}, {name}: {error}")
            continue
        values[name] = new[key] = value
    return values, new, wrong


def packed(features: np.ndarray) -> str:
    """As text, to the bit."""
    stream = io.BytesIO()
    np.save(stream, features)
    return base64.b64encode(stream.getvalue()).decode()


def unpacked(text: str) -> np.ndarray:
    return np.load(io.BytesIO(base64.b64decode(text)))

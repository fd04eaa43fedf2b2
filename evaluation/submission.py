"""A submission to the challenge: checked as the organisers' program would take it, then packed."""

import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt
from tqdm import tqdm

from data.images import READ_ERRORS, decode, opened
from data.sources.files import first_few
from data.writing import replacing
from evaluation import challenge, gate
from evaluation.images import Pair, pairs
from evaluation.metrics import Identity


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The keys of `python evaluate.py submit`."""

    outputs: str  # folder of the restored images
    lq: str  # folder of what was restored
    landmarks: str  # the organisers' CSV
    zip: str  # file to write
    runtime_s: Annotated[float, Gt(0)]  # of an image
    device: Literal["cpu", "gpu"]
    extra_data: bool  # whether more than FFHQ was trained on
    description: str = ""
    edition: Literal[2025, 2026] = 2025
    weights: str = "weights"  # folder with AdaFace's


def submit(submission: Submission) -> str:
    """Writes the zip. Returns what was packed.

    Raises: ValueError: images that are missing, extra, there twice or of another form, named; or too many below the gate's
            threshold, which gets no score. FileNotFoundError: AdaFace's weights, with the line that fetches them.
    """
    rows = gate.read_landmarks(Path(submission.landmarks))
    images = pairs(submission.outputs, hq=None, lq=submission.lq, rows=rows)
    if wrong := [said for pair in images if (said := mistake(pair))]:
        raise ValueError(f"{len(wrong)} images are not as the challenge wants them: {first_few(wrong)}")
    low = below(images, submission)
    if not challenge.is_valid(low):
        raise ValueError(
            f"{len(low)} images lie below their identity threshold of {submission.edition}, and with more than "
            f"{challenge.MOST_LOW} an entry gets no score: {first_few(low)}"
        )
    counts = Counter(pair.dataset for pair in images)
    target = Path(submission.zip)
    with replacing(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
        archive.writestr("readme.txt", readme(submission))
        for pair in images:
            archive.write(pair.output, f"{pair.dataset}/{pair.name}.png")
    sets = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{target}: {len(images)} images ({sets}), {len(low)} below their threshold of {submission.edition}: valid"


def mistake(pair: Pair) -> str | None:
    """What is wrong with an image's form, or None."""
    content = pair.output.read_bytes()
    try:
        with opened(content) as image:
            kind, mode, (width, height) = image.format, image.mode, image.size
    except READ_ERRORS:
        kind = None
    if kind != "PNG":
        return f"{pair.output.name} is no PNG"
    if mode == "RGB" and width == height == gate.SIDE_PX:
        return None
    return f"{pair.output.name} is {mode} of {width}x{height}, not RGB of {gate.SIDE_PX}x{gate.SIDE_PX}"


def below(images: list[Pair], submission: Submission) -> list[str]:
    """Names of the images below their threshold."""
    metric = Identity(to="lq", folder=submission.weights, landmarks=submission.landmarks)
    metric.open(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    cosines = []
    for pair in tqdm(images, unit="image", disable=None, leave=False):
        assert pair.lq is not None
        photos: list[np.ndarray] = [decode(path.read_bytes(), str(path)) for path in (pair.output, pair.lq)]
        cosines.append(metric(photos[0], photos[1], pair.name))
    numbers = challenge.low(cosines, [pair.dataset for pair in images], submission.edition)
    return [images[i].name for i in numbers]


def readme(submission: Submission) -> str:
    """The lines that NTIRE's challenges ask for."""
    return (
        f"runtime per image [s] : {submission.runtime_s:g}\n"
        f"CPU[1] / GPU[0] : {int(submission.device == 'cpu')}\n"
        f"Extra Data [1] / No Extra Data [0] : {int(submission.extra_data)}\n"
        f"Other description : {submission.description}\n"
    )

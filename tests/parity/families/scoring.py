"""How the challenge's score, its identity gate, FID and NIQE are held against the organisers' numbers."""

import hashlib
import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from data.landmarks import similarity
from evaluation import challenge, gate
from evaluation.fid import Statistics, distance
from evaluation.niqe import niqe
from models.adaface import AdaFace
from tests.parity import fill
from tests.parity.cases import Case
from tests.parity.runners import Kind, refers

KEPT = 6  # cases in tests/golden
NAMES = {"NIQE": "niqe", "CLIP_IQA": "clipiqa", "MANIQA": "maniqa", "MUSIQ": "musiq", "QALIGN": "qalign", "ID_Sim": "identity"}


def number(value: object) -> float:
    return math.nan if value == "NaN" else float(value)  # type: ignore[arg-type]


def aggregate(case: Case) -> challenge.Score | str:
    """The score, or what is said in its place."""
    rows = [*case.facts["input"]["images"].values()]
    values = {NAMES[key]: [number(row[key]) for row in rows] for key in NAMES if key in rows[0]}
    terms = [term for term in challenge.TERMS if term == "fid" or term in values]
    try:
        return challenge.score(values, [row["Dataset"] for row in rows], case.facts["input"]["fid"], terms)
    except ValueError as error:
        return str(error)


def check_aggregate(case: Case, made: challenge.Score | str, _: Any) -> None:
    expected = case.facts["output"]
    if "error" in expected:
        assert made == f"no image of {expected['error'].split(chr(39))[1]}: the score is over all five sets"
        return
    if "NaN" in str(case.facts["input"]):  # the organisers' program hides it
        assert isinstance(made, str)
        assert "not finite" in made
        return
    assert isinstance(made, challenge.Score)
    near = {"rel": 0, "abs": case.facts["tolerance"]}
    assert made.total == pytest.approx(expected["score"]["Total"], **near)
    for key, name in {**NAMES, "FID": "fid"}.items():
        if key in expected["score"]:
            assert made.terms[name] == pytest.approx(expected["score"][key], **near)
        if key in expected["all"]:
            assert made.overall[name] == pytest.approx(expected["all"][key], **near)
    for dataset, means in expected["datasets"].items():
        for key, value in ((key, value) for key, value in means.items() if key in NAMES):
            assert made.sets[dataset][NAMES[key]] == pytest.approx(value, **near)
    rows = [*case.facts["input"]["images"].values()]
    low = challenge.low([row["ID_Sim"] for row in rows], [row["Dataset"] for row in rows], case.facts["input"]["edition"])
    assert len(low) == expected["low_id_count"]
    assert challenge.is_valid(low) == expected["valid"]


def gated(case: Case) -> dict[str, Any]:
    network = AdaFace(layers=50, mode="ir").eval()
    shapes = {key: value.shape for key, value in network.state_dict().items() if value.is_floating_point()}
    network.load_state_dict(fill.state_dict(shapes, scale=0.7), strict=False)  # but for the counts of batches
    made = {}
    for name, facts in case.facts["cases"].items():
        path = case.path.parents[2] / facts["image"]
        if not path.exists():
            pytest.skip(f"{path} is not there")
        lq = np.asarray(Image.open(path).convert("RGB"))
        assert hashlib.sha256(lq.tobytes()).hexdigest() == facts["sha256_of_rgb_bytes"]
        landmarks = np.array(facts["landmarks"])
        images = {"same": lq, "dark": np.floor(lq * 0.9).astype(np.uint8), "blur": cv2.GaussianBlur(lq, (0, 0), 6)}
        images["mirror"] = np.ascontiguousarray(lq[:, ::-1])
        crops = np.stack([gate.crop(image, landmarks) for image in (lq, *images.values())])
        with torch.no_grad():
            embedded = network(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)[0]
        cosines = gate.cosine(embedded[1:], embedded[:1].expand(4, -1)).tolist()
        matrix = similarity(landmarks, gate.ARCFACE)
        made[name] = (matrix, crops[0], embedded[0], dict(zip(images, cosines, strict=True)))
    return made


def check_gate(case: Case, made: dict[str, Any], _: Any) -> None:
    for name, (matrix, crop, embedding, cosines) in made.items():
        facts = case.facts["cases"][name]
        np.testing.assert_allclose(matrix, facts["matrix_2x3"], rtol=0, atol=1e-4)
        off = np.abs(crop.astype(int) - case.stored[f"{name}_crop"].numpy())
        assert (off.max() <= 1, (off > 0).mean() <= 0.01) == (True, True)
        torch.testing.assert_close(embedding[None], case.stored[f"{name}_embedding"], rtol=0, atol=1e-4)
        assert cosines == pytest.approx(facts["similarity"], rel=0, abs=1e-4)


def distances(case: Case) -> dict[str, float]:
    made = {}
    for name, facts in case.facts["cases"].items():
        fake = drawn(facts["fake"])
        made[name] = distance(Statistics.of(fake), Statistics.of(drawn(facts["real"]) if "fill" in facts["real"] else fake))
    return made


def drawn(facts: dict[str, Any]) -> np.ndarray:
    """Features, mapped as `1.0*x+0.3` says."""
    x = fill.tensor(facts["fill"], facts["shape"]).numpy()
    if facts["map"] == "x":
        return x
    factor, shift = facts["map"].split("*x+")
    return (float(factor) * x + float(shift)).astype(np.float32)


def check_values(case: Case, made: dict[str, float], _: Any) -> None:
    for name, value in made.items():
        facts = case.facts["cases"][name]
        near = {"rel": 0, "abs": facts["atol"]} if "atol" in facts else {"rel": 1e-3}
        assert value == pytest.approx(facts["fid" if "fid" in facts else "niqe"], **near), name


def qualities(case: Case) -> dict[str, float]:
    astronaut = data.astronaut()
    images = {
        "astronaut": astronaut,
        "astronaut_q": astronaut[::2, ::2].repeat(2, axis=0).repeat(2, axis=1),
        "coffee": data.coffee(),
        "camera_gray": data.camera(),
        "astronaut_crop": astronaut[7:207, 11:316],
    }
    return {name: niqe(images[name]) for name in case.facts["cases"]}


KEPT = 6  # cases in tests/golden: each is the organisers', and stays outside
KINDS = [
    Kind(tells=lambda case: "images" in case.facts.get("input", {}), run=aggregate, check=check_aggregate),
    Kind(tells=refers(r"face_alignment/inference\.py"), run=gated, check=check_gate),
    Kind(tells=refers(r"metrics/fid\.py calculate_fid"), run=distances, check=check_values),
    Kind(tells=refers(r"metric 'niqe'"), run=qualities, check=check_values),
]

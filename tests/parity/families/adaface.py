"""How AdaFace's cases are run on our code: case -> {output name: full tensor}."""

from typing import Any

from torch import Tensor

from models.adaface import AdaFace
from tests.parity import fill
from tests.parity.cases import Case
from tests.parity.networks import load, middle_of, run_with_middle
from tests.parity.runners import Kind, refers

KEPT = 1  # cases in tests/golden


def adaface_arguments(name: str) -> dict[str, Any]:
    """Ours from the reference's name: ir_18, ir_se_50, …"""
    return {"layers": int(name.rpartition("_")[2]), "mode": name.rpartition("_")[0]}


def adaface(case: Case) -> dict[str, Tensor]:
    network = AdaFace(**adaface_arguments(case.facts["config"]["model_name"])).eval()
    load(network, case.weights)
    entry = case.facts["input"]
    drawn = fill.tensor(entry["name"], entry["shape"], kind=entry["kind"])
    rgb_hwc = drawn.ndim == 3  # else BGR in [-1, 1]; ours takes RGB in [0, 1]
    faces = ((256 * drawn).floor() / 255).permute(2, 0, 1)[None] if rgb_hwc else drawn.flip(1)
    produced = run_with_middle(network, faces, middle_of(case))
    embedding, norm = produced.pop("out")
    return {**produced, "embedding": embedding, "norm": norm}


KINDS = [Kind(tells=refers(r"AdaFace net\.py build_model"), run=adaface)]

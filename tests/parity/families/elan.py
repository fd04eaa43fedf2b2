"""How ELAN's cases are run on our code: case -> {output name: full tensor}."""

from typing import Any

from torch import Tensor

from models.elan import ELAN
from tests.parity.cases import Case
from tests.parity.networks import load, middle_of, run_with_middle
from tests.parity.runners import Kind, refers

KEPT = 2  # cases in tests/golden


def elan_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Ours from the reference's names: the original's `rgb_range` is HGGT's `img_range`."""
    config = dict(config)
    assert config.pop("colors") == 3
    return {"img_range": float(config.pop("rgb_range", 0) or config.pop("img_range")), **config}


def elan(case: Case) -> dict[str, Tensor]:
    network = ELAN(**elan_arguments(case.facts["config"])).eval()
    load(network, case.weights)
    top = case.facts["input"]["multiply_by"]  # the original's images are in [0, 255]
    produced = run_with_middle(network, case.input / top, middle_of(case))
    return {**produced, "out": produced["out"] * top}


KINDS = [Kind(tells=refers(r"\bELAN\b"), run=elan)]

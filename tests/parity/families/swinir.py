"""How SwinIR's cases are run on our code: case -> {output name: full tensor}."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.swinir import SwinIR
from tests.parity.cases import Case
from tests.parity.networks import middle_of, run_with_middle
from tests.parity.runners import Kind

KEPT = 3  # cases in tests/golden
FIXED = {"qkv_bias": True, "ape": False, "patch_norm": True, "patch_size": 1}  # what SwinIR's files have in common


def swinir_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Ours from the reference's names: `sf` or `upscale`; `unshuffle` a truth value, with its factor beside it."""
    config = dict(config)
    for name, value in FIXED.items():
        assert config.pop(name) == value, f"{name} is not {value}"
    factor = config.pop("unshuffle_scale", 1)
    config["unshuffle"] = factor if config.get("unshuffle") else 1
    if "sf" in config:
        config["upscale"] = config.pop("sf")
    return config


def network_of(case: Case) -> SwinIR:
    network = SwinIR(**swinir_arguments(case.facts["config"])).eval()
    network.load_state_dict(case.weights, strict=True)
    return network


def swinir(case: Case) -> dict[str, Tensor]:
    return run_with_middle(network_of(case), case.input, middle_of(case))


def size_of(case: Case) -> list[int]:
    """(h, w) of the output."""
    return next(output["full_shape"] for output in case.outputs if output["name"] == "out")[-2:]  # type: ignore[no-any-return]


def padding_stays(case: Case) -> bool:
    """The reference shuffles as far down as it enlarges, and returns the padding that it added to the input."""
    arguments = swinir_arguments(case.facts["config"])
    return arguments["unshuffle"] == arguments["upscale"] and size_of(case) != case.facts["input"]["shape"][-2:]


def padded(case: Case) -> dict[str, Tensor]:
    """Ours is cropped. So the reference's whole image is compared with ours of the image that it padded."""
    network, lq, (height, width) = network_of(case), case.input, size_of(case)
    produced = run_with_middle(network, lq, middle_of(case))
    whole = F.pad(lq, (0, width - lq.shape[-1], 0, height - lq.shape[-2]), mode="reflect")
    cropped, produced["out"] = produced["out"], run_with_middle(network, whole, [])["out"]
    assert torch.equal(cropped, produced["out"][..., : lq.shape[-2], : lq.shape[-1]])
    return produced


KINDS = [
    Kind(tells=lambda case: not padding_stays(case), run=swinir),
    Kind(
        tells=padding_stays,
        run=padded,
        less="that an image comes out with its padding, such as 124x62 as 128x64: ours is cropped; all values are compared",
    ),
]

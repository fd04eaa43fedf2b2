"""How each family of cases is run on our code: case -> {output name: full tensor}.

Add a family by writing its function and its line in RUNNERS. Cases that no line covers are reported as skipped, by name.
"""

from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.elan import ELAN
from models.swinir import SwinIR
from tests.parity import codeformer, degradations, distributions, gan, gfpgan
from tests.parity.cases import Apart, Case

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


def swinir(case: Case) -> dict[str, Tensor]:
    network = SwinIR(**swinir_arguments(case.facts["config"])).eval()
    network.load_state_dict(case.weights, strict=True)
    lq = case.input
    produced = run_with_middle(network, lq, middle_of(case))
    if case.name == "swinir/diffbir_ws8_padded":
        # The reference returns its padding, we crop. So its whole image is compared with ours of the image it padded.
        cropped, (height, width) = produced["out"], case.facts["outputs"][0]["full_shape"][-2:]
        padded = F.pad(lq, (0, width - lq.shape[-1], 0, height - lq.shape[-2]), mode="reflect")
        produced["out"] = run_with_middle(network, padded, [])["out"]
        assert torch.equal(cropped, produced["out"][..., : lq.shape[-2], : lq.shape[-1]])
    return produced


def elan_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Ours from the reference's names: the original's `rgb_range` is HGGT's `img_range`."""
    config = dict(config)
    assert config.pop("colors") == 3
    return {"img_range": float(config.pop("rgb_range", 0) or config.pop("img_range")), **config}


def elan(case: Case) -> dict[str, Tensor]:
    network = ELAN(**elan_arguments(case.facts["config"])).eval()
    counts = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    network.load_state_dict(case.weights | counts, strict=True)
    top = case.facts["input"]["multiply_by"]  # the original's images are in [0, 255]
    produced = run_with_middle(network, case.input / top, middle_of(case))
    return {**produced, "out": produced["out"] * top}


def middle_of(case: Case) -> list[str]:
    return [o["name"].removeprefix("mid.") for o in case.facts["outputs"] if o["name"].startswith("mid.")]


def run_with_middle(network: nn.Module, lq: Tensor, middle: list[str]) -> dict[str, Tensor]:
    """The output as "out" and those of the submodules as "mid.NAME". One that runs never, or twice, fails."""
    produced: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            assert name not in produced, f"{name} ran twice"
            produced[name] = output.clone()

        return hook

    handles = [network.get_submodule(name).register_forward_hook(keep(f"mid.{name}")) for name in middle]
    with torch.no_grad():
        produced["out"] = network(lq)
    for handle in handles:
        handle.remove()
    return produced


def ircontrolnet(case: Case) -> dict[str, Tensor]:
    from tests.parity import ircontrolnet as runners  # here, as it imports diffusers, which takes seconds

    return runners.run(case)


RUNNERS: dict[str, Callable[[Case], dict[str, Tensor]]] = {  # pattern of FAMILY/NAME -> function; the first that fits
    "swinir/*": swinir,
    "elan/*": elan,
    **codeformer.RUNNERS,
    **degradations.RUNNERS,
    **gan.RUNNERS,
    **gfpgan.RUNNERS,
    "ircontrolnet/*": ircontrolnet,
}
# The published chain ends with a truncation, so a rounding becomes a whole level.
APART: dict[str, Apart] = degradations.APART | {"ircontrolnet/pipeline_stage2_* uint8": Apart(share=0.005, most=1)}

# Cases that are compared in another way than they were made, with what is not compared; reported by name.
LESS: dict[str, str] = {
    "swinir/diffbir_ws8_padded": "that a 124x62 image comes out as 128x64: ours is cropped to 124x62; all values are compared",
    **degradations.LESS,
    **distributions.LESS,
}


def runner_for(case: Case) -> Callable[[Case], dict[str, Tensor]] | None:
    return next((run for pattern, run in RUNNERS.items() if fnmatch(case.name, pattern)), None)

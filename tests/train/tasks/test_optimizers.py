"""Optimizers of conf/optimizer that are not PyTorch's plain ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.runs.test_run import RUN, photographs  # noqa: F401
from train.jobs.cli import compose

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is optional (uv sync --extra 8bit)")


ONE_CPU = ["trainer.accelerator=cpu", "trainer.devices=1"]


def last(name: str) -> dict[str, Any]:
    return torch.load(Path("runs") / name / "checkpoints" / "last.ckpt", weights_only=True)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def tensors(of: Any) -> list[torch.Tensor]:
    if isinstance(of, dict | list):
        return [each for value in (of.values() if isinstance(of, dict) else of) for each in tensors(value)]
    return [of] if isinstance(of, torch.Tensor) else []


def test_with_8_bits_a_run_goes_on_as_if_never_interrupted(
    photographs: Path,  # noqa: F811
    cli: Callable[..., tuple[int, str]],
) -> None:
    own = [*RUN, f"data.root={photographs}", "optimizer=adamw_8bit", "optimizer.min_8bit_size=1"]
    for name, *more in (["whole", "trainer.max_steps=4"], ["halves"], ["halves", "trainer.max_steps=4"]):
        code, printed = cli(*own, f"name={name}", *more)
        assert code == 0, printed
    whole, halves = last("whole"), last("halves")
    assert equal(whole["state_dict"], halves["state_dict"])
    assert equal(whole["optimizer_states"], halves["optimizer_states"])
    assert torch.uint8 in {each.dtype for each in tensors(whole["optimizer_states"])}


def test_with_8_bits_it_learns_as_with_32() -> None:
    moved = []
    for kind in (bitsandbytes.optim.AdamW8bit, torch.optim.AdamW):
        torch.manual_seed(0)
        network = torch.nn.Linear(64, 64)
        before, seen = network.weight.detach().clone(), torch.randn(16, 64)
        optimizer = kind(network.parameters(), lr=1e-3)
        for _ in range(10):
            optimizer.zero_grad()
            (network(seen) - seen).square().mean().backward()
            optimizer.step()
        moved.append(network.weight.detach() - before)
    assert (moved[0] - moved[1]).norm() < 0.05 * moved[1].norm()


def test_sharded_weights_are_refused(photographs: Path, cli: Callable[..., tuple[int, str]]) -> None:  # noqa: F811
    code, printed = cli(*RUN, f"data.root={photographs}", "optimizer=adamw_8bit", "trainer=fsdp", *ONE_CPU)
    assert code == 1
    assert "trainer=fsdp: AdamW8bit takes no sharded weights: choose trainer=ddp" in printed


@pytest.mark.parametrize("recipe", ["model=ircontrolnet_ffhq", "experiment=cx"])
def test_it_takes_the_place_of_a_recipes_own(recipe: str) -> None:
    own, other = (compose([recipe, *more])["optimizer"] for more in ([], ["optimizer=adamw_8bit"]))
    assert own["fused"]
    assert "fused" not in other
    assert (other["lr"], other["weight_decay"]) == (own["lr"], own["weight_decay"])

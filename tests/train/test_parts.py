"""optimizer.parts: what is frozen stays, what has a factor learns at it, under any schedule, on going on and on two ranks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from models.kernels import norm_swish_convolution
from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from tests.train.runs.kills import finished
from tests.train.tasks.test_code_prediction import arguments
from train.conf import choices
from train.jobs.cli import compose
from train.parts import fits, optimizer_of, split
from train.runs.curves import read_rows

Cli = Callable[..., tuple[int, str]]

RUN = ["experiment=demo", "data=folder", *TINY_NETWORK, *TINY_DATA, *TINY_RUN, "schedule=constant", "validation.lpips=null"]
RUN += ["logger=csv", "trainer=cpu", "name=run", "network.depths=[2,2]"]
PARTS = "optimizer.parts={layers.0: 0, conv_*: 0.1}"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), nn.Linear(3, 1))


def test_a_pattern_names_parameters_or_the_module_around_them() -> None:
    assert fits("layers", "layers.0.norm.bias")
    assert fits("layers.*.norm", "layers.0.blocks.1.norm.bias")
    assert fits("*.bias", "layers.0.norm.bias")
    assert not fits("layer", "layers.0.norm.bias")
    assert not fits("norm", "layers.0.norm.bias")


def test_the_last_pattern_counts_and_what_is_frozen_is() -> None:
    made = network()
    parts = split(made, {"*": 0, "1": 0.5, "1.1.bias": 2})
    assert [(part.pattern, part.factor, sum(part.sizes.values())) for part in parts] == [
        ("*", 0, 13),
        ("1", 0.5, 15),
        ("1.1.bias", 2, 3),
    ]
    assert str(parts[1]) == "1 at 0.5 x optimizer.lr (15 parameters in 3 tensors)"
    assert str(parts[0]) == "* frozen (13 parameters in 4 tensors)"
    assert [name for name, p in made.named_parameters() if p.requires_grad] == [
        "1.0.weight",
        "1.0.bias",
        "1.1.weight",
        "1.1.bias",
    ]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"3": 1}, "3 names no parameter of Sequential, whose parts are 1, 2; a pattern may have"),
        ({"1.0": 1, "1": 0}, "all that 1.0 names is named by a later pattern too, which counts: put 1.0 after it"),
        ({"0": 1}, "0 names only what Sequential keeps frozen itself: leave 0 out"),
        ({"*": 0}, "freezes all of the network: leave something to train"),
    ],
    ids=str,
)
def test_a_pattern_for_nothing_is_refused(factors: dict[str, float], message: str) -> None:
    made = network()
    made[0].requires_grad_(False)
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        split(made, factors)


SCHEDULES = {
    "constant": partial(ConstantLR, factor=1.0, total_iters=0),
    "multistep": partial(MultiStepLR, milestones=[1, 3], gamma=0.5),
    "cosine": partial(CosineAnnealingLR, T_max=4, eta_min=0.05),
    "onecycle": partial(OneCycleLR, max_lr=0.2, total_steps=6, cycle_momentum=False),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_step_is_the_factor_times_that_of_the_schedule(schedule: Callable[..., LRScheduler]) -> None:
    """With SGD the change of a weight is its rate times its gradient."""
    made = network()
    optimizer = optimizer_of(made, split(made, {"0": 0, "1": 0.1, "2.bias": 3}), partial(torch.optim.SGD, lr=0.1))
    moving = schedule(optimizer=optimizer)
    for _ in range(4):
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        for parameter in made.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = {name: p.detach().clone() for name, p in made.named_parameters()}
        optimizer.step()
        moving.step()
        change = {name: (before[name] - p.detach()).mean().item() for name, p in made.named_parameters()}
        expected = {"0.weight": 0, "0.bias": 0, "2.weight": rate, "2.bias": 3 * rate}
        assert change == pytest.approx(expected | dict.fromkeys(list(change)[2:6], 0.1 * rate), abs=1e-6)


def test_a_run_goes_on_and_branches_with_its_parts(cli: Cli, tmp_path: Path) -> None:
    root = f"data.root={write_photographs(tmp_path / 'photographs')}"
    code, printed = cli(*RUN, root, PARTS, "trainer.max_steps=4")
    assert code == 0, printed
    assert "; layers.0 frozen (" in printed
    assert "; conv_* at 0.1 x optimizer.lr (" in printed
    (tmp_path / "runs/run").rename(tmp_path / "runs/whole")
    for steps in (2, 4):
        code, printed = cli(*RUN, root, PARTS, f"trainer.max_steps={steps}")
        assert code == 0, printed
    whole, run = (
        torch.load(tmp_path / "runs" / name / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "run")
    )
    assert all(torch.equal(whole["state_dict"][name], value) for name, value in run["state_dict"].items())
    assert [float(row["lr"]) for row in read_rows(tmp_path / "runs/run/metrics.csv") if row["lr"]] == [1e-3] * 4, "of the rest"
    frozen = [name.removeprefix("network.") for name in run["state_dict"] if name.startswith("network.layers.0.")]
    code, printed = cli(*RUN, root, "trainer.max_steps=1", "name=start", "optimizer.lr=1e-30")
    start = torch.load(tmp_path / "runs/start/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name in frozen:
        assert torch.equal(run["state_dict"][f"network.{name}"], start[f"network.{name}"])
        assert torch.equal(run["state_dict"][f"ema.average.{name}"], start[f"network.{name}"])
    names = [name for group in run["optimizer_states"][0]["param_groups"] for name in group["param_names"]]
    assert not set(frozen) & set(names)
    assert len(names) == len(run["optimizer_states"][0]["state"])

    code, printed = cli("resume=runs/run", "name=other", "optimizer.parts={conv_first: 0}", "trainer.max_steps=5")
    assert code == 0, printed
    assert "\n  optimizer.parts.conv_first: absent -> 0\n  optimizer.parts.layers.0: 0 -> absent\n" in printed
    other = torch.load(tmp_path / "runs/other/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    (group,) = other["param_groups"]
    steps_done = dict(zip(group["param_names"], (int(other["state"][n]["step"]) for n in group["params"]), strict=True))
    assert steps_done["conv_last.weight" if "conv_last.weight" in steps_done else "norm.weight"] == 5, (
        "it has its moments still"
    )
    assert steps_done[frozen[0]] == 1, "it begins"
    code, printed = cli(*RUN, root, PARTS, "preflight=true", "name=pre")
    assert code == 0, printed
    trainable = sum(run["state_dict"][f"network.{name}"].numel() for name in names) / 1e6
    assert f"parameters   {trainable:.2f} M trainable of" in printed


def test_bad_parts_are_one_clear_error(cli: Cli, tmp_path: Path) -> None:
    root = f"data.root={write_photographs(tmp_path / 'photographs')}"
    for typed, expected in (
        ("optimizer.parts={convv: 0}", "optimizer.parts: convv names no parameter of SwinIR, whose parts are conv_first, "),
        ("optimizer.parts={conv_first: -1}", "optimizer.parts={'conv_first': -1}: Input should be greater than or equal to 0"),
        ("optimizer.parts=[conv_first]", "optimizer.parts=['conv_first']: Input should be an object"),
    ):
        code, printed = cli(*RUN, root, typed)
        assert code == 1
        assert expected in printed
        assert not (tmp_path / "runs/run").exists()


def test_what_needs_a_frozen_part_to_move_is_refused(cli: Cli, tmp_path: Path) -> None:
    run = ["model=codeformer_stage1", *arguments("stage1", write_photographs(tmp_path / "photographs", size=32))]
    for typed, expected in (
        (["optimizer.parts={quantize: 0}", "codebook.restart=true"], "codebook.restart=true renews codes that optimizer.parts"),
        (
            ["optimizer.parts={generator: 0}"],
            "loss.terms.gan.adaptive_at=generator.blocks.9.weight is frozen: name a parameter",
        ),
    ):
        code, printed = cli(*run, *typed)
        assert code == 1
        assert expected in printed


def test_every_task_reads_them() -> None:
    tasks = [file.stem for file in choices("task")]
    assert len(tasks) >= 6
    for name in tasks:
        assert compose([f"task={name}"])._get_node("task")._get_node("parts")._value() == "${optimizer.parts}"


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    common = [*RUN, f"data.root={write_photographs(tmp_path / 'photographs')}", PARTS]
    finished(tmp_path, *common, "name=one")
    finished(tmp_path, *common, "name=two", "data.batch_size=1", "trainer.devices=2", "trainer.strategy=ddp")
    one, two = (torch.load(tmp_path / "runs" / name / "checkpoints/last.ckpt", weights_only=True) for name in ("one", "two"))
    assert all(torch.allclose(value, two["state_dict"][name], atol=1e-5) for name, value in one["state_dict"].items())


def test_biases_alone_can_be_trained_through_a_fused_convolution() -> None:
    torch.manual_seed(0)
    norm, conv = nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 3, padding=1)
    x = torch.randn(1, 4, 130, 130).contiguous(memory_format=torch.channels_last)  # large: the norm is our own
    for part in (norm, conv):
        part.weight.requires_grad_(False)
    norm_swish_convolution(x.clone(), norm, conv, last_use=True).square().mean().backward()
    found = norm.bias.grad
    norm.bias.grad = None
    conv(F.silu(norm(x))).square().mean().backward()
    assert found is not None
    assert torch.allclose(found, norm.bias.grad, rtol=1e-4)  # type: ignore[arg-type]

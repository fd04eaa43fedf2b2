"""preflight=true measures and leaves nothing; memory that runs out is one error with ways out that can be typed."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from losses.pixel import Charbonnier
from models.swinir import SwinIR
from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from tests.train.runs.kills import finished
from train.runs.memory import ran_out
from train.runs.preflight import Measure, saved_storages
from train.runs.times import PARTS, StepTimes

Cli = Callable[..., tuple[int, str]]

RUN = ["experiment=demo", "data=folder", *TINY_NETWORK, *TINY_DATA, *TINY_RUN, "name=run", "validation.lpips=null"]
PREFLIGHT = [*RUN, "preflight=true", "trainer.max_steps=1000"]


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"data.root={write_photographs(tmp_path / 'photographs')}"


def between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0]


def left(folder: Path) -> dict[str, int]:
    """Path -> time of the last change, of everything but the photographs."""
    paths = (path for path in folder.rglob("*") if path.relative_to(folder).parts[0] != "photographs")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def test_it_reports_and_leaves_nothing(cli: Cli, tmp_path: Path, root: str) -> None:
    accumulated = ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=300", "checkpoint.every_n_steps=100"]
    code, printed = cli(*PREFLIGHT, root, "logger=wandb", "name=folder/run", *accumulated)
    assert code == 0, printed
    assert "preflight of folder/run on 1 x cpu, 32-true, after 3 updates" in printed
    assert re.search(r"parameters +(0\.\d+) M trainable of \1 M", printed)
    assert re.search(r"update +\d.* s: data wait \d.*, forward and backward \d.*, optimizer \d", printed)
    assert re.search(r"images/s +\d.* \(effective batch 4\)", printed)
    seconds, *parts, rate = (float(each) for each in re.findall(r"\d[\d.e-]*", between(printed, "update ", " (effective")))
    assert seconds == pytest.approx(sum(parts), rel=0.01)
    assert seconds * rate == pytest.approx(4, rel=0.01), "images of an update"
    network, gradients, moments, average, _ = (
        float(each) for each in re.findall(r"(\d[\d.e-]*) MiB", between(printed, "memory ", "activations"))
    )
    assert [gradients, moments, average] == pytest.approx([network, 2 * network, network], rel=0.02), "Adam keeps two"
    assert re.search(r"the run +\d+:\d\d:\d\d for trainer.max_steps=1000: .* 4 validations \d.* 10 checkpoints \d", printed), (
        "after 300, 600, 900 and 1000 updates"
    )
    assert re.search(r"disk +0.*MiB for 5 checkpoints \(checkpoint.keep=3, keep_best=1, one being written\); .* free", printed)
    assert not left(tmp_path)


def test_a_run_of_that_name_is_not_touched(cli: Cli, tmp_path: Path, root: str) -> None:
    assert cli(*RUN, root)[0] == 0
    before = left(tmp_path)
    code, printed = cli(*PREFLIGHT, root, "optimizer.lr=1e-5", "resume=never")
    assert code == 0, printed
    after = left(tmp_path)
    assert after.pop("runs") > before.pop("runs"), "a folder came and went"
    assert after == before


def test_a_run_shorter_than_a_preflight(cli: Cli, tmp_path: Path, root: str) -> None:
    """onecycle refuses more updates than the run has."""
    code, printed = cli(*PREFLIGHT, root, "trainer.max_steps=1")
    assert code == 0, printed
    assert "after 1 updates" in printed


def test_workers_batches_of_before_are_not_timed(cli: Cli, root: str) -> None:
    code, printed = cli(*PREFLIGHT, root, "data.num_workers=2")
    assert code == 0, printed
    assert "after 7 updates" in printed, "1 to warm up, 2 x 2 whose batches were ready, 2"


def test_a_preflight_that_is_slow_stops_early(cli: Cli, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.runs.preflight.BUDGET_S", 0.0)
    code, printed = cli(*PREFLIGHT, root, "data.num_workers=2")
    assert code == 0, printed
    assert "after 3 updates" in printed
    assert re.search(r"validation +\d", printed)


def test_two_ranks(tmp_path: Path, root: str) -> None:
    printed = finished(tmp_path / "here", *PREFLIGHT, root, "trainer.devices=2", "trainer.strategy=ddp")
    assert printed.count("preflight of run on 2 x cpu") == 1
    assert "(effective batch 4)" in printed
    assert list(left(tmp_path / "here")) == ["log"], "which is the test's"


def test_an_error_is_the_runs_own_and_leaves_nothing(
    cli: Cli, tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, printed = cli(*PREFLIGHT, root, "data.size=128")
    assert code == 1
    assert "smaller than data.size=128" in printed
    code, printed = cli(*PREFLIGHT, root, "preflight=2")
    assert code == 1
    assert "preflight=2" in printed
    whole = Charbonnier.forward

    def not_finite(self: Charbonnier, restored: Tensor, hq: Tensor) -> Tensor:
        return whole(self, restored, hq) * float("nan")

    monkeypatch.setattr(Charbonnier, "forward", not_finite)
    code, printed = cli(*PREFLIGHT, root)
    assert code == 1
    assert "not one update was finite: lower optimizer.lr" in printed

    def interrupted(self: Charbonnier, restored: Tensor, hq: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, restored, hq)

    monkeypatch.setattr(Charbonnier, "forward", interrupted)
    code, printed = cli(*PREFLIGHT, root)
    assert code == 75
    assert "saved" not in printed
    assert not left(tmp_path)


def test_activations_by_hand() -> None:
    network, x = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)), torch.randn(2, 3)
    found: dict[int, int] = {}
    with saved_storages(network, found):
        y = network(x).sum()
    assert sorted(found.values()) == [2 * 3 * 4, 2 * 5 * 4], "x, and once what ReLU and the second layer both keep; no weights"
    y.backward()
    with saved_storages(network, found):
        network(x[:, :3]).sum()
    assert found[x.data_ptr()] == 24


def test_the_first_update_is_left_out(tmp_path: Path) -> None:
    measure = Measure(StepTimes(file=tmp_path / "times.csv"))
    measure.sums = [dict.fromkeys(PARTS, seconds) for seconds in (0.0, 9.0, 10.0, 12.0)]
    assert measure.update_s(2) == dict.fromkeys(PARTS, 1.5)
    assert measure.update_s(5) == dict.fromkeys(PARTS, 1.5)
    assert measure.update_s(1) == dict.fromkeys(PARTS, 2.0)
    del measure.sums[2:]
    assert measure.update_s(2) == dict.fromkeys(PARTS, 9.0), "there is no other"


def exhaust(monkeypatch: pytest.MonkeyPatch, when: Callable[[nn.Module], bool]) -> None:
    """The network's forward asks torch for 2 ** 50 bytes."""
    whole = SwinIR.forward

    def forward(self: SwinIR, lq: Tensor) -> Tensor:
        if when(self):
            torch.empty(2**50, dtype=torch.uint8)
        return whole(self, lq)

    monkeypatch.setattr(SwinIR, "forward", forward)


@pytest.mark.parametrize("preflight", [False, True])
def test_out_of_memory_names_the_three_cheapest_ways_out(
    cli: Cli, root: str, monkeypatch: pytest.MonkeyPatch, preflight: bool
) -> None:
    run = [*RUN, root, f"preflight={preflight}", "data.batch_size=6", "trainer.accumulate_grad_batches=2"]
    with monkeypatch.context() as patched:
        exhaust(patched, lambda network: network.training)
        code, printed = cli(*run)
    assert code == 1
    assert "Traceback" not in printed
    assert (
        "memory ran out in the forward pass: batch 6 a device of 64x64 images, trainer.precision=32-true, on cpu ([enforce"
        in printed
    )
    fixes = re.findall(r"^error:   (.*?)   \(", printed, re.MULTILINE)
    assert fixes == [
        "data.batch_size=3 trainer.accumulate_grad_batches=4",
        "network.gradient_checkpointing=true",
        "data.size=32",
    ]
    assert "the same effective batch of 12" in printed
    for fix in fixes:
        code, printed = cli(*run, "resume=never", *fix.split())
        assert code == 0, (fix, printed)


def test_out_of_memory_in_validation(cli: Cli, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exhaust(monkeypatch, lambda network: not network.training)
    code, printed = cli(*RUN, root, "data.val_batch_size=2", "data.num_workers=1")
    assert code == 1
    assert "memory ran out in validation: batch 2 a device of 64x64 images" in printed
    fixes = re.findall(r"^error:   (.*?)   \(", printed, re.MULTILINE)
    assert fixes == ["data.val_batch_size=1", "data.val_size=32", "data.num_workers=0"]
    code, printed = cli(*RUN, root, "data.val_size=null", "name=whole")
    assert "batch 1 a device of whole images" in printed
    assert re.findall(r"^error:   (.*?)   \(", printed, re.MULTILINE) == ["data.val_size=64"]


def test_out_of_memory_of_a_gpu(cli: Cli, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA raises it, here in the backward pass."""

    def backward(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")

    monkeypatch.setattr(Tensor, "backward", backward)
    code, printed = cli(*RUN, root, "data.batch_size=1", "network.gradient_checkpointing=true", "data.num_workers=1")
    assert code == 1
    assert "memory ran out in the backward pass" in printed
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB.)" in printed
    assert re.findall(r"^error:   (.*?)   \(", printed, re.MULTILINE) == ["data.num_workers=0", "data.size=32"]


def test_a_machine_with_gpus_has_more_ways_out(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from train.runs.memory import memory_advice

    config = {
        "data": {"batch_size": 6, "size": 512, "num_workers": 4},
        "network": {"gradient_checkpointing": False},
        "trainer": {"accumulate_grad_batches": 1, "precision": "32-true"},
    }
    accelerator, strategy = SimpleNamespace(name=lambda: "cuda"), SimpleNamespace(root_device=torch.device("cuda"))
    trainer = SimpleNamespace(num_devices=1, num_nodes=1, world_size=1, strategy=strategy, accelerator=accelerator)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)

    def overrides() -> list[str]:
        text = memory_advice(torch.OutOfMemoryError("CUDA out of memory"), config, trainer)  # type: ignore[arg-type]
        return re.findall(r"^  (.*?)   \(", text, re.MULTILINE)

    halved, recomputed = "data.batch_size=3 trainer.accumulate_grad_batches=2", "network.gradient_checkpointing=true"
    assert overrides() == ["trainer.devices=2 data.batch_size=3", halved, recomputed]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert overrides() == [halved, recomputed, "trainer.precision=16-mixed"]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    config["network"] = {}
    assert overrides() == [halved, "trainer.precision=bf16-mixed", "data.size=256"]


def test_what_is_out_of_memory() -> None:
    assert ran_out(MemoryError())
    assert ran_out(OSError(12, "Cannot allocate memory"))
    assert not ran_out(OSError(28, "No space left on device"))
    assert ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))

"""times.csv counts each second where it was spent: delays put into one part must appear there and nowhere else."""

import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.faces import TrainingFaces
from models.swinir import SwinIR
from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from train.runs import checkpoint
from train.runs import nonfinite as guards
from train.runs import times as times_of_updates
from train.runs.checkpoint import AtomicFiles
from train.tasks.ema import EMA
from train.tasks.validation import Validation

Cli = Callable[..., tuple[int, str]]
Times = Callable[..., list[dict[str, float]]]
Takes = Callable[[object, str, float], None]

RUN = ["experiment=demo", "data=folder", *TINY_NETWORK, *TINY_DATA, *TINY_RUN, "name=run", "validation.lpips=null"]
OWN_S = 0.28  # what the tiny run's own work may add to a part, on a busy machine too


@pytest.fixture
def times(cli: Cli, tmp_path: Path) -> Iterator[Times]:
    """Runs, and gives the rows of times.csv. On one thread: two would wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = f"data.root={write_photographs(tmp_path / 'photographs')}"

    def call(*arguments: str) -> list[dict[str, float]]:
        code, printed = cli(*RUN, root, *arguments)
        assert code == 0, printed
        with (tmp_path / "runs/run/times.csv").open() as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def delay(monkeypatch: pytest.MonkeyPatch) -> Takes:
    """Each call of owner.name takes so many seconds more."""

    def call(owner: object, name: str, seconds: float) -> None:
        whole = getattr(owner, name)

        def slow(*args: object, **options: object) -> object:
            time.sleep(seconds)
            return whole(*args, **options)

        monkeypatch.setattr(owner, name, slow)

    return call


def fastest(rows: list[dict[str, float]]) -> dict[str, float]:
    """The least of each column: what the delays alone make, with as little as possible of the machine's other work."""
    return {key: min(row[key] for row in rows) for key in rows[0]}


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Takes:
    """Each call of owner.name takes so many seconds, and nothing else takes any: on a clock that stands still meanwhile."""
    now = 0.0
    clock = SimpleNamespace(perf_counter=lambda: now, monotonic=lambda: now)
    for module in (times_of_updates, checkpoint):
        monkeypatch.setattr(module, "time", clock)

    def call(owner: object, name: str, seconds: float) -> None:
        whole = getattr(owner, name)

        def slow(*args: object, **options: object) -> object:
            nonlocal now
            now += seconds
            return whole(*args, **options)

        monkeypatch.setattr(owner, name, slow)

    return call


def about(seconds: float) -> Any:
    return pytest.approx(seconds, rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_part_without_workers(times: Times, takes: Takes, accumulate: int) -> None:
    takes(TrainingFaces, "__getitem__", 0.15 / accumulate)  # two samples a batch
    takes(SwinIR, "forward", 0.6 / accumulate)
    takes(torch.optim.Adam, "zero_grad", 0.3 / accumulate)  # between forward and backward
    takes(torch.Tensor, "backward", 0.2 / accumulate)
    rows = times("trainer.max_steps=3", f"trainer.accumulate_grad_batches={accumulate}", "schedule=constant", "ema_decay=null")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["data_wait_s"] == about(0.3)
        assert row["forward_backward_s"] == about(0.8 + 0.3 / accumulate)  # gradients are set to zero once an update
        assert row["optimizer_s"] == 0
        assert row["images_per_s"] == about(2 * accumulate / (1.1 + 0.3 / accumulate))


def test_the_optimizers_part(times: Times, takes: Takes) -> None:
    """Its step and the EMA; but what the guard waits for are the kernels of forward and backward."""
    takes(torch.optim.Adam, "_init_group", 0.4)  # within its step, once the gradients are there
    takes(EMA, "update", 0.3)
    takes(guards, "_any_nonfinite", 0.5)
    for row in times("trainer.max_steps=4", "trainer.log_every_n_steps=2"):
        assert row["data_wait_s"] == 0
        assert row["forward_backward_s"] == about(0.5)
        assert row["optimizer_s"] == about(0.7)


def test_validation_and_saving_are_left_out(times: Times, takes: Takes) -> None:
    takes(Validation, "update", 0.5)
    takes(AtomicFiles, "save_checkpoint", 0.7)
    takes(torch.Tensor, "backward", 0.1)
    for row in times("trainer.max_steps=4", "trainer.val_check_interval=1", "checkpoint.every_n_steps=1"):
        assert row["data_wait_s"] + row["forward_backward_s"] + row["optimizer_s"] == about(0.1)


def test_workers_read_while_the_network_computes(times: Times, delay: Takes) -> None:
    delay(TrainingFaces, "__getitem__", 0.2)
    delay(SwinIR, "forward", 0.6)
    row = fastest(times("trainer.max_steps=5", "data.num_workers=2")[1:])
    assert row["data_wait_s"] < OWN_S, "0.4 s a batch, read by two meanwhile"
    assert 0.6 <= row["forward_backward_s"] < 0.6 + OWN_S


def test_workers_that_are_too_slow(times: Times, delay: Takes) -> None:
    delay(TrainingFaces, "__getitem__", 0.5)
    rows = times("trainer.max_steps=8", "data.num_workers=2", "trainer.val_check_interval=100")
    # 1 s a batch by each of two workers: one batch each 0.5 s
    wait = sum(row["data_wait_s"] for row in rows[4:]) / 4
    assert 0.3 < wait < 0.5 + OWN_S
    assert fastest(rows)["forward_backward_s"] < OWN_S

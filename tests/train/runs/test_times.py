"""times.csv counts each second where it was spent: delays put into one part must appear there and nowhere else."""

import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from data.faces import FaceDataset
from models.swinir import SwinIR
from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from train.runs import nonfinite as guards
from train.runs.checkpoint import AtomicFiles
from train.tasks.ema import EMA
from train.tasks.validation import Validation

Cli = Callable[..., tuple[int, str]]

RUN = ["experiment=demo", "data=folder", *TINY_NETWORK, *TINY_DATA, *TINY_RUN, "name=run", "validation.lpips=null"]
OWN_S = 0.28  # what the tiny run's own work may add to a part, on a busy machine too


@pytest.fixture
def times(cli: Cli, tmp_path: Path) -> Iterator[Callable[..., list[dict[str, float]]]]:
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
def delay(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str, float], None]:
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


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_part_without_workers(
    times: Callable[..., list[dict[str, float]]], delay: Callable[[object, str, float], None], accumulate: int
) -> None:
    delay(FaceDataset, "__getitem__", 0.15 / accumulate)  # two samples a batch
    delay(SwinIR, "forward", 0.6 / accumulate)
    delay(torch.optim.Adam, "zero_grad", 0.3 / accumulate)  # between forward and backward
    delay(torch.Tensor, "backward", 0.3 / accumulate)
    rows = times("trainer.max_steps=6", f"trainer.accumulate_grad_batches={accumulate}", "schedule=constant", "ema_decay=null")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    row = fastest(rows[1:])
    forward_backward = 0.9 + 0.3 / accumulate  # gradients are set to zero once an update
    assert 0.3 <= row["data_wait_s"] < 0.3 + OWN_S
    assert forward_backward <= row["forward_backward_s"] < forward_backward + OWN_S
    assert row["optimizer_s"] < OWN_S
    for row in rows:
        seconds = row["data_wait_s"] + row["forward_backward_s"] + row["optimizer_s"]
        assert row["images_per_s"] == pytest.approx(2 * accumulate / seconds, rel=1e-4)


def test_the_optimizers_part(times: Callable[..., list[dict[str, float]]], delay: Callable[[object, str, float], None]) -> None:
    """Its step and the EMA; but what the guard waits for are the kernels of forward and backward."""
    delay(torch.optim.Adam, "_init_group", 0.4)  # within its step, once the gradients are there
    delay(EMA, "update", 0.4)
    delay(guards, "_any_nonfinite", 0.5)
    row = fastest(times("trainer.max_steps=4", "trainer.log_every_n_steps=2"))
    assert row["data_wait_s"] < OWN_S
    assert 0.5 <= row["forward_backward_s"] < 0.5 + OWN_S
    assert 0.8 <= row["optimizer_s"] < 0.8 + OWN_S


def test_validation_and_saving_are_left_out(
    times: Callable[..., list[dict[str, float]]], delay: Callable[[object, str, float], None]
) -> None:
    delay(Validation, "update", 0.5)
    delay(AtomicFiles, "save_checkpoint", 0.5)
    row = fastest(times("trainer.max_steps=4", "trainer.val_check_interval=1", "checkpoint.every_n_steps=1")[1:])
    assert row["data_wait_s"] + row["forward_backward_s"] + row["optimizer_s"] < 0.5


def test_workers_read_while_the_network_computes(
    times: Callable[..., list[dict[str, float]]], delay: Callable[[object, str, float], None]
) -> None:
    delay(FaceDataset, "__getitem__", 0.2)
    delay(SwinIR, "forward", 0.6)
    row = fastest(times("trainer.max_steps=5", "data.num_workers=2")[1:])
    assert row["data_wait_s"] < OWN_S, "0.4 s a batch, read by two meanwhile"
    assert 0.6 <= row["forward_backward_s"] < 0.6 + OWN_S


def test_workers_that_are_too_slow(
    times: Callable[..., list[dict[str, float]]], delay: Callable[[object, str, float], None]
) -> None:
    delay(FaceDataset, "__getitem__", 0.5)
    rows = times("trainer.max_steps=8", "data.num_workers=2", "trainer.val_check_interval=100")
    # 1 s a batch by each of two workers: one batch each 0.5 s
    wait = sum(row["data_wait_s"] for row in rows[4:]) / 4
    assert 0.3 < wait < 0.5 + OWN_S
    assert fastest(rows)["forward_backward_s"] < OWN_S

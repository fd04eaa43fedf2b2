"""The row of an update, by hand."""

import pytest
import torch

from train.tasks import row
from train.tasks.row import Means, Row


def test_the_mean_over_micro_batches() -> None:
    made = Row()
    assert not made
    for value in (0.9826, 0.9803, 0.9650, 0.9722):
        made.add({"train/loss": torch.tensor(value, requires_grad=True)})
    assert made
    assert made.close() == {"train/loss": pytest.approx(0.975025, abs=1e-7)}
    assert not made, "the next one begins"


def test_a_value_counts_in_the_micro_batches_that_have_it() -> None:
    made = Row()
    made.add({"train/l1": torch.tensor(1.0)})
    made.add({"train/l1": torch.tensor(2.0), "train/code_accuracy": torch.tensor(0.5)})
    made.add({"train/l1": torch.tensor(6.0), "train/code_accuracy": torch.tensor(0.25)})
    made.put({"lr": 1e-4, "codebook/dead": torch.tensor(3)})
    assert made.close() == {"train/l1": 3.0, "train/code_accuracy": 0.375, "lr": 1e-4, "codebook/dead": 3.0}


def test_the_mean_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 here, rank 1 as it would answer: three micro-batches of l1 together, and a term that it alone has."""
    other = {"train/l1": (8.0, 1), "train/gan": (4.0, 2)}
    monkeypatch.setattr(row.ranks, "gather", lambda own: [own, other])
    made = Row()
    made.add({"train/l1": torch.tensor(1.0)})
    made.add({"train/l1": torch.tensor(3.0)})
    made.put({"lr": 0.5, "alarm/variety": torch.tensor(7)})
    assert made.close() == {"train/l1": 4.0, "train/gan": 2.0, "lr": 0.5, "alarm/variety": 7.0}


def test_sums_hold_no_graph_and_are_in_float32() -> None:
    weight = torch.ones((), requires_grad=True)
    means = Means()
    for value in (256.0, 1.0, 1.0):  # bfloat16 has no 257
        means.add({"loss": (weight * value).bfloat16()})
    assert means.sums["loss"].item() == 258
    assert not means.sums["loss"].requires_grad
    assert means.take()["loss"].item() == pytest.approx(258 / 3)

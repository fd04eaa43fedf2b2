"""What the framework adds to a bare training loop on the same work: seconds an update, and the same weights at the end.

Run: uv run benchmarks/overhead.py [--blocks 8]
Prints a Markdown table. Both loops advance in turn, one update each, in one process, so that other load on the machine hits
both alike; a block is 50 such pairs with one logged row. The lower quartiles, which load from outside hardly reaches, leave
that row out. Validation and checkpoint come after the timed part.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder first, and `train` is one above

from data.order import PositionSampler
from train.jobs.cli import CONF
from train.jobs.config import check
from train.runs.building import make_trainer, prepare_folder, quieten
from train.tasks.task import RestorationTask
from train.trust import build

BLOCK = 50  # updates; a row is logged once in each
WARM_UP = 5  # pairs of updates that are not timed
COMMON = [
    *("experiment=demo", "optimizer=adamw", "optimizer.weight_decay=0.01", "data.val_size=64", "data.val_degradations=1"),
    *("validation.lpips=null", "trainer.val_check_interval=1000000", f"trainer.log_every_n_steps={BLOCK}"),
]
SIZES = {
    "demo's SwinIR, batch 8 at 64x64": [],
    "width 120, 3 x 6 blocks, batch 8 at 64x64": [
        "network.embed_dim=120",
        "network.depths=[6,6,6]",
        "network.num_heads=[6,6,6]",
    ],
}


class Bare:
    """The least that does the same work: batches, network, loss, AdamW, schedule, EMA. The objects are the framework's."""

    def __init__(self, config: dict[str, Any]) -> None:
        torch.manual_seed(config["seed"])
        self.network: nn.Module = build(config["network"])
        self.average = deepcopy(self.network).requires_grad_(False)
        self.decay = config["ema_decay"]
        self.loss: nn.Module = build(config["loss"])
        self.optimizer = build(config["optimizer"])(params=self.network.parameters())
        self.schedule = build(config["schedule"])(optimizer=self.optimizer)
        order = PositionSampler(start=0, batch_size=config["data"]["batch_size"], rank=0, world=1)
        self.batches = iter(DataLoader(build(config["data"]).faces, batch_sampler=order))
        self.averages, self.parameters = list(self.average.parameters()), list(self.network.parameters())

    def update(self) -> None:
        batch = next(self.batches)
        loss, _ = self.loss(1, restored=self.network(batch["lq"]), hq=batch["hq"])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - self.decay)


class Turns(Callback):
    """After each update of the framework one of the bare loop; the last callback, so that all others are timed."""

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self.seconds: list[tuple[float, float]] = []  # of an update: the framework's, the bare loop's
        self._resumed_at: float | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        self._turn()

    def on_train_end(self, *_: Any) -> None:
        self._turn()

    def _turn(self) -> None:
        paused_at = time.perf_counter()
        if self._resumed_at is not None:
            self.bare.update()
            self.seconds.append((paused_at - self._resumed_at, time.perf_counter() - paused_at))
        self._resumed_at = time.perf_counter()


def configuration(overrides: list[str]) -> dict[str, Any]:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return check(hydra.compose("train", overrides=overrides))


def compare(overrides: list[str], blocks: int) -> list[tuple[float, float]]:
    """Seconds of each update, the framework's and the bare loop's.

    Raises: RuntimeError: the two ended with different weights, so they did not do the same work.
    """
    config = configuration([*COMMON, *overrides, f"trainer.max_steps={WARM_UP + blocks * BLOCK + 1}"])
    bare = Bare(config)
    trainer = make_trainer(config)
    L.seed_everything(config["seed"], verbose=False)
    task: RestorationTask = build(config["task"])
    task.config, task.effective_batch = config, config["data"]["batch_size"]
    turns = Turns(bare)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks.append(turns)
    prepare_folder(config, Path(trainer.default_root_dir), trainer, 0)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # the progress bar is drawn, not shown
        trainer.fit(task, datamodule=build(config["data"]))
    assert task.ema is not None
    for ours, theirs in ((task.network, bare.network), (task.ema.average, bare.average)):
        state = theirs.state_dict()
        if not all(torch.equal(value, state[name]) for name, value in ours.state_dict().items()):
            raise RuntimeError("the framework and the bare loop ended with different weights: they did not do the same work")
    return turns.seconds[WARM_UP : WARM_UP + blocks * BLOCK]


def row(label: str, seconds: list[tuple[float, float]]) -> str:
    """A row of the table from the seconds of each pair of updates, the framework's and the bare loop's."""
    blocks = [seconds[n : n + BLOCK] for n in range(0, len(seconds), BLOCK)]
    added = sorted(100 * (sum(ours for ours, _ in block) / sum(bare for _, bare in block) - 1) for block in blocks)
    ours, bare = (sorted(column) for column in zip(*seconds, strict=True))
    quarter = len(seconds) // 4
    undisturbed = 1000 * (ours[quarter] - bare[quarter])
    return (
        f"| {label} | {median(bare):.4f} s | {median(ours):.4f} s | {median(added):+.2f} % "
        f"({added[0]:+.2f} to {added[-1]:+.2f}) | {undisturbed:+.2f} ms, {undisturbed / bare[quarter] / 10:+.2f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=8, help=f"of {BLOCK} updates of each loop")
    parser.add_argument("--size", type=int, choices=range(len(SIZES)), help="only this one of the sizes")
    args = parser.parse_args()

    quieten()
    print("| work | bare loop | framework | added, all updates (range over blocks) | added, lower quartiles |", flush=True)
    print("|---|---|---|---|---|", flush=True)
    for number, (label, overrides) in enumerate(SIZES.items()):
        if args.size in (None, number):
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                print(row(label, compare(overrides, args.blocks)), flush=True)


if __name__ == "__main__":
    main()

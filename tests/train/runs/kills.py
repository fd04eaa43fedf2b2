"""Runs that are killed and started again, and what they leave compared with a run that was left alone.

Most attempts are warm, as tests/warm.py starts them. A cold one is `python train.py …`.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from tests import warm
from tests.toy import ROOT, TINY_DATA, TINY_NETWORK, TINY_RUN
from tests.train.runs import victim
from tests.train.runs.victim import KINDS, ON_ANY_RANK, PHASES, Moment

UPDATES = 14
# Saves, validations and rows fall on different updates; everything that draws is on.
COMMAND = [
    *("experiment=demo", "data=folder", *TINY_NETWORK, *TINY_DATA, *TINY_RUN),
    *("network.depths=[2,2]", "network.drop_path_rate=0.3", "data.crop=random", "data.hflip_prob=0.5"),
    *("ema_decay=0.9", "schedule=cosine", "trainer.gradient_clip_val=1", "validation.lpips=null", "name=run"),
    *(f"trainer.max_steps={UPDATES}", "trainer.val_check_interval=4", "trainer.log_every_n_steps=2"),
    *("checkpoint.every_n_steps=3", "checkpoint.keep=2", "checkpoint.keep_best=2"),
]
# A discriminator that begins late, R1 in some updates, and a term that begins between two saves.
ADVERSARIAL = [
    *("task=adversarial", "adversary=unet_sn", "adversary.start_step=1", "adversary.discriminators.image.network.num_feat=4"),
    "+loss.terms.gan={_target_: losses.adversarial.Adversarial, weight: 0.1, kind: vanilla, of: image, adaptive_at: null}",
    "+adversary.discriminators.image.loss.terms.r1={_target_: losses.adversarial.R1, weight: 1.0, every_n_steps: 4}",
    "loss.terms.charbonnier.weight={_target_: losses.weighted.Scheduled, value: 1.0, ramp_steps: 5}",
]


@dataclass(frozen=True)
class Variant:
    """How the work of an update is shared out; the batch of a rank is 1 where there are 2 ranks, else 2."""

    ranks: int
    workers: int
    accumulate: int
    adversarial: bool

    def __str__(self) -> str:
        gan = ", adversarial" * self.adversarial
        return f"{self.ranks} rank{'s' * (self.ranks > 1)}, {self.workers} workers, {self.accumulate} accumulated{gan}"

    def command(self, photographs: Path, *more: str) -> list[str]:
        own = [f"data.num_workers={self.workers}", f"trainer.accumulate_grad_batches={self.accumulate}"]
        own += [f"data.batch_size={2 // self.ranks}", f"data.root={photographs}"]
        own += ADVERSARIAL * self.adversarial
        return [*COMMAND, *own, *(["trainer.devices=2", "trainer.strategy=ddp"] if self.ranks > 1 else []), *more]


VARIANTS = (Variant(1, 0, 1, False), Variant(1, 2, 2, True), Variant(2, 0, 1, True), Variant(2, 2, 2, False))


def _prepare(moment: Moment | None, record: Path | None, poison: tuple[int, int] | None) -> None:
    """In the process that is about to become train.py."""
    if record:
        victim.record(record)
    if poison:
        victim.poison(*poison)
    if moment:
        victim.arm(moment, Path("struck.jsonl"))


class Attempt:
    """One start of a run in a folder; what it prints goes to the folder's `log`.

    Args: moment: see victim.py.     record: folder for its record of samples.     poison: rank and update of a NaN.
          cold: a fresh `python train.py …`, to which nothing of these can be done.     environment: added to the common one.
    """

    def __init__(
        self,
        cwd: Path,
        argv: list[str],
        *,
        moment: Moment | None = None,
        record: Path | None = None,
        poison: tuple[int, int] | None = None,
        cold: bool = False,
        environment: dict[str, str] | None = None,
    ) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        self.cwd, self.log, self.cold = cwd, cwd / "log", cold
        self.log.touch()
        self._log_start = self.log.stat().st_size
        self._struck_before = len(victim.lines(cwd / "struck.jsonl"))
        self.process: Any
        if cold:
            command, whole = (
                [sys.executable, str(ROOT / "train.py"), *argv],
                os.environ | warm.ENVIRONMENT | (environment or {}),
            )
            with self.log.open("ab") as file:
                self.process = subprocess.Popen(command, cwd=cwd, env=whole, stdout=file, stderr=file, start_new_session=True)
        else:
            before = partial(_prepare, moment, record, poison)
            files = {"stdout": self.log, "stderr": self.log}
            self.process = warm.start(argv, cwd=cwd, **files, environment=environment or {}, before=before)

    @property
    def printed(self) -> str:
        return self.log.read_bytes()[self._log_start :].decode()

    @property
    def struck(self) -> dict[str, Any] | None:
        """The moment, the update at which it came, and the process; None when it did not come."""
        return next(iter(victim.lines(self.cwd / "struck.jsonl")[self._struck_before :]), None)

    @property
    def code(self) -> int | None:
        """None while it runs."""
        return self.process.poll() if self.cold else self.process.exitcode

    def wait(self, timeout_s: float = 120) -> int:
        """The exit code. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while (code := self.code) is None:
            if time.monotonic() > deadline:
                os.kill(self.process.pid, signal.SIGKILL)
                raise TimeoutError(f"still running after {timeout_s} s:\n{self.printed}")
            time.sleep(0.01)
        return code

    def wait_for_training(self) -> float:
        """Until it is about to train, or has ended; the time.monotonic() of that."""
        while "ends at update" not in self.printed and self.code is None:
            time.sleep(0.01)
        return time.monotonic()

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL to this process alone so long after it began to train; False when it had ended."""
        self.wait_for_training()
        time.sleep(seconds)
        if self.code is not None:
            return False
        os.kill(self.process.pid, signal.SIGKILL)
        return True


def wait_until_gone(cwd: Path, timeout_s: float = 15) -> float:
    """Seconds until no process of a run works in the folder any more, its data workers among them.

    Raises: TimeoutError: which ones stayed.
    """
    began = time.monotonic()
    while left := _working_in(cwd):
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"processes {left} still run in {cwd}")
        time.sleep(0.02)
    return time.monotonic() - began


def _working_in(cwd: Path) -> list[int]:
    """Zombies work nowhere."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == cwd.resolve():
                found.append(int(process.name))
    return found


def draw_moments(rng: random.Random, count: int, ranks: int) -> list[Moment]:
    """Deaths in the order of their updates, the kinds in turn; one in four is the launching process's where there is one.

    All but the last come before the last update, so that there is something left for the next.
    """
    kinds = list(islice(cycle(KINDS), count))
    rng.shuffle(kinds)
    kinds.sort(key=lambda kind: kind == "at the end")
    moments = []
    for kind, update in zip(kinds, sorted(rng.choices(range(UPDATES - 2), k=count)), strict=True):
        phase = rng.choice(list(KINDS[kind]))
        rank = rng.randrange(ranks) if phase in ON_ANY_RANK else 0
        who = "launcher" if ranks > 1 and rng.random() < 0.25 else "self"
        moments.append(Moment(phase, update, rank, rng.randrange(2) if phase == "step" else 0, who))
    return moments


@dataclass
class Killed:
    """What became of a run that was killed again and again."""

    kinds: list[str] = field(default_factory=list)  # of the kills that happened
    moments: list[str] = field(default_factory=list)
    outlived_s: float = 0.0  # the longest that another process lived on after the process that was killed


def kill_and_finish(cwd: Path, argv: list[str], moments: Sequence[Moment | float], *, cold: bool = False) -> Killed:
    """The same command until it ends with 0, killed at each moment: its own, or so many seconds after it began to train.

    Raises: AssertionError: it ended neither well nor by the kill.
    """
    killed = Killed()
    for moment in [*moments, None]:
        inside = moment if isinstance(moment, Moment) else None
        attempt = Attempt(cwd, argv, moment=inside, cold=cold)
        if isinstance(moment, float) and attempt.kill_after(moment):
            killed.kinds.append("any time")
            killed.moments.append(f"SIGKILL {moment:.2f} s after it began to train")
        code = attempt.wait()
        killed.outlived_s = max(killed.outlived_s, wait_until_gone(cwd))
        if inside and (struck := attempt.struck):
            killed.kinds.append(PHASES[inside.phase][0])
            killed.moments.append(f"{inside}: came at {struck['at']}")
            assert code != 0, f"{inside} did not end it:\n{attempt.printed}"
        else:
            assert code in (0, -signal.SIGKILL), f"{moment}: ended with {code}:\n{attempt.printed}"
        last_words = "resource_sharer.py" in attempt.printed  # of a data worker whose process was killed as it fetched a batch
        assert last_words or "Traceback" not in attempt.printed, attempt.printed
    assert code == 0, attempt.printed
    return killed


def finished(cwd: Path, *argv: str) -> str:
    """What a warm run prints that ends well."""
    attempt = Attempt(cwd, list(argv))
    assert attempt.wait() == 0, attempt.printed
    return attempt.printed


def reference(cwd: Path, argv: list[str], *, cold: bool = False, poison: tuple[int, int] | None = None) -> tuple[Path, float]:
    """The run left alone: its folder, and the seconds from the beginning of its training to its end."""
    attempt = Attempt(cwd, argv, cold=cold, poison=poison)
    began = attempt.wait_for_training()
    assert attempt.wait() == 0, attempt.printed
    return cwd / "runs" / "run", time.monotonic() - began


PARTS = {
    "weights": ("state_dict.network.",),
    "EMA": ("state_dict.ema.",),
    "optimizer": ("optimizer_states", "lr_schedulers"),
    "other state": ("",),
}


def differences(whole: Path, run: Path) -> dict[str, list[str]]:
    """Part of a finished run -> the places where the two differ there."""
    parts: dict[str, list[str]] = {name: [] for name in (*PARTS, "rows", "TensorBoard")}
    for where in unequal(checkpoint(whole), checkpoint(run)):
        parts[next(name for name, starts in PARTS.items() if where.startswith(starts))].append(where)
    for file in ("summary.json", "config.yaml"):
        parts["other state"] += [file] * ((whole / file).read_bytes() != (run / file).read_bytes())
    parts["other state"] += unequal(pictures(whole), pictures(run), "samples")
    parts["other state"] += unequal(names(whole), names(run), "checkpoints")
    if (whole / "metrics.csv").read_bytes() != (run / "metrics.csv").read_bytes():
        parts["rows"] += sorted(set((whole / "metrics.csv").open()) ^ set((run / "metrics.csv").open())) or ["their order"]
    parts["TensorBoard"] = compare_events(events(whole), events(run))
    return parts


def checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def pictures(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "samples").iterdir()}


def names(run: Path) -> dict[str, bool]:
    return {path.name: True for path in (run / "checkpoints").iterdir()}


def unequal(one: Any, other: Any, path: str = "") -> list[str]:
    """Dotted places where two nested values differ; tensors must be equal to the bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys(), key=str)
        pairs = [(f"{path}.{key}".lstrip("."), one.get(key, "absent"), other.get(key, "absent")) for key in keys]
        return [found for place, mine, yours in pairs for found in unequal(mine, yours, place)]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [found for n, pair in enumerate(zip(one, other, strict=True)) for found in unequal(*pair, f"{path}.{n}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    nan = one != one and other != other  # in the row of a skipped update
    return [] if type(one) is type(other) and (one == other or nan) else [path]


Event = tuple[str, int, float | bytes]  # tag, update, value or picture


def events(run: Path) -> list[Event]:
    """Everything that TensorBoard shows of a run."""
    return [
        (value.tag, event.step, value.simple_value if value.HasField("simple_value") else value.image.encoded_image_string)
        for path in sorted((run / "tensorboard").iterdir())
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def compare_events(whole: list[Event], run: list[Event]) -> list[str]:
    """Seconds differ from run to run, but they too stand once for each update."""
    places = [(tag, step) for tag, step, _ in run]
    found = [f"{tag} at {step} stands {places.count((tag, step))} times" for tag, step in sorted(set(places))]
    found = [each for each in found if not each.endswith("stands 1 times")]
    tables = [{f"{tag} at {step}": value for tag, step, value in each if not tag.startswith("time/")} for each in (whole, run)]
    missing = {place for place in ((tag, step) for tag, step, _ in whole) if place not in places}
    return found + unequal(*tables) + [f"no {tag} at {step}" for tag, step in sorted(missing)]


def explain(parts: dict[str, list[str]]) -> str:
    """Empty when nothing differs."""
    return "\n".join(f"{name}: {'; '.join(where[:8])}" for name, where in parts.items() if where)

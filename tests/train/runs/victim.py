"""Inside a run that is to be killed: the moment at which it dies, and a record of what it trained on.

Nothing here is known to the project: its functions are wrapped from outside, in the one process (and its forks) that called
`arm` or `record`.
"""

import builtins
import hashlib
import io
import json
import os
import pickle
import signal
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import wraps
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

Wrapped = Callable[..., Any]

# kind -> phase -> module, function, and on which side of it the process dies. What it leaves behind stands in the comment.
KINDS = {
    "mid-step": {
        "step": ("train.tasks.task", "RestorationTask.log_terms", "after"),  # a forward pass
        "backward": ("train.runs.nonfinite", "NonFiniteGuard.on_before_optimizer_step", "before"),  # gradients
        "optimizer": ("train.tasks.ema", "EMA.update", "before"),  # new weights, the old average
        "log": ("train.runs.loggers", "CsvLogger.log_metrics", "after"),  # a row in metrics.csv alone
    },
    "mid-save": {
        "save": ("lightning", "Trainer.save_checkpoint", "before"),  # where others wait for this rank
        "half a file": ("torch", "save", "half"),
        "no checksum": ("train.runs.checkpoint", "write_text", "before"),  # a whole file under a temporary name
        "no name": ("train.runs.checkpoint", "write_text", "after"),  # and a checksum of a file that isn't there
        "not last": ("train.runs.checkpoint", "link", "before"),  # a checkpoint that last.ckpt isn't
        "not tidied": ("train.runs.checkpoint", "Checkpoints._tidy", "before"),  # one file more than is kept
    },
    "mid-validation": {
        "validation": ("train.tasks.task", "RestorationTask.validation_step", "after"),  # some of the images
        "picture": ("train.runs.pictures", "write_pictures", "after"),  # pictures without a row
    },
    "at the start": {
        "start": ("train.runs.run", "prepare_folder", "before"),  # nothing new
        "cut": ("train.runs.loggers", "TensorBoard.cut_after", "before"),  # metrics.csv is cut, TensorBoard's files are not
    },
    "at the end": {"end": ("train.runs.run", "write_summary", "before")},  # all updates are done, and there is no summary
}
# New weights of the generator, the discriminators' gradients; only where there are discriminators.
DISCRIMINATORS = ("mid-step", "train.tasks.adversarial", "AdversarialTask._discriminator_steps", "before")
PHASES = {phase: (kind, *where) for kind, phases in KINDS.items() for phase, where in phases.items()}
PHASES["discriminators"] = DISCRIMINATORS
ONCE = ("start", "cut", "end")  # whatever number of updates is done
ON_ANY_RANK = ("step", "backward", "optimizer", "discriminators", "save", "validation")  # rank 0 alone does the rest


@dataclass(frozen=True)
class Moment:
    """The first call of a phase when `update` updates are done (the second with skip=1), on one rank.

    victim: self; or launcher: the process that started the ranks.
    deed:   a signal's name; or ValueError or RuntimeError: what the rank raises.
    """

    phase: str
    update: int
    rank: int = 0
    skip: int = 0
    victim: str = "self"
    deed: str = "SIGKILL"

    def __str__(self) -> str:
        whom = f"rank {self.rank}" if self.victim == "self" else f"the launcher by rank {self.rank}"
        return f"{self.deed} to {whom}: {self.phase}, from update {self.update} on{', 2nd batch' * self.skip}"


def _rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _wrap(module: str, name: str, around: Callable[[Wrapped], Wrapped]) -> None:
    path, _, attribute = name.rpartition(".")
    owner = attrgetter(path)(import_module(module)) if path else import_module(module)
    whole = getattr(owner, attribute)
    setattr(owner, attribute, wraps(whole)(around(whole)))


_trainer: Any = None  # of this process, from the start of its training on


def _note_trainer() -> None:
    def around(whole: Wrapped) -> Wrapped:
        def on_train_start(callback: Any, trainer: Any, *rest: Any) -> Any:
            global _trainer
            _trainer = trainer
            return whole(callback, trainer, *rest)

        return on_train_start

    _wrap("train.runs.nonfinite", "NonFiniteGuard.on_train_start", around)


def arm(moment: Moment, note: Path) -> None:
    """The process does itself in at that moment, after a line in `note`: what happened, and at which update."""
    calls, done = 0, False

    def due() -> bool:
        nonlocal calls, done
        if done or _rank() != moment.rank or ("LOCAL_RANK" not in os.environ and moment.victim == "launcher"):
            return False
        if moment.phase not in ONCE and (_trainer is None or _trainer.global_step < moment.update):
            return False
        calls += 1
        done = calls > moment.skip
        return done

    def strike() -> None:
        update = _trainer.global_step if _trainer is not None else -1
        append(note, asdict(moment) | {"at": update, "pid": os.getpid()})
        if moment.deed.endswith("Error"):
            raise getattr(builtins, moment.deed)("injected")
        os.kill(os.getppid() if moment.victim == "launcher" else os.getpid(), signal.Signals[moment.deed])

    def around(whole: Wrapped) -> Wrapped:
        def call(*arguments: Any, **options: Any) -> Any:
            now = due()
            if now and side == "before":
                strike()
            if now and side == "half":
                buffer, file = io.BytesIO(), arguments[1]
                whole(arguments[0], buffer)
                file.write(buffer.getvalue()[: buffer.tell() // 2])
                file.flush()
                strike()
            result = whole(*arguments, **options)
            if now and side == "after":
                strike()
            return result

        return call

    _note_trainer()
    _, module, name, side = PHASES[moment.phase]
    _wrap(module, name, around)


def record(folder: Path) -> None:
    """Each rank writes rank_R.jsonl: for every batch the updates done, the weights before it, and its samples' draws.

    It sees the degradation's draws only without data workers.
    """
    drawn: dict[int, Any] = {}

    def around_sample(whole: Wrapped) -> Wrapped:
        def sample(self: Any, seed: int, position: int, size: tuple[int, int]) -> Any:
            drawn[position] = {"seed": seed, "parameters": whole(self, seed, position, size)}
            return drawn[position]["parameters"]

        return sample

    def around_step(whole: Wrapped) -> Wrapped:
        def training_step(task: Any, batch: Any, batch_index: int) -> Any:
            samples = [
                {"position": position, **drawn.get(position, {}), "lq": digest([lq]), "hq": digest([hq])}
                for position, lq, hq in zip(batch["position"].tolist(), batch["lq"], batch["hq"], strict=True)
            ]
            weights = digest([*task.network.state_dict().values(), *task.ema.state_dict().values()])
            append(folder / f"rank_{_rank()}.jsonl", {"step": task.trainer.global_step, "samples": samples, "weights": weights})
            return whole(task, batch, batch_index)

        return training_step

    _wrap("degradations.pipeline", "Pipeline.sample", around_sample)
    for task in ("train.tasks.regression RegressionTask", "train.tasks.adversarial AdversarialTask"):
        _wrap(*f"{task}.training_step".split(), around_step)


def poison(rank: int, update: int) -> None:
    """The Charbonnier term is NaN on one rank in the update after `update` updates."""

    def around(whole: Wrapped) -> Wrapped:
        def forward(self: Any, *arguments: Any, **options: Any) -> Any:
            wrong = _rank() == rank and _trainer.global_step == update
            return whole(self, *arguments, **options) * (float("nan") if wrong else 1)

        return forward

    _note_trainer()
    _wrap("losses.pixel", "Charbonnier.forward", around)


def append(path: Path, line: dict[str, Any]) -> None:
    """One system call: whole or not at all."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def lines(path: Path) -> list[dict[str, Any]]:
    """What was appended; nothing where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def digest(tensors: Iterable[Any]) -> str:
    return hashlib.sha256(pickle.dumps([tensor.numpy().tobytes() for tensor in tensors])).hexdigest()

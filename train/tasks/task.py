"""What every training task shares: the network, its EMA, validation, and how terms are logged."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pydoc import locate
from typing import Annotated, Any, ClassVar, Literal, TypeVar, dataclass_transform

import lightning as L
import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data.batch import Batch
from losses.frozen import frozen_within
from losses.weighted import LossSet, Terms, grad_norms
from train.parts import optimizer_of, split
from train.sharding import shard
from train.tasks import state
from train.tasks.calling import Branching, check_arguments, named_outputs, outputs
from train.tasks.draws import ModuleDraws
from train.tasks.ema import EMA
from train.tasks.row import Row
from train.tasks.schedules import schedule_mistakes
from train.tasks.start import start_mistakes
from train.tasks.validation import Validation, check_scale

# Tensors that terms of the loss may name, but that only data=hggt has, and only with data.source.negatives=true.
NEGATIVES = frozenset({"negative", "has_negative"})

# What became of an update: done; dropped by train/runs/nonfinite.py, which leaves everything as it was; or an overflow of
# float16 in the network's gradients, where their scaler leaves out the network's step, and no other's.
Outcome = Literal["done", "dropped", "left to the scaler"]

Decay = Annotated[float, Interval(ge=0, lt=1)]
Task = TypeVar("Task", bound=L.LightningModule)


@dataclass_transform(kw_only_default=True, eq_default=False)
def constructed(task: type[Task]) -> type[Task]:
    """Makes the annotated attributes of a task's class, and of its base classes, the keyword arguments of its constructor.

    It is a dataclass, but that torch registers parts only once its own constructor was called; `__post_init__` comes last.
    """
    made = dataclass(kw_only=True, eq=False, repr=False)(task)
    fill = made.__init__

    @wraps(fill)  # train/jobs/config.py holds a configuration against names and types of the arguments
    def construct(self: Task, **parts: Any) -> None:
        L.LightningModule.__init__(self)
        fill(self, **parts)

    made.__init__ = construct  # type: ignore[method-assign, assignment]
    return made


@constructed
class RestorationTask(L.LightningModule):
    """A network that restores images, with a loss set. Subclasses add the training step, and what they need besides.

    Raises: ValueError: a term of the loss needs what the task doesn't offer.
    """

    network: nn.Module  # (b, 3, h, w) LQ to restored
    loss: LossSet
    optimizer: Callable[..., Optimizer]  # parameters -> optimizer
    parts: dict[str, Annotated[float, Ge(0)]] | None  # patterns of the network's parameters -> factor on the learning rate
    schedule: Callable[..., LRScheduler]  # optimizer -> learning rate by generator update
    ema_decay: Decay | None  # of the average that validates and is exported; null keeps none
    validation: Validation

    # Keyword arguments that the task calls its network with, and how many tensors come before them.
    calls_with: ClassVar[frozenset[str]] = frozenset()
    inputs: ClassVar[int] = 1
    # Tensors that terms of the loss may name; those that the network returns besides come on top.
    offers = frozenset({"restored", "hq", "lq"}) | NEGATIVES
    # What another run's checkpoint means nothing without: patterns of the keys that must be as they were.
    kept: ClassVar[tuple[str, ...]] = ("task._target_", "network", "optimizer._target_")
    # Columns of the data that it trains on: names in data.columns.
    reads: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_arguments(self.network, self.calls_with, self.inputs)
        self.learning = split(self.network, self.parts or {})  # before DDP looks at what is trained
        self.offers = self.offers | named_outputs(self.network)
        self.loss.check_offered(self.offers, type(self).__name__)
        self.ema = EMA(self.network, self.ema_decay) if self.ema_decay is not None else None
        self.draws = ModuleDraws([*self.network.modules(), *self.loss.modules()])
        self.validated_step = -1  # the update of the last validation, and metric -> value of it
        self.validated: dict[str, float] = {}
        self.positions: list[int] = []  # of the samples of the batch at hand
        self.unreadable = 0  # times that data.on_error=skip passed over a file on this rank
        self.row = Row()  # what this update logs
        self._row_after = 0  # updates done as of the last batch
        self.nonfinite: dict[str, Tensor] = {}  # loss term -> () bool: not finite in a batch since the last update
        self.saving_s = 0.0  # spent on checkpoints since train/runs/times.py last looked
        self.sharded = False
        self.branches = False  # whether it goes on from another run's checkpoint
        self.outcome: Outcome = "done"  # of the update under way, said by train/runs/nonfinite.py before any step
        # The resolved config and the samples an update consumes, of all ranks: saved in every checkpoint.
        self.config: dict[str, Any] = {}
        self.effective_batch = 0

    @classmethod
    def mistakes(cls, config: dict[str, Any]) -> Iterator[str]:
        """What would fail, or do nothing, in a run of this task with a resolved configuration; a sentence each.

        train/jobs/config.py asks before anything is built or read. Subclasses add what they know.
        """
        yield from start_mistakes(config)
        yield from schedule_mistakes("optimizer", config["schedule"], config["optimizer"])
        for name, column in config["data"].get("columns", {}).items():
            if name not in cls.reads and column["path"] is not None:
                yield f"{column['key']}={column['path']}: {cls.__name__} trains without: set {column['key']}=null"

    @staticmethod
    def steps_per_update(config: dict[str, Any]) -> int:
        """Optimizer steps in an update, each on batches of its own."""
        return 1

    @staticmethod
    def all_at_once(config: dict[str, Any]) -> dict[str, Any]:
        """The task's node of the configuration, changed so that parts that begin later train from update 1.

        A preflight measures this, as a few updates of the run itself would not show its full cost.
        """
        node: dict[str, Any] = config["task"]
        return node

    @staticmethod
    def unused_parameters(config: dict[str, Any]) -> bool:
        """Whether some trained parameters have no gradient in some updates, for which DDP has to look each time.

        Here: an output that has parameters of its own (GFPGAN's pyramid) is not in the loss of every update.
        """
        network: Any = locate(config["network"]["_target_"])
        terms = [term for term in config["loss"]["terms"].values() if isinstance(term["weight"], float | int)]  # not scheduled
        losses: list[Any] = [locate(term["_target_"]) for term in terms if term["weight"] > 0]
        always = {name for loss in losses for name in inspect.signature(loss.forward).parameters}
        return isinstance(network, Branching) and not network.branches <= always

    @property
    def validated_network(self) -> nn.Module:
        """The EMA where there is one."""
        return self.ema.average if self.ema else self.network

    def frozen_networks(self) -> list[nn.Module]:
        """Networks that the task and its losses use without training them; they are not among its submodules."""
        return frozen_within(self)

    def restore(self, lq: Tensor) -> Tensor:
        """What validation sees: LQ (b, 3, h, w) in [0, 1] to (b, 3, s * h, s * w) in [0, 1], s being the network's scale."""
        return outputs(self.validated_network(lq))["restored"].clamp(0, 1)

    def check_start(self) -> None:
        """Called once init.ckpt's weights are in. Raises ValueError: the run can't begin from them."""

    def run_network(self, batch: Batch) -> dict[str, Any]:
        """What this update makes of a batch, by name; an image as `restored`, (b, 3, h, w) about [0, 1], not clamped."""
        return outputs(self.network(batch["lq"]))

    def left_out(self, update: int) -> set[str]:
        """Terms of the loss that are not computed in this update."""
        return set()

    def configure_model(self) -> None:
        """With trainer=fsdp, before every fit and validation: shares the network and its EMA out over the ranks."""
        if self._device_mesh is not None and not self.sharded:
            for network in [self.network, *([self.ema.average] if self.ema else [])]:
                shard(network, self._device_mesh["data_parallel"])
            self.sharded = True

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        if self.sharded and type(optimizer).__module__.startswith("bitsandbytes."):
            raise ValueError(f"trainer=fsdp: {type(optimizer).__name__} takes no sharded weights: choose trainer=ddp")
        schedule = self.schedule(optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def make_optimizer(self) -> Optimizer:
        """Of the network. It knows the names of its parameters, by which train/tasks/state.py finds them again."""
        return optimizer_of(self.network, self.learning, self.optimizer)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Reads on the CPU what the CPU needs: asking a GPU for it would wait for all it has to do."""
        self.positions = batch["position"].tolist()
        if self.trainer.training:
            self.unreadable += int(batch["unreadable"].sum())
        return batch

    def on_train_start(self) -> None:
        self._row_after = self.trainer.global_step

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        self.draws.begin(self.config["seed"], self.positions, self.device)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    def after_step(self) -> None:
        """What follows the step of the network's optimizer."""
        stepped = self.outcome == "done"
        self.loss.after_update(skipped=not stepped)
        if self.ema and stepped:
            self.ema.update(self.network)

    def scaler_of(self, optimizer: Optimizer) -> GradScaler | None:
        """What scales the loss of these parameters with float16, and leaves out the optimizer's step after an overflow."""
        scaler: GradScaler | None = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler

    def given(self, batch: Batch, made: dict[str, Any]) -> dict[str, Any]:
        """What there is for the terms of the loss, by name; made: the network's outputs.

        Raises: ValueError: a term needs what these data lack, or the network's output is not of the HQ's size.
        """
        if "restored" in made:
            check_scale(made["restored"], batch["hq"])
        if lacking := NEGATIVES - batch.keys():
            without = "on data without negatives (data=hggt data.source.negatives=true has some)"
            self.loss.check_offered(self.offers - lacking, f"{type(self).__name__} {without}")
        return {**made, **{name: value for name, value in batch.items() if name in self.offers}}

    @property
    def update(self) -> int:
        """The update under way, counted from 1."""
        return self.trainer.global_step + 1

    @property
    def logs_this_update(self) -> bool:
        return not self.update % self.trainer.log_every_n_steps or self.update == self.trainer.max_steps  # type: ignore[attr-defined]

    def note_nonfinite(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            found = ~torch.isfinite(value)
            self.nonfinite[name] = self.nonfinite[name] | found if name in self.nonfinite else found

    def log_terms(self, loss: Tensor, terms: Terms) -> None:
        """Logs the total, each term raw and weighted, and the learning rate, and notes which are not finite."""
        loss = loss.detach()
        self.note_nonfinite({"the loss": loss, **{name: term.raw for name, term in terms.items()}})
        if not self.logs_this_update:
            return
        self.log("train/loss", loss, prog_bar=True, logger=False)
        self.row.add({"train/loss": loss, **{f"train/{name}": term.raw for name, term in terms.items()}})
        self.row.add({f"weighted/{name}": term.weighted for name, term in terms.items()})
        if self.loss.log_grad_norms:
            norms = grad_norms(terms, self.network.parameters())
            self.row.add({f"grad_norm/{name}": value for name, value in norms.items()})
        self.row.put({"lr": self.learning_rate})

    @property
    def learning_rate(self) -> float:
        """The schedule's, of what no pattern of optimizer.parts names."""
        schedule: Any = self.trainer.lr_scheduler_configs[0].scheduler
        return float(schedule.get_last_lr()[0])

    def on_validation_epoch_start(self) -> None:
        self.validation.reset()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.validation.update(restored=self.restore(batch["lq"]), lq=batch["lq"], hq=batch["hq"])

    def validation_values(self) -> dict[str, Tensor]:
        """Metric -> mean over all ranks."""
        return self.validation.compute()

    def on_validation_epoch_end(self) -> None:
        values = self.validation_values()
        self.validated_step = self.trainer.global_step
        self.validated = {name: float(value) for name, value in values.items()}
        self.log("step", float(self.validated_step))
        self.log_dict({f"val/{name}": value for name, value in values.items()})

    def pictures(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For train/runs/pictures.py: LQ, restored and HQ, each (3, h, w) in [0, 1], of the first validation samples."""
        return self.validation.rows

    def on_train_batch_end(self, *_: Any) -> None:
        """Logs the row. Lightning's own would go on with the last value of a term that this update does not have."""
        step = self.trainer.global_step
        if self.row and step != self._row_after:  # the update is done, not a part of it
            values = self.row.close()
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step)
                logger.save()
        self._row_after = step
        if self.trainer.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True  # so that Lightning validates after the last update too

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state.load(self, checkpoint)

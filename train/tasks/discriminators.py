"""The discriminators of a run: what they judge, what trains them, and an alarm when the game is lost."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data.batch import Batch
from losses.weighted import LossSet
from models.files import official
from train.ranks import say
from train.tasks.row import Means
from train.tasks.schedules import schedule_mistakes

OFFERS = frozenset({"real", "fake", "real_logits", "fake_logits"})  # tensors that terms of a discriminator's loss may name


@runtime_checkable
class ShowsFeatures(Protocol):
    """A discriminator's network whose layers can be compared (losses.adversarial.FeatureMatching)."""

    def features(self, image: Tensor) -> list[Tensor]:
        """(b, 3, h, w) in [0, 1] to a map (b, c, h, w) of each layer."""


class Discriminator(nn.Module):
    """One discriminator, its loss set (real + fake, R1, …) and its optimizer.

    Args:   network: (b, 3, h, w) in [0, 1] to logits of any shape.
            part: cuts what it sees out of the images, by the batch's components (data.batch); None: it sees them whole.
            ckpt: weights to start from: a run with a discriminator of this name, or a file of the discriminator's own in any
                format that models/files/official.py opens; null starts afresh.
    Raises: ValueError: a term of the loss needs something else than OFFERS.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        loss: LossSet,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        ckpt: str | None,
        part: nn.Module | None,
    ) -> None:
        super().__init__()
        loss.check_offered(OFFERS, "a discriminator")
        self.network, self.part, self.loss = network, part, loss
        self.make_optimizer, self.make_schedule, self.ckpt = optimizer, schedule, ckpt
        self.requires_grad_(False)

    def begin(self, name: str) -> None:
        """Loads the weights of ckpt, if there is one. name: in adversary.discriminators.

        Raises: ValueError: the file holds no such discriminator.
        """
        if not self.ckpt:
            return
        key = f"adversary.discriminators.{name}.ckpt={self.ckpt}"
        try:
            say(f"{key}: {official.load_into(self.network, self.ckpt, strict=True, which=f'discriminator {name}')}")
        except official.CheckpointError as error:
            raise ValueError(f"{key}: {error}; give the discriminator's own file, or a run with one") from error

    def real(self, batch: Batch) -> Tensor:
        """What it sees of clean faces. Whole images are batch["real"] where the data have that, else the HQs.

        A part is always cut out of the HQs, as where it lies in other faces is not known.
        """
        return batch.get("real", batch["hq"]) if self.part is None else self.seen(batch["hq"], batch)

    def seen(self, images: Tensor, batch: Batch) -> Tensor:
        """What it sees of a batch's images. Raises ValueError: it sees a part, and the data don't say where that is."""
        if self.part is None:
            return images
        if "components" not in batch:
            raise ValueError(
                "a discriminator of adversary.discriminators sees a part of the face, and the data don't say where it is: give "
                "data.components=FILE, as python -m data.prepare landmarks makes it, or choose model=gfpgan_simple"
            )
        return self.part(images, batch["components"])

    def judge(self, update: int, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        """What its loss names. fake: (b, 3, h, w) restored, without a graph."""
        real, fake = self.real(batch), self.seen(fake, batch)
        penalised = "real" in self.loss.needs(update)  # R1: a second derivative, too coarse in half precision
        if penalised:
            real = real.detach().requires_grad_()
        with torch.autocast(real.device.type, enabled=False) if penalised else torch.enable_grad():
            real_logits = self.network(real)
        return {"real": real, "fake": fake, "real_logits": real_logits, "fake_logits": self.network(fake)}


class Alarm(nn.Module):
    """Says when a discriminator, or the variety of what the generator makes, has been out of range for too long.

    The counts are buffers, so that a run that goes on counts on. Nothing waits for the device but the updates that are logged.

    Args: loss: range of the first term of a discriminator's loss; below: the generator learns nothing from it any more.
          gap: range of the mean logit of real images less that of restored ones; below: it judges worse than chance.
          variety: least ratio of the restored images' standard deviation over a batch, mean over pixels, to that of HQ;
              below, different faces are restored alike (mode freeze). Not watched at one image a device.
          steps: updates in a row after which it is said, and again after as many.
    """

    def __init__(
        self,
        *,
        loss: tuple[float, float],
        gap: tuple[float, float],
        variety: Annotated[float, Ge(0)],
        steps: Annotated[int, Gt(0)],
    ) -> None:
        super().__init__()
        self.steps = steps
        self._ranges = {"loss": loss, "gap": gap, "variety": (variety, float("inf"))}
        self._said: dict[str, int] = {}
        self._means = Means()  # of the update at hand, over its micro-batches

    def _count(self, what: str, value: Tensor) -> Tensor:
        low, high = self._ranges[what.rpartition("_")[2]]
        count: Tensor = getattr(self, f"count_{what}")
        outside = ~((value >= low) & (value <= high))
        count.copy_(torch.where(outside, count + 1, 0))
        return count

    def register(self, names: list[str]) -> None:
        for what in ("variety", *(f"{name}_{kind}" for name in names for kind in ("loss", "gap"))):
            self.register_buffer(f"count_{what}", torch.zeros((), dtype=torch.int64))

    def add(self, values: dict[str, Tensor]) -> None:
        """Notes a micro-batch. values: NAME_loss, NAME_gap of each discriminator, and variety; scalars."""
        self._means.add(values)

    def take(self) -> dict[str, Tensor]:
        """The means over the update's micro-batches on this rank; the next update begins."""
        return self._means.take()

    @torch.no_grad()
    def watch(self, values: dict[str, Tensor], update: int, logged: bool) -> dict[str, Tensor]:
        """Counts the update by what `take` returned, averaged over the ranks; in logged updates also says what is wrong.

        Returns: how many updates in a row each value has been out of range, for the log.
        """
        counts = {what: self._count(what, value) for what, value in values.items()}
        if logged:
            for what, count in counts.items():
                rows = int(count)
                if rows < self.steps:
                    self._said.pop(what, None)
                elif rows >= self._said.get(what, 0) + self.steps:
                    self._said[what] = rows
                    say(self._sentence(what, float(values[what]), rows, update))
        return dict(counts)

    def _sentence(self, what: str, value: float, rows: int, update: int) -> str:
        name, _, kind = what.rpartition("_")
        low, high = self._ranges[kind]
        if kind == "variety":
            meaning = (
                f"restored images vary {value:.3g} times as much as HQ (adversary.alarm.variety={low:g}): the generator makes "
                "one face of all; lower the weight of the adversarial term, or go back to an earlier checkpoint"
            )
        else:
            better = (value < low) if kind == "loss" else (value > high)
            meaning = (
                f"{kind} of discriminator {name} is {value:.3g}, outside of adversary.alarm.{kind}=[{low:g}, {high:g}]: "
                + (
                    "it tells all images apart, and the generator learns nothing from it; lower its learning rate, or add R1"
                    if better
                    else "it judges worse than chance; raise its learning rate, or lower the weight of the adversarial term"
                )
            )
        return f"warning: update {update}: for {rows} updates in a row {meaning}"


class Adversary(nn.Module):
    """All discriminators. Outside `trainable` they are frozen: gradients pass through them, and never to them.

    Args: discriminators: name -> discriminator, a YAML mapping; terms of the generator's loss say `of: NAME`.
          start_step: updates that the generator trains alone: no discriminator's step, no adversarial term.
          generator_start_step: updates in which the generator, its EMA and its optimizer stay as they are, so that fresh
              discriminators catch up with trained weights; they count as updates.
          steps_per_update: steps of the discriminators in a generator update, each on samples of its own, the last on the
              generator's.
          leak: as DT-BFR's code: from an update's second accumulated batch on, the generator's adversarial gradient is added to
              the discriminators'.
    """

    def __init__(
        self,
        *,
        discriminators: dict[str, Discriminator],
        start_step: Annotated[int, Ge(0)],
        generator_start_step: Annotated[int, Ge(0)],
        steps_per_update: Annotated[int, Ge(1)],
        leak: bool,
        alarm: Alarm,
    ) -> None:
        super().__init__()
        if not discriminators:
            raise ValueError("adversary.discriminators is empty: choose adversary=unet_sn, or another task")
        if start_step and generator_start_step:
            raise ValueError(
                f"adversary.start_step={start_step} and generator_start_step={generator_start_step}: in the first updates "
                "nothing would train; set one of them to 0"
            )
        for name, each in discriminators.items():
            each.begin(name)
        self.discriminators: Any = nn.ModuleDict(discriminators)
        self.generator_start_step = generator_start_step
        self.start_step, self.steps_per_update, self.leak, self.alarm = start_step, steps_per_update, leak, alarm
        alarm.register(list(discriminators))

    @classmethod
    def mistakes(cls, config: dict[str, Any]) -> Iterator[str]:
        """A generator that never begins, a learning rate that would rise. See RestorationTask.mistakes."""
        waits, updates = config["adversary"]["generator_start_step"], config["trainer"]["max_steps"]
        if waits >= updates:
            yield f"adversary.generator_start_step={waits}: trainer.max_steps={updates} ends before the generator begins"
        for name, each in config["adversary"]["discriminators"].items():
            yield from schedule_mistakes(f"adversary.discriminators.{name}.optimizer", each["schedule"], each["optimizer"])

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {name: each.network for name, each in self.discriminators.items()}

    @contextmanager
    def trainable(self, on: bool = True) -> Iterator[None]:
        """A context in which gradients reach the discriminators. DDP looks at requires_grad at its start only, so it never
        averages them."""
        for network in self.networks.values():
            network.requires_grad_(on)
        try:
            yield
        finally:
            for network in self.networks.values():
                network.requires_grad_(False)

    def opinion(self, asked: Mapping[str, Collection[str]], batch: Batch, fake: Tensor | None) -> dict[str, dict[str, Any]]:
        """What terms of the generator's loss name: fake_logits, fake_features, real_features, each by discriminator.

        Args: asked: discriminator -> which of them.    fake: (b, 3, h, w) restored, with its graph, where any is asked.
        """
        found: dict[str, dict[str, Any]] = {kind: {} for kind in ("fake_logits", "fake_features", "real_features")}
        for name, kinds in asked.items():
            each = self.discriminators[name]
            if "fake_features" in kinds:
                features = found["fake_features"][name] = each.network.features(each.seen(fake, batch))
                if "fake_logits" in kinds:
                    found["fake_logits"][name] = each.network.logits(features)
            elif "fake_logits" in kinds:
                found["fake_logits"][name] = each.network(each.seen(fake, batch))
            if "real_features" in kinds:
                with torch.no_grad():
                    found["real_features"][name] = each.network.features(each.real(batch))
        return found

"""Training against discriminators: SwinIR with a GAN (DT-BFR), ELAN (HGGT), CodeFormer I and III, GFPGAN."""

from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from data.batch import Batch
from losses.weighted import OfDiscriminator, Term, Terms, total
from train import ranks
from train.ranks import say
from train.tasks.discriminators import Adversary, ShowsFeatures
from train.tasks.task import RestorationTask, constructed


@constructed
class AdversarialTask(RestorationTask):
    """One generator and its discriminators; an update is the generator's step, then the discriminators'.

    All gradients of an update are taken before either steps, so that k accumulated batches of b are one batch of k * b. The
    discriminators are not in the Trainer's hands: it counts the generator's steps alone, and its DDP knows the generator
    alone; their gradients are averaged over the ranks here.

    Raises: ValueError: a term of the loss speaks `of` a discriminator that isn't there, no term of one that is, or
            `adaptive_at` names no parameter.
    """

    adversary: Adversary

    offers = RestorationTask.offers | {"fake_logits", "fake_features", "real_features"}
    kept = (
        *RestorationTask.kept,
        *(f"adversary.discriminators.*.{part}" for part in ("network", "part", "optimizer._target_")),
    )
    reads = frozenset({"components", "real"})

    @staticmethod
    def steps_per_update(config: dict[str, Any]) -> int:
        """Of the discriminators; the generator's comes with the last of them."""
        steps: int = config["adversary"]["steps_per_update"]
        return steps

    @staticmethod
    def all_at_once(config: dict[str, Any]) -> dict[str, Any]:
        node: dict[str, Any] = config["task"]
        starts = {key: node["adversary"][key] for key in ("start_step", "generator_start_step")}
        early = {key: 0 for key, step in starts.items() if step < config["trainer"]["max_steps"]}
        return {**node, "adversary": {**node["adversary"], **early}}

    def __post_init__(self) -> None:
        super().__post_init__()
        loss, adversary = self.loss, self.adversary
        terms = loss.of_discriminators()
        self.adversarial = set(terms)
        needs_features = loss.needing({"fake_features", "real_features"})
        if unsaid := loss.needing({"fake_logits", "fake_features", "real_features"}) - self.adversarial:
            raise ValueError(
                f"loss.terms.{min(unsaid)} needs a discriminator's answers and does not say whose: derive its class from "
                "losses.weighted.OfDiscriminator"
            )
        for name, term in terms.items():
            of = term.of
            if of not in adversary.discriminators:
                raise ValueError(
                    f"loss.terms.{name}.of={of}: there is no such discriminator (there are "
                    f"{', '.join(adversary.discriminators)})"
                )
            if name in needs_features and not isinstance(adversary.networks[of], ShowsFeatures):
                raise ValueError(
                    f"loss.terms.{name}.of={of}: {type(adversary.networks[of]).__name__} shows no features to match: take "
                    f"another discriminator, or leave the term out (~loss.terms.{name})"
                )
        if not self.adversarial:
            raise ValueError(
                "no term of loss.terms speaks of a discriminator: add losses.adversarial.Adversarial, or train "
                "with task=regression"
            )
        heard = {term.of for term in terms.values()}
        if unheard := [name for name in adversary.discriminators if name not in heard]:
            way_out = " ".join(f"~adversary.discriminators.{name}" for name in unheard)
            raise ValueError(
                f"no term of loss.terms speaks of {', '.join(unheard)} in adversary.discriminators, which would train for "
                f"nothing: add one with of: {unheard[0]}, or leave out what none hears ({way_out})"
            )
        self.adaptive = {
            name: _parameter(self.network, term.adaptive_at, name) for name, term in terms.items() if term.adaptive_at
        }
        if self.adaptive and self.adversarial == loss.terms.keys():
            raise ValueError(
                "adaptive_at weighs an adversarial term against the others of loss.terms, and there are none: add one"
            )
        self.scaler = GradScaler(enabled=False)  # the discriminators' own

    def setup(self, stage: str) -> None:
        """Lightning refuses accumulation and clipping with manual optimization, but looks before this: both are done here."""
        self.automatic_optimization = False
        fp16 = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if fp16 and self.adversary.generator_start_step:
            raise ValueError(
                f"trainer.precision={self.trainer.precision} can't leave out the generator's steps: set "
                "adversary.generator_start_step=0, or trainer.precision=bf16-mixed"
            )
        self.scaler = GradScaler(self.trainer.strategy.root_device.type, enabled=fp16)

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.update <= (waits := self.adversary.generator_start_step):
            say(f"adversary.generator_start_step: the generator stays as it is until update {waits} is done")

    def configure_model(self) -> None:
        if self._device_mesh is not None:
            raise ValueError("trainer=fsdp trains no discriminators: choose trainer=ddp")

    def configure_optimizers(self) -> Any:
        generator = self.make_optimizer()
        pairs = [(generator, self.schedule(optimizer=generator))]
        for each in self.adversary.discriminators.values():
            optimizer = each.make_optimizer(params=list(each.network.named_parameters()))
            pairs.append((optimizer, each.make_schedule(optimizer=optimizer)))
        return [{"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}} for optimizer, schedule in pairs]

    def plays(self, update: int) -> bool:
        """Whether the discriminators take part in this update: train, and are heard by the generator."""
        return update > self.adversary.start_step

    def left_out(self, update: int) -> set[str]:
        """Terms that speak of discriminators, while these don't take part."""
        return super().left_out(update) | (set() if self.plays(update) else self.adversarial)

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """Adds a micro-batch to the gradients; with the last one of an update, steps.

        With adversary.steps_per_update above 1 the micro-batches before the generator's train the discriminators alone.
        """
        update, batches = self.update, self.trainer.accumulate_grad_batches
        per_step = batches // self.adversary.steps_per_update  # micro-batches of one optimizer step
        number = batch_index % batches  # of this micro-batch within the update, from 0
        first = batches - per_step  # the first micro-batch that the generator trains on
        ends_step, ends_update = (number + 1) % per_step == 0, number == batches - 1
        plays, generator_waits = self.plays(update), update <= self.adversary.generator_start_step
        if number >= first and not generator_waits:
            with self._synchronised(ends_update), self.adversary.trainable(self.adversary.leak and number > first):
                made = self._generator_gradient(batch, update, per_step)
        elif plays:
            with torch.no_grad():
                made = self.run_network(batch)
        if plays:
            with self.adversary.trainable():
                self._discriminator_gradients(batch, made["restored"].detach(), update, per_step)
        logged = self.logs_this_update  # asked before the generator's step, which ends the update
        watched = self.adversary.alarm.take() if ends_update else {}
        if ends_update:
            self._generator_step()
        if plays and ends_step and (number < first or self.outcome != "dropped"):
            self._discriminator_steps(alone=number < first, averaged=list(watched.values()))
            self._watch(watched, update, logged)
        if ends_update:
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler.step()  # type: ignore[call-arg]

    def _generator_gradient(self, batch: Batch, update: int, per_step: int) -> dict[str, Any]:
        """Adds a micro-batch, of per_step that make a step, to the generator's gradient; returns what it made of it."""
        made, without = self.run_network(batch), self.left_out(update)
        opinion = self.adversary.opinion(self.loss.asked(update, without), batch, made.get("restored"))
        loss, terms = self.loss(update, without, **self.given(batch, made), **opinion)
        if self.adaptive.keys() & terms.keys():
            terms = self._balanced(terms)
            loss = total(terms.values())
        self.log_terms(loss, terms)
        self.manual_backward(loss / per_step)
        return made

    def _balanced(self, terms: Terms) -> Terms:
        """Adversarial terms weighed against the others at one parameter (VQGAN, Esser et al. 2021, eq. 7)."""
        others = total(term for name, term in terms.items() if name not in self.adversarial)
        scaler = self.scaler_of(self.trainer.optimizers[0])
        scale = float(scaler.get_scale()) if scaler else 1.0
        balanced, weights = dict(terms), self.loss.due(self.update)
        for name, parameter in self.adaptive.items():
            if name not in terms or not terms[name].weighted.requires_grad:
                continue  # not on in this update, or of weight 0 and only looked at
            term, weight = terms[name], weights[name]
            share = OfDiscriminator.adaptive_weight(others, term.weighted / weight, parameter, scale)
            balanced[name] = Term(term.raw, share * term.weighted)
        return balanced

    def _discriminator_gradients(self, batch: Batch, fake: Tensor, update: int, per_step: int) -> None:
        """Adds a micro-batch to each discriminator's gradient. fake: (b, 3, h, w) restored, without a graph."""
        watched = {}
        for name, each in self.adversary.discriminators.items():
            judged = each.judge(update, batch, fake)
            loss, terms = each.loss(update, **judged)
            self.scaler.scale(loss / per_step).backward()
            means = {f"{name}.{kind}": judged[f"{kind}_logits"].detach().float().mean() for kind in ("real", "fake")}
            raw = {f"{name}.{term}": value.raw for term, value in terms.items()}
            self.note_nonfinite(raw)
            if self.logs_this_update:
                self.row.add({f"train/{key}": value for key, value in {**raw, **means}.items()})
            watched[f"{name}_loss"] = next(iter(terms.values())).raw
            watched[f"{name}_gap"] = means[f"{name}.real"] - means[f"{name}.fake"]
        if len(fake) > 1:
            watched["variety"] = fake.float().std(dim=0).mean() / batch["hq"].std(dim=0).mean().clamp(min=1e-6)
        self.adversary.alarm.add(watched)

    def _watch(self, values: dict[str, Tensor], update: int, logged: bool) -> None:
        """Counts the update in the alarm, on every rank alike. values: none yet within an update."""
        counts = self.adversary.alarm.watch(values, update, logged)
        if logged:
            self.row.put({f"alarm/{what}": count for what, count in counts.items()})

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Gradients are whole and unscaled here; train/runs/nonfinite.py has had its look."""
        self._clip(optimizer)

    def _clip(self, optimizer: Optimizer) -> None:
        if self.trainer.gradient_clip_val:
            self.clip_gradients(optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm)

    def _generator_step(self) -> None:
        """Before adversary.generator_start_step there are no gradients: it changes nothing but the count of updates."""
        generator: Any = self.optimizers()[0]  # type: ignore[index]
        generator.step()
        generator.zero_grad()
        self.after_step()

    def scaler_of(self, optimizer: Optimizer) -> GradScaler | None:
        """The discriminators have one of their own: an overflow on one side leaves the other's step as it is."""
        generators = super().scaler_of(optimizer)
        return self.scaler if generators and optimizer in self.trainer.optimizers[1:] else generators

    def _discriminator_steps(self, alone: bool, averaged: list[Tensor]) -> None:
        """alone: without the generator, whose step lets train/runs/nonfinite.py look at all gradients.

        averaged: scalars that become their means over the ranks, on the way of the gradients.
        """
        ranks.average([p.grad for p in self.adversary.parameters() if p.grad is not None] + averaged)
        for optimizer in self.trainer.optimizers[1:]:
            self.scaler.unscale_(optimizer)
            self._clip(optimizer)
            if not alone or self.scaler.is_enabled() or _finite(optimizer):
                self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()

    def _synchronised(self, on: bool) -> Any:
        """Whether the ranks' gradients of the generator are averaged in the backward pass within."""
        strategy = self.trainer.strategy
        return nullcontext() if on or not isinstance(strategy, ParallelStrategy) else strategy.block_backward_sync()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["discriminator_scaler"] = self.scaler.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if state := checkpoint["discriminator_scaler"]:  # none of another run that needed no scaler
            self.scaler.load_state_dict(state)


def _parameter(network: nn.Module, path: str, term: str) -> nn.Parameter:
    try:
        parameter = network.get_parameter(path)
    except AttributeError as error:
        known = [name for name, _ in network.named_parameters()]
        raise ValueError(
            f"loss.terms.{term}.adaptive_at={path}: the network has no such parameter; its last is {known[-1]}"
        ) from error
    if not parameter.requires_grad:
        raise ValueError(f"loss.terms.{term}.adaptive_at={path} is frozen: name a parameter that is trained")
    return parameter


def _finite(optimizer: Optimizer) -> bool:
    """The same answer on every rank, as their gradients are averaged."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients, dtype=torch.float32))).all())

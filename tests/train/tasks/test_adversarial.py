"""The adversarial engine against a loop written out by hand, and what it promises about counts, freezing and going on."""

import math
from collections.abc import Callable, Iterator
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils.data import DataLoader

from losses.adversarial import R1, Adversarial, Discriminate
from losses.pixel import L1
from losses.weighted import Loss, LossSet, Scheduled
from train.runs.building import quieten
from train.runs.nonfinite import Diverged, NonFiniteGuard
from train.tasks import adversarial, row
from train.tasks.adversarial import AdversarialTask
from train.tasks.discriminators import Adversary, Alarm, Discriminator
from train.tasks.validation import Validation

SGD = partial(torch.optim.SGD, lr=0.5)
CONSTANT = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0, total_iters=0)


def generator() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))


def discriminator() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Softplus(), nn.Conv2d(4, 1, 1))


def quiet_alarm(**changes: Any) -> Alarm:
    return Alarm(**{"loss": (0, 1e9), "gap": (-1e9, 1e9), "variety": 0.0, "steps": 10**6, **changes})


def task(
    *,
    terms: dict[str, Any] | None = None,
    d_terms: dict[str, Any] | None = None,
    optimizer: Callable[..., Any] = SGD,
    d_optimizer: Callable[..., Any] = SGD,
    schedule: Callable[..., Any] = CONSTANT,
    ema_decay: float | None = None,
    alarm: Alarm | None = None,
    **engine: Any,
) -> AdversarialTask:
    gan = {"l1": L1(weight=1.0, reduction="mean"), "gan": Adversarial(weight=0.3, kind="vanilla", of="image", adaptive_at=None)}
    image = Discriminator(
        network=discriminator(),
        loss=LossSet(terms=d_terms or {"gan": Discriminate(weight=1.0, kind="vanilla")}),
        optimizer=d_optimizer,
        schedule=CONSTANT,
        ckpt=None,
        part=None,
    )
    adversary = Adversary(
        discriminators={"image": image},
        **{
            "start_step": 0,
            "generator_start_step": 0,
            "steps_per_update": 1,
            "leak": False,
            "alarm": alarm or quiet_alarm(),
            **engine,
        },
    )
    made = AdversarialTask(
        network=generator(),
        adversary=adversary,
        loss=LossSet(terms=terms or gan),
        optimizer=optimizer,
        schedule=schedule,
        parts=None,
        ema_decay=ema_decay,
        validation=Validation(lpips=None, pictures=0, luma=False, border_px=0),
    )
    made.config = {"seed": 0}
    return made


def batches(size: int, count: int = 64) -> list[dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(size * count, 2, 3, 9, 9, generator=rng)
    place = torch.arange(size * count)
    return [
        {"lq": images[at, 0], "hq": images[at, 1], "position": place[at], "unreadable": torch.zeros(size, dtype=torch.int64)}
        for at in place.split(size)
    ]


class Recorder(DummyLogger):
    """What every update logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:  # type: ignore[override]
        self.rows.append(metrics)


def fit(made: AdversarialTask, size: int, updates: int, accumulate: int = 1, **options: Any) -> list[dict[str, float]]:
    quieten()
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=updates,
        accumulate_grad_batches=accumulate * made.adversary.steps_per_update,
        logger=recorder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"log_every_n_steps": 1, **options},
    )
    trainer.fit(made, DataLoader(batches(size), batch_size=None))
    assert trainer.global_step == updates
    return recorder.rows


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def networks(made: AdversarialTask) -> tuple[Tensor, Tensor]:
    return weights(made.network), weights(made.adversary.networks["image"])


def by_hand(updates: int, *, clip: float | None = None, r1_every: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Weights of G, D and the average of G after each update: G's step, then D's, on what G made before its step."""
    bce = nn.functional.binary_cross_entropy_with_logits
    g, d = generator(), discriminator()
    g_optimizer, d_optimizer = SGD(g.parameters()), SGD(d.parameters())
    average = weights(g)
    for number, batch in enumerate(batches(4)[:updates], start=1):
        fake = g(batch["lq"])
        logits = d(fake)
        (nn.functional.l1_loss(fake, batch["hq"]) + 0.3 * bce(logits, torch.ones_like(logits))).backward()
        if clip:
            nn.utils.clip_grad_norm_(g.parameters(), clip)
        g_optimizer.step()
        d.zero_grad()
        hq = batch["hq"].clone().requires_grad_()
        real, made = d(hq), d(fake.detach())
        loss = bce(real, torch.ones_like(real)) + bce(made, torch.zeros_like(made))
        if r1_every and number % r1_every == 0:
            (slope,) = torch.autograd.grad(real.sum(), hq, create_graph=True)
            loss = loss + 0.1 / 2 * r1_every * slope.square().flatten(1).sum(1).mean()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(d.parameters(), clip)
        d_optimizer.step()
        g.zero_grad()
        d.zero_grad()
        average = 0.9 * average + 0.1 * weights(g)
        yield weights(g), weights(d), average


def test_equals_the_loop_by_hand() -> None:
    made = task(ema_decay=0.9)
    fit(made, 4, 5)
    *_, (g, d, average) = by_hand(5)
    assert torch.allclose(networks(made)[0], g, atol=1e-6)
    assert torch.allclose(networks(made)[1], d, atol=1e-6)
    assert made.ema is not None
    assert torch.allclose(weights(made.ema.average), average, atol=1e-6), "the generator alone is averaged"
    assert not torch.allclose(g, weights(generator()), atol=1e-3)
    assert not torch.allclose(d, weights(discriminator()), atol=1e-3)


def test_both_are_clipped() -> None:
    made = task()
    fit(made, 4, 3, gradient_clip_val=0.05)
    *_, (g, d, _) = by_hand(3, clip=0.05)
    assert torch.allclose(networks(made)[0], g, atol=1e-6)
    assert torch.allclose(networks(made)[1], d, atol=1e-6)


def test_r1_comes_every_so_many_updates() -> None:
    made = task(d_terms={"gan": Discriminate(weight=1.0, kind="vanilla"), "r1": R1(weight=0.1, every_n_steps=3)})
    rows = fit(made, 4, 7)
    *_, (_, d, _) = by_hand(7, r1_every=3)
    assert torch.allclose(networks(made)[1], d, atol=1e-6)
    assert next(n for n, row in enumerate(rows, start=1) if row.get("train/image.r1")) == 3
    *_, (_, without, _) = by_hand(7)
    assert not torch.allclose(d, without, atol=1e-4)


def test_k_batches_of_b_are_one_of_kb() -> None:
    parts, whole = task(), task()
    fit(parts, 2, 4, accumulate=3)
    fit(whole, 6, 4)
    for one, other in zip(networks(parts), networks(whole), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_steps_of_the_discriminator_in_an_update() -> None:
    """Each on samples of its own: with a generator that stands still, 3 in each of 2 updates are 6 updates of 1."""
    still = partial(torch.optim.SGD, lr=0.0)
    three, one = task(optimizer=still, steps_per_update=3), task(optimizer=still)
    fit(three, 4, 2)
    fit(one, 4, 6)
    assert torch.allclose(networks(three)[1], networks(one)[1], atol=1e-6)
    accumulated = task(optimizer=still, steps_per_update=3)
    fit(accumulated, 2, 2, accumulate=2)
    assert torch.allclose(networks(accumulated)[1], networks(one)[1], atol=1e-6)


def test_the_generator_trains_alone_before_start_step() -> None:
    made = task(start_step=3)
    fit(made, 4, 3)
    assert torch.equal(networks(made)[1], weights(discriminator()))
    alone = task(
        terms={
            "l1": L1(weight=1.0, reduction="mean"),
            "gan": Adversarial(weight=0.0, kind="vanilla", of="image", adaptive_at=None),
        }
    )
    fit(alone, 4, 3)
    assert torch.allclose(networks(made)[0], networks(alone)[0], atol=1e-6)
    later = task(start_step=3)
    rows = fit(later, 4, 4)
    assert not torch.equal(networks(later)[1], weights(discriminator()))
    assert ["train/gan" in row for row in rows] == [False, False, False, True]


def test_the_discriminator_is_untouched_in_the_generators_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    backward = AdversarialTask.manual_backward

    def look(self: AdversarialTask, loss: Tensor, **_: Any) -> None:
        before = [p.grad for p in self.adversary.parameters()]
        assert not any(p.requires_grad for p in self.adversary.parameters())
        backward(self, loss)
        after = [p.grad for p in self.adversary.parameters()]
        seen.append([a is b for a, b in zip(before, after, strict=True)])

    monkeypatch.setattr(AdversarialTask, "manual_backward", look)
    fit(task(), 2, 2, accumulate=2)
    assert len(seen) == 4
    assert all(all(each) for each in seen[0::2]), "gradients of the discriminator appear in the generator's backward pass"


def test_leak_as_dtbfrs_code() -> None:
    """From the second accumulated batch on, the discriminator's gradient has the generator's adversarial one in it."""
    bce = nn.functional.binary_cross_entropy_with_logits
    leaking, clean = task(leak=True), task()
    fit(leaking, 4, 1, accumulate=2)
    fit(clean, 4, 1, accumulate=2)
    g, d = generator(), discriminator()
    logits = d(g(batches(4)[1]["lq"]))
    (0.3 * bce(logits, torch.ones_like(logits)) / 2).backward()
    leaked = torch.cat([p.grad.flatten() for p in d.parameters()])
    assert torch.allclose(networks(leaking)[1] - networks(clean)[1], -0.5 * leaked, atol=1e-6)
    assert torch.allclose(networks(leaking)[0], networks(clean)[0], atol=1e-7)


def test_adaptive_weight() -> None:
    """The adversarial gradient at the last layer becomes as long as that of the others, at most the weight times."""
    l1 = L1(weight=2.0, reduction="mean")
    made = task(terms={"l1": l1, "gan": Adversarial(weight=0.8, kind="hinge", of="image", adaptive_at="2.weight")})
    rows = fit(made, 4, 1)
    g, d, batch = generator(), discriminator(), batches(4)[0]
    fake = g(batch["lq"])
    of_l1 = torch.autograd.grad(2 * nn.functional.l1_loss(fake, batch["hq"]), g[2].weight, retain_graph=True)[0].norm()
    of_gan = torch.autograd.grad(-d(fake).mean(), g[2].weight)[0].norm()
    share = float((of_l1 / (of_gan + 1e-4)).clamp(0, 1))
    assert rows[0]["weighted/gan"] == pytest.approx(0.8 * share * rows[0]["train/gan"], rel=1e-5)
    assert rows[0]["train/loss"] == pytest.approx(2 * rows[0]["train/l1"] + rows[0]["weighted/gan"], rel=1e-5)
    with pytest.raises(ValueError, match=r"loss.terms.gan.adaptive_at=3.weight: the network has no such parameter"):
        task(terms={"l1": l1, "gan": Adversarial(weight=1.0, kind="hinge", of="image", adaptive_at="3.weight")})

    with pytest.raises(
        ValueError, match=r"adaptive_at weighs an adversarial term against the others of loss.terms, and there are"
    ):
        task(terms={"gan": Adversarial(weight=1.0, kind="hinge", of="image", adaptive_at="2.weight")})


def test_schedules_and_gradient_norms() -> None:
    gan = Adversarial(
        weight=Scheduled(value=0.4, from_step=1, until_step=3, ramp_steps=2), kind="vanilla", of="image", adaptive_at=None
    )
    made = task(terms={"l1": L1(weight=1.0, reduction="mean"), "gan": gan})
    made.loss.log_grad_norms = True
    made.schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1)
    rows = fit(made, 4, 5)
    ratio = [row["weighted/gan"] / row["train/gan"] if "train/gan" in row else None for row in rows[:3]]
    assert ratio == [None, pytest.approx(0.2), pytest.approx(0.4)]
    assert ["train/gan" in row for row in rows] == [False, True, True, False, False]
    assert [row["lr"] for row in rows] == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])
    assert rows[0]["grad_norm/l1"] > 0
    assert "grad_norm/gan" not in rows[0]
    assert rows[1]["grad_norm/gan"] > 0


def fit_fp16(
    made: AdversarialTask, updates: int, scale: float, d_scale: float, growth_interval: int = 2000
) -> tuple[float, float]:
    """With train/runs/nonfinite.py, as every run; returns the scales at the end, the generator's and the discriminators'."""
    plugin = MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=scale, growth_interval=growth_interval))

    def setup(stage: str) -> None:
        AdversarialTask.setup(made, stage)
        assert made.scaler.is_enabled()
        made.scaler.load_state_dict(GradScaler("cpu", init_scale=d_scale, growth_interval=growth_interval).state_dict())

    made.setup = setup  # type: ignore[method-assign]
    fit(made, 4, updates, plugins=[plugin], callbacks=[NonFiniteGuard(max_in_a_row=2)])
    assert plugin.scaler is not None
    return plugin.scaler.get_scale(), made.scaler.get_scale()


def average(made: AdversarialTask) -> Tensor:
    assert made.ema is not None
    return weights(made.ema.average)


def test_fp16_scales_both_apart() -> None:
    """Without an overflow it is the training in float32."""
    made, plain = task(), task()
    fit(plain, 4, 2)
    assert fit_fp16(made, 2, scale=2.0**10, d_scale=2.0**10) == (2.0**10, 2.0**10)
    for one, other in zip(networks(made), networks(plain), strict=True):
        assert torch.allclose(one, other, atol=2e-3)


def test_fp16_overflow_of_a_discriminator_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Its step is left out, its gradients are zeroed and its scale is halved; the generator and its average go on."""
    made, plain = task(ema_decay=0.5), task(ema_decay=0.5)
    before = networks(made)
    fit(plain, 4, 1)
    assert fit_fp16(made, 1, scale=2.0**10, d_scale=2.0**120) == (2.0**10, 2.0**119)
    assert torch.equal(networks(made)[1], before[1])
    assert all(p.grad is None for p in made.adversary.parameters())
    assert torch.allclose(networks(made)[0], networks(plain)[0], atol=2e-3)
    assert torch.allclose(average(made), average(plain), atol=2e-3)
    assert not torch.equal(average(made), before[0])
    assert made.outcome == "done"
    assert "skipped" not in capsys.readouterr().out, "the guard leaves it to the scaler"


def test_fp16_overflow_of_the_generator_is_its_own() -> None:
    """The discriminators step in the same update: their gradients do not pile up until the generator goes on."""
    made, plain = task(ema_decay=0.5), task()
    before, told = networks(made), []
    assert made.ema is not None
    nn.utils.vector_to_parameters(torch.zeros_like(before[0]), made.ema.average.parameters())  # what an update would move
    made.loss.after_update = lambda skipped: told.append(skipped)  # type: ignore[method-assign]
    fit(plain, 4, 1)
    assert fit_fp16(made, 1, scale=2.0**120, d_scale=2.0**10) == (2.0**119, 2.0**10)
    assert torch.equal(networks(made)[0], before[0])
    assert not average(made).any()
    assert made.outcome == "left to the scaler"
    assert told == [True]
    assert torch.allclose(networks(made)[1], networks(plain)[1], atol=2e-3)
    assert not torch.equal(networks(made)[1], before[1])
    assert all(p.grad is None for p in made.adversary.parameters())


def test_fp16_both_sides_go_on_after_overflows() -> None:
    """Scales that double with each good step overflow again and again; each time they halve and training goes on."""
    made = task(ema_decay=0.5)
    seen = []
    made.on_train_batch_end = lambda *_: seen.append((*networks(made), average(made)))  # type: ignore[assignment, method-assign, misc]
    fit_fp16(made, 40, scale=2.0**24, d_scale=2.0**24, growth_interval=1)
    for side, what in enumerate(("generator", "discriminator", "average")):
        moved = [not torch.equal(one[side], other[side]) for one, other in pairwise(seen)]
        assert not moved[0], f"{what}: rigged to overflow at first"
        assert sum(moved[20:]) > 5, what


@pytest.mark.parametrize(("what", "d_scale"), [("image.gan", 2.0**10), ("the gradient", 0.5)])
def test_fp16_nan_of_a_discriminator_is_dropped(
    what: str, d_scale: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the guard: a loss that is NaN is no overflow, nor is a gradient that its scale made smaller. Nothing moves."""
    made = task(ema_decay=0.5)
    before = networks(made)
    whole = Discriminate.forward

    @wraps(whole)
    def forward(*args: Any, **named: Any) -> Tensor:
        loss = whole(*args, **named)
        return loss + (0 * loss).sqrt() if what == "the gradient" else loss * math.nan

    monkeypatch.setattr(Discriminate, "forward", forward)
    with pytest.raises(Diverged, match="not one update was finite"):
        fit_fp16(made, 1, scale=2.0**10, d_scale=d_scale)
    assert f"update 1 is skipped (1 in a row): not finite: {what}\n" in capsys.readouterr().out
    for one, other in zip((*networks(made), average(made)), (*before, before[0]), strict=True):
        assert torch.equal(one, other)
    assert made.outcome == "dropped"
    assert made.scaler.get_scale() == d_scale
    assert all(p.grad is None for p in made.adversary.parameters())


def test_the_scaler_of_the_discriminators_is_kept(tmp_path: Path) -> None:
    def trainer(updates: int) -> L.Trainer:
        plugin = MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=2.0**10))
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        return L.Trainer(accelerator="cpu", max_steps=updates, plugins=[plugin], logger=False, **quiet)

    loader, first = DataLoader(batches(4), batch_size=None), task()
    before = trainer(2)
    before.fit(first, loader)
    first.scaler.load_state_dict({**first.scaler.state_dict(), "scale": 512.0, "_growth_tracker": 7})
    before.save_checkpoint(tmp_path / "run.ckpt")
    second, after = task(), trainer(4)
    after.fit(second, loader, ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert after.global_step == 4
    assert second.scaler.state_dict()["scale"] == 512.0
    assert second.scaler.state_dict()["_growth_tracker"] == 9


def test_bf16_with_r1() -> None:
    made = task(d_terms={"gan": Discriminate(weight=1.0, kind="vanilla"), "r1": R1(weight=0.1, every_n_steps=1)})
    fit(made, 4, 3, precision="bf16-mixed")
    *_, (g, d, _) = by_hand(3, r1_every=1)
    assert torch.allclose(networks(made)[0], g, atol=2e-2)
    assert torch.allclose(networks(made)[1], d, atol=5e-2)


def test_the_alarm_says_that_a_discriminator_has_won(capsys: pytest.CaptureFixture[str]) -> None:
    """Rigged: its logits tell everything apart from the start, and it does not learn."""
    made = task(d_optimizer=partial(torch.optim.SGD, lr=0.0), alarm=quiet_alarm(loss=(0.01, 20), gap=(-1, 30), steps=3))
    made.adversary.discriminators["image"].network = Rigged(real=40.0, fake=-40.0)
    rows = fit(made, 4, 7)
    printed = capsys.readouterr().out
    assert printed.count("for 3 updates in a row loss of discriminator image is ") == 1
    assert "outside of adversary.alarm.loss=[0.01, 20]: it tells all images apart" in printed
    assert printed.count("for 6 updates in a row") == 2, "again after as many"
    assert "gap of discriminator image is 80, outside of adversary.alarm.gap=[-1, 30]: it tells all images apart" in printed
    assert [row["alarm/image_loss"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert (rows[0]["train/image.real"], rows[0]["train/image.fake"]) == pytest.approx((40, -40))


def test_the_alarm_counts_updates_and_not_micro_batches() -> None:
    """It watches their mean: (80 + 4 + 4 + 4) / 4 = 23 lies within [-1, 30], each first micro-batch does not."""
    frozen = partial(torch.optim.SGD, lr=0.0)
    won = task(d_optimizer=frozen, alarm=quiet_alarm(gap=(-1, 30)))
    won.adversary.discriminators["image"].network = Rigged(real=40.0, fake=-40.0)
    rows = fit(won, 2, 3, accumulate=4)
    assert [row["alarm/image_gap"] for row in rows] == [1, 2, 3]
    alarm = task(d_optimizer=frozen, alarm=quiet_alarm(gap=(-1, 30))).adversary.alarm
    for gap in (80.0, 4.0, 4.0, 4.0):
        alarm.add({"image_gap": torch.tensor(gap)})
    assert alarm.watch(alarm.take(), 1, logged=False)["image_gap"] == 0
    alarm.add({"image_gap": torch.tensor(80.0)})
    assert alarm.watch(alarm.take(), 2, logged=False)["image_gap"] == 1, "the update before counts no more"


def test_the_alarm_watches_the_mean_over_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank's gap is 4: with 80 the mean is 42, outside of [-1, 30], and with 40 it is 22, within."""
    exchanges = []

    def average(tensors: list[Tensor]) -> None:
        exchanges.append([each.ndim for each in tensors].count(0))
        for each in tensors:
            if not each.ndim:
                each.copy_((each + 4) / 2)

    monkeypatch.setattr(adversarial.ranks, "average", average)
    for logit, wanted in ((40.0, [1, 2, 3]), (20.0, [0, 0, 0])):
        made = task(d_optimizer=partial(torch.optim.SGD, lr=0.0), alarm=quiet_alarm(gap=(-1, 30)), steps_per_update=2)
        made.adversary.discriminators["image"].network = Rigged(real=logit, fake=-logit)
        assert [row["alarm/image_gap"] for row in fit(made, 4, 3)] == wanted
    assert exchanges == [0, 3] * 6, "one for each step; loss, gap and variety with the last of an update"


def test_a_row_is_the_mean_over_the_micro_batches() -> None:
    """Values of each computed here with the weights that all four see; what the generator's step is not in is averaged too."""
    rows = fit(task(), 2, 1, accumulate=4)
    g, d = generator(), discriminator()
    with torch.no_grad():
        l1 = [nn.functional.l1_loss(g(batch["lq"]), batch["hq"]) for batch in batches(2)[:4]]
        fake = [d(g(batch["lq"])).mean() for batch in batches(2)[:4]]
    assert rows[0]["train/l1"] == pytest.approx(float(torch.stack(l1).mean()), rel=1e-6)
    assert rows[0]["train/image.fake"] == pytest.approx(float(torch.stack(fake).mean()), rel=1e-5)
    assert rows[0]["train/l1"] != pytest.approx(float(l1[-1]), rel=1e-3), "no two micro-batches are alike"
    assert rows[0]["train/loss"] == pytest.approx(rows[0]["weighted/l1"] + rows[0]["weighted/gan"], rel=1e-6)
    assert rows[0]["lr"] == 0.5


def test_a_row_of_the_discriminators_own_batches() -> None:
    """With three steps in an update the generator trains on the last batch alone: its values are that batch's."""
    still = partial(torch.optim.SGD, lr=0.0)
    rows = fit(task(optimizer=still, d_optimizer=still, steps_per_update=3), 2, 1)
    g, d = generator(), discriminator()
    with torch.no_grad():
        l1 = [float(nn.functional.l1_loss(g(batch["lq"]), batch["hq"])) for batch in batches(2)[:3]]
        real = [float(d(batch["hq"]).mean()) for batch in batches(2)[:3]]
    assert rows[0]["train/l1"] == pytest.approx(l1[2], rel=1e-6)
    assert rows[0]["train/image.real"] == pytest.approx(sum(real) / 3, rel=1e-5)


def test_ranks_talk_in_logged_updates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(row.ranks, "gather", lambda value: calls.append(value) or [value])
    assert len(fit(task(), 2, 7, accumulate=2, log_every_n_steps=3)) == len(calls) == 3, "updates 3, 6 and the last"


def test_the_alarm_says_that_a_discriminator_is_worse_than_chance(capsys: pytest.CaptureFixture[str]) -> None:
    made = task(d_optimizer=partial(torch.optim.SGD, lr=0.0), alarm=quiet_alarm(loss=(0.01, 20), gap=(-1, 30), steps=2))
    made.adversary.discriminators["image"].network = Rigged(real=-12.0, fake=12.0)
    rows = fit(made, 4, 2)
    printed = capsys.readouterr().out
    assert rows[0]["train/image.gan"] == pytest.approx(2 * math.log1p(math.exp(12))), "softplus of 12 for each side"
    assert "loss of discriminator image is 24, outside" in printed
    assert "it judges worse than chance" in printed


def test_the_alarm_says_that_all_faces_become_one(capsys: pytest.CaptureFixture[str]) -> None:
    made = task(optimizer=partial(torch.optim.SGD, lr=0.0), alarm=quiet_alarm(variety=0.1, steps=2))
    nn.init.zeros_(made.network[2].weight)  # type: ignore[index]
    fit(made, 4, 2)
    assert "restored images vary 0 times as much as HQ (adversary.alarm.variety=0.1)" in capsys.readouterr().out
    healthy = task(alarm=quiet_alarm(variety=0.1, steps=2))
    rows = fit(healthy, 4, 2)
    assert rows[-1]["alarm/variety"] == 0


class Rigged(nn.Module):
    """Knows real images, which fill [0, 1], from the first call on."""

    def __init__(self, real: float, fake: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answers = (real, fake)

    def forward(self, image: Tensor) -> Tensor:
        is_real = image.min() >= 0 and image.max() > 0.9
        return self.answers[0 if is_real else 1] + 0 * image.mean((1, 2, 3)) + 0 * self.weight


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"loss.terms.gan.of=face: there is no such discriminator \(there are image\)"):
        task(terms={"gan": Adversarial(weight=1.0, kind="vanilla", of="face", adaptive_at=None)})
    with pytest.raises(ValueError, match=r"no term of loss.terms speaks of a discriminator"):
        task(terms={"l1": L1(weight=1.0, reduction="mean")})
    with pytest.raises(ValueError, match=r"loss.terms.l1 needs \['restored', 'hq'\], but a discriminator offers only"):
        task(d_terms={"l1": L1(weight=1.0, reduction="mean")})

    class Unsaid(Loss):
        def forward(self, fake_logits: dict[str, Tensor]) -> Tensor:
            return -fake_logits["image"].mean()

    with pytest.raises(ValueError, match=r"loss.terms.gan needs a discriminator's answers and does not say whose: derive its"):
        task(terms={"l1": L1(weight=1.0, reduction="mean"), "gan": Unsaid(weight=1.0)})

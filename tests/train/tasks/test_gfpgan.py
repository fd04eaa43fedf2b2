"""GFPGAN's training at toy size: all discriminators, warm-up from released weights, what is frozen, kills, and two ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from losses.adversarial import Discriminate, PathLength
from losses.identity import EmbeddingL1
from losses.weighted import LossSet
from models.arcface import ResNetArcFace
from models.components import PARTS, Part, boxes_of, cut
from models.files import official
from models.gfpgan import GFPGANv1, GFPGANv1Clean, to_clean
from models.stylegan2 import StyleGAN2Generator
from tests.toy import write_photographs
from tests.train.runs.kills import Attempt, differences, explain, kill_and_finish, reference
from tests.train.runs.victim import Moment
from train.jobs.cli import compose
from train.jobs.config import plain
from train.runs.curves import read_rows
from train.tasks.adversarial import AdversarialTask
from train.tasks.discriminators import Discriminator

Cli = Callable[..., tuple[int, str]]

SIDE = 32
NARROW = 1 / 32
PRIOR: dict[str, Any] = {"out_size": SIDE, "num_style_feat": 16, "num_mlp": 1, "channel_multiplier": 1, "narrow": NARROW}
NETWORK = [f"network.{key}={value}" for key, value in PRIOR.items()]
RUN = [
    *("data.val_images=2", "data.batch_size=2", "data.num_workers=0", "validation.lpips=null", "checkpoint.every_n_steps=2"),
    *("trainer.max_steps=3", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu"),
    *("trainer.accumulate_grad_batches=1", "trainer.enable_progress_bar=false", "name=run"),
    *("~loss.terms.vgg", f"adversary.discriminators.image.network.narrow={NARROW}"),
]
FULL = [
    *RUN,
    "loss.terms.id.embedder.network.layers=[1,1,1,1]",
]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs/, components.csv, prior.pth, clean.pth and weights/, all small and in the official forms."""
    folder = tmp_path_factory.mktemp("gfpgan")
    photographs = write_photographs(folder / "photographs", count=8, size=SIDE)
    places = {"left_eye": (12, 15, 2.5), "right_eye": (20, 15.5, 2), "mouth": (16.5, 23, 4)}
    columns = ["path", "side_px", *(f"{part}_{what}" for part in PARTS for what in ("x", "y", "half"))]
    rows = [[path.name, SIDE, *(value for part in PARTS for value in places[part])] for path in sorted(photographs.iterdir())]
    (folder / "components.csv").write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]) + "\n")
    torch.manual_seed(0)
    prior = StyleGAN2Generator(**PRIOR, resample_kernel=[1, 3, 3, 1], lr_mlp=0.01)
    with torch.no_grad():
        for name, value in prior.named_parameters():
            if (name.startswith("style_conv") and name.endswith("conv1.weight")) or value.shape == (1,):
                value.fill_(0.1)  # of the noise, which begins at 0 in training from nothing
    torch.save({"params_ema": prior.state_dict()}, folder / "prior.pth")
    common: dict[str, Any] = {**PRIOR, "fix_decoder": False, "different_w": True, "sft_half": True}
    clean = GFPGANv1Clean(**common)
    torch.save({"params_ema": clean.state_dict()}, folder / "clean.pth")
    (folder / "weights").mkdir()
    torch.save(ResNetArcFace(layers=[1, 1, 1, 1]).state_dict(prefix="module."), folder / "weights" / "arcface_resnet18.pth")
    return folder


def full(given: Path, *more: str) -> list[str]:
    own = [f"data.root={given}/photographs", f"data.components={given}/components.csv", f"weights.dir={given}/weights"]
    return ["model=gfpgan_ffhq", f"init.prior={given}/prior.pth", *NETWORK, *FULL, *own, *more]


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def part(run: Path, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in last(run)["state_dict"].items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def run(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three updates of all that there is."""
    attempt = Attempt(
        tmp_path_factory.mktemp("run"), full(given, "adversary.discriminators.image.loss.terms.r1.every_n_steps=2")
    )
    assert attempt.wait() == 0, attempt.printed
    return attempt.cwd / "runs" / "run"


def test_all_discriminators_train_beside_a_frozen_prior(given: Path, run: Path) -> None:
    network, prior = part(run, "network."), official.read(given / "prior.pth").state
    for prefix in ("network.", "ema.average."):
        decoder = part(run, f"{prefix}stylegan_decoder.")
        assert all(torch.equal(decoder[key], value) for key, value in prior.items())
    rows = read_rows(run / "metrics.csv")
    for name in ("image", *PARTS):
        assert all(float(row[f"train/{name}.gan"]) > 0 for row in rows[:3])
    assert [bool(row["train/image.r1"]) for row in rows[:3]] == [False, True, False]
    weighted = sum(float(rows[0][key]) for key in rows[0] if key.startswith("weighted/") and rows[0][key])
    assert weighted == pytest.approx(float(rows[0]["train/loss"]), rel=1e-5)
    assert {key.partition("/")[2] for key in rows[0] if key.startswith("weighted/")} == {
        *("l1", "pyramid", "gan", "id"),
        *(f"{kind}_{each}" for each in PARTS for kind in ("gan", "style")),
    }
    steps = [next(iter(state["state"].values()))["step"] for state in last(run)["optimizer_states"]]
    assert steps == [3] * 5
    assert any(not torch.equal(network[key], part(run, "ema.average.")[key]) for key in network)


def test_a_run_goes_on_from_the_discriminators_of_another(given: Path, run: Path, cli: Cli, tmp_path: Path) -> None:
    held = ["trainer.max_steps=1", "optimizer.lr=1e-12", "name=second", "init.prior=null"]
    ckpts = [f"adversary.discriminators.{name}.ckpt={run}" for name in ("image", *PARTS)]
    code, printed = cli(*full(given, f"init.ckpt={run}", *ckpts, *held))
    assert code == 0, printed
    for name in ("image", *PARTS):
        one, two = (part(each, f"adversary.discriminators.{name}.") for each in (run, tmp_path / "runs" / "second"))
        assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)
    code, printed = cli(*full(given, f"adversary.discriminators.mouth.ckpt={given}/clean.pth", "name=third"))
    assert code == 1
    assert f"adversary.discriminators.mouth.ckpt={given}/clean.pth" in printed
    assert "give the discriminator's own file, or a run with one" in printed


def test_boxes_are_needed(given: Path, cli: Cli) -> None:
    code, printed = cli(*full(given, "data.components=null"))
    assert code == 1
    assert "sees a part of the face, and the data don't say where it is: give data.components=FILE" in printed


def test_a_run_starts_from_a_prior_or_from_a_whole_network(given: Path, cli: Cli) -> None:
    for more, message in (
        (["init.prior=null"], "init.prior is not set, and this recipe starts from trained weights: give init.prior=FILE"),
        ([f"init.ckpt={given}/clean.pth"], "the second holds a prior as well; give one of them"),
        ([f"init.prior={given}/clean.pth"], "does not fit StyleGAN2Generator"),
        (["init.prior=nowhere.pth"], "nowhere.pth does not exist"),
        (["init.prior=null", "init.required=false"], "would freeze a prior of random weights: give init.prior=FILE"),
        (["loss.terms.gan.adaptive_at=stylegan_decoder.to_rgb1.bias"], "is frozen: name a parameter that is trained"),
        (["loss.terms.style_mouth.of=image"], "StyleGAN2Discriminator shows no features to match"),
        (["adversary.discriminators.mouth.part.side_px=3"], "adversary.discriminators.mouth.part.side_px=3"),
    ):
        code, printed = cli(*full(given, *more))
        assert code == 1
        assert message in printed
        assert "Traceback" not in printed


def test_a_discriminator_that_no_term_hears_is_refused(given: Path, cli: Cli, tmp_path: Path) -> None:
    deaf = full(given, "trainer.max_steps=1", "~loss.terms.gan_left_eye", "~loss.terms.gan_mouth", "~loss.terms.style_mouth")
    code, printed = cli(*deaf)
    assert code == 1
    assert "error: no term of loss.terms speaks of mouth in adversary.discriminators, which would train for nothing" in printed
    assert "of: mouth, or leave out what none hears (~adversary.discriminators.mouth)\n" in printed
    code, printed = cli(*deaf, "~adversary.discriminators.mouth")
    assert code == 0, printed
    row = read_rows(tmp_path / "runs" / "run" / "metrics.csv")[0]
    assert float(row["train/left_eye.gan"]) > 0, "its style is heard"
    assert "train/mouth.gan" not in row


def test_released_weights_wait_for_fresh_discriminators(given: Path, cli: Cli, tmp_path: Path) -> None:
    """In a warm-up the generator, its EMA and its optimizer stay to the bit, and every discriminator moves."""
    own = ["model=gfpgan_clean", f"init.ckpt={given}/clean.pth", *NETWORK, *FULL, f"data.root={given}/photographs"]
    own += [f"data.components={given}/components.csv", f"weights.dir={given}/weights", "adversary.generator_start_step=2"]
    code, printed = cli(*own, "trainer.max_steps=4")
    assert code == 0, printed
    assert "the generator stays as it is until update 2 is done" in printed
    run, released = tmp_path / "runs" / "run", official.read(given / "clean.pth").state
    saved = run / "checkpoints" / "step_0000002.ckpt"
    held = torch.load(saved, weights_only=True)
    for prefix in ("network.", "ema.average."):
        found = {key.removeprefix(prefix): value for key, value in held["state_dict"].items() if key.startswith(prefix)}
        assert found.keys() == released.keys()
        assert all(torch.equal(found[key], value) for key, value in released.items())
    assert not held["optimizer_states"][0]["state"]
    assert [next(iter(state["state"].values()))["step"] for state in held["optimizer_states"][1:]] == [2] * 4
    lq = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(official.build(saved)(lq).restored, official.build(given / "clean.pth")(lq).restored)
    moved = [key for key, value in part(run, "network.").items() if not torch.equal(value, released[key])]
    assert any("stylegan_decoder" in key for key in moved), "the clean model trains its prior too"
    assert not any("style_mlp" in key or "noises" in key for key in moved)
    for more, message in (
        (["adversary.start_step=1"], "in the first updates nothing would train"),
        (["trainer.max_steps=2"], "trainer.max_steps=2 ends before the generator begins"),
    ):
        code, printed = cli(*own, "name=other", *more)
        assert code == 1
        assert message in printed


def test_ddp_is_told_of_what_has_no_gradient(cli: Cli) -> None:
    """The layers to the pyramid, once it is off; without a schedule, or with none of it, all is plain."""
    for more, unused in (
        ([], True),
        (["loss.terms.pyramid.weight=2"], False),
        (["loss.terms.pyramid.weight=0"], True),
        (["~loss.terms.pyramid"], True),
    ):
        config = plain(compose(["model=gfpgan_simple", "init.prior=a", "data.root=a", *more]))
        assert AdversarialTask.unused_parameters(config) == unused, more
    config = plain(compose(["model=swinir_ffhq", "data.root=a", "task=adversarial", "adversary=unet_sn"]))
    assert not AdversarialTask.unused_parameters(config)


def test_a_preflight_measures_both_sides() -> None:
    """What will train in the run trains in its few updates."""
    for updates, held in ((100_000, 0), (1000, 2000)):
        config = {
            "task": {"adversary": {"start_step": 0, "generator_start_step": 2000, "leak": False}},
            "trainer": {"max_steps": updates},
        }
        assert AdversarialTask.all_at_once(config) == {
            "adversary": {"start_step": 0, "generator_start_step": held, "leak": False}
        }


PATH = "+loss.terms.path={_target_: losses.adversarial.PathLength, weight: 8.0, every_n_steps: 2, decay: 0.01}"
KILLED = ["trainer.max_steps=8", "trainer.val_check_interval=4", "checkpoint.every_n_steps=3", "trainer.log_every_n_steps=2"]
KILLED += ["loss.terms.pyramid.weight.until_step=4", "adversary.discriminators.image.loss.terms.r1.every_n_steps=3"]
KILLED += [PATH]
KILLED += ["data.batch_size=1", "trainer.devices=2", "trainer.strategy=ddp", "trainer.accumulate_grad_batches=2"]
KILLED += ["adversary.generator_start_step=1"]
MOMENTS = [Moment("save", 2), Moment("discriminators", 4, rank=1), Moment("optimizer", 6)]


@pytest.mark.slow
def test_two_ranks_killed_again_and_again_equal_two_left_alone(given: Path, tmp_path: Path) -> None:
    """Across the end of the pyramid, whose layers then have no gradient; the path length's running mean goes on."""
    whole, _ = reference(tmp_path / "whole", full(given, *KILLED))
    killed = kill_and_finish(tmp_path / "killed", full(given, *KILLED), MOMENTS)
    assert len(killed.kinds) == len(MOMENTS), killed.moments
    assert not explain(differences(whole, tmp_path / "killed" / "runs" / "run"))
    assert last(whole)["state_dict"]["loss.terms.path.mean_length"] > 0
    rows = read_rows(whole / "metrics.csv")
    assert [bool(row["weighted/pyramid"]) for row in rows if row["train/loss"]] == [True, True, False, False]


def test_two_ranks_are_one_with_twice_the_batch(given: Path, tmp_path: Path) -> None:
    """To float32's error, noise included; without the deviation within a batch, which a rank's discriminator sees alone."""
    own = full(given, "optimizer.eps=1", "optimizer.lr=0.1", "adversary.discriminators.image.network.stddev_group=1", PATH)
    own += ["adversary.discriminators.image.loss.terms.r1.every_n_steps=2"]
    shared = ["data.batch_size=1", "trainer.devices=2", "trainer.strategy=ddp"]
    for folder, more in (("one", []), ("two", shared), ("other", ["seed=1"])):
        attempt = Attempt(tmp_path / folder, [*own, *more])
        assert attempt.wait() == 0, attempt.printed
    states = [
        {
            **part(tmp_path / folder / "runs" / "run", "network."),
            **part(tmp_path / folder / "runs" / "run", "adversary.discriminators."),
            **part(tmp_path / folder / "runs" / "run", "loss."),
        }
        for folder in ("one", "two", "other")
    ]
    one, two, other = states
    moved = (one["final_linear.weight"] - other["final_linear.weight"]).abs().max().item()
    assert moved > 1e-3
    apart = {key: (one[key] - two[key]).abs().max().item() for key in one if one[key].is_floating_point()}
    assert max(apart.values()) < 1e-3 * moved, (moved, sorted(apart.items(), key=lambda item: -item[1])[:3])


def network() -> GFPGANv1:
    torch.manual_seed(0)
    return GFPGANv1(
        **PRIOR, resample_kernel=[1, 3, 3, 1], lr_mlp=0.01, fix_decoder=True, different_w=True, sft_half=True
    ).train()


def test_a_part_is_cut_from_hqs_where_there_are_other_clean_faces() -> None:
    rng = torch.Generator().manual_seed(0)
    hq, real, fake = torch.rand(3, 2, 3, SIDE, SIDE, generator=rng).unbind()
    components = torch.tensor([[[12, 15, 2.5], [20, 15.5, 2], [16.5, 23, 4]]]).expand(2, -1, -1)
    batch: Any = {"hq": hq, "real": real, "components": components}
    nothing: dict[str, Any] = {"optimizer": None, "schedule": None, "ckpt": None}
    loss = LossSet(terms={"gan": Discriminate(weight=1.0, kind="vanilla")})
    part_ = Part(component="mouth", side_px=12 * 512 // SIDE, eye_enlarge=1.4)
    of_part = Discriminator(network=torch.nn.Identity(), part=part_, loss=loss, **nothing)
    judged = of_part.judge(1, batch, fake)
    box = boxes_of(components, eye_enlarge=1.4)[:, 2]
    assert torch.equal(judged["real_logits"], cut(hq, box, 12))
    assert torch.equal(judged["fake_logits"], cut(fake, box, 12))
    whole = Discriminator(network=torch.nn.Identity(), part=None, loss=loss, **nothing)
    assert torch.equal(whole.judge(1, batch, fake)["real_logits"], real)


def test_parts_follow_the_size_of_the_image() -> None:
    """What is published for 512 px is the same part of a face at any other."""
    for width, eye, mouth in ((512, 80, 120), (1024, 160, 240), (256, 40, 60), (SIDE, 5, 8)):
        components = torch.tensor([[[0.4, 0.5, 0.08], [0.6, 0.5, 0.08], [0.5, 0.7, 0.12]]]) * width
        images = torch.zeros(1, 1, width, width)
        for component, px, wanted in (("left_eye", 80, eye), ("mouth", 120, mouth)):
            part_: Any = Part(component=component, side_px=px, eye_enlarge=1.4)  # type: ignore[arg-type]
            assert part_(images, components).shape == (1, 1, wanted, wanted)
    with pytest.raises(ValueError, match="leaves 2 px of the left_eye in images 16 px wide, and its discriminator needs 4"):
        Part(component="left_eye", side_px=80, eye_enlarge=1.4)(torch.zeros(1, 1, 16, 16), components)


def test_noise_follows_from_the_sample_alone() -> None:
    decoder = network().stylegan_decoder
    decoder.sample_seeds = [5, 7, 9]
    together = decoder._noise(None, 3)
    decoder.sample_seeds = [7]
    alone = decoder._noise(None, 1)
    assert all(torch.equal(each[1:2], one) for each, one in zip(together, alone, strict=True))
    assert all(not torch.equal(each[0], each[1]) for each in together)
    assert [each.shape for each in together] == [(3, 1, side, side) for side in decoder.noise_sides]
    assert together[-1].std().item() == pytest.approx(1, abs=0.1)
    decoder.eval()
    assert decoder._noise(None, 1)[0] is decoder.noises.noise0, "in validation those of the file"


def test_path_length_by_hand() -> None:
    """Of restored = scale * latent, each pixel of one value alone, the length is scale * |noise| / side."""
    latent = torch.rand(3, 1, 4 * 4 * 3, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    term = PathLength(weight=2.0, every_n_steps=4, decay=0.5)
    assert [term.weight_at(update) for update in range(1, 6)] == [None, None, None, 8, None]
    noises = {seed: torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(seed ^ 1)).norm() for seed in (5, 6, 7)}
    lengths = scale * torch.stack(list(noises.values())) / 4

    def loss(part: slice) -> Tensor:
        term.sample_seeds = list(noises)[part]
        own = latent[part].detach().requires_grad_()
        return term(restored=(scale[part, None, None] * own).view(-1, 3, 4, 4), latent=own)

    torch.testing.assert_close(loss(slice(3)), lengths.square().mean())
    term.after_update(skipped=False)
    torch.testing.assert_close(term.mean_length, 0.5 * lengths.mean().detach())
    wanted = (lengths - term.mean_length).square().mean()
    made = loss(slice(3))
    torch.testing.assert_close(made, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(each, scale, retain_graph=True)[0] for each in (made, wanted)))
    term.after_update(skipped=True)
    torch.testing.assert_close(term.mean_length, 0.5 * lengths.mean().detach())
    loss(slice(2)), loss(slice(2, 3))  # accumulated: one update of three samples
    term.after_update(skipped=False)
    torch.testing.assert_close(term.mean_length, 0.75 * lengths.mean().detach())


def test_gfpgan_has_the_second_derivative_that_path_length_takes() -> None:
    """Through the whole decoder, against a difference so small that no activation changes its side."""
    made = network().double()
    rng = torch.Generator().manual_seed(2)
    lq, towards = (torch.rand(2, 3, SIDE, SIDE, generator=rng, dtype=torch.float64) for _ in range(2))
    parameter = made.get_parameter("condition_scale.1.2.weight")
    direction = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)

    def length() -> Tensor:
        out = made(lq, noise=made.stylegan_decoder.stored_noise())
        (slope,) = torch.autograd.grad((out.restored * towards).sum(), out.latent, create_graph=True)
        return slope.square().sum()

    (slope,) = torch.autograd.grad(length(), parameter)
    values = []
    for step in (1e-7, -2e-7):
        with torch.no_grad():
            parameter.add_(step * direction)
        values.append(length().item())
    assert (slope * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-7, rel=1e-4)


def test_identity_of_gfpgan_is_an_l1() -> None:
    embedder = ResNetArcFace(layers=[1, 1, 1, 1]).eval()
    embedder.weights_from = "here"  # type: ignore[assignment]
    restored, hq = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).unbind()
    term = EmbeddingL1(weight=10.0, embedder=embedder)
    with torch.no_grad():
        wanted = (embedder(restored) - embedder(hq)).abs().mean()
    torch.testing.assert_close(term(restored=restored, hq=hq), wanted)
    assert term(restored=hq, hq=hq) == 0


def test_a_bilinear_run_is_exported_as_a_clean_file(given: Path, cli: Cli, tmp_path: Path) -> None:
    """And begins as one: with a learning rate of nearly nothing, what goes out is what came in."""
    own = ["network.resample_kernel=null", "network.fix_decoder=false", "init.prior=null", f"init.ckpt={given}/clean.pth"]
    code, printed = cli(*full(given, *own, "trainer.max_steps=1", "optimizer.lr=1e-9"))
    assert code == 0, printed
    official.export(tmp_path / "runs" / "run", tmp_path / "clean.pth", "official")
    trained: Any = official.build(tmp_path / "runs" / "run")
    lq = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        wanted = official.build(given / "clean.pth")(lq).restored
        for network in (trained, to_clean(trained), official.build(tmp_path / "clean.pth")):
            torch.testing.assert_close(network(lq).restored, wanted, rtol=0, atol=1e-4)
    code, printed = cli(*full(given, "init.prior=null", f"init.ckpt={given}/clean.pth", "name=kernel"))
    assert code == 1
    assert "does not fit GFPGANv1" in printed, "a network with a kernel has no clean form"

"""Every model, experiment, loss set, degradation, schedule, optimizer and logger trains two updates at toy size."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from omegaconf import OmegaConf

from models.adaface import AdaFace
from models.swinir import SwinIR
from models.vgg import VGG19Features
from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from tests.train.tasks.test_code_prediction import AUTOENCODER, DISCRIMINATOR
from train.jobs.cli import compose, register_resolvers
from train.jobs.config import check
from train.runs.curves import read_rows
from train.trust import build

Cli = Callable[..., tuple[int, str]]
CONF = Path(__file__).parents[2] / "conf"


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


TOY_RUN = [*TINY_DATA, *TINY_RUN, "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true"]
TOY = [*TINY_NETWORK, *TOY_RUN]
CASES = [
    *(
        ("model", name)
        for name in names("model")
        if not any(other in name for other in ("elan", "codeformer", "gfpgan", "ircontrolnet"))
    ),  # tests below, and those of tests/train/tasks/
    *(
        ("experiment", name)
        for name in names("experiment")
        if not any(other in name for other in ("aiialab", "elan", "codeformer", "gfpgan", "control", "cx"))
    ),
    *(
        ("loss", name)
        for name in names("loss")
        if not any(part in name for part in ("lpips", "vgg", "code", "gfpgan", "denoising"))
    ),
    *(("adversary", name) for name in names("adversary") if name not in ("stylegan2", "gfpgan")),
    *(("degradation", name) for name in names("degradation")),
    *(("augmentation", name) for name in names("augmentation")),
    *(("schedule", name) for name in names("schedule")),
    *(("optimizer", name) for name in names("optimizer") if name != "adamw_8bit"),  # of a package that may not be there
    *(("logger", name) for name in names("logger")),
]


def test_nothing_is_overlooked() -> None:
    found = {
        group: len(names(group))
        for group in ("model", "experiment", "loss", "data", "network", "trainer", "logger", "adversary")
    }
    assert found == {
        "model": 11,
        "experiment": 23,
        "loss": 15,
        "data": 9,
        "network": 12,
        "trainer": 6,
        "logger": 3,
        "adversary": 4,
    }
    assert len(CASES) == 1 + 3 + 4 + 2 + 16 + 3 + 4 + 4 + 3


@pytest.mark.parametrize(("group", "name"), CASES, ids=["=".join(case) for case in CASES])
def test_a_choice_trains_two_updates(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, name: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    photographs = write_photographs(tmp_path / "photographs")
    arguments = [f"data.root={photographs}", *TOY, "validation.lpips=null", "checkpoint.every_n_steps=1"]
    if group not in ("model", "experiment"):
        arguments = ["experiment=demo", "data=folder", f"{group}={name}", *arguments]
        if group == "adversary":
            kind = "hinge" if name == "patch" else "vanilla"
            of = f"kind: {kind}, of: image, adaptive_at: null"
            width = {"patch": "ndf", "unet_sn": "num_feat"}[name]
            arguments += ["task=adversarial", f"adversary.discriminators.image.network.{width}=4"]
            arguments += [f"+loss.terms.gan={{_target_: losses.adversarial.Adversarial, weight: 0.1, {of}}}"]
    elif name == "demo":
        arguments = [argument for argument in arguments if not argument.startswith(("data.root", "data.val_size"))]
    if name == "uphorse":
        arguments.append("data.first=3")
    if name == "night_watch":
        arguments.append("init.ckpt=null")
    if group in ("model", "experiment"):
        arguments.insert(0, f"{group}={name}")
    code, printed = cli(*arguments)
    assert code == 0, printed
    (run,) = (folder for folder in (tmp_path / "runs").iterdir() if folder.is_dir())  # its lock lies beside it
    assert json.loads((run / "summary.json").read_text())["step"] == 2
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert any(key.startswith("network.") for key in state)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert OmegaConf.load(run / "config.yaml")["trainer"]["max_steps"] == 2


TINY_ELAN = [
    "network.m_elan=2",
    "network.c_elan=15",
    *TINY_RUN,
    "data.num_workers=0",
    "data.batch_size=2",
    "validation.lpips=null",
]


@pytest.mark.parametrize("name", ["model=elan_df2k", "model=elan_light_df2k"])
def test_a_x4_elan_trains_two_updates(cli: Cli, tmp_path: Path, name: str) -> None:
    lq = write_photographs(tmp_path / "X4", count=4, size=32)
    for file in lq.iterdir():
        file.rename(file.with_stem(f"{file.stem}x4"))  # DIV2K's names
    hq = write_photographs(tmp_path / "HR", count=4, size=128)
    paths = [f"data.root={lq}", f"data.target_root={hq}", "data.size=64", "data.val_images=2"]
    code, printed = cli(name, *TINY_ELAN, *paths)
    assert code == 0, printed
    (run,) = (folder for folder in (tmp_path / "runs").iterdir() if folder.is_dir())
    row = read_rows(run / "metrics.csv")[-1]
    assert row["val/psnr"]
    assert float(row["val/psnr_lq"]) > 20, "the LQ, enlarged"
    code, printed = cli(name, *TINY_ELAN, *paths, "network.scale=2", "name=other")
    assert code == 1
    assert "the network makes (32, 32) where the HQ is (64, 64): choose a network of the scale of the data" in printed


@pytest.mark.parametrize("name", ["model=elan_enhance", "experiment=fustar_elan"])
def test_an_enhancing_elan_trains_two_updates(cli: Cli, tmp_path: Path, random_weights: Path, name: str) -> None:
    hq = write_photographs(tmp_path / "HR", count=4, size=80)
    small = ["data.size=32", "data.val_size=64", "data.val_images=2", "adversary.discriminators.image.network.num_feat=4"]
    code, printed = cli(name, *TINY_ELAN, f"data.root={hq}", *small, f"weights.dir={random_weights}")
    assert code == 0, printed


def test_codeformer_has_the_published_numbers(cli: Cli) -> None:
    """The supplement's updates, batch and learning rates; RECIPES, codeformer_stage1|2|3 and dtbfr_codeformer_finetune."""
    init = ["init.stage1=a", "init.stage2=b"]
    rows: dict[str, tuple[list[str], int, int, float, float, float | None, list[int] | None]] = {
        # arguments, updates, batch, learning rate, EMA, eta_min, milestones
        "model=codeformer_stage1": ([], 1_500_000, 16, 8e-5, 0.995, None, None),
        "model=codeformer_stage2": (init[:1], 200_000, 16, 8e-5, 0.995, None, None),
        "model=codeformer_stage3": (init, 20_000, 16, 2e-5, 0.997, None, None),
        "experiment=codeformer_official_stage1": ([], 1_600_000, 32, 7e-5, 0.995, 6e-5, None),
        "experiment=codeformer_official_stage2": (init[:1], 500_000, 32, 1e-4, 0.995, None, [400_000, 450_000]),
        "experiment=codeformer_official_stage3": (init, 150_000, 24, 5e-5, 0.997, 2e-5, None),
        "experiment=aiialab_codeformer_dtbfr": (["init.ckpt=c"], 40_000, 8, 1e-4, 0.995, None, [35_000, 38_000]),
    }
    for name, (given, updates, batch, lr, ema, eta_min, milestones) in rows.items():
        code, printed = cli(name, *given, "--cfg", "job", "--resolve")
        assert code == 0, printed
        config = OmegaConf.create(printed)
        assert (config.trainer.max_steps, config.data.batch_size * config.trainer.accumulate_grad_batches) == (updates, batch)
        assert (config.optimizer._target_, config.optimizer.lr) == ("torch.optim.Adam", lr)
        assert (list(config.optimizer.betas), config.ema_decay, config.data.hflip_prob) == ([0.9, 0.99], ema, 0.5)
        assert (config.schedule.get("eta_min"), config.schedule.get("milestones")) == (eta_min, milestones)
        assert (config.optimizer.weight_decay, config.trainer.precision, config.data.size) == (0, "32-true", 512)
        terms, released = config.loss.terms, "official" in name
        if "stage2" in name or "dtbfr" in name:
            assert {key: term.weight for key, term in terms.items()} == {"feature": 1, "code": 0.5}
            assert list(config.network.fix_modules) == ["quantize", "generator", "fuse_convs_dict"]
            continue
        image, stage = config.adversary.discriminators.image, name[-1]
        own = {"1": {"codebook": 1}, "3": {"feature": 1, "code": 0.5}}[stage]
        assert {key: term.weight for key, term in terms.items()} == {
            **{"l1": 2, "lpips": 1, "gan": {"1": 0.8, "3": 0.1}[stage]},  # L1 is on [0, 1] here, on [-1, 1] there
            **own,
        }
        assert (terms.gan.kind, terms.lpips.net, terms.lpips.imagenet_first) == ("hinge", "vgg", released)
        assert (config.adversary.start_step, config.adversary.steps_per_update) == ({"1": 30_001, "3": 5_001}[stage], 1)
        assert (image.optimizer.lr, list(image.optimizer.betas), image.schedule.get("eta_min")) == (lr, [0.9, 0.99], eta_min)
        assert (image.network.ndf, image.network.n_layers) == (64, 4)
        if stage == "1":
            assert (terms.codebook.codebook_weight, terms.codebook.commitment_weight) == ((0.25, 1) if released else (1, 0.25))
            assert not config.codebook.restart


@pytest.mark.parametrize("name", ["model=gfpgan_ffhq", "model=gfpgan_simple", "experiment=acvlab_gfpgan", "model=gfpgan_clean"])
def test_gfpgan_has_the_published_numbers(cli: Cli, name: str) -> None:
    """RECIPES, gfpgan_v1 and gfpgan_v1_simple. On images in [0, 1] L1 counts twice, and R1 a quarter, of what it says there."""
    code, printed = cli(name, "init.ckpt=a", "--cfg", "job", "--resolve")
    assert code == 0, printed
    config = OmegaConf.create(printed)
    discriminators, simple, clean = config.adversary.discriminators, "simple" in name, "clean" in name
    parts = [] if simple else ["left_eye", "right_eye", "mouth"]
    assert list(discriminators) == ["image", *parts]
    image = discriminators.image
    assert (image.network.channel_multiplier, image.network.stddev_group, image.network.out_size) == (1, 4, 512)
    assert (list(image.optimizer.betas), image.optimizer.lr) == ([0, pytest.approx(0.99 ** (16 / 17))], 2e-3)
    assert (image.loss.terms.gan.kind, image.loss.terms.r1.weight * 4, image.loss.terms.r1.every_n_steps) == (
        "softplus",
        10,
        16,
    )
    for part in parts:
        each = discriminators[part]
        assert (each.part.component, each.part.side_px, each.part.eye_enlarge) == (part, 120 if part == "mouth" else 80, 1.4)
        assert (each.loss.terms.gan.kind, each.optimizer.lr, list(each.optimizer.betas)) == ("vanilla", 2e-3, [0.9, 0.99])
    terms = config.loss.terms
    weights = {"l1": 0.2, "vgg": 1, "gan": 0.1} | ({} if simple else {"id": 10})
    weights |= {f"gan_{part}": 1 for part in parts} | {f"style_{part}": 200 for part in parts}
    assert {key: term.weight for key, term in terms.items() if key != "pyramid"} == weights
    assert (terms.pyramid.weight["value"], terms.pyramid.weight.until_step) == (2, 50_000)
    assert (terms.vgg.perceptual_weight, terms.vgg.style_weight, terms.gan.kind) == (1, 50, "softplus")
    assert all(terms[f"{kind}_{part}"].of == part for part in parts for kind in ("gan", "style"))
    assert (config.optimizer._target_, list(config.optimizer.betas)) == ("torch.optim.Adam", [0, 0.99])
    assert config.ema_decay == pytest.approx(0.5 ** (32 / 10_000))
    assert config.data.batch_size * config.trainer.accumulate_grad_batches == 12
    assert (config.data.size, config.data.hflip_prob, config.trainer.precision) == (512, 0.5, "32-true")
    assert (config.adversary.steps_per_update, config.adversary.start_step) == (1, 0)
    colours = [config.degradation.operators[kind].prob for kind in ("colour_shift", "grey", "colour_jitter")]
    assert config.data.paired == ("acvlab" in name)
    if clean:
        assert (colours, config.network.channel_multiplier, config.adversary.generator_start_step) == ([0, 0, 0], 2, 2000)
        return
    assert (colours, config.network.fix_decoder, config.adversary.generator_start_step) == ([0.3, 0.01, 0.3], True, 0)
    assert (config.optimizer.lr, list(config.schedule.milestones), config.schedule.gamma) == (2e-3, [600_000, 700_000], 0.5)
    assert list(image.schedule.milestones) == [600_000, 700_000]
    assert config.trainer.max_steps == 800_000


def test_elan_has_the_published_numbers(cli: Cli) -> None:
    """RECIPES, elan and hggt_elan."""
    for name, size, batch, epoch in (("elan_df2k", 192, 32, 2000), ("elan_light_df2k", 256, 64, 1000)):
        code, printed = cli(f"model={name}", "--cfg", "job", "--resolve")
        assert code == 0, printed
        config = OmegaConf.create(printed)
        body = (36, 180, 0) if name == "elan_df2k" else (24, 60, 1)
        assert (config.network.m_elan, config.network.c_elan, config.network.n_share) == body
        assert (config.network.scale, config.network.img_range, config.network.r_expand) == (4, 255, 2)
        assert (config.data.size, config.data.batch_size, config.trainer.max_steps) == (size, batch, 1000 * epoch)
        assert list(config.schedule.milestones) == [epoch * n for n in (250, 400, 450, 475, 500)]
        assert (config.schedule.gamma, config.optimizer.lr, list(config.optimizer.betas)) == (0.5, 2e-4, [0.9, 0.999])
        assert (config.loss.terms.l1.weight, config.ema_decay, config.data.hflip_prob) == (255, None, 0)
        assert (config.validation.luma, config.validation.border_px) == (True, 4)
        assert config.augmentation.transforms.turn._target_ == "albumentations.D4"
    for name, betas in (("model=elan_enhance", [0.9, 0.99]), ("experiment=fustar_elan", [0.9, 0.999])):
        code, printed = cli(name, "--cfg", "job", "--resolve")
        assert code == 0, printed
        config = OmegaConf.create(printed)
        image = config.adversary.discriminators.image
        assert (config.network.scale, config.network.m_elan, config.network.c_elan, config.network.n_share) == (1, 36, 180, 0)
        assert [list(each.betas) for each in (config.optimizer, image.optimizer)] == [betas, betas]
        assert (config.optimizer._target_, config.optimizer.lr, image.optimizer.lr) == ("torch.optim.Adam", 1e-4, 1e-4)
        assert (config.optimizer.eps, config.optimizer.weight_decay, image.optimizer.weight_decay) == (1e-8, 0, 0)
        assert [list(each.milestones) for each in (config.schedule, image.schedule)] == [[200_000], [200_000]]
        assert (config.trainer.max_steps, config.data.size, config.data.batch_size, config.ema_decay) == (300_000, 96, 4, None)
        assert {key: term.weight for key, term in config.loss.terms.items()} == {"l1": 1, "vgg": 1, "gan": 0.1}
        assert (config.loss.terms.gan.kind, image.network.num_feat, config.adversary.start_step) == ("vanilla", 64, 0)


@pytest.mark.parametrize(
    ("name", "blur", "noise", "poisson"),
    [("hggt", [0.1, 0.5], [6.5, 13], [0.45, 0.9]), ("hggt_04", [0.5, 1], [0.5, 6.5], [0.05, 0.45])],
)
def test_hggt_has_the_published_numbers(
    cli: Cli, name: str, blur: list[float], noise: list[float], poisson: list[float]
) -> None:
    code, printed = cli("model=elan_enhance", f"degradation={name}", "--cfg", "job", "--resolve")
    assert code == 0, printed
    operators = OmegaConf.create(printed).degradation.operators
    assert operators.blur.probs == {"iso": pytest.approx(0.9 * 0.7), "aniso": pytest.approx(0.9 * 0.3), "sinc": 0.1}
    for way, isotropic in (("iso", 1), ("aniso", 0)):
        kernel = operators.blur.ways[way].blur
        assert (list(kernel.kernel_size_px), list(kernel.sigma_px), kernel.isotropic_prob) == ([3, 7], blur, isotropic)
    assert list(operators.blur.ways.sinc.blur.kernel_size_px) == [3, 7]
    for filter_, way in operators.resized.ways.items():
        assert (way.resize.up_prob, way.resize.down_prob, list(way.resize.up), list(way.resize.down)) == (
            0.1,
            0.85,
            [1, 1.1],
            [0.9, 1],
        )
        assert (list(way.resize.filters), way.back.filter) == ([filter_], filter_)
        assert list(way.noise.ways.gaussian.noise.sigma_255) == noise
        assert list(way.noise.ways.poisson.noise.scale) == poisson
        assert way.noise.probs == {"gaussian": 0.5, "poisson": 0.5}
        assert way.noise.ways.gaussian.noise.grey_prob == way.noise.ways.poisson.noise.grey_prob == 0.1
        assert list(way.jpeg.quality) == [80, 95]


def test_onecycle_moves_the_learning_rate_alone() -> None:
    config = check(compose(["experiment=demo", "optimizer.lr=1e-3", "optimizer.betas=[0.9,0.99]", "trainer.max_steps=100"]))
    optimizer = build(config["optimizer"])(params=[torch.nn.Parameter(torch.zeros(1))])
    schedule = build(config["schedule"])(optimizer=optimizer)
    rates = []
    for _ in range(100):
        (group,) = optimizer.param_groups
        assert group["betas"] == (0.9, 0.99)
        rates.append(group["lr"])
        optimizer.step()
        if len(rates) < 100:
            schedule.step()
    assert max(rates) == rates[9] == pytest.approx(1e-3), "pct_start=0.1 of 100 updates"
    assert rates[0] == pytest.approx(1e-3 / 25), "torch's div_factor"
    assert rates[-1] == pytest.approx(1e-3 / 25 / 1e4), "torch's final_div_factor"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["model=gfpgan_ffhq", "init.ckpt=a"], "image"),
        (["model=gfpgan_ffhq", "init.ckpt=a"], "mouth"),
        (["model=elan_enhance"], "image"),
        (["experiment=codeformer_official_stage1"], "image"),
        (["experiment=codeformer_official_stage3", "init.stage1=a", "init.stage2=a"], "image"),
    ],
)
def test_onecycle_takes_each_optimizer_to_its_own_learning_rate(given: list[str], name: str) -> None:
    """The generator to 1e-3, a discriminator that follows its schedule to 2e-5, at the same update."""
    own = f"adversary.discriminators.{name}"
    more = ["schedule=onecycle", "~schedule.eta_min", "~schedule.milestones", "~schedule.gamma"]
    present = compose([*given, "data.root=a"])["schedule"]
    more = [each for each in more if each[0] != "~" or each.rpartition(".")[2] in present]
    config = check(
        compose([*given, *more, "data.root=a", "trainer.max_steps=50", "optimizer.lr=1e-3", f"{own}.optimizer.lr=2e-5"])
    )
    sides = (config, config["adversary"]["discriminators"][name])
    optimizers = [build(side["optimizer"])(params=[torch.nn.Parameter(torch.zeros(1))]) for side in sides]
    schedules = [build(side["schedule"])(optimizer=each) for side, each in zip(sides, optimizers, strict=True)]
    rates: list[list[float]] = [[], []]
    for update in range(50):
        for rate, optimizer, schedule in zip(rates, optimizers, schedules, strict=True):
            rate.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if update < 49:
                schedule.step()
    assert [max(each) for each in rates] == pytest.approx([1e-3, 2e-5])
    assert [each.index(max(each)) for each in rates] == [4, 4], "pct_start=0.1 of 50 updates"
    assert rates[1] == pytest.approx([each / 50 for each in rates[0]])


def test_a_cosine_that_would_rise_is_refused(cli: Cli) -> None:
    own = "adversary.discriminators.image.optimizer.lr"
    code, printed = cli("experiment=codeformer_official_stage1", "data.root=a", f"{own}=1e-5")
    assert code == 1
    assert f"{own}=1e-05 would rise to schedule.eta_min=6e-05: set schedule.eta_min=0, or {own} above it" in printed
    code, printed = cli("experiment=aiialab_swinir_dtbfr", "init.ckpt=a", "data.root=a", "optimizer.lr=1e-6")
    assert code == 1
    assert "optimizer.lr=1e-06 would rise to schedule.eta_min=5e-06" in printed


@pytest.mark.parametrize("trainer", names("trainer"))
def test_a_trainer_preset_composes(cli: Cli, trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    code, printed = cli("model=swinir_ffhq", f"trainer={trainer}", "--cfg", "job", "--resolve")
    assert code == 0, printed
    settings = OmegaConf.create(printed)["trainer"]
    expected = {"auto": (1, 1), "cpu": (1, 1), "gpu": (1, 1), "ddp": (5, 1), "fsdp": (5, 1), "slurm": (4, 2)}[trainer]
    assert (settings.devices, settings.num_nodes) == expected
    assert settings.max_steps == 150_000


def test_diffbir_stage_1_has_the_published_numbers(cli: Cli) -> None:
    code, printed = cli("model=swinir_ffhq", "--cfg", "job", "--resolve")
    assert code == 0, printed
    config = OmegaConf.create(printed)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer._target_) == (1e-4, 0, "torch.optim.AdamW")
    assert list(config.optimizer.betas) == [0.9, 0.999]
    assert (config.trainer.max_steps, config.data.size, config.data.batch_size, config.seed) == (150_000, 512, 6, 231)
    assert config.loss.terms.mse.reduction == "sum"
    operators = config.degradation.operators
    assert list(operators.blur.sigma_px) == [0.1, 12]
    assert list(operators.downsample.factor) == [1, 12]
    assert list(operators.noise.sigma_255) == [0, 15]
    assert list(operators.jpeg.quality) == [30, 100]
    assert (operators.blur.kernel_size_px, operators.blur.isotropic_prob, config.degradation.quantize) == (41, 0.5, False)


def test_diffbir_stage_2_has_the_published_numbers(cli: Cli) -> None:
    """RECIPES, diffbir_stage2_v2, with AIIALab's schedule; CX's fine-tuning."""
    rows: dict[str, tuple[str, float, float, list[int], int]] = {  # optimizer, learning rate, decay, milestones, batch
        "model=ircontrolnet_ffhq": ("torch.optim.AdamW", 1e-4, 0.01, [30_000], 256),
        "experiment=cx": ("torch.optim.Adam", 1.17e-6, 0, [], 6),  # a device, of which there are 5
    }
    init = [f"init.{key}=x" for key in ("stable_diffusion", "stage1", "ckpt")]
    for name, (optimizer, lr, decay, milestones, batch) in rows.items():
        code, printed = cli(name, *init, "--cfg", "job", "--resolve")
        assert code == 0, printed
        config = OmegaConf.create(printed)
        assert (config.optimizer._target_, config.optimizer.lr, config.optimizer.weight_decay) == (optimizer, lr, decay)
        assert (list(config.optimizer.betas), config.optimizer.fused) == ([0.9, 0.999], True)
        assert (list(config.schedule.milestones), config.schedule.gamma, config.trainer.max_steps) == (milestones, 0.1, 80_000)
        assert config.data.batch_size * config.trainer.accumulate_grad_batches == batch
        assert (config.data.size, config.data.crop, config.data.hflip_prob) == (512, "center", 0)
        assert (config.seed, config.ema_decay, config.checkpoint.every_n_steps) == (231, None, 10_000)
        assert {key: term.weight for key, term in config.loss.terms.items()} == {"denoising": 1}
        assert (config.diffusion.noise.prediction, config.diffusion.noise.zero_snr) == ("eps", False)
        network = config.network
        assert (network.in_channels, network.hint_channels, network.model_channels, network.context_dim) == (4, 4, 320, 1024)
        assert (list(network.channel_mult), list(network.attention_resolutions)) == ([1, 2, 4, 4], [4, 2, 1])
        assert (network.num_res_blocks, network.num_head_channels, network.gradient_checkpointing) == (2, 64, True)
        operators = config.degradation.operators
        assert (list(operators.blur.sigma_px), list(operators.downsample.factor)) == ([0.1, 12], [1, 12])
        assert (list(operators.noise.sigma_255), list(operators.jpeg.quality)) == ([0, 15], [30, 100])
    code, printed = cli("experiment=cx", *init[:2], "data.root=x")
    assert code == 1
    assert "init.ckpt is not set, and this recipe starts from trained weights: give init.ckpt=PATH" in printed


@pytest.mark.parametrize("name", ["mse_lpips", "mse_lpips_id"])
def test_missing_weights_stop_a_run_before_data_is_read(cli: Cli, tmp_path: Path, name: str) -> None:
    code, printed = cli("experiment=demo", f"loss={name}", "data.root=nowhere")
    assert code == 1
    assert "weights/vgg16-397923af.pth does not exist" in printed
    assert "fetch it with `python -m models.weights fetch vgg16`" in printed
    assert not list((tmp_path / "runs").glob("[!.]*"))


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights of the official form, but random, and AdaFace's small."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(torchvision.models.vgg16(weights=None).features.state_dict(prefix="features."), folder / "vgg16-397923af.pth")
    vgg19 = VGG19Features(layers=["conv5_4"]).state_dict()
    torch.save({**vgg19, "classifier.0.weight": torch.ones(1)}, folder / "vgg19-dcbb9e9d.pth")
    adaface = AdaFace(layers=18, mode="ir").state_dict(prefix="model.")
    torch.save({"state_dict": {**adaface, "head.kernel": torch.ones(1)}}, folder / "adaface_ir50_ms1mv2.ckpt")
    return folder


DTBFR = ["experiment=aiialab_swinir_dtbfr", "experiment=aiialab_swinir_dtbfr_as_released"]


AIIALAB = ["experiment=aiialab", "experiment=aiialab_codeformer_stage1"]


@pytest.mark.parametrize("name", ["loss=mse_lpips", "loss=mse_lpips_id", "loss=l1_vgg_gan", *DTBFR, *AIIALAB])
def test_a_choice_with_frozen_networks_trains_two_updates(cli: Cli, tmp_path: Path, random_weights: Path, name: str) -> None:
    photographs = write_photographs(tmp_path / "photographs")
    arguments = [name, f"weights.dir={random_weights}", "validation.lpips=null"]
    if name.startswith("loss"):
        arguments += ["experiment=demo", *TINY_RUN, "data.batch_size=2", *TINY_NETWORK]
    elif name in AIIALAB:
        network = AUTOENCODER if "codeformer" in name else TINY_NETWORK
        arguments += [f"data.root={photographs}", *TOY_RUN, *network, "trainer.accumulate_grad_batches=1"]
        if "codeformer" in name:
            arguments += [*DISCRIMINATOR, "loss.terms.gan.adaptive_at=generator.blocks.9.weight"]
            arguments += ["network.img_size=64", "network.attn_resolutions=[32]"]
            arguments.append("adversary.start_step=0")
    else:
        given = official_swinir(tmp_path)
        arguments += [f"data.root={photographs}", *TOY]
        arguments += [f"data.target_root={photographs}", f"data.real_root={photographs}", f"init.ckpt={given}"]
        arguments += ["adversary.discriminators.image.network.num_feat=4", "trainer.accumulate_grad_batches=2"]
    if name.endswith("_vgg_gan"):
        arguments += ["task=adversarial", "adversary=unet_sn", "adversary.discriminators.image.network.num_feat=4"]
    if name.endswith("_id") or name in AIIALAB:
        arguments += ["loss.terms.id.embedder.network.layers=18"]
    code, printed = cli(*arguments)
    assert code == 0, printed
    rows = read_rows(next((tmp_path / "runs").glob("*/metrics.csv")))
    row = next(row for row in reversed(rows) if row["train/loss"])
    terms = {
        "loss=mse_lpips": "mse lpips",
        "loss=mse_lpips_id": "mse lpips id",
        "loss=l1_vgg_gan": "l1 vgg gan",
        "experiment=aiialab": "mse lpips id",
        "experiment=aiialab_codeformer_stage1": "l1 lpips codebook gan id",
    }.get(name, "l1 lpips gan").split()
    assert sum(float(row[f"weighted/{term}"]) for term in terms) == pytest.approx(float(row["train/loss"]), rel=1e-5)


def official_swinir(folder: Path) -> Path:
    """Weights for TINY_NETWORK, as DT-BFR keeps them: bare."""
    keys = dict(argument.removeprefix("network.").split("=") for argument in TINY_NETWORK)
    config = OmegaConf.load(CONF / "network" / "swinir.yaml")
    network = SwinIR(
        **{k: v for k, v in OmegaConf.to_container(config).items() if k != "_target_"}
        | {key: yaml.safe_load(value) for key, value in keys.items()}
    )
    torch.save(network.state_dict(), folder / "swinir_gan_v1.pth")
    return folder / "swinir_gan_v1.pth"


def test_a_frozen_network_that_was_not_loaded_ends_the_run(
    cli: Cli, tmp_path: Path, random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever forgets to load, or loads a part: the run must not begin."""
    run = ["experiment=demo", "loss=mse_lpips_id", f"weights.dir={random_weights}", *TINY_NETWORK, *TINY_RUN]
    unloaded = "+loss.terms.id.embedder={_target_: models.adaface.AdaFace, layers: 18, mode: ir}"
    code, printed = cli(*run, "~loss.terms.id.embedder", unloaded)
    assert code == 1
    assert "the frozen network AdaFace has no trained weights" in printed
    state = torch.load(random_weights / "adaface_ir50_ms1mv2.ckpt", weights_only=True)["state_dict"]
    del state["model.body.3.res_layer.1.weight"]
    torch.save({"state_dict": state}, tmp_path / "part.ckpt")
    code, printed = cli(*run, "loss.terms.id.embedder.network.layers=18", "loss.terms.id.embedder.file=part.ckpt")
    assert code == 1
    assert "part.ckpt does not fit AdaFace" in printed
    assert "1 missing (body.3.res_layer.1.weight)" in printed
    assert not list((tmp_path / "runs").glob("*/checkpoints"))


@pytest.mark.parametrize(
    "recipe",
    [
        *(f"model=codeformer_stage{stage}" for stage in (1, 2, 3)),
        *(f"experiment=codeformer_official_stage{stage}" for stage in (1, 2, 3)),
        *("experiment=aiialab_codeformer_dtbfr", "experiment=aiialab_swinir_dtbfr"),
        "experiment=aiialab_swinir_dtbfr_as_released",
    ],
)
def test_recipes_published_in_float32_train_in_it_on_every_gpu(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RECIPES names a precision for these alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    register_resolvers()
    assert compose(["model=swinir_ffhq"]).trainer.precision == "bf16-mixed", "what the machine would choose"
    assert compose([recipe]).trainer.precision == "32-true"


def test_dtbfr_has_the_published_numbers(cli: Cli) -> None:
    """RECIPES, dtbfr_swinir_finetune."""
    for name, reduction, leak in (("", "mean", False), ("_as_released", "sum", True)):
        code, printed = cli(f"experiment=aiialab_swinir_dtbfr{name}", "init.ckpt=x", "--cfg", "job", "--resolve")
        assert code == 0, printed
        config = OmegaConf.create(printed)
        assert {key: term.weight for key, term in config.loss.terms.items()} == {"l1": 1.0, "lpips": 0.1, "gan": 0.1}
        assert (config.loss.terms.lpips.reduction, config.adversary.leak) == (reduction, leak)
        assert (config.loss.terms.gan.kind, config.loss.terms.lpips.net) == ("vanilla", "vgg")
        image = config.adversary.discriminators.image
        assert (image.network.num_feat, image.network.skip_connection, image.optimizer.lr) == (64, True, 2e-5)
        assert image.optimizer._target_ == config.optimizer._target_ == "torch.optim.AdamW"
        assert (config.optimizer.lr, config.optimizer.weight_decay, config.schedule.eta_min) == (2e-5, 0, 5e-6)
        assert (config.data.batch_size, config.trainer.accumulate_grad_batches, config.data.num_workers) == (4, 4, 8)
        assert (config.trainer.max_steps, config.seed, config.ema_decay, config.data.hflip_prob) == (20_000, 10_000, None, 0)
        assert (config.name, config.checkpoint.every_n_steps) == (f"aiialab_swinir_dtbfr{name}", 2500)
    code, printed = cli("experiment=aiialab_swinir_dtbfr", "data.root=a", "data.target_root=b")
    assert code == 1
    assert "init.ckpt is not set, and this recipe starts from trained weights: give init.ckpt=PATH" in printed

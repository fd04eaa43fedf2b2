"""Mistakes that people make in a configuration; every one is refused before data is read, and the nearest key is named."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from tests.toy import write_photographs
from train.jobs.cli import compose, register_resolvers
from train.jobs.config import check

Cli = Callable[..., tuple[int, str]]

GAN = "{_target_:losses.adversarial.Adversarial,weight:0.1,kind:vanilla,of:image,adaptive_at:null}"
SCHEDULE = "{_target_:losses.weighted.Scheduled,value:%s,ramp_steps:5}"
MISTAKES = [
    # what was typed, what the message must hold
    ("optimizer.lrr=1e-4", "did you mean optimizer.lr?"),
    ("+optimizer.lrr=1e-4", "did you mean optimizer.lr?"),
    ("++optimizer.lrr=1e-4", "did you mean optimizer.lr?"),
    ("optimzer.lr=1e-4", "did you mean optimizer.lr?"),
    ("+optimzer.lr=1e-4", "did you mean optimizer?"),
    ("+modle.lr=1", "did you mean model?"),
    ("modle=swinir_ffhq", "did you mean model?"),
    ("model=swinr_ffhq", "did you mean swinir_ffhq?"),
    ("loss=mes", "did you mean mse?"),
    ("network.embed_dims=60", "did you mean network.embed_dim?"),
    ("+trainer.lr=1e-4", "did you mean optimizer.lr?"),
    ("trainer.max_step=100", "did you mean trainer.max_steps?"),
    ("++trainer.devces=2", "did you mean trainer.devices?"),
    ("loss.terms.charbonnier.wieght=2", "did you mean loss.terms.charbonnier.weight?"),
    ("degradation.operators.blur.sgima_px=[0.1,1]", "did you mean degradation.operators.blur.sigma_px?"),
    ("init.cpkt=weights.pth", "did you mean init.ckpt?"),
    ("+init.cpkt=weights.pth", "did you mean init.ckpt?"),
    ("init=null", "init=None: every run has it, and what can be set is init.ckpt, init.required, init.strict and init.parts"),
    (
        "init=swinir.pth",
        "init='swinir.pth': every run has it, and what can be set is init.ckpt, init.required, init.strict and init.parts",
    ),
    ("+ckpt=weights.pth", "ckpt='weights.pth': nothing reads the key ckpt; did you mean init.ckpt?"),
    ("+loss.terms.ssim.weight=1", "loss.terms.ssim={'weight': 1} has no _target_"),
    ("network.embed_dim=big", "network.embed_dim='big': Input should be a valid integer"),
    ("network.depths=6", "network.depths=6: Input should be a valid array"),
    ("network.mlp_ratio=-1", "network.mlp_ratio=-1: Input should be greater than 0"),
    ("network.upsampler=bicubic", "network.upsampler='bicubic': Input should be 'nearest+conv', 'pixelshuffle'"),
    ("network._target_=models.swinir.Swin", "network._target_='models.swinir.Swin' can't be imported"),
    ("optimizer._target_=bitsandbites.AdamW8bit", "there is no package bitsandbites here: check its spelling, or install it"),
    ("optimizer.lr=-1e-4", "optimizer.lr=-0.0001: Input should be greater than 0"),
    ("optimizer.lr=fast", "optimizer.lr='fast': Input should be a valid number"),
    ("optimizer.betas=[0.9,1.5]", "Input should be less than 1"),
    ("data.batch_size=0", "data.batch_size=0: Input should be greater than or equal to 1"),
    ("data.batch_size=6.5", "data.batch_size=6.5: Input should be a valid integer"),
    ("data.crop=middle", "data.crop='middle': Input should be 'center' or 'random'"),
    ("data.hflip_prob=1.5", "data.hflip_prob=1.5: Input should be less than or equal to 1"),
    ("data/source=lmbd", "did you mean lmdb?"),
    ("data/source=lmdb data.source.colum=x", "did you mean data.source"),
    ("augmentation=aialab", "did you mean aiialab?"),
    ("augmentation=aiialab augmentation.transforms.rotate.limt=3", "did you mean augmentation.transforms.rotate.limit?"),
    ("augmentation=aiialab +augmentation.transforms.rotate.limt=3", "did you mean augmentation.transforms.rotate.limit?"),
    ("augmentation=aiialab augmentation.transforms.cut._target_=albumentations.RandmCrop", "can't be imported"),
    ("data.root=7", "data.root=7: Input should be a valid string"),
    ("trainer.max_steps=0", "trainer.max_steps=0: Input should be greater than or equal to 1"),
    ("trainer.val_check_interval=0.5", "trainer.val_check_interval=0.5: Input should be a valid integer"),
    ("loss.terms.charbonnier.weight=-1", "loss.terms.charbonnier.weight=-1: Input should be greater than or equal to 0"),
    ("degradation.operators.blur.sigma_px=[12]", "degradation.operators.blur.sigma_px=[12]: "),
    ("degradation.operators.blur.sigma_px=[12,1]", "sigma_px"),
    (
        "adversary=unet_sn",
        "adversary: train.tasks.regression.RegressionTask does not read it: choose task=adversarial, "
        "autoencoding or controllable, or leave adversary out (~adversary)",
    ),
    ("task=adversarial", "task.adversary"),
    ("task=adversarial adversary=unet_sn", "no term of loss.terms speaks of a discriminator"),
    ("task=adversarial adversary=unet_sn adversary.start_stp=3", "did you mean adversary.start_step?"),
    ("task=adversarial adversary=unet_sn adversary.steps_per_update=0", "Input should be greater than or equal to 1"),
    ("task=adversarial adversary=unet_sn adversary.discriminators.image.network.num_fet=4", "num_feat?"),
    (
        f"+loss.terms.gan={GAN}",
        "needs ['fake_logits'], but RegressionTask offers only ['has_negative', 'hq', 'lq', 'negative', 'restored']",
    ),
    (
        f"task=adversarial adversary=unet_sn +loss.terms.gan={GAN.replace('image', 'eyes')}",
        "loss.terms.gan.of=eyes: there is no",
    ),
    (f"task=adversarial adversary=unet_sn +loss.terms.gan={GAN.replace('0.1', '-0.1')}", "loss.terms.gan.weight=-0.1: Input"),
    ("loss.terms.charbonnier.weight=0", "the weight of charbonnier is 0, so there is nothing to minimise"),
    (f"loss.terms.charbonnier.weight={SCHEDULE % -1}", "loss.terms.charbonnier.weight.value=-1: Input should be greater"),
    (
        f"loss.terms.charbonnier.weight={SCHEDULE.replace('ramp', 'rampe') % 1}",
        "did you mean loss.terms.charbonnier.weight.ramp_steps?",
    ),
    ("weights.dri=x", "did you mean weights.dir?"),
    ("checkpoint.every_n_steps=0", "checkpoint.every_n_steps=0: Input should be greater than or equal to 1"),
    ("ema_decay=1.5", "ema_decay=1.5: Input should be less than 1"),
    ("seed=-1", "seed=-1: Input should be greater than or equal to 0"),
    ("resume=true", "resume=True: Input should be a valid string"),
    ("resume=nowhere.ckpt", "resume=nowhere.ckpt: no such file; give auto, never, a run's folder or the path of a checkpoint"),
    ("init.ckpt=nowhere.pth", "nowhere.pth"),
    ("data.codes=c.npz", "data.codes=c.npz: RegressionTask trains without: set data.codes=null"),
    ("data.real_root=faces", "data.real_root=faces: RegressionTask trains without: set data.real_root=null"),
    ("data.components=c.csv", "data.components=c.csv: RegressionTask trains without: set data.components=null"),
    ("task.ema_decay=0.5", "task.ema_decay=0.5: conf/task wires the groups together; set ema_decay instead"),
    ("+trainer.max_epochs=1", "trainer.max_epochs=1 is not for a configuration"),
    ("+trainer.limit_train_batches=2", "trainer.limit_train_batches=2 is not for a configuration"),
    ("trainer.precision=64-true", "trainer.precision=64-true: losses are computed and weights opened in float32 at most: take"),
    ("trainer.precision=64", "trainer.precision=64: losses"),
    ("trainer.accelerator=cup", "trainer.accelerator='cup': Input should be 'auto', 'cpu'"),
    ("trainer.devices=[0]", "trainer: "),
    ("network.depths=[]", "network.depths=[]: List should have at least 1 item"),
    ("network=null", "error: task.network: this task needs network, of which there is none: choose one: network="),
    (
        "task=adversarial",
        "this task needs adversary, of which there is none: choose one: adversary=gfpgan, patch, stylegan2 or unet_sn",
    ),
    (
        "task=autoencoding",
        "needs codebook, of which there is none: start from a model that has it: model=codeformer_stage1",
    ),
    (
        "task=adversarial adversary=stylegan2",
        "out_size: it follows network.out_size, which is not there: set adversary.discriminators.image.network.out_size=VALUE",
    ),
    (
        "optimizer._target_=bitsandbites.AdamW8bit",
        "optimizer._target_='bitsandbites.AdamW8bit' can't be imported: there is no package bitsandbites here",
    ),
    ("schedule=constant schedule.factor=2", "schedule.factor=2: Input should be less than or equal to 1"),
    ("name=../b", "name='../b': String should match pattern"),
    ("init.ckpt=", "init.ckpt='': it is empty, as a variable of the shell that is not set: give a value, or leave it out"),
    ("weights.dir=2026", "as a text it takes two quotes: 'weights.dir=\"2026\"'"),
    ("data=folder data.root=", "the path of images is empty (data.root=), as a variable of the shell that is not set: give"),
    ("validation.pictures=-1", "validation.pictures=-1: Input should be greater than or equal to 0"),
]


@pytest.fixture(autouse=True)
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake that is let through fails at once instead of training the demo."""

    def fit(*_: object, **__: object) -> None:
        pytest.fail("the mistake was accepted: training would have started")

    monkeypatch.setattr("lightning.Trainer.fit", fit)


@pytest.mark.parametrize(("typed", "expected"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_is_refused_and_named(cli: Cli, tmp_path: Path, typed: str, expected: str) -> None:
    code, printed = cli("experiment=demo", *typed.split())
    assert code == 1, printed
    assert expected in printed
    assert all(line.startswith("error: ") for line in printed.splitlines()), printed
    assert not any(tmp_path.iterdir()), "a refused run leaves nothing behind"


def test_a_degradation_that_given_lqs_leave_aside_is_no_mistake() -> None:
    register_resolvers()
    checked = check(compose(["model=swinir_ffhq", "data=pairs", "data.root=LQ", "data.target_root=HQ"]))
    assert checked["degradation"]["operators"]
    assert checked["data"]["degradation"] is None


@pytest.mark.parametrize(
    ("key", "value", "options"),
    [
        *(("data.root", value, []) for value in ("a=b", "faces (1)", "a,b", "it's", "x [faces]", "{a}", "~/faces", "\\'\"=")),
        ("data.root", "a=b", ["-m"]),
        ("init.ckpt", "epoch=3-step=100.ckpt", []),
    ],
)
def test_a_value_that_hydra_reads_otherwise_is_named_with_its_quoting(
    cli: Cli, tmp_path: Path, key: str, value: str, options: list[str]
) -> None:
    """What the message says can be pasted into a shell, and is then the text that was meant."""
    code, printed = cli(*options, "experiment=demo", "data=folder", f"{key}={value}")
    assert code == 1, printed
    assert f"error: {key}={value} can't be read: " in printed
    assert len(printed.splitlines()) == 1, printed
    advice = shlex.split(printed.partition("as a text it takes two quotes: ")[2])
    assert OmegaConf.select(compose(["experiment=demo", "data=folder", *advice]), key) == value
    code, printed = cli("--cfg", "job", "experiment=demo", "data=folder", *advice)
    assert code == 0, printed
    assert OmegaConf.select(OmegaConf.create(printed), key) == value
    assert not any(tmp_path.iterdir())


def test_what_is_no_key_with_a_value_is_named(cli: Cli) -> None:
    code, printed = cli("experiment=demo", "data root=x")
    assert code == 1
    assert "error: data root=x can't be read: " in printed
    assert "quotes" not in printed


@pytest.mark.parametrize("name", ["2026", "2026_11", "1e5", "2026.10", "true", "007", "nan", "w1"])
def test_a_name_is_what_was_typed(cli: Cli, name: str) -> None:
    code, printed = cli("--cfg", "job", "experiment=demo", f"name={name}")
    assert code == 0, printed
    assert yaml.safe_load(printed)["name"] == name


def test_the_list_is_long_enough() -> None:
    assert len(MISTAKES) >= 20


def test_a_typo_in_a_file_is_refused_too(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "typo.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: swinir_ffhq\noptimzer: {lr: 1.0e-5}\ntrainer: {max_step: 3}\n"
    )
    code, printed = cli("--config-dir", str(tmp_path / "mine"), "experiment=typo", f"data.root={tmp_path}")
    assert code == 1
    assert "optimzer={'lr': 1e-05}: nothing reads the key optimzer; did you mean optimizer?" in printed
    assert "trainer.max_step=3: lightning.Trainer has no max_step; did you mean trainer.max_steps?" in printed, "all at once"


def test_without_a_model_the_way_in_is_named(cli: Cli) -> None:
    code, printed = cli()
    assert code == 1
    assert "nothing to train: choose model=NAME or experiment=NAME (python train.py --help lists them)" in printed


def test_without_ffhq_one_error_says_what_to_do(cli: Cli, tmp_path: Path) -> None:
    code, printed = cli("model=swinir_ffhq")
    assert code == 1
    lines = [line for line in printed.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    for part in ("data.root is not set", "images1024x1024", "512x512", "github.com/NVlabs/ffhq-dataset", "data.root=DIR"):
        assert part in lines[0]
    assert not any(tmp_path.iterdir())


def test_missing_weights_to_start_from_are_named(cli: Cli, tmp_path: Path) -> None:
    code, printed = cli("experiment=night_watch", f"data.root={write_photographs(tmp_path / 'faces')}", "data.val_images=1")
    assert code == 1
    assert "weights/codeformer_swinir.ckpt" in printed


@pytest.mark.parametrize(
    "argument", ["trainer.max_epochs=3", "+trainer.max_epochs=3", "epochs=3", "+epochs=3", "+trainer.min_epochs=1"]
)
def test_who_counts_epochs_is_told_to_count_updates(cli: Callable[..., tuple[int, str]], argument: str) -> None:
    code, printed = cli("experiment=demo", argument)
    assert code == 1
    assert "count updates: trainer.max_steps=N" in printed
    assert printed.count("\n") == 1, printed


@pytest.mark.parametrize("limit", ["2h", "02:00:00", "90", "{hours: 2}", "00:02:00:00:00"])
def test_a_limit_in_hours_has_one_form(cli: Callable[..., tuple[int, str]], limit: str) -> None:
    code, printed = cli("experiment=demo", f"trainer.max_time={limit}")
    assert code == 1
    assert ": give days:hours:minutes:seconds, as in trainer.max_time=00:02:00:00\n" in printed
    assert printed.count("\n") == 1, printed

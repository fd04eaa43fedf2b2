"""experiment=demo_*: every family at toy size on the bundled photographs, with nothing to fetch; a few updates of each here."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from yaml import safe_load

from models.diffusion import tiny
from train.conf import CONF
from train.jobs import stages
from train.jobs.cli import compose, register_resolvers
from train.jobs.config import check
from train.runs import run
from train.runs.building import make_trainer
from train.runs.curves import read_rows

Command = Callable[..., tuple[int, str]]
Cli = Callable[..., tuple[int, str]]

SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "data.val_degradations=1"]
SHORT += ["data.batch_size=2", "validation.lpips=null", "trainer.enable_progress_bar=false"]
NAMES = sorted(file.stem for file in (CONF / "experiment").glob("demo*.yaml"))
GIVEN = {
    "demo_codeformer_stage2": ["init.stage1=a"],
    "demo_codeformer_stage3": ["init.stage1=a", "init.stage2=b"],
    "demo_control": ["init.stable_diffusion=a", "init.stage1=b"],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_demo_needs_no_data_and_no_weights(name: str) -> None:
    assert len(NAMES) == 7
    register_resolvers()
    config = check(compose([f"experiment={name}", *GIVEN.get(name, [])]))
    assert (config["name"], config["data"]["root"], config["trainer"]["accelerator"]) == (name, "training", "cpu")
    assert config["trainer"]["accumulate_grad_batches"] == 1
    frozen = [term for term in config["loss"]["terms"].values() if {"backbone", "embedder", "network"} & term.keys()]
    assert not frozen, "terms that need fetched weights"
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) <= 20, "what demos share stands in experiment/base/"


def pictures_of(folder: Path) -> None:
    (picture,) = folder.glob("samples/step_*.png")
    assert min(Image.open(picture).size) >= 64
    assert read_rows(folder / "metrics.csv")[-1]["val/psnr"]


@pytest.mark.parametrize("name", ["demo_elan", "demo_gfpgan"])
def test_a_demo_writes_pictures(cli: Cli, tmp_path: Path, name: str) -> None:
    code, printed = cli(f"experiment={name}", *SHORT, "data.val_size=64")
    assert code == 0, printed
    pictures_of(tmp_path / "runs" / name)


def test_the_three_stages_of_codeformers_demo(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "launch", lambda config, _ranks: run.run(config, make_trainer(config)))
    code, printed = command(
        stages.main, "demo_codeformer", *SHORT, "stage1.adversary.start_step=0", "stage3.adversary.start_step=0"
    )
    assert code == 0, printed
    for stage in safe_load((CONF / "stages" / "demo_codeformer.yaml").read_text()):
        pictures_of(tmp_path / "runs" / "demo_codeformer" / stage)


def test_the_demo_of_the_control_network_beside_a_written_stable_diffusion(cli: Cli, command: Command, tmp_path: Path) -> None:
    assert cli("experiment=demo", *SHORT, "data.val_size=64")[0] == 0
    code, printed = command(tiny.main, "tiny_sd")
    assert code == 0, printed
    assert "tiny_sd: a random Stable Diffusion of 6.7 M parameters" in printed
    code, printed = cli("experiment=demo_control", "init.stable_diffusion=tiny_sd", "init.stage1=runs/demo", *SHORT)
    assert code == 0, printed
    pictures_of(tmp_path / "runs" / "demo_control")
    for wrong, said in (([], "error: give one folder"), (["tiny_sd"], "error: tiny_sd is there already")):
        code, printed = command(tiny.main, *wrong)
        assert code == 1
        assert said in printed

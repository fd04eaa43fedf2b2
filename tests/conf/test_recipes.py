"""Every model, experiment, loss set, degradation, schedule, optimizer and logger trains two updates at toy size."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs

Cli = Callable[..., tuple[int, str]]
CONF = Path(__file__).parents[2] / "conf"


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


TOY = [*TINY_NETWORK, *TINY_DATA, *TINY_RUN, "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true"]
CASES = [
    *(("model", name) for name in names("model")),
    *(("experiment", name) for name in names("experiment")),
    *(("loss", name) for name in names("loss") if name != "mse_lpips"),  # its backbone's weights: tests/losses, test below
    *(("degradation", name) for name in names("degradation")),
    *(("augmentation", name) for name in names("augmentation")),
    *(("schedule", name) for name in names("schedule")),
    *(("optimizer", name) for name in names("optimizer")),
    *(("logger", name) for name in names("logger")),
]


def test_nothing_is_overlooked() -> None:
    found = {group: len(names(group)) for group in ("model", "experiment", "loss", "data", "network", "trainer", "logger")}
    assert found == {"model": 1, "experiment": 4, "loss": 5, "data": 7, "network": 2, "trainer": 6, "logger": 3}
    assert len(CASES) == 1 + 4 + 4 + 13 + 3 + 4 + 2 + 3


@pytest.mark.parametrize(("group", "name"), CASES, ids=["=".join(case) for case in CASES])
def test_a_choice_trains_two_updates(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, name: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    photographs = write_photographs(tmp_path / "photographs")
    arguments = [f"data.root={photographs}", *TOY, "validation.lpips=null", "checkpoint.every_n_steps=1"]
    if group not in ("model", "experiment"):
        arguments = ["experiment=demo", f"{group}={name}", *TINY_RUN, "data.batch_size=2", *TINY_NETWORK]
    elif name == "demo":
        arguments = [argument for argument in arguments if not argument.startswith(("data.root", "data.val_size"))]
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


def test_lpips_without_weights_stops_before_data_is_read(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "cache"))
    code, printed = cli("experiment=demo", "loss=mse_lpips", "data.root=nowhere")
    assert code == 1
    assert "LPIPS with net=vgg needs torchvision's ImageNet weights" in printed
    assert "vgg16-397923af.pth" in printed
    assert not (tmp_path / "runs").exists()

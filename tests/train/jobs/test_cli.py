"""The commands as a user types them, those that start differently in a process of their own."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.files import official
from tests import warm
from tests.toy import ROOT, TINY_DATA, TINY_NETWORK, TINY_RUN, train, write_photographs

Cli = Callable[..., tuple[int, str]]
SMALL = [*TINY_NETWORK, *TINY_DATA, *TINY_RUN, "validation.lpips=null", "schedule=constant"]


def test_help_lists_everything_with_a_line_on_each(tmp_path: Path) -> None:
    done = train("--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for group in ("model", "experiment", "loss", "data", "degradation", "network", "trainer"):
        files = sorted((ROOT / "conf" / group).glob("*.yaml"))
        assert files
        section = done.stdout.partition(f"\n{group}=\n")[2].partition("\n\n")[0]
        for file in files:
            assert re.search(rf"^  {file.stem} +\w.{{10,}}", section, re.MULTILINE), f"{group}={file.stem} has no line"


def test_the_demo_shows_progress_and_can_be_looked_at(tmp_path: Path) -> None:
    short = ["trainer.max_steps=3", "trainer.val_check_interval=3", "data.val_degradations=1"]
    done = train("experiment=demo", *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^update 3/3: loss 0\.\d+", done.stdout, re.MULTILINE), "without a terminal a plain line, and no bar"
    run = tmp_path / "runs" / "demo"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["step"] == 3
    assert summary["val"]["lpips"] is None or summary["val"]["lpips"] > 0
    with Image.open(run / "samples" / "step_0000003.png") as sample:
        assert sample.format == "PNG"
        assert sample.width == 3 * (256 + 4), "LQ | restored | HQ of 256 px a side"
    assert "runs/demo/checkpoints/last.ckpt" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"], "no stray files"


def test_two_ranks_train_as_one(tmp_path: Path, cli: Cli) -> None:
    """Two gloo processes at batch 1 and one at batch 2: the same samples, so the same weights to rounding."""
    common = ["experiment=demo", "data=folder", *SMALL, f"data.root={write_photographs(tmp_path / 'photographs')}"]
    ranks = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=1", "name=two"]
    two = warm.train(*common, *ranks, cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    assert "effective batch 2 = 1 a device x 2 devices x 1 accumulated" in two.stdout
    code, printed = cli(*common, "name=one")
    assert code == 0, printed
    states = [
        torch.load(tmp_path / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    ]
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=2e-5), name
    losses = [logged_losses(tmp_path / "runs" / name / "metrics.csv") for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4), "a row is the mean over the ranks"
    summaries = [json.loads((tmp_path / "runs" / name / "summary.json").read_text()) for name in ("one", "two")]
    assert abs(summaries[0]["val"]["psnr"] - summaries[1]["val"]["psnr"]) < 1e-2
    assert summaries[0]["val"]["psnr_lq"] == summaries[1]["val"]["psnr_lq"], "both ranks' shares of the validation set count"


def logged_losses(file: Path) -> list[float]:
    rows = [float(row["train/loss"]) for row in csv.DictReader(file.open()) if row["train/loss"]]
    assert len(rows) == 2
    return rows


def test_the_official_command_line(tmp_path: Path, cli: Cli, command: Cli) -> None:
    """tests/models/files/test_official.py starts it as a process."""
    plain = ["network.image_skip=false", "network.upsampler=nearest+conv", "name=run"]
    root = f"data.root={write_photographs(tmp_path / 'photographs')}"
    assert cli("experiment=demo", "data=folder", *SMALL, *plain, root)[0] == 0
    run = str(tmp_path / "runs" / "run")
    for form, name in (("official", "weights.pth"), ("safetensors", "weights.safetensors")):
        file = tmp_path / name
        code, printed = command(official.main, "export", run, "--format", form, "--output", str(file))
        assert code == 0, printed
        assert str(file) in printed
        code, printed = command(official.main, "inspect", str(file))
        assert code == 0, printed
        assert "SwinIR" in printed
    code, printed = command(official.main, "inspect", str(tmp_path / "missing.pth"))
    assert code == 1
    assert "missing.pth" in printed
    assert "Traceback" not in printed


def test_the_readme_prints_exactly_two_commands() -> None:
    numbered = re.findall(r"^\d+\. `(.+?)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert numbered == ["pip install uv && uv run train.py experiment=demo", "pip install uv && uv run pytest"]


def test_what_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    choices = re.findall(r"\b(model|experiment|loss|data|degradation|trainer|logger|network)=([a-z0-9_]+)\b", text)
    assert len(choices) > 10
    for group, name in choices:
        assert (ROOT / "conf" / group / f"{name}.yaml").is_file(), f"README names {group}={name}"
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)|src=\"((?!http)[^\"]+)\"", text):
        assert (ROOT / (path[0] or path[1])).exists(), f"README names {path}"

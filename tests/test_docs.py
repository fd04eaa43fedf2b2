"""docs/runs.md and docs/cx.md: their commands are run as printed, in order, in one folder; those of CX at toy size."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from models.diffusion.tiny import tell_noise, tiny, write
from tests.conf.test_recipes import official_swinir
from tests.toy import ROOT, write_photographs
from tests.train.runs.kills import finished
from tests.train.tasks.test_control import CONTROL, RUN, control


def commands_of(page: str) -> list[str]:
    """The lines of its sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_the_commands_of_the_page_on_runs(tmp_path: Path) -> None:
    commands = commands_of("runs.md")
    assert len(commands) == 10
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    printed, kinds = [], set()
    for command in commands:
        program, script, *arguments = shlex.split(command)
        kind = program, "-m" in arguments
        if kind in kinds:  # would only make the same imports again
            assert (program, script) == ("python", "train.py")
            printed.append(finished(tmp_path, *arguments))
            continue
        kinds.add(kind)
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        printed.append(done.stdout)
    start, on, back, over, branch, alone, preflight, ranks, grid, search = printed
    assert "starts at update 0, ends at update 4" in start
    assert "continues from runs/first/checkpoints/step_0000004.ckpt, ends at update 6" in on
    assert "is kept as step_0000006.ckpt.aside1" in back
    assert "the run before is kept as runs/first.old1" in over
    assert "what differs from that run:\n  optimizer.lr: 0.001 -> 0.0001\n" in branch
    assert "runs/second/checkpoints/step_0000004.ckpt, update 4: SwinIR, the average of its weights" in alone
    assert "images/s" in preflight
    assert "effective batch 8 = 4 a device x 2 devices" in ranks
    assert grid.count("| finished |") == 2
    assert search.count("| finished |") == 2
    found = sorted(path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith("."))
    assert found == ["first", "first.old1", "found.sweep", "ranks", "rates.sweep", "second"]
    assert json.loads((tmp_path / "runs/first/summary.json").read_text())["step"] == 2


def test_the_commands_of_the_page_on_cx(
    command: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.prepare.__main__ import COMMANDS
    from data.prepare.jobs.arguments import main as prepare
    from train.jobs.cli import main as train

    write_photographs(tmp_path / "FFHQ512", count=5, size=64)
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "FFHQ512" / "99.png")  # not sharp
    (tmp_path / "weights").mkdir()
    torch.save(control().state_dict(), tmp_path / "weights" / "v1_face.pth")
    backbone = tiny()
    tell_noise(backbone)
    write(backbone, tmp_path / "weights" / "v2-1_512-ema-pruned.ckpt")  # a diffusers folder does as well as the file
    official_swinir(tmp_path).rename(tmp_path / "weights" / "face_swinir_v1.ckpt")
    filtering, training = (shlex.split(line)[1:] for line in commands_of("cx.md"))
    assert (filtering[:2], training[0]) == (["-m", "data.prepare"], "train.py")
    monkeypatch.chdir(tmp_path)
    toys = ["min_sharpness=1", "min_confidence=0", "max_spread_px=0", "workers=1"]
    assert prepare(COMMANDS, [*filtering[2:], *toys]) == 0
    kept = (tmp_path / "FFHQ512.kept" / "kept.txt").read_text().splitlines()
    assert kept == ["# paths start from ../FFHQ512", *(f"{number:02d}.png" for number in range(5))]
    one = [*CONTROL, *RUN, "name=cx", "trainer.devices=1", "trainer.strategy=auto"]
    code, printed = command(train, *training[1:], *one)
    assert code == 0, printed
    config = OmegaConf.load(tmp_path / "runs" / "cx" / "config.yaml")
    assert config.data.root == "FFHQ512.kept/kept.txt"
    assert json.loads((tmp_path / "runs/cx/summary.json").read_text())["step"] == 3

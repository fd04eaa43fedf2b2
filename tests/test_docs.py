"""docs/runs.md: its commands are run as printed, in order, in one folder."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toy import ROOT
from tests.train.runs.kills import finished


@pytest.mark.slow
def test_the_commands_of_the_page_on_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "runs.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
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

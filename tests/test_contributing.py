"""CONTRIBUTING.md as written: its files are put into a copy of the project and its command is run there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.toy import ROOT, write_photographs


def test_each_guide_works_as_written(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = re.findall(r"^```\w+ (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [path.split("/")[0] for path, _ in files] == ["models", "conf", "conf", "losses", "conf", "conf", "conf"]
    for folder in ("conf", "data", "degradations", "losses", "models", "restoration", "train"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    for path, content in files:
        assert not (tmp_path / path).exists(), f"{path} exists: the guide must add files, not replace them"
        (tmp_path / path).write_text(content)
    write_photographs(tmp_path / "photographs")
    (command,) = re.findall(r"^```sh\npython (.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, *command.split()], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "portraits_small"
    assert json.loads((run / "summary.json").read_text())["step"] == 2
    assert "train/gradient" in (run / "metrics.csv").read_text().partition("\n")[0]

"""The folder that a command is given in, when a stranger filled it: nothing is imported from it, and no key is sent by it."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit
from submitit.core.utils import DelayedSubmission

from tests.toy import ROOT
from train.conf import groups
from train.jobs import cluster
from train.runs.loggers import Wandb

OURS = ("train", "models", "data", "torch", "submitit")


def test_a_job_of_slurm_imports_nothing_from_the_folder_it_was_submitted_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very command that submitit writes into its script, run as srun would."""
    for package in OURS:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("open('imported', 'w')\n")
    made: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", lambda *_: 1)
    monkeypatch.setattr(submitit.SlurmExecutor, "submit", lambda self, *_: made.append(self) or SimpleNamespace(job_id="7"))
    job: Any = SimpleNamespace(config={"name": "run"}, name="run")
    folder = tmp_path / "runs" / "run.slurm"
    folder.mkdir(parents=True)
    cluster._submit(job, SimpleNamespace(sbatch=lambda _: {}))  # type: ignore[arg-type]  # what it asks of SLURM is not asked
    DelayedSubmission(groups).dump(folder / "7_submitted.pkl")
    slurm = {"JOB_ID": "7", "NTASKS": "1", "JOB_NUM_NODES": "1", "NODEID": "0", "JOB_NODELIST": "here", "PROCID": "0"}
    names = {f"SLURM_{name}": value for name, value in {**slurm, "LOCALID": "0"}.items()}
    environment = {**os.environ, **names, "PYTHONPATH": str(ROOT), "SUBMITIT_EXECUTOR": "slurm"}
    done = subprocess.run(
        made[0]._submitit_command_str, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "7_0_result.pkl").exists()
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("script", ["train.py", "restore.py"])
def test_a_command_imports_nothing_from_there(script: str, tmp_path: Path) -> None:
    for package in (*OURS, "hydra", "yaml"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("open('imported', 'w')\n")
    done = subprocess.run([sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "imported").exists()


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What W&B was begun with, which here sends nothing."""
    calls: list[object] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    run = SimpleNamespace(offline=True, sync_dir="offline-run-x")
    monkeypatch.setattr("wandb.init", lambda **options: calls.append(options) or run)
    return calls


@pytest.mark.parametrize("folder", ["wandb", ".wandb"])
@pytest.mark.parametrize("line", ["base_url = http://127.0.0.1:9", "BASE_URL: http://evil", "https_proxy = http://evil"])
def test_settings_of_wandb_that_lie_there(folder: str, line: str, tmp_path: Path, sent: list[object]) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "settings").write_text(f"[default]\nentity = us\n{line}\n")
    logger, key = Wandb(save_dir=str(tmp_path / "runs" / "a"), project="p", name="a"), line.split()[0].strip(":").lower()
    with pytest.raises(ValueError, match=rf"{folder}/settings sets {key} for W&B, which sends your API key by it: remove"):
        _ = logger.experiment
    assert sent == []


def test_settings_of_wandb_that_may_lie_there(tmp_path: Path, sent: list[object]) -> None:
    (tmp_path / "wandb").mkdir()
    settings = tmp_path / "wandb" / "settings"
    settings.write_text("no section\n")
    logger = Wandb(save_dir=str(tmp_path / "runs" / "a"), project="p", name="a")
    with pytest.raises(ValueError, match=r"wandb/settings can't be read as settings of W&B: remove it"):
        _ = logger.experiment
    settings.write_text("[default]\nentity = us\nproject = p\nmode = offline\n")
    _ = logger.experiment
    assert len(sent) == 1

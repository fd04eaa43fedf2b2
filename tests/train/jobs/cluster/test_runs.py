"""Runs and sweeps on a real SLURM of this host: submitted, requeued, hit by their time limit, and none the worse for it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.toy import ROOT, TINY_DATA, TINY_NETWORK, TINY_RUN, train, write_photographs
from tests.train.jobs.cluster.slurm import Cluster

pytestmark = pytest.mark.slow
LAUNCHER = ["hydra/launcher=slurm", "hydra.launcher.poll_s=0.5"]


@pytest.fixture
def toy(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a tiny two-rank run; the environment is the one that its jobs get."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of tests.train.jobs.cluster.slow
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    root = f"data.root={write_photographs(tmp_path / 'photographs')}"
    common = [*TINY_NETWORK, *TINY_DATA, *TINY_RUN, "validation.lpips=null", "schedule=constant", "data.batch_size=1"]
    ranks = ["trainer.devices=2", "trainer.strategy=ddp"]
    return [
        "experiment=demo",
        "data=folder",
        *common,
        root,
        *ranks,
        "degradation._target_=tests.train.jobs.cluster.slow.SlowPipeline",
    ]


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until_saved(run: Path, step: int, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not any(int(path.stem[5:]) >= step for path in (run / "checkpoints").glob("step_*.ckpt")):
        assert time.monotonic() < deadline, f"{run} has no checkpoint of update {step}"
        time.sleep(0.1)


def job_of(folder: Path, timeout_s: float = 60) -> int:
    deadline = time.monotonic() + timeout_s
    while not (folder / "job").exists():
        assert time.monotonic() < deadline, f"nothing was submitted: {folder}"
        time.sleep(0.1)
    return int((folder / "job").read_text().split()[0])


def assert_same_run(one: Path, other: Path) -> None:
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)]
    assert states[0]["global_step"] == states[1]["global_step"]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()


def test_a_run_that_is_requeued_and_hits_its_time_limit_equals_an_undisturbed_one(
    cluster: Cluster, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = [*toy, "trainer.max_steps=140", "trainer.val_check_interval=35", "checkpoint.every_n_steps=5", "checkpoint.keep=99"]
    undisturbed = train(*run, "name=run", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    (tmp_path / "runs").rename(tmp_path / "undisturbed")
    monkeypatch.setenv("SLOW_S", "0.35")  # 50 s of updates in all
    # SLURM's shortest limit; the warning comes when it looks at the clock, every 30 s: 15 to 45 s after the start
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10"]
    waiting = start([*LAUNCHER, *limit, *run, "name=run"], tmp_path)
    number = job_of(tmp_path / "runs" / "run.slurm")
    until_saved(tmp_path / "runs" / "run", 10)
    cluster.run("scontrol", "requeue", str(number))  # as a preemption does
    printed, _ = waiting.communicate(timeout=400)
    assert waiting.returncode == 0, printed
    assert_same_run(tmp_path / "runs" / "run", tmp_path / "undisturbed" / "run")
    log = (tmp_path / "runs" / "run.slurm" / f"{number}_0_log.out").read_text()
    assert "SIGTERM: everything up to update" in log, "the requeue"
    assert "SIGUSR2: everything up to update" in log, "the time limit"
    assert cluster.state(number).restarts >= 2
    assert len(re.findall("continues from runs/run/checkpoints/step_", log)) == cluster.state(number).restarts
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.name[0] != ".") == ["run", "run.slurm"]


def test_a_sweep_names_what_failed_and_runs_nothing_twice(cluster: Cluster, toy: list[str], tmp_path: Path) -> None:
    for package in ("train", "models"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("open('imported', 'w')\n")
    one_rank = [argument for argument in toy if not argument.startswith(("trainer.devices", "trainer.strategy"))]
    sweep = ["-m", *LAUNCHER, "hydra.launcher.timeout_min=5", *one_rank, "name=size", "data.size=64,96"]
    waiting = start(sweep, tmp_path)
    printed, _ = waiting.communicate(timeout=300)
    assert waiting.returncode == 1, printed
    assert "error: 1 of 2 jobs failed: data.size=96" in printed
    assert not (tmp_path / "imported").exists()
    table = (tmp_path / "runs" / "size.sweep" / "sweep.md").read_text()
    assert "smaller than data.size=96" in table, "the error itself stands there"
    assert "| data.size=64 | 64 | finished |" in table
    waiting = start([*sweep[:-1], "data.size=choice(64)"], tmp_path)
    printed, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, printed
    assert "submitted" not in printed, "finished jobs are not run again"
    assert "| data.size=64 | 64 | finished |" in printed


def sbatch_script() -> str:
    (script,) = re.findall(r"^```bash train.sbatch\n(.*?)^```$", (ROOT / "docs/runs.md").read_text(), re.MULTILINE | re.DOTALL)
    return script


def test_the_job_script_of_the_documentation(
    cluster: Cluster, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks; warned before the limit it goes on by itself; cancelled it does not."""
    run = [*toy, "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_steps=60", "checkpoint.every_n_steps=5"]
    run = [argument for argument in run if not argument.startswith("trainer.devices")]  # trainer=slurm reads them
    (tmp_path / "train.sbatch").write_text(sbatch_script())
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("SLOW_S", "0.3")
    here = ["--ntasks-per-node=2", "--cpus-per-task=1", "--gres=none", "--time=5", "--parsable"]

    def submit(name: str) -> int:
        return int(cluster.run("sbatch", *here, "train.sbatch", *run, f"name={name}", cwd=tmp_path))

    number = submit("script")
    until_saved(tmp_path / "runs" / "script", 5)
    cluster.run("scancel", "--signal=USR1", str(number))  # what --signal=USR1@120 brings before the limit
    log = tmp_path / f"slurm-{number}.out"
    cluster.wait(number, "COMPLETED", timeout_s=120)
    assert cluster.state(number).restarts == 1, log.read_text()
    assert "SIGUSR1: everything up to update" in log.read_text()
    assert "2 x cpu" in log.read_text()
    assert "runs/script after 60 updates" in log.read_text()

    number = submit("cancelled")
    until_saved(tmp_path / "runs" / "cancelled", 5)
    cluster.run("scancel", str(number))
    cluster.wait(number, "CANCELLED", timeout_s=60)
    time.sleep(8)  # a requeued job would start again after 6 s
    assert cluster.state(number) == cluster.wait(number, "CANCELLED", timeout_s=1)
    assert cluster.state(number).restarts == 0
    saved = [int(path.stem[5:]) for path in (tmp_path / "runs" / "cancelled" / "checkpoints").glob("step_*.ckpt")]
    assert f"SIGTERM: everything up to update {max(saved)} is saved" in (tmp_path / f"slurm-{number}.out").read_text()

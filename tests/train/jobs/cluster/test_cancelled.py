"""What the table says of a job that scancel ended, with an scontrol that says so."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from train.jobs.cluster import _is_cancelled
from train.jobs.results import Job
from train.jobs.sweep import Sweep


def test_a_cancelled_job_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "scontrol"
    script.write_text('#!/bin/sh\n[ "$4" = 7 ] && echo "JobId=7 JobState=CANCELLED Reason=None" || echo "JobState=FAILED"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert _is_cancelled("7")
    assert not _is_cancelled("8")
    monitor = {"name": "a", "checkpoint": {"monitor": "psnr"}}
    job = Job(monitor, {}, error="CANCELLED (SLURM job 7)", cancelled=True)
    assert Sweep.close(SimpleNamespace(), job) is None  # type: ignore[arg-type]
    assert job.status == "CANCELLED"

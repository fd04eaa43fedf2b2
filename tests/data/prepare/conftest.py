"""The command line in this process."""

from multiprocessing import forkserver

import cv2
import numpy as np
import pytest

from data.prepare.__main__ import COMMANDS
from data.prepare.jobs.arguments import main


@pytest.fixture(scope="session", autouse=True)
def _imports_made_once():
    """Whichever command starts the server of worker processes, its workers have the face detector's imports."""
    forkserver.set_forkserver_preload(["facenet_pytorch", "cv2"])
    forkserver.ensure_running()


@pytest.fixture
def prepare(capsys, monkeypatch):
    """Arguments in, (exit code, what was printed) out; two workers unless said otherwise."""
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)

    def call(*arguments):
        capsys.readouterr()
        chosen = ["workers=2"] if "=" in " ".join(arguments) and not any(a.startswith("workers=") for a in arguments) else []
        code = main(COMMANDS, [str(argument) for argument in (*arguments, *chosen)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def write(path, rgb, *options):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.asarray(rgb)[..., ::-1], *options)
    return path


def textured(height, width, seed, cell=16):
    """(height, width, 3) uint8 of blurred coloured noise: every seed looks different, at any size."""
    small = np.random.default_rng(seed).integers(0, 256, (cell, cell, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toy import draw_no_curves

# pytest takes a process for each core. With -n 0 too, as sums over two threads round otherwise than the tolerances of tests of
# two ranks allow. Torch reads it when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["FACEWRIGHT_TARGETS"] = "tests"  # configurations of tests name classes that lie beside them

# A process takes a whole file at a time (--dist loadfile): the longest come first, so that none is left with one at the end.
LONGEST = [
    *("parity/test_parity.py", "train/jobs/test_sweep.py", "conf/test_recipes.py", "train/tasks/test_control.py"),
    *("train/tasks/test_gfpgan.py", "train/runs/test_run.py", "train/tasks/test_code_prediction.py"),
    *("train/jobs/test_cli.py", "train/runs/test_times.py", "conf/test_mistakes.py", "train/runs/test_preflight.py"),
    *("train/tasks/test_control_latents.py", "train/jobs/test_stages.py", "train/jobs/test_new_family.py"),
    *("test_contributing.py", "degradations/test_batched.py", "models/test_swinir.py"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture
def command(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """A script's main in this process, in an empty folder: main and arguments in, (exit code, everything printed) out."""
    without_curves = "draws_curves" not in request.fixturenames

    def call(main: Callable[[], None], *arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
        capfd.readouterr()
        if main.__module__.startswith("train.") and without_curves:
            draw_no_curves(monkeypatch.setattr)
        try:
            main()
            code = 0
        except SystemExit as ended:
            if isinstance(ended.code, str):  # as Python does at its end
                print(ended.code, file=sys.stderr)
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return call


@pytest.fixture
def draws_curves() -> None:
    """For a test that looks at curves.png, which is not drawn for the others."""


@pytest.fixture
def cli(command: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """train.py: arguments in, (exit code, everything printed) out."""
    from train.jobs.cli import main

    return lambda *arguments: command(main, *arguments)

"""validate=true: the metrics of a run or of a file, and nothing else."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from tests.train.tasks.test_code_prediction import arguments
from train.runs.curves import read_rows

Cli = Callable[..., tuple[int, str]]

RUN = ["experiment=demo", "data=folder", *TINY_NETWORK, *TINY_DATA, *TINY_RUN, "schedule=constant", "validation.lpips=null"]
RUN += ["trainer=cpu", "data.root=photographs", "name=run"]


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Path:
    write_photographs(tmp_path / "photographs")
    assert cli(*RUN)[0] == 0
    return tmp_path / "runs/run"


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def values(printed: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\w+) +([\d.]+) ", printed, re.MULTILINE))


def test_of_a_run_it_prints_what_the_run_measured(cli: Cli, tmp_path: Path, run: Path) -> None:
    (run / "checkpoints/step_0000003.tmp").touch()  # of a run that trains
    before = files(tmp_path)
    row = read_rows(run / "metrics.csv")[-1]
    measured = {name: f"{float(row[f'val/{name}']):.5g}" for name in ("psnr", "ssim")}
    for typed in (["resume=runs/run"], ["resume=runs/run/checkpoints/step_0000002.ckpt"], RUN):
        code, printed = cli(*typed, "validate=true")
        assert code == 0, printed
        assert "runs/run/checkpoints/step_0000002.ckpt, update 2: SwinIR, the average of its weights\n" in printed
        assert values(printed) == measured
    code, printed = cli("resume=runs/run", "validate=true", "ema_decay=null", "data.val_images=1", "optimizer.lr=1")
    assert code == 0, printed
    assert "update 2: SwinIR\n  with another configuration than then: data." in printed
    assert "data.val_images: 2 -> 1, ema_decay: 0.99 -> None, optimizer.lr: 0.001 -> 1\n" in printed
    assert values(printed) != measured
    assert files(tmp_path) == before, "nothing is written"


def test_of_a_file_and_of_nothing(cli: Cli, tmp_path: Path, run: Path) -> None:
    before = files(tmp_path)
    code, printed = cli(*RUN, "name=other", "init.ckpt=runs/run", "validate=true")
    assert code == 0, printed
    assert "init.ckpt=runs/run: SwinIR\n" in printed
    assert values(printed)["psnr"] == f"{float(read_rows(run / 'metrics.csv')[-1]['val/psnr']):.5g}"
    for typed, expected in (
        (["name=other"], "there is nothing to validate; give resume=runs/NAME, or init.ckpt=FILE"),
        (["init.ckpt=runs/run"], "Give resume=runs/run to validate it under this one, or resume=never to validate init.ckpt"),
        (["resume=runs/run", "network.window_size=2"], "another configuration: network.window_size: 4 -> 2"),
        (["preflight=true"], "preflight=true and validate=true: give one of them"),
        (["seed=1,2"], "validate=true looks at one configuration: leave out -m and what varies"),
    ):
        code, printed = cli(*(["-m"] if typed == ["seed=1,2"] else []), *RUN, *typed, "validate=true")
        assert code == 1, printed
        assert expected in printed
        assert {path for path in files(tmp_path) if "sweep" not in str(path)} == before.keys()


def test_of_a_task_that_draws_and_has_discriminators(cli: Cli, tmp_path: Path) -> None:
    write_photographs(tmp_path / "photographs", size=32)
    stage = ["model=codeformer_stage1", *arguments("stage1", tmp_path / "photographs"), "name=run"]
    assert cli(*stage, "trainer.max_steps=2")[0] == 0
    before = files(tmp_path)
    for typed in ("resume=runs/run", "init.ckpt=runs/run"):
        code, printed = cli(*(stage if typed.startswith("init") else []), typed, "name=other", "validate=true")
        assert code == 0, printed
        assert "VQAutoEncoder" in printed
    assert files(tmp_path) == before

"""Sweeps: what a job is called, what the table says, what is run again, and that all ranks of a job train the same."""

import csv
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from tests.train.runs.kills import Attempt
from train.jobs.cli import compose
from train.jobs.config import check
from train.jobs.launch import Failed
from train.jobs.sweep import is_finished, job_name
from train.signals import Interrupted

Cli = Callable[..., tuple[int, str]]
TINY = ["experiment=demo", "data=folder", *TINY_NETWORK, *TINY_DATA, *TINY_RUN, "schedule=constant", "validation.lpips=null"]


def test_a_job_is_named_by_what_varies() -> None:
    assert job_name({"optimizer.lr": "0.0001", "degradation": "light"}) == "optimizer.lr=0.0001,degradation=light"
    one, other = job_name({"data.root": "/a/b"}), job_name({"data.root": "/a-b"})
    assert re.fullmatch(r"data\.root=-a-b-[0-9a-f]{8}", one)
    assert one != other
    assert len(job_name({"network.depths": "[" + "6," * 200 + "6]"})) < 200


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs end at once with a PSNR of 30 - |log10(lr) + 3|, best at 1e-3; the names of those that were started."""
    from math import log10

    names: list[str] = []

    def launch(config: dict[str, Any], local_ranks: int | None = None) -> None:
        names.append(config["name"])
        lr = config["optimizer"]["lr"]
        if lr == 0.5:
            raise Failed("the loss of update 3 is nan")
        folder = Path("runs") / config["name"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
        value = {"psnr": 30 - abs(log10(lr) + 3), "lpips": None}
        (folder / "summary.json").write_text(json.dumps({"step": config["trainer"]["max_steps"], "val": value}))

    monkeypatch.setattr("train.jobs.sweep.launch", launch)
    return names


def test_grid(cli: Cli, tmp_path: Path, launched: list[str]) -> None:
    command = ["-m", "experiment=demo", "optimizer.lr=1e-2,0.5,1e-3,-1", "name=lr"]
    code, printed = cli(*command)
    assert code == 1
    assert "2 of 4 jobs failed: optimizer.lr=0.5, optimizer.lr=-1" in printed, "and they do not stop the others"
    assert launched == [f"lr.sweep/optimizer.lr={lr}" for lr in ("0.01", "0.5", "0.001")], "a wrong value starts nothing"
    folder = tmp_path / "runs" / "lr.sweep"
    table = (folder / "sweep.md").read_text()
    assert table.splitlines()[2:6] == [
        "| optimizer.lr=0.001 | 0.001 | finished | 30.0000 |",
        "| optimizer.lr=0.01 | 0.01 | finished | 29.0000 |",
        "| optimizer.lr=0.5 | 0.5 | failed |  |",
        "| optimizer.lr=-1 | -1 | failed |  |",
    ]
    assert "- optimizer.lr=0.5: the loss of update 3 is nan" in table
    assert "- optimizer.lr=-1: optimizer.lr=-1: Input should be greater than 0" in table
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [row["optimizer.lr"] for row in rows] == ["0.001", "0.01", "0.5", "-1"]
    assert [float(row["psnr"]) for row in rows[:2]] == pytest.approx([30, 29])
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert table.strip() in printed
    launched.clear()
    code, printed = cli(*command)
    assert launched == ["lr.sweep/optimizer.lr=0.5"], "what is finished is not run again"
    assert (folder / "sweep.md").read_text() == table


def test_a_finished_job_of_another_configuration_is_not_taken_for_this_one(cli: Cli, launched: list[str]) -> None:
    command = ["-m", "experiment=demo", "optimizer.lr=1e-2,1e-3", "name=lr"]
    assert cli(*command)[0] == 0
    launched.clear()
    cli(*command, "data.hflip_prob=0")
    assert len(launched) == 2, "the run itself then refuses the folder and names the key"
    assert cli(*command)[0] == 0
    launched.clear()
    assert cli(*command, "data.num_workers=3")[0] == 0
    assert not launched
    assert cli(*command, "resume=never")[0] == 0
    assert len(launched) == 2, "asked for"


def test_what_makes_another_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def config(*arguments: str) -> dict[str, Any]:
        return check(compose(["experiment=demo", "name=run", *arguments]))

    run = tmp_path / "runs/run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config())))
    (run / "summary.json").write_text(json.dumps({"step": 900}))
    for change in ("seed=0", "data.num_workers=3", "resume=never", "trainer.enable_progress_bar=false"):
        assert is_finished(config(change)), change
    for change in ("trainer.max_steps=901", "trainer.max_steps=5", "data.batch_size=4", "trainer.accumulate_grad_batches=2"):
        assert not is_finished(config(change)), change


def test_groups_models_and_several_keys(cli: Cli, tmp_path: Path, launched: list[str]) -> None:
    code, printed = cli("-m", "experiment=demo", "loss=l1,charbonnier", "optimizer.lr=1e-2,1e-3")
    assert code == 0, printed
    assert launched[:2] == ["demo.sweep/loss=l1,optimizer.lr=0.01", "demo.sweep/loss=l1,optimizer.lr=0.001"]
    assert "| job | loss | optimizer.lr | status | psnr |" in printed
    launched.clear()
    assert cli("-m", "experiment=demo", "name=a,b")[0] == 0
    assert launched == ["sweep/name=a", "sweep/name=b"]
    assert cli("-m", "experiment=demo", "optimizer.lr=range(0.001,0.004,0.001)", "name=range")[0] == 0
    assert len(list((tmp_path / "runs/range.sweep").glob("optimizer.lr=*"))) == 3


def test_a_sweep_that_is_interrupted_says_so_whatever_failed_before(
    cli: Cli, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(config: dict[str, Any], local_ranks: int | None = None) -> None:
        launched.append(config["name"])
        if len(launched) == 1:
            raise Failed("out of luck")
        raise Interrupted(signal.SIGTERM, 3)

    monkeypatch.setattr("train.jobs.sweep.launch", launch)
    code, printed = cli("-m", "experiment=demo", "optimizer.lr=1e-2,1e-3,1e-4")
    assert code == 75
    assert len(launched) == 2, "the third is for the next time"
    assert "| interrupted |" in printed
    assert "out of luck" in printed


def test_what_a_sweep_refuses(cli: Cli, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = cli("-m", "data=demo", "optimizer.lr=1e-2,1e-3")
    assert code == 1
    assert "nothing to train: choose model=NAME or experiment=NAME" in printed
    code, printed = cli("-m", "experiment=demo", "preflight=true", "optimizer.lr=1e-2,1e-3")
    assert code == 1
    assert "preflight=true looks at one configuration" in printed
    monkeypatch.setenv("LOCAL_RANK", "0")
    code, printed = cli("-m", "experiment=demo", "optimizer.lr=1e-2,1e-3")
    assert code == 1
    assert "leave out torchrun or srun" in printed
    assert not launched


def test_names_of_odd_sweeps(cli: Cli, tmp_path: Path, launched: list[str]) -> None:
    assert cli("-m", "experiment=demo", "+trainer.benchmark=true,false", "name='a,b'")[0] == 0
    assert launched == ["a,b.sweep/trainer.benchmark=True", "a,b.sweep/trainer.benchmark=False"]
    table = (tmp_path / "runs/a,b.sweep/sweep.md").read_text()
    assert "| trainer.benchmark=True | True |" in table
    launched.clear()
    assert cli("-m", "experiment=demo,uphorse", "name=both", "data=demo")[0] == 0
    assert launched == ["both.sweep/experiment=demo", "both.sweep/experiment=uphorse"]


def test_a_typo_in_a_sweep_is_one_error(cli: Cli, tmp_path: Path, launched: list[str]) -> None:
    code, printed = cli("-m", "experiment=demo", "optimzer.lr=1e-2,1e-3")
    assert code == 1
    assert "did you mean optimizer.lr?" in printed
    code, printed = cli("-m", "experiment=demo", "optimizer.lr=1e-2,1e-3", "data.batchsize=3")
    assert code == 1
    assert "did you mean data.batch_size?" in printed
    assert not launched


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_search(cli: Cli, tmp_path: Path, launched: list[str], sampler: str) -> None:
    space = "optimizer.lr=tag(log,interval(1e-5,1e-1))"
    command = ["-m", "hydra/sweeper=optuna", f"hydra/sweeper/sampler={sampler}", "experiment=demo", space, "name=search"]
    code, printed = cli(*command, "hydra.sweeper.n_trials=4")
    assert code == 0, printed
    assert len(launched) == 4
    rates = [float(name.partition("lr=")[2]) for name in launched]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates)
    best = OmegaConf.load(tmp_path / "runs/search.sweep/optimization_results.yaml")
    assert best.best_params["optimizer.lr"] == pytest.approx(min(rates, key=lambda lr: abs(torch.tensor(lr).log10() + 3)))
    done = launched.copy()
    launched.clear()
    code, printed = cli(*command, "hydra.sweeper.n_trials=6")
    assert code == 0, printed
    assert len(launched) == 2, "the same search again proposes the same trials, and only the new ones are run"
    assert not set(launched) & set(done)


def test_a_search_in_which_all_fail(cli: Cli, launched: list[str]) -> None:
    code, printed = cli("-m", "hydra/sweeper=optuna", "experiment=demo", "optimizer.lr=choice(0.5)", "hydra.sweeper.n_trials=2")
    assert code == 1
    assert "2 of 2 jobs failed" in printed
    assert "Traceback" not in printed


def real(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """A sweep whose jobs have two ranks each: its exit code and all that was printed."""
    root = f"data.root={write_photographs(tmp_path / 'photographs')}"
    ranks = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=1"]
    attempt = Attempt(tmp_path, ["-m", *TINY, root, *ranks, *arguments])
    return attempt.wait(), attempt.printed


def rates(run: Path) -> set[float]:
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return {checkpoint["optimizer_states"][0]["param_groups"][0]["lr"], checkpoint["config"]["optimizer"]["lr"]}


def test_two_ranks_of_a_grid(tmp_path: Path) -> None:
    """One job fails in the middle; the next is none the worse for it."""
    code, printed = real(tmp_path, "data.size=96,64", "name=grid")
    assert code == 1, printed
    assert "error: 1 of 2 jobs failed: data.size=96" in printed
    assert printed.count("smaller than data.size=96") == 2, "said by one of the ranks, once, and again below the table"
    assert "Traceback" not in printed
    assert "| data.size=64 | 64 | finished |" in printed
    assert "2 x cpu" in printed


def test_two_ranks_of_a_search_train_with_one_learning_rate(tmp_path: Path) -> None:
    space = "optimizer.lr=interval(1e-4,1e-1)"
    code, printed = real(tmp_path, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", space, "name=search")
    assert code == 0, printed
    jobs = sorted((tmp_path / "runs/search.sweep").glob("optimizer.lr=*/"))
    assert len(jobs) == 2
    for job in jobs:
        assert rates(job) == {float(job.name.partition("=")[2])}
    assert "2 x cpu" in printed


def test_ranks_with_different_configurations_end_before_the_first_update(tmp_path: Path) -> None:
    """As when each rank of a sweep draws for itself: whoever starts the ranks, they compare first."""
    root = f"data.root={write_photographs(tmp_path / 'photographs')}"
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "WORLD_SIZE": "2", "NODE_RANK": "0"}
    ranks = [
        Attempt(
            tmp_path / str(rank),
            [*TINY, root, "trainer.devices=2", "trainer.strategy=ddp", f"optimizer.lr={lr}"],
            environment={**place, "LOCAL_RANK": str(rank)},
        )
        for rank, lr in enumerate(("0.136", "0.105"))
    ]
    for number, rank in enumerate(ranks):
        assert rank.wait() == 1
        said = "the ranks were given different configurations (optimizer.lr: 0.136 on rank 0, 0.105 on rank 1)"
        assert said in rank.printed
        assert not (tmp_path / str(number) / "runs").exists()

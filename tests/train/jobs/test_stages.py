"""A chain of stages is a file in conf/: what each stage begins with, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train.conf
from tests.toy import ROOT, TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from train.jobs import cli, stages
from train.runs import run
from train.runs.building import make_trainer

Command = Callable[..., tuple[int, str]]

CHAIN = """\
# Two stages of a tiny network
small: [experiment=demo]
more: [experiment=demo, "init.ckpt='{small}'", optimizer.lr=1e-6, seed=7]
"""
GIVEN = ["data=folder", "data.root=photographs", *TINY_NETWORK, *TINY_DATA, *TINY_RUN, "validation.lpips=null"]


@pytest.fixture
def toy(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """`python -m train.stages toy …` of a copy of conf/ with one more file in it; the runs are in this process."""
    conf = tmp_path / "conf"
    conf.mkdir()
    for each in (ROOT / "conf").iterdir():
        if each.name != "stages":
            (conf / each.name).symlink_to(each)
    (conf / "stages").mkdir()
    (conf / "stages" / "toy.yaml").write_text(CHAIN)
    write_photographs(tmp_path / "photographs")
    for module in (cli, train.conf):
        monkeypatch.setattr(module, "CONF", conf)
    monkeypatch.setattr(stages, "launch", lambda config, _ranks: run.run(config, make_trainer(config)))
    return lambda *arguments: command(stages.main, "toy", *arguments)


def test_a_further_chain_is_one_file(toy: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, printed = toy(*GIVEN)
    assert code == 0, printed
    small, more = (torch.load(tmp_path / f"runs/toy/{name}/checkpoints/last.ckpt") for name in ("small", "more"))
    of_small = {key.removeprefix("ema.average."): value for key, value in small["state_dict"].items() if "ema." in key}
    assert len(of_small) > 10
    for key, value in of_small.items():  # which seed=7 alone would have made anew
        torch.testing.assert_close(more["state_dict"][f"network.{key}"], value, atol=1e-4, rtol=0)
    noted = json.loads((tmp_path / "runs/toy/more/began_from.json").read_text())
    assert list(noted) == ["runs/toy/small"]
    assert noted["runs/toy/small"] in (tmp_path / "runs/toy/small/checkpoints/step_0000002.ckpt.sha256").read_text()
    assert not (tmp_path / "runs/toy/small/began_from.json").exists()
    code, printed = toy(*GIVEN)
    assert code == 0
    assert printed == "small: runs/toy/small is finished\nmore: runs/toy/more is finished\n"
    for again in (["small.resume=never", "small.seed=1"], ["small.seed=1"]):
        code, printed = toy(*GIVEN, *again)
        assert code == 1
        assert "error: more: runs/toy/more is finished, but was made from what small had before: start it over" in printed
    code, printed = toy(*GIVEN, "small.seed=1", "more.resume=never")
    assert code == 0, printed


def test_help_lists_the_chains(toy: Callable[..., tuple[int, str]]) -> None:
    code, printed = toy("--help")
    assert code == 0
    assert printed.endswith("  toy             Two stages of a tiny network\n")


def test_an_unknown_chain_is_named(command: Command) -> None:
    code, printed = command(stages.main, "codeformr")
    assert code == 1
    assert "error: give one of aiialab_codeformer, codeformer" in printed

"""What a run says of its progress where there is no terminal."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toy import TINY_DATA, TINY_NETWORK, write_photographs
from train.runs.progress import Lines

Cli = Callable[..., tuple[int, str]]


def test_without_a_terminal_a_plain_line_each_logged_update(cli: Cli, tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "photographs")
    run = ["experiment=demo", "data=folder", *TINY_NETWORK, *TINY_DATA, f"data.root={photographs}", "validation.lpips=null"]
    run += [
        "trainer.max_steps=5",
        "trainer.val_check_interval=5",
        "trainer.log_every_n_steps=2",
        "logger=csv",
        "name=run",
        "loss=mse_sum",
    ]
    code, printed = cli(*run)
    assert code == 0, printed
    assert "\r" not in printed
    assert "loss.terms.mse adds up all values of a device's batch, so hundreds and thousands are usual" in printed
    lines = re.findall(r"^update (\d)/5: loss [\d.]+, [\d.]+ images/s, ETA \d:\d\d:\d\d$", printed, re.MULTILINE)
    assert lines == ["2", "4", "5"]
    assert re.search(r"^update 5/5: PSNR [\d.]+ dB \(LQ [\d.]+\)$", printed, re.MULTILINE)
    assert "(Lines)" not in printed, "it has no folder to show"


def test_the_time_left_is_that_of_the_updates_that_are_left(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(max_steps=1000)
    parts = {"time/data_wait_s": 0.5, "time/forward_backward_s": 3.0, "time/optimizer_s": 0.5}
    lines.log_metrics({**parts, "time/images_per_s": 12.0}, 100)
    lines.log_metrics({"train/loss": 0.02, "lr": 1e-4}, 100)
    assert capsys.readouterr().out == "update 100/1000: loss 0.02, 12 images/s, ETA 1:00:00\n"

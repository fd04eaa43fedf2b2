"""Several attempts at one run, killed at any moment: every value stands once in what the loggers leave behind."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torchvision.utils import save_image

from train.runs.curves import read_rows
from train.runs.loggers import CsvLogger, TensorBoard, Wandb
from train.runs.pictures import PICTURE, picture_path

REPOSITORY = Path(__file__).parents[3]
GREY = torch.full((3, 8, 24), 0.5)

# An attempt that is killed when the row of its last update is logged.
KILLED = """
import os, signal, sys
from tests.train.runs.test_loggers import attempt, loggers
attempt(*loggers(sys.argv[1]), start=0, end=int(sys.argv[2]), finish=False)
os.kill(os.getpid(), signal.SIGKILL)
"""


def loggers(folder: Path | str) -> tuple[CsvLogger, TensorBoard, Wandb]:
    return (
        CsvLogger(directory=str(folder)),
        TensorBoard(save_dir=str(folder), name="tensorboard", version=""),
        Wandb(save_dir=str(folder), project="test", name="group.sweep/job"),
    )


def attempt(*loggers: Any, start: int, end: int, finish: bool = True) -> None:
    """Updates start+1 to end, value = update, a validation with a picture every 5; calls `save` where Lightning does."""

    def log(metrics: dict[str, float], step: int) -> None:
        for logger in loggers:
            logger.log_metrics({**metrics, "epoch": 0}, step)
            logger.save()

    for logger in loggers:
        logger.cut_after(start)
    for step in range(start + 1, end + 1):
        log({"train/loss": float(step)}, step)
        if step % 5 == 0:
            for logger in loggers:
                if isinstance(logger, TensorBoard | Wandb):
                    logger.log_picture(GREY, step)
            log({"val/ssim": float(step)}, step)
    if finish:
        for logger in loggers:
            logger.finalize("success")
            if isinstance(logger, Wandb):
                logger.close()


def values(*names: str, steps: range) -> Counter[tuple[str, int]]:
    """What each of `names` logs over `steps`, once."""
    return Counter((name, step) for name in names for step in steps if name == "train/loss" or step % 5 == 0)


def in_events(folder: Path) -> Counter[tuple[str, int]]:
    """(tag, step) of every value in all events files, as the records have it."""
    return Counter(
        (value.tag, event.step)
        for path in (folder / "tensorboard").iterdir()
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
    )


def offline_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Every history row of all attempts' offline files, by W&B's own reader; a picture under its name."""
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        for line in subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.splitlines():
            if (record := json.loads(line))["type"] == "history":
                yield {key.removesuffix(".filenames"): value for key, value in record["history"]["item"].items()}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run's folder, and W&B without a network and without words."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield tmp_path / "runs" / "group.sweep" / "optimizer.lr=1e-4"
    wandb.finish()


def test_a_half_written_csv_row_is_dropped_and_the_next_attempt_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\r\n1,0.5\r\n2\r\n2,0.1,2\r\n2,0.12")
    assert read_rows(path) == [{"step": "1", "train/loss": "0.5"}]  # 0.12 may have been 0.125
    path.unlink()
    attempt(CsvLogger(directory=str(tmp_path)), start=0, end=6)
    whole = path.read_bytes()
    for torn in (whole[:-1], whole[:-3], whole + b"7", whole + bytes(100)):
        path.write_bytes(torn)
        attempt(CsvLogger(directory=str(tmp_path)), start=5, end=7)
        rows = read_rows(path)
        assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "5", "6", "7"]
        assert [row["train/loss"] for row in rows if row["train/loss"]] == [f"{step}.0" for step in range(1, 8)]
        assert "epoch" not in rows[0]
        assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_what_stands_at_the_resumed_update_is_not_logged_twice(tmp_path: Path) -> None:
    for _ in range(2):  # the second attempt has no update left and validates again
        csv, board = CsvLogger(directory=str(tmp_path)), TensorBoard(save_dir=str(tmp_path), name="tensorboard", version="")
        for logger in (csv, board):
            logger.cut_after(5)
            logger.log_metrics({"val/psnr": 20.0}, 5)
        board.log_picture(GREY, 5)
        board.finalize("success")
    assert [row["step"] for row in read_rows(tmp_path / "metrics.csv")] == ["5"]
    assert in_events(tmp_path) == {("val/psnr", 5): 1, (PICTURE, 5): 1}


def test_tensorboard_shows_one_curve_over_attempts_and_a_torn_file(tmp_path: Path) -> None:
    def board() -> TensorBoard:
        return TensorBoard(save_dir=str(tmp_path), name="tensorboard", version="")

    attempt(board(), start=0, end=8)
    (first,) = (tmp_path / "tensorboard").iterdir()
    attempt(board(), start=5, end=12)
    with first.open("ab") as file:
        file.write(b"\x18\x00\x00")  # half a record
    torn = first.read_bytes()
    attempt(board(), start=10, end=15)
    names = "train/loss", "val/ssim", PICTURE
    assert in_events(tmp_path) == values(*names, steps=range(1, 16))
    assert len(first.read_bytes()) == len(torn) - 3
    assert not list((tmp_path / "tensorboard").glob("*.tmp"))
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    # Sorted: files of one second and process are told apart by a count, of which 10 sorts before 9.
    assert sorted((event.step, event.value) for event in shown.Scalars("train/loss")) == [(n, float(n)) for n in range(1, 16)]
    assert sorted(event.step for event in shown.Images(PICTURE)) == [5, 10, 15]
    assert set(shown.Tags()["scalars"]) == {"train/loss", "val/ssim"}  # no epoch, no hp_metric


def test_tensorboard_leaves_whole_files_alone(tmp_path: Path) -> None:
    board = TensorBoard(save_dir=str(tmp_path), name="tensorboard", version="")
    attempt(board, start=0, end=3)
    (path,) = (tmp_path / "tensorboard").iterdir()
    before = path.stat().st_ino
    TensorBoard(save_dir=str(tmp_path), name="tensorboard", version="").cut_after(3)
    assert path.stat().st_ino == before
    assert list((tmp_path / "tensorboard").iterdir()) == [path]  # cutting opens no new file


def test_wandb_merges_a_step_and_sends_none_again(offline: Path) -> None:
    for start, end in ((0, 8), (5, 12)):
        csv, _, logger = loggers(offline)
        attempt(csv, logger, start=start, end=end)
        assert (offline / "wandb_id").read_text() == logger.run_id == logger.version
    rows = list(offline_rows(offline))
    assert [row["_step"] for row in rows] == list(range(1, 13))
    assert all(row["train/loss"] == row["_step"] for row in rows)
    assert [row["_step"] for row in rows if "val/ssim" in row and PICTURE in row] == [5, 10]
    assert not any("epoch" in row for row in rows)
    assert len({path.name for path in (offline / "wandb").glob("offline-run-*/*.wandb")}) == 1  # one id


def test_wandb_holds_a_step_back_until_it_is_whole(offline: Path) -> None:
    csv, _, first = loggers(offline)
    attempt(csv, first, start=0, end=4, finish=False)
    csv.log_metrics({"train/loss": 5.0}, 5)
    first.log_metrics({"train/loss": 5.0}, 5)
    first.finalize("failed")  # in the validation of update 5
    assert [row["_step"] for row in offline_rows(offline)] == [1, 2, 3, 4]
    csv, _, second = loggers(offline)
    csv.cut_after(5)
    second.cut_after(5)
    second.log_metrics({"val/ssim": 5.0}, 5)
    second.finalize("success")
    second.log_metrics({"val/psnr": 20.0}, 5)  # a validation after the training
    second.finalize("success")
    second.close()
    last = list(offline_rows(offline))[-1]
    assert {key: value for key, value in last.items() if key in ("_step", "train/loss", "val/ssim", "val/psnr")} == {
        "_step": 5,
        "train/loss": 5.0,
        "val/ssim": 5.0,
        "val/psnr": 20.0,
    }


def test_a_restored_run_id_is_taken_up(offline: Path) -> None:
    _, _, logger = loggers(offline)
    assert logger.run_id is None
    logger.run_id = "kept"
    logger.log_metrics({"train/loss": 1.0}, 1)
    assert logger.experiment.id == "kept"
    logger.finalize("success")
    logger.close()
    assert [row["train/loss"] for row in offline_rows(offline)] == [1.0]


def test_the_documented_upload_takes_each_attempt_but_a_killed_one(offline: Path) -> None:
    for start in (0, 2):
        csv, _, logger = loggers(offline)
        attempt(csv, logger, start=start, end=start + 2)
    (offline / "wandb" / "killed-offline-run-20260101_000000-aa").mkdir()
    command = re.search(r"`cd runs/NAME && wandb sync ([^`]*)`", (REPOSITORY / "docs" / "runs.md").read_text(encoding="utf-8"))
    assert command is not None
    script = f"{sys.executable} -m wandb sync --dry-run {command[1]}"
    ended = subprocess.run(script, shell=True, cwd=offline, capture_output=True, text=True)
    count = len(list((offline / "wandb").glob("offline-run-*")))
    assert ended.returncode == 0, ended.stderr
    assert f"Would sync {count} run(s)" in ended.stderr + ended.stdout
    assert "killed" not in ended.stderr + ended.stdout


def write_pictures(folder: Path, steps: range) -> None:
    """As train/runs/pictures.py leaves them."""
    (folder / "samples").mkdir()
    for step in steps:
        save_image(GREY, picture_path(folder, step))


def assert_whole(folder: Path, end: int) -> None:
    """Updates 1 to `end` stand once at W&B, in the order of updates, with their validations and pictures."""
    rows = list(offline_rows(folder))
    assert [row["_step"] for row in rows] == list(range(1, end + 1))
    names = "train/loss", "val/ssim", PICTURE
    steps = range(1, end + 1)
    assert Counter((name, row["_step"]) for row in rows for name in names if name in row) == values(*names, steps=steps)


@pytest.mark.parametrize("size", [7, 3000])  # what W&B leaves of a short attempt, and a file that ends within a record
def test_wandb_is_filled_up_where_its_file_was_not_written(offline: Path, size: int) -> None:
    csv, _, logger = loggers(offline)
    attempt(csv, logger, start=0, end=12, finish=False)
    wandb.finish()  # not by the logger, which takes the file for one that was left open
    wandb.teardown()
    (file,) = (offline / "wandb").glob("offline-run-*/*.wandb")
    os.truncate(file, size)
    write_pictures(offline, range(5, 11, 5))
    assert len(list(offline_rows(offline))) < 10
    csv, _, logger = loggers(offline)
    attempt(csv, logger, start=10, end=15)
    assert_whole(offline, 15)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_after_a_sigkill(offline: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # W&B's process dies too
    environment["PYTHONPATH"] = str(REPOSITORY)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(offline), "700"], env=environment, cwd=REPOSITORY)
    assert ended.returncode == -signal.SIGKILL
    assert read_rows(offline / "metrics.csv")[-1]["step"] == "700"
    assert 0 < len(list(offline_rows(offline))) < 700  # W&B loses what it has not written yet
    write_pictures(offline, range(5, 691, 5))
    attempt(*loggers(offline), start=690, end=705)
    assert_whole(offline, 705)
    names, steps = ("train/loss", "val/ssim"), range(1, 706)
    rows = read_rows(offline / "metrics.csv")
    assert Counter((key, int(row["step"])) for row in rows for key in names if row[key]) == values(*names, steps=steps)
    assert in_events(offline) == values(*names, PICTURE, steps=steps)

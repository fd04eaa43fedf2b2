"""The sheet that a validation leaves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from train.runs import pictures
from train.runs.pictures import write_pictures


class Shown:
    """A logger that shows pictures."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, int]] = []

    def log_picture(self, picture: Tensor, step: int) -> None:
        self.seen.append((picture, step))


class Data:
    def val_name(self, number: int) -> str:
        return f"faces/{number}.png"


def written(folder: Path, rows: list[Any], logger: Shown, **of_trainer: Any) -> Path:
    trainer: Any = SimpleNamespace(default_root_dir=str(folder), global_step=7, loggers=[logger], **of_trainer)
    task: Any = SimpleNamespace(pictures=lambda: rows)
    write_pictures(trainer, task)
    return folder / "samples" / "step_0000007.png"


def test_names_and_columns_of_a_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of several sizes too, as data.val_size=null has them."""
    given: dict[str, Any] = {}
    drawn = pictures.sheet

    def noted(*arguments: Any) -> Image.Image:
        given.update(zip(("labels", "rows", "names", "side"), arguments, strict=True))
        return drawn(*arguments)

    monkeypatch.setattr(pictures, "sheet", noted)
    rows = [[torch.rand(3, height, 40) * 1.5 - 0.2 for _ in range(3)] for height in (40, 30)]
    logger = Shown()
    file = written(tmp_path, rows, logger, datamodule=Data())
    assert (given["labels"], given["names"], given["side"]) == (
        ["LQ", "restored", "HQ"],
        ["faces/0.png", "faces/1.png"],
        160,
    )
    for row, photos in zip(rows, given["rows"], strict=True):
        for image, photo in zip(row, photos, strict=True):
            np.testing.assert_array_equal(photo, (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0))
    ((picture, step),) = logger.seen
    assert step == 7
    with Image.open(file) as sheet:
        np.testing.assert_array_equal(np.asarray(sheet), (picture * 255).round().byte().permute(1, 2, 0))


def test_data_without_names_and_tasks_without_pictures(tmp_path: Path) -> None:
    assert not written(tmp_path, [], Shown(), datamodule=Data()).exists()
    assert written(tmp_path, [[torch.rand(3, 8, 8)] * 3], Shown()).exists()

"""Damaged checkpoints of a run: one sentence, whatever torch's unpickler stumbles over. Found by test_fuzz.py."""

import zipfile
from pathlib import Path

import pytest
import torch

from train.runs.checkpoint import damage, load

PICKLES = {
    "a storage of nothing": b"\x80\x02Q.",  # IndexError: pop from empty list
    "a storage that is a number": b"\x80\x02K\x01Q.",  # AssertionError: saved_id must be a tuple
    "a number": b"\x80\x02K\x01.",
    "half a word": b"\x80\x02X\xff\x00\x00\x00a",
    "a mark without a list": b"\x80\x02e.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_damaged_pickle(kind: str, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "whole.ckpt")
    file = tmp_path / "step_0000001.ckpt"
    with zipfile.ZipFile(tmp_path / "whole.ckpt") as whole, zipfile.ZipFile(file, "w") as written:
        for name in whole.namelist():
            written.writestr(name, PICKLES[kind] if name.endswith("data.pkl") else whole.read(name))
    with pytest.raises(ValueError, match=r"step_0000001\.ckpt is not a whole checkpoint of a run \(\w+: "):
        load(file)
    assert "is not a whole checkpoint of a run" in str(damage(file))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "gone.ckpt")

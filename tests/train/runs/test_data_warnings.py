"""What the data warn of when they are looked at is the same on every rank: it is said once."""

from pathlib import Path

import pytest

from tests.toy import write_photographs
from train import ranks
from train.runs.building import make_data


@pytest.mark.filterwarnings("error")
def test_rank_zero_says_what_is_left_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write_photographs(tmp_path / "faces", count=2) / "a.heic").write_bytes(b"")
    config = {"data": {"_target_": "data.sources.files.ImageFolder", "root": str(tmp_path / "faces")}}
    with pytest.warns(UserWarning, match=r"left aside are 1 \.heic"):
        make_data(config)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    assert len(make_data(config)) == 2  # type: ignore[arg-type]  # a warning would be an error here

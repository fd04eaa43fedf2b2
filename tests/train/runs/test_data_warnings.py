"""What the data warn of when they are looked at is the same on every rank: it is said once."""

from pathlib import Path
from typing import Any

import pytest

from data.module import at_most_cores
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


class Workers:
    """Stands for FaceData, which takes no more workers than there are cores."""

    def __init__(self, *, num_workers: int) -> None:
        self.num_workers = at_most_cores(num_workers)


@pytest.mark.filterwarnings("error")
def test_fewer_workers_are_told_to_those_who_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    data = {"_target_": f"{__name__}.Workers", "num_workers": 4}
    made: Any = make_data({"data": data, "arguments": ["experiment=demo", "data.root=faces"]})
    assert made.num_workers == 2
    for typed in ("data.num_workers=4", "++data.num_workers=4"):
        with pytest.warns(UserWarning, match="data.num_workers=4: 2 run, as this process has 2 cores"):
            make_data({"data": data, "arguments": ["experiment=demo", typed]})

from pathlib import Path

from train.runs.curves import draw_curves, read_rows
from train.runs.loggers import CsvLogger


def test_rows_are_kept_over_attempts_and_new_columns(tmp_path: Path) -> None:
    first = CsvLogger(directory=str(tmp_path))
    first.log_metrics({"train/loss": 0.5, "epoch": 0}, 1)
    first.log_metrics({"train/loss": 0.4}, 2)
    first.log_metrics({"val/psnr": 20.0, "val/psnr_lq": 19.0}, 2)
    first.log_metrics({"train/loss": 0.3}, 3)
    second = CsvLogger(directory=str(tmp_path))
    second.cut_after(2)  # the attempt before died after its checkpoint of update 2
    second.log_metrics({"train/loss": 0.25}, 3)
    rows = read_rows(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "2", "3"]
    assert [row["train/loss"] for row in rows] == ["0.5", "0.4", "", "0.25"]
    assert rows[2]["val/psnr"] == "20.0"
    assert "epoch" not in rows[0]
    assert draw_curves(tmp_path) == tmp_path / "curves.png"
    assert (tmp_path / "curves.png").stat().st_size > 10_000

"""curves.png: what metrics.csv holds, drawn."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from data.writing import replacing


def draw_curves(directory: Path) -> Path | None:
    """curves.png from metrics.csv: the loss, and PSNR and SSIM of the restored image against LQ, by generator update."""
    rows = read_rows(directory / "metrics.csv")

    def curve(key: str) -> tuple[list[int], list[float]]:
        points = [(int(row["step"]), float(row[key])) for row in rows if row.get(key)]
        return [step for step, _ in points], [value for _, value in points]

    if not rows:
        return None
    # Given, as a layout that measures them takes half of the time.
    margins = {"left": 0.05, "right": 0.99, "bottom": 0.13, "top": 0.92, "wspace": 0.16}
    figure, axes = plt.subplots(1, 3, figsize=(15, 4), gridspec_kw=margins)
    steps, losses = curve("train/loss")
    axes[0].plot(steps, losses)
    axes[0].set(title="train/loss", xlabel="update", yscale="log" if min(losses, default=1) > 0 else "linear")
    for axis, metric, unit in ((axes[1], "psnr", " (dB)"), (axes[2], "ssim", "")):
        axis.plot(*curve(f"val/{metric}"), marker="o", label="restored")
        axis.plot(*curve(f"val/{metric}_lq"), linestyle="--", label="LQ")
        axis.set(title=f"val/{metric}{unit}", xlabel="update")
        axis.legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    with replacing(directory / "curves.png") as file:
        figure.savefig(file, format="png", dpi=100)
    plt.close(figure)
    return directory / "curves.png"


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv (or times.csv), their values as text."""
    return read_columns(path)[1]


def read_columns(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows. Half a line at the end, or zeros, as a kill or a power loss can leave them, are no row."""
    if not path.exists():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(line for line in file if line.endswith("\n"))
        rows = [row for row in reader if row["step"].isdigit() and None not in (*row, *row.values())]
    return list(reader.fieldnames or []), rows

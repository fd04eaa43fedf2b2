"""How fast the data loader is, and whether a worker's memory stays flat.

Run: uv run benchmarks/loader.py data.root=DIR [data=folder degradation=diffbir …] [--workers 1 2] [--samples 2000]
Keys are those of train.py. Prints a Markdown table: samples/s for each number of workers, and the resident memory of the
largest worker after 200, 1,000 and 2,000 samples (Linux).
"""

import argparse
import multiprocessing
import re
import sys
import time
from pathlib import Path

import hydra

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder first, and `data` is one above

from train.jobs.cli import CONF
from train.jobs.config import check
from train.trust import build

WARM_UP_S = 3.0
MOMENTS = (200, 1000, 2000)  # samples


def configuration(overrides: list[str]) -> dict:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return check(hydra.compose("train", overrides=["data=folder", "trainer=cpu", "name=loader", *overrides]))


def worker_mb() -> float:
    """Resident memory of the largest child, in MiB, with what it shares with its parent."""
    states = [Path(f"/proc/{child.pid}/status").read_text() for child in multiprocessing.active_children()]
    return max((int(kib) / 1024 for state in states for kib in re.findall(r"VmRSS:\s+(\d+)", state)), default=0)


def measure(config: dict, workers: int, samples: int) -> tuple[float, dict[int, float]]:
    """Samples a second once the workers have started, and MiB of the largest worker at each of MOMENTS."""
    data = build({**config["data"], "num_workers": workers})
    batches = iter(data.train_dataloader())
    start = time.perf_counter()
    seen, first, began, memory = 0, 0, start, {}
    while seen < samples:
        batch = next(batches)
        seen += len(batch["position"])
        now = time.perf_counter()
        if not first and now - start > WARM_UP_S:
            first, began = seen, now
        memory |= {moment: worker_mb() for moment in MOMENTS if moment <= seen and moment not in memory}
    return (seen - first) / (time.perf_counter() - began), memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="keys of train.py")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--samples", type=int, default=MOMENTS[-1])
    args = parser.parse_args()
    config = configuration(args.overrides)
    print(f"| workers | samples/s | {' | '.join(f'MiB at {moment}' for moment in MOMENTS)} |")
    print(f"|---|---|{'---|' * len(MOMENTS)}")
    for workers in args.workers:
        rate, memory = measure(config, workers, args.samples)
        shown = " | ".join(f"{memory[moment]:.0f}" if moment in memory else "" for moment in MOMENTS)
        print(f"| {workers} | {rate:.1f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()

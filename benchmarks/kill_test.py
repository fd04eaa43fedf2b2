"""Kills training runs with SIGKILL at random moments, goes on with the same command, and compares with runs left alone.

Run: uv run benchmarks/kill_test.py [--kills 20] [--seed 0] [--cold 2]
Prints a Markdown table and ends non-zero when anything differs or too few kills happened. CPU; Linux.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder first

from tests.toy import write_photographs
from tests.train.runs.kills import VARIANTS, Killed, Variant, differences, draw_moments, explain, kill_and_finish, reference

PARTS = ("weights", "EMA", "optimizer", "other state", "rows", "TensorBoard")
KINDS = ("mid-step", "mid-save", "mid-validation", "at the start", "at the end", "any time")


def kill(variant: Variant, folder: Path, photographs: Path, kills: int, cold: int, rng: random.Random) -> tuple[Killed, dict]:
    """A run killed once from outside and at moments of its own, then one of fresh commands, `cold` times from outside.

    Returns: all kills, and part -> differences of both from the run left alone.
    """
    command = variant.command(photographs)
    whole, seconds = reference(folder / "whole", command)
    outside = min(1, kills)
    moments = [*(rng.uniform(0, seconds / 4) for _ in range(outside)), *draw_moments(rng, kills - outside, variant.ranks)]
    killed = kill_and_finish(folder / "killed", command, moments)
    parts = differences(whole, folder / "killed/runs/run")
    if cold:
        again = kill_and_finish(folder / "cold", command, [rng.uniform(0, seconds / 4) for _ in range(cold)], cold=True)
        killed.kinds += again.kinds
        killed.moments += [f"fresh command: {moment}" for moment in again.moments]
        killed.outlived_s = max(killed.outlived_s, again.outlived_s)
        for name, where in differences(whole, folder / "cold/runs/run").items():
            parts[name] += where
    return killed, parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="over all variants, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--cold", type=int, default=1, help="kills of each variant as a fresh `python train.py …` (of --kills)")
    options = parser.parse_args()
    each = max(-(-options.kills // len(VARIANTS)) - options.cold, 0)
    began, total, wrong = time.monotonic(), Counter[str](), False
    print(f"| variant | {' | '.join(KINDS)} | {' | '.join(PARTS)} |\n|{'---|' * (1 + len(KINDS) + len(PARTS))}", flush=True)
    notes = []
    with tempfile.TemporaryDirectory(prefix="kill_test") as folder:
        photographs = write_photographs(Path(folder) / "photographs")
        for variant in VARIANTS:
            rng = random.Random(f"{options.seed} {variant}")
            killed, parts = kill(variant, Path(folder) / str(variant), photographs, each, options.cold, rng)
            count = Counter(killed.kinds)
            total += count
            same = ["differs" if parts[part] else "identical" for part in PARTS]
            print(f"| {variant} | {' | '.join(str(count[kind]) for kind in KINDS)} | {' | '.join(same)} |", flush=True)
            notes += [f"{variant}:", *(f"  {moment}" for moment in killed.moments)]
            notes += [f"  a rank outlived the killed process by {killed.outlived_s:.2f} s at most", explain(parts)]
            wrong = wrong or any(parts.values())
    print(f"\n{total.total()} kills with --seed {options.seed} in {time.monotonic() - began:.0f} s\n")
    print("\n".join(note for note in notes if note))
    if wrong or total.total() < options.kills:
        sys.exit("something differs" if wrong else f"only {total.total()} kills happened: try another --seed")


if __name__ == "__main__":
    main()

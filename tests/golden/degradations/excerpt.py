"""Cut the stored cases out of the full vectors: python tests/golden/degradations/excerpt.py PARITY_DIR/degradations

The vectors were made by running the references with scripted random numbers, the distributions by 20,000 runs with their own
(OpenCV 5.0, PyTorch 2.15). What a test starts a stage from is kept whole, of the rest a grid of pixels.
"""

import json
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
FACE = {
    "input": "full",
    "stage.resize1": "full",
    "stage.jpeg_*": "full",
    "stage.*": "[::8, ::8]",
    "in": "[:, ::8, ::8]",
    "lq": "[::8, ::8, :]",
}
CASES: dict[str, dict[str, str]] = {  # case -> pattern of an output -> what is kept of it; outputs without one are left out
    "kernels": {"*.k7": "full", "*aniso*.k21": "full", "sinc*.k41": "[::4, ::4]"},
    "diffjpeg_odd_size": {"input": "full", "hard.*": "[:, :, ::8, ::4]"},
    "noise_given": {"input": "full", "np.*": "[::8, ::4]", "pt.*": "[:, :, ::8, ::4]"},
    "pipeline_codeformer_stage2": FACE,
    "pipeline_diffbir_stage1": FACE,
    "pipeline_gfpgan": {**FACE, "lq": "[:, ::4, ::4]"},
}
DISTRIBUTIONS = ("codeformer_stage3", "diffbir_stage1", "gfpgan", "diffbir_realesrgan_batch", "diffbir_realesrgan_kernels")
DISTRIBUTIONS = (*DISTRIBUTIONS, "mixed_kernels_by_type")


def main(vectors: Path) -> None:
    """Write a .json and .npz per case, and a .json per distribution, beside this file."""
    for name, kept in CASES.items():
        facts = json.loads((vectors / f"{name}.json").read_text())
        chosen = [{**entry, "sampling": how} for entry in facts["outputs"] if (how := sampling(entry["name"], kept))]
        with np.load(vectors / f"{name}.npz") as full:
            np.savez_compressed(HERE / f"{name}.npz", **{e["name"]: part(full[e["name"]], e["sampling"]) for e in chosen})
        write(name, {**facts, "outputs": chosen})
    for name in DISTRIBUTIONS:
        write(f"dist_{name}", json.loads((vectors / f"dist_{name}.json").read_text()))


def sampling(name: str, kept: dict[str, str]) -> str | None:
    return next((how for pattern, how in kept.items() if fnmatch(name, pattern)), None)


def part(full: np.ndarray, how: str) -> np.ndarray:
    """As tests.parity.cases.sampled."""
    if how == "full":
        return full
    return full[tuple(slice(*(int(n) if n.strip() else None for n in axis.split(":"))) for axis in how[1:-1].split(","))]


def write(name: str, facts: dict[str, Any]) -> None:
    (HERE / f"{name}.json").write_text(json.dumps(facts, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

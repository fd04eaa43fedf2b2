"""Cut the stored cases out of the full parity vectors: python tests/golden/degradations/excerpt.py PARITY_DIR/degradations

The vectors were made by running DiffBIR's CodeformerDataset and CodeFormer's FFHQBlindDataset with scripted random numbers
(OpenCV 5.0). Here: RGB instead of BGR, every eighth row of what is large.
"""

import sys
from pathlib import Path

import numpy as np

CASES = ("diffbir_stage1", "codeformer_stage2")


def main(vectors: Path) -> None:
    """Write one .npz per case beside this file."""
    for case in CASES:
        full = np.load(vectors / f"pipeline_{case}.npz")
        stages = {
            "kernel": full["stage.kernel1"],
            "hq_u8": full["input"][..., ::-1],
            "shrunk": full["stage.resize1"][..., ::-1],
        }
        stages["noisy_255"] = full["stage.jpeg_in1"][..., ::-1]
        stages["jpeg_u8"] = full["stage.jpeg_out1"][..., ::-1]
        stages["blurred_rows"] = full["stage.blur1"][::8, :, ::-1]
        stages["enlarged_rows"] = full["stage.resize2"][::8, :, ::-1]
        if case == "codeformer_stage2":  # CHW RGB in [-1, 1], on the 8-bit grid
            stages["lq_u8"] = np.rint((full["in"].transpose(1, 2, 0) * 0.5 + 0.5) * 255).astype(np.uint8)
        np.savez_compressed(Path(__file__).with_name(f"{case}.npz"), **stages)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

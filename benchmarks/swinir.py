"""SwinIR of this repository against spandrel's copy of the official code: time and memory, DiffBIR's stage-1 network.

Run: uv run benchmarks/swinir.py [--repeats 7] [--device cpu]
Prints a Markdown table: 1x3x512x512, median seconds of interleaved runs, peak memory of each kind of step.
"""

import sys
import warnings
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder first, and `models` is one above

from benchmarks.versus import arguments, table
from models.swinir import SwinIR

COMMON = {
    "img_size": 64,
    "in_chans": 3,
    "embed_dim": 180,
    "depths": [6] * 8,
    "num_heads": [6] * 8,
    "window_size": 8,
    "mlp_ratio": 2,
    "upscale": 8,
    "upsampler": "nearest+conv",
    "resi_connection": "1conv",
    "drop_path_rate": 0.1,  # as trained; off in eval
}


def build(name: str) -> nn.Module:
    # Deferred, so that the memory measured for one network doesn't contain the other's imports.
    from spandrel.architectures.SwinIR.__arch.SwinIR import SwinIR as SpandrelSwinIR

    warnings.filterwarnings("ignore", message="torch.meshgrid")  # spandrel's call
    torch.manual_seed(0)
    spandrel = SpandrelSwinIR(**COMMON, start_unshuffle=8)
    if name == "theirs":
        return spandrel
    ours = SwinIR(**COMMON, unshuffle=8)
    ours.load_state_dict({key.replace("conv_first.", "conv_first.1."): value for key, value in spandrel.state_dict().items()})
    return ours


if __name__ == "__main__":
    args = arguments(__doc__).parse_args()
    shapes = {"forward": (1, 512), "training step": (1, 512)}
    table(build, peer="spandrel", shapes=shapes, device=args.device, repeats=args.repeats)

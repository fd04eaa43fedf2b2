"""A run of seconds: tiny networks and images, in one place."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent

# Two attention blocks of width 8 on 32x32 pictures: two updates take a second.
TINY_NETWORK = [
    "network.embed_dim=8",
    "network.depths=[1,1]",
    "network.num_heads=[2,2]",
    "network.window_size=4",
    "network.img_size=8",
]
TINY_DATA = ["data.size=64", "data.val_size=64", "data.val_images=2", "data.batch_size=2", "data.num_workers=0"]
TINY_RUN = [
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
]


def write_photographs(folder: Path, count: int = 6, size: int = 80) -> Path:
    """Smooth random colour pictures, so that there is something to restore."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return folder


def draw_no_curves(replace: Callable[[object, str, object], None] = setattr) -> None:
    """curves.png takes longer than all updates of a tiny run; what it shows is in metrics.csv."""
    import train.runs.loggers
    import train.runs.run

    for module in (train.runs.loggers, train.runs.run):
        replace(module, "draw_curves", lambda *_: None)


def train(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python train.py ARGUMENTS` as a user types it, in another folder than the repository's."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )

"""The command that goes on with what a command made."""

import re
import shlex
from pathlib import Path

from data.sources.shown import printable

SIDE, HELD_OUT = 512, 32  # data.size and data.val_images as conf/data/ffhq.yaml has them
PLAIN = r"[\w./~+-]+"  # what neither a shell nor Hydra reads as more than itself


def training_command(root: Path, images: int, side: int) -> str:
    """`python train.py …` on these images; empty where they are too few to train on and to validate.

    Args: side: the shorter side of the smallest, in pixels.
    """
    if images < 2:
        return ""
    text = str(root)
    if not re.fullmatch(PLAIN, text, re.ASCII):
        text = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"  # Hydra's quotes
    command = ["python", "train.py", "model=swinir_ffhq", f"data.root={text}"]
    if images <= 10 * HELD_OUT:
        command.append(f"data.val_images={max(1, images // 10)}")
    if side < SIDE:
        command.append(f"data.size={max(side // 64, 1) * 64}")
    return shlex.join(command)


def tell_next(root: Path, images: int, side: int) -> None:
    """Prints the command that trains on these images."""
    if command := training_command(root, images, side):
        print(f"train on them: {printable(command)}")
    else:
        print(f"{images} images are too few to train on: two are needed, one of them to validate on")

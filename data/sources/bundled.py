"""Photographs that come with scikit-image, so that the demo needs no data set."""

import importlib.util
import io
from pathlib import Path
from typing import Literal

from PIL import Image

TRAINING = (
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "ihc.png",
    "camera.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "coins.png",
)
PORTRAIT = "astronaut.png"
PORTRAIT_BOX = (96, 0, 352, 256)  # left, top, right, bottom: head and shoulders of the 512x512 photograph


def bundled_folder() -> Path:
    """The folder of scikit-image's own photographs; nothing is downloaded or imported."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise ValueError("scikit-image, which brings the photographs, is not installed: install it, or choose data=folder")
    return Path(found.origin).parent / "data"


class BundledPhotographs:
    """Two sets that share no photograph: one to train on, and a portrait to look at.

    Args:    root: training: natural photographs, six in colour and five grey. portrait: Eileen Collins (NASA, public domain),
                 the 256x256 around head and shoulders.
    Raises:  ValueError: a photograph isn't there.
    """

    def __init__(self, *, root: Literal["training", "portrait"]) -> None:
        sets = {"training": TRAINING, "portrait": (PORTRAIT,)}
        if root not in sets:
            raise ValueError(f"{root} is none of the bundled sets: give one of {', '.join(sets)}")
        folder = bundled_folder()
        self.paths = [folder / name for name in sets[root]]
        missing = [path.name for path in self.paths if not path.is_file()]
        if missing:
            raise ValueError(f"{', '.join(missing)} not found in {folder}: reinstall scikit-image, or choose data=folder")

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The full path."""
        return str(self.paths[index])

    def read(self, index: int) -> bytes:
        """The file's contents; of the portrait, the cut-out as PNG."""
        contents = self.paths[index].read_bytes()
        return _cut_out(contents) if self.paths[index].name == PORTRAIT else contents


def _cut_out(contents: bytes) -> bytes:
    cut = io.BytesIO()
    Image.open(io.BytesIO(contents), formats=["PNG", "JPEG"]).crop(PORTRAIT_BOX).save(cut, format="PNG")
    return cut.getvalue()

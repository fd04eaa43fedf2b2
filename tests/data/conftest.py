"""Small pictures in a folder, a degradation that shows which parameters it was given, and one real portrait.

The portrait is of Eileen Collins (NASA); it comes with scikit-image.
"""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from data.landmarks import TEMPLATE, similarity, warp

# eyes, nose, corners of the mouth in the 512x512 photograph, to about a pixel
LANDMARKS = np.array([[203.9, 99.9], [246.4, 102.0], [224.5, 127.7], [201.4, 139.0], [244.9, 140.8]])


class Shade:
    """Degradation that draws one number and multiplies by it, sample by sample or on batches."""

    hq_too = ()

    def __init__(self, batched=False):
        self.batched = batched

    def sample(self, seed, position, size):
        return {"shade": {"factor": np.random.default_rng([seed, position, *size]).random(), "word": "dark"}}

    def apply(self, hq, parameters):
        return {"lq": hq * torch.tensor(parameters["shade"]["factor"], dtype=torch.float32)}

    def apply_batch(self, hq, parameters):
        assert parameters["shade"]["word"] == ["dark"] * len(hq)
        factor = torch.from_numpy(parameters["shade"]["factor"]).float()
        return {"lq": hq * factor[:, None, None, None]}


@pytest.fixture
def shade():
    return Shade()


def textured(height, width, seed):
    """(h, w, 3) uint8, every pixel its own."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Seven 24x20 pictures, img_0.png .. img_6.png."""
    root = tmp_path / "faces"
    root.mkdir()
    for number in range(7):
        Image.fromarray(textured(24, 20, number)).save(root / f"img_{number}.png")
    return root


@pytest.fixture(scope="session")
def photograph():
    """(512, 512, 3) uint8 RGB, the face about 110 px high."""
    return astronaut()


@pytest.fixture(scope="session")
def portrait(photograph):
    """(512, 512, 3) uint8 RGB, aligned to the template."""
    return warp(photograph, similarity(LANDMARKS, TEMPLATE), 512, "grey")

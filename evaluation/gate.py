"""The identity gate: how alike the face of an LQ and of its restoration look to AdaFace, with the organisers' geometry.

Source: face_alignment/ of zhengchen1999/NTIRE2025_RealWorld_Face_Restoration (b06055c). The landmarks come from a CSV, the same
for the LQ and the output, in pixels of 512 x 512.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from data.landmarks import POINTS, TEMPLATE, similarity
from models.adaface import AdaFace

SIDE_PX = 512  # of every image that the landmarks are for
FACE_PX = 112
ARCFACE = np.array(  # left eye, right eye, nose, corners of the mouth in a crop for AdaFace, x and y
    [
        [38.29459953, 51.69630051],
        [73.53179932, 51.50139999],
        [56.02519989, 71.73660278],
        [41.54930115, 92.3655014],
        [70.72990036, 92.20410156],
    ]
)
FFHQ = TEMPLATE  # where aligned faces have them, in pixels of 512 x 512


@dataclass(frozen=True)
class Row:
    """What the organisers' CSV says of one image."""

    dataset: str  # the set, whatever folder the image lies in
    landmarks: np.ndarray  # (5, 2)


def read_landmarks(path: Path) -> dict[str, Row]:
    """Base name up to its first dot -> row. Raises ValueError: no such table, a name twice, or a landmark that is no number."""
    columns = [f"{point}_{axis}" for point in POINTS for axis in "xy"]
    found: dict[str, Row] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                name = row["filename"]
                if name in found:
                    raise ValueError(f"line {line}: {name} stands there twice")
                points = np.array([float(row[column]) for column in columns]).reshape(5, 2)
                if not np.isfinite(points).all():
                    raise ValueError(f"line {line}: a landmark is not finite")
                found[name] = Row(row["dataset"], points)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is no table of landmarks as the organisers have it: {error}") from error
    if not found:
        raise ValueError(f"{path} lists no image")
    return found


def crop(image_u8: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(512, 512, 3) uint8 RGB to the face (112, 112, 3). Raises ValueError: an image of another size."""
    if image_u8.shape != (SIDE_PX, SIDE_PX, 3):
        height, width = image_u8.shape[:2]
        raise ValueError(f"it has {width}x{height} pixels, and the landmarks are in pixels of {SIDE_PX}x{SIDE_PX}")
    return cv2.warpAffine(image_u8, similarity(landmarks, ARCFACE), (FACE_PX, FACE_PX))


class Embedder:
    """AdaFace's unit vectors of faces."""

    def __init__(self, network: AdaFace, device: torch.device) -> None:
        self.network, self.device = network.to(device).eval(), device

    @torch.no_grad()
    def __call__(self, faces_u8: np.ndarray) -> Tensor:
        """(b, 112, 112, 3) uint8 RGB to (b, 512) on the CPU."""
        pixels = torch.from_numpy(faces_u8).permute(0, 3, 1, 2).float().div(255).to(self.device)
        return self.network(pixels)[0].cpu()


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """(b, n) unit vectors to (b,) in [-1, 1]."""
    return (one * other).sum(dim=1)

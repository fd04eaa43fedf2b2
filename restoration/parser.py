"""Which part of a restored face counts when it is pasted back: labels of a face parser."""

import importlib
from typing import Any, Protocol

import cv2
import numpy as np
import torch

from models.files import official

SIDE_PX = 512  # of the faces that parsers take
LABELS = 19  # of CelebAMask-HQ


class Parser(Protocol):
    """Labels the pixels of a face."""

    def open(self, device: torch.device) -> None:
        """Opens its weights. Raises ValueError, OSError: they can't be used."""
        ...

    def __call__(self, face_u8: np.ndarray) -> np.ndarray:
        """(512, 512, 3) uint8 RGB to labels (512, 512) of CelebAMask-HQ, 0 to 18."""
        ...


class ParseNet:
    """ParseNet of the package facexlib, which GFPGAN and CodeFormer paste with.

    Args:    weights: parsing_parsenet.pth of facexlib's releases.
    """

    def __init__(self, *, weights: str) -> None:
        self.weights = weights

    def open(self, device: torch.device) -> None:
        try:
            module: Any = importlib.import_module("facexlib.parsing.parsenet")
        except ImportError as error:
            raise ValueError("parser needs the package facexlib: uv pip install facexlib, or leave parser out") from error
        network = module.ParseNet(in_size=SIDE_PX, out_size=SIDE_PX, parsing_ch=LABELS)
        try:
            network.load_state_dict(official.read(self.weights).state)
        except RuntimeError as error:
            said = " ".join(str(error).split())
            raise ValueError(f"parser={self.weights} is no ParseNet of facexlib: {said:.120}") from error
        self.network, self.device = network.to(device).eval(), device

    @torch.no_grad()
    def __call__(self, face_u8: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.ascontiguousarray(face_u8)).permute(2, 0, 1)[None].float().to(self.device)
        labels: np.ndarray = self.network(pixels / 127.5 - 1)[0].argmax(dim=1)[0].cpu().numpy()
        return labels


def labelled(parser: Parser, face: np.ndarray) -> np.ndarray:
    """Labels of a face of any side, (side, side, 3) float32 in 0 to 255, at the parser's 512."""
    at_512 = cv2.resize(face, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_LINEAR)
    return parser(np.rint(at_512).clip(0, 255).astype(np.uint8))

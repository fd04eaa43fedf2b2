"""A camera's raw pipeline as a degradation: linear light, a mosaic, sensor noise, and development back to RGB."""

from typing import Annotated

import cv2
import numpy as np
from annotated_types import Ge, Gt

from degradations.draws import Parameters, checked_range, field_seed
from degradations.fields import normals
from degradations.operators.resize import resized

Gain = Annotated[float, Gt(0)]
Electrons = Annotated[float, Gt(0)]
BLUR_GREEN = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]], dtype=np.float32) / 4
BLUR_OTHER = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=np.float32) / 4


class RawNoise:
    """Noise that a sensor adds before the picture is developed (the form of DT-BFR's sets; Brooks et al. 2019 for the parts).

    x^gamma -> undo white balance and colour matrix -> shrink by area averages -> GRBG mosaic -> noise of variance
    x / full_well + (read noise / full_well)² -> clip -> bilinear demosaic -> white balance, colour matrix, x^(1 / gamma).

    DT-BFR draws its white balance and matrices from a dictionary, takes its noise from a calibration of one sensor at a fixed
    ISO and demosaics with a network; none of these is published, so gains, matrix and noise are drawn from ranges instead.

    Args:    gamma: 2.2 as published.
             factor: how much smaller the raw picture is, a whole number; 4 as published. The result stays that small.
             red_gain, blue_gain: [low, high] of the white balance; green is 1.
             mix: [low, high] of how far the colour matrix is from the identity: each row takes mix from its neighbours.
             full_well_e: [low, high], electrons at value 1, drawn log-uniform; fewer is noisier (a higher ISO).
             read_noise_e: [low, high], standard deviation in electrons, drawn log-uniform.
    Raises:  ValueError: a range that is none.
    """

    def __init__(
        self,
        *,
        gamma: Annotated[float, Gt(0)],
        factor: Annotated[int, Ge(1)],
        red_gain: tuple[Gain, Gain],
        blue_gain: tuple[Gain, Gain],
        mix: tuple[Annotated[float, Ge(0)], Annotated[float, Ge(0)]],
        full_well_e: tuple[Electrons, Electrons],
        read_noise_e: tuple[Electrons, Electrons],
    ) -> None:
        self.gamma, self.factor = gamma, factor
        self.uniform = {
            "red_gain": checked_range("red_gain", red_gain, 1e-3),
            "blue_gain": checked_range("blue_gain", blue_gain, 1e-3),
            "mix": checked_range("mix", mix, 0, 0.45),
        }
        self.log_uniform = {
            "full_well_e": checked_range("full_well_e", full_well_e, 1e-3),
            "read_noise_e": checked_range("read_noise_e", read_noise_e, 1e-3),
        }

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """red_gain, blue_gain, mix, full_well_e, read_noise_e and field_seed."""
        drawn = {name: rng.uniform(*bounds) for name, bounds in self.uniform.items()}
        drawn |= {name: float(np.exp(rng.uniform(*np.log(bounds)))) for name, bounds in self.log_uniform.items()}
        return {**drawn, "field_seed": field_seed(rng)}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns (3, h // factor, w // factor), in [0, 1]."""
        develop = colour_matrix(parameters["mix"]) @ np.diag([parameters["red_gain"], 1.0, parameters["blue_gain"]])
        linear = np.clip(photo, 0, 1) ** np.float32(self.gamma)
        camera = np.clip(mixed(linear, np.linalg.inv(develop)), 0, 1)
        if self.factor > 1:
            camera = resized(camera, photo.shape[1] // self.factor, photo.shape[2] // self.factor, "area")
        raw = mosaic(camera)
        well = parameters["full_well_e"]
        spread = np.sqrt(raw / np.float32(well) + np.float32((parameters["read_noise_e"] / well) ** 2))
        raw = np.clip(raw + spread * normals(parameters["field_seed"], raw.shape), 0, 1)
        developed = mixed(demosaic(raw), develop)
        return np.clip(developed, 0, 1) ** np.float32(1 / self.gamma)


def colour_matrix(mix: float) -> np.ndarray:
    """(3, 3) from camera to RGB with rows of sum 1: more than 1 of the own colour, less than 0 of the others."""
    return (1 + 2 * mix) * np.eye(3) - mix * (1 - np.eye(3))


def mixed(photo: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(3, h, w) with its three colours mixed by the rows of a 3x3 matrix."""
    red, green, blue = photo
    return np.stack([a * red + b * green + c * blue for a, b, c in matrix.astype(np.float32)])


def colours_at(height: int, width: int) -> np.ndarray:
    """(3, h, w) of 0 and 1: where a GRBG sensor (green, red / blue, green) measures red, green and blue."""
    where = np.zeros((3, height, width), dtype=np.float32)
    where[1, ::2, ::2] = where[0, ::2, 1::2] = where[2, 1::2, ::2] = where[1, 1::2, 1::2] = 1
    return where


def mosaic(camera: np.ndarray) -> np.ndarray:
    """(3, h, w) to (h, w): the one colour that each pixel measures."""
    return (camera * colours_at(*camera.shape[1:])).sum(axis=0)


def demosaic(raw: np.ndarray) -> np.ndarray:
    """(h, w) to (3, h, w): colours that a pixel doesn't measure are the mean of its neighbours that do."""
    where = colours_at(*raw.shape)
    planes = []
    for channel, kernel in enumerate((BLUR_OTHER, BLUR_GREEN, BLUR_OTHER)):
        planes.append(cv2.filter2D(raw * where[channel], -1, kernel, borderType=cv2.BORDER_REFLECT_101))
    return np.stack(planes)

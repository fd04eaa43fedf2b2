"""A restored face back into its photograph.

Steps and the square mask follow xinntao/facexlib (260620a), with two differences: pixel centres stay where they are at every
scale (facexlib's lie half a pixel off when it enlarges), and a face that is made smaller is averaged, not sampled.
"""

import math

import cv2
import numpy as np

from data.landmarks import scale_of


def paste(
    background: np.ndarray,
    face: np.ndarray,
    matrix: np.ndarray,
    *,
    upscale: int,
    offset_px: float = 0.0,
    averaged: bool = True,
    mask: np.ndarray | None = None,
    within_square: bool = False,
) -> None:
    """Blends a face into a picture, in place; beyond the face's mask no value changes.

    Args:    background: (upscale * h, upscale * w, 3) uint8 or uint16, the photograph at its output size.
             face: (side, side, 3) float32 in the range of background. matrix: (2, 3), photograph (not enlarged) to face.
             offset_px: how far right and down the face lies in the output. facexlib's lies 0.5 px off where upscale > 1.
             averaged: False samples a face that is made smaller, as facexlib does.
             mask: (side, side) float32 in [0, 1], how much of the face counts, as a parser tells; None: the square mask.
             within_square: True counts no more of the mask than the square mask does, as CodeFormer and DiffBIR do.
    """
    side = face.shape[0]
    place = to_output(matrix, upscale, offset_px)
    inverse = cv2.invertAffineTransform(place)
    height, width = background.shape[:2]
    margin = math.ceil(0.3 * side / scale_of(place)) + 4  # more than the mask's blur reaches
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]]) @ inverse[:, :2].T + inverse[:, 2]
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int) - margin, 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + margin, (width, height))
    if left >= right or top >= bottom:
        return
    size = (int(right - left), int(bottom - top))
    shifted = place.copy()
    shifted[:, 2] += place[:, :2] @ (left, top)

    whole = warped(np.ones((side, side), dtype=np.float32), shifted, size)
    square = cv2.erode(whole, np.ones((max(1, int(2 * upscale)),) * 2, np.uint8))
    weight = feathered(square) if mask is None else warped(mask, shifted, size)
    if within_square:
        weight = np.minimum(weight, feathered(square))
    drawn: np.ndarray = warped(face, shifted, size, averaged=averaged) * square[..., None]
    here = background[top:bottom, left:right]
    mixed = weight[..., None] * drawn + (1 - weight[..., None]) * here
    limit = np.iinfo(background.dtype).max
    np.copyto(here, np.rint(mixed).clip(0, limit).astype(background.dtype), where=(weight > 0)[..., None])


def to_output(matrix: np.ndarray, upscale: int, offset_px: float = 0.0) -> np.ndarray:
    """(2, 3) from a pixel of the output to the face, of that from a pixel of the photograph to the face."""
    back = (0.5 - offset_px) / upscale - 0.5  # where the output's first pixel lies in the photograph
    return matrix @ np.array([[1 / upscale, 0, back], [0, 1 / upscale, back], [0, 0, 1]])


def feathered(square: np.ndarray) -> np.ndarray:
    """The face's square to weights that rise from 0 at its edge to 1 over about the outer tenth of its side."""
    width = int(math.sqrt(float(square.sum()))) // 20
    if not width:
        return square
    inner = cv2.erode(square, np.ones((2 * width,) * 2, np.uint8))
    return cv2.GaussianBlur(inner, (2 * width + 1,) * 2, 0)


def warped(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], *, averaged: bool = False) -> np.ndarray:
    """(side, side, …) seen from the output: bilinear, 0 beyond it. matrix: (2, 3), output to image. size: width and height."""
    shrink = int(scale_of(matrix)) if averaged else 1
    if shrink > 1:
        more = -image.shape[0] % shrink
        image = cv2.copyMakeBorder(image, 0, more, 0, more, cv2.BORDER_REPLICATE)
        side = image.shape[0] // shrink
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        matrix = matrix / shrink
        matrix[:, 2] -= (shrink - 1) / (2 * shrink)
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def parsed_mask(labels: np.ndarray) -> np.ndarray:
    """What a parser found, (512, 512) labels of CelebAMask-HQ (0 to 18), to weights in [0, 1], as facexlib makes them."""
    mask: np.ndarray = np.isin(labels, [*range(1, 14), 15]).astype(
        np.float32
    )  # not the background, hat, necklace, neck and clothes
    for _ in range(2):
        mask = cv2.GaussianBlur(mask, (101, 101), 11)
    mask[:10], mask[-10:], mask[:, :10], mask[:, -10:] = 0, 0, 0, 0
    return mask

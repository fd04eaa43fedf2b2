"""Identity: how alike two faces look to an embedder, images (b, 3, h, w) RGB in [0, 1]."""

from functools import cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.frozen import Frozen
from losses.weighted import Loss, Weight

# Left eye, right eye, nose, left and right corner of the mouth, as seen; x, y in pixels whose centres are whole numbers.
FFHQ_512 = (  # where aligned faces of 512 x 512 have them (facexlib's and GFPGAN's template)
    (192.98138, 239.94708),
    (318.90277, 240.19360),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
)
ARCFACE_112 = (  # where embedders want them in 112 x 112
    (38.29459953, 51.69630051),
    (73.53179932, 51.50139999),
    (56.02519989, 71.73660278),
    (41.54930115, 92.36550140),
    (70.72990036, 92.20410156),
)
LEAST_SIDE = 64


def crop_to_image(landmarks: Tensor, face_px: int) -> Tensor:
    """Similarity transforms from a crop's pixels to an image's, nearest to five landmarks by least squares in the image.

    Args:    landmarks: (b, 5, 2) in pixels of the image.    face_px: side of the crop.
    Returns: (b, 2, 3) float64: image x, y = matrix @ (crop x, crop y, 1).
    """
    template = torch.tensor(ARCFACE_112, dtype=torch.float64) * (face_px / 112)
    x, y = template.T
    one, zero = torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    of_x, of_y = torch.stack([x, y, one, zero], dim=1), torch.stack([y, -x, zero, one], dim=1)
    wanted = landmarks.double().cpu().transpose(1, 2).reshape(-1, 10, 1)  # all x, then all y
    a, b, shift_x, shift_y = (
        torch.linalg.lstsq(torch.cat([of_x, of_y]).expand(len(wanted), -1, -1), wanted).solution.squeeze(-1).unbind(-1)
    )
    return torch.stack([torch.stack([a, b, shift_x], -1), torch.stack([-b, a, shift_y], -1)], dim=1)


def ffhq_landmarks(side: int) -> Tensor:
    """(1, 5, 2): the landmarks in an aligned image of side x side; 0.5 is half a pixel, as pixel centres are whole numbers."""
    return ((torch.tensor(FFHQ_512, dtype=torch.float64) + 0.5) * (side / 512) - 0.5)[None]


def aligned_faces(images: Tensor, face_px: int) -> Tensor:
    """Crops of FFHQ-aligned images for an embedder; differentiable, bilinear, black outside of the image.

    Args:    images: (b, 3, s, s).
    Returns: (b, 3, face_px, face_px).
    Raises:  ValueError: images that aren't square, or so small that no face is in them.
    """
    height, width = images.shape[-2:]
    if height != width or height < LEAST_SIDE:
        raise ValueError(
            f"the identity loss wants square aligned faces of at least {LEAST_SIDE} px, and these are {width}x{height}: "
            "set data.size and data.crop=center, or remove the term (~loss.terms.id)"
        )
    grid = _grid(width, face_px).to(images)[None].expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@cache
def _grid(side: int, face_px: int) -> Tensor:
    """(face_px, face_px, 2) float64: where a crop's pixels lie in an aligned image, -1 and 1 being its outer edges."""
    (to_image,) = crop_to_image(ffhq_landmarks(side), face_px)
    place = torch.arange(face_px, dtype=torch.float64)
    y, x = torch.meshgrid(place, place, indexing="ij")
    return (2 * (torch.stack([x, y, torch.ones_like(x)], dim=-1) @ to_image.T) + 1) / side - 1


class Identity(Loss):
    """1 - cosine between the embeddings of restored and HQ faces, mean over the batch.

    Args: embedder: (b, 3, face_px, face_px) in [0, 1] to embeddings (b, n), alone or first in a tuple. It has the attribute
              `face_px`.
    """

    def __init__(self, *, weight: Weight, embedder: nn.Module) -> None:
        super().__init__(weight=weight)
        self.face_px: int = embedder.face_px  # type: ignore[assignment]
        self.embedder = Frozen(embedder)

    def forward(self, restored: Tensor, hq: Tensor) -> Tensor:
        """restored: (b, 3, s, s), about [0, 1]. hq: (b, 3, s, s) in [0, 1]. Returns a scalar.

        Raises: ValueError: the crop of an HQ is of one colour; and what `aligned_faces` raises.
        """
        with torch.autocast(restored.device.type, enabled=False):
            made, wanted = aligned_faces(restored.to(hq.dtype), self.face_px), aligned_faces(hq, self.face_px)
            empty = (wanted.flatten(1).std(dim=1) < 1e-3).nonzero().flatten().tolist()
            if empty:
                raise ValueError(
                    f"the identity loss finds no face in image {', '.join(map(str, empty))} of the batch: its middle is of one "
                    "colour; take such files out (python -m data.prepare check), or remove the term (~loss.terms.id)"
                )
            with torch.no_grad():
                target = embedding(self.embedder(wanted))
            return (1 - (embedding(self.embedder(made)) * target).sum(dim=1)).mean()


class EmbeddingL1(Loss):
    """L1 between the embeddings of whole restored and HQ faces, mean over the batch and the values, as GFPGAN has it.

    Args: embedder: (b, 3, h, w) in [0, 1] to embeddings (b, n), not of unit length, such as models.arcface.ResNetArcFace.
    """

    def __init__(self, *, weight: Weight, embedder: nn.Module) -> None:
        super().__init__(weight=weight)
        self.embedder = Frozen(embedder)

    def forward(self, restored: Tensor, hq: Tensor) -> Tensor:
        """restored: (b, 3, h, w), about [0, 1]. hq: (b, 3, h, w) in [0, 1]. Returns a scalar."""
        with torch.no_grad():
            wanted = self.embedder(hq)
        return F.l1_loss(self.embedder(restored), wanted)


def embedding(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """An embedder's output, (b, n) alone or first in a tuple, scaled to unit length."""
    return F.normalize(output[0] if isinstance(output, tuple) else output, dim=1)


@torch.no_grad()
def identity_similarity(lq: Tensor, out: Tensor, embedder: nn.Module, landmarks: Tensor | None = None) -> Tensor:
    """Cosine of two faces' embeddings as the NTIRE 2025 real-world face restoration challenge takes it (its face_alignment).

    Both are rounded to 8 bit and cut at the same five landmarks by OpenCV: at exact places in 5.0, at whole 1/32 px in 4.11,
    which moved 8-bit values of six faces by up to 4.

    Args:    lq, out: (b, 3, h, w) in [0, 1], on the embedder's device.    embedder: see Identity.
             landmarks: (b, 5, 2) in pixels, such as the challenge's own lists have; None: those of aligned faces.
    Returns: (b,) in [-1, 1].
    Raises:  ValueError: lq and out differ in shape, or aren't square and come without landmarks.
    """
    height, width = lq.shape[-2:]
    if lq.shape != out.shape:
        raise ValueError(
            f"identity_similarity cuts both images at the same pixels, but lq is {tuple(lq.shape)} and out {tuple(out.shape)}: "
            "bring them to one size"
        )
    if landmarks is None:
        if height != width:
            raise ValueError(
                f"identity_similarity without landmarks wants square aligned faces, not {width}x{height}: give landmarks"
            )
        landmarks = ffhq_landmarks(width).expand(len(lq), -1, -1)
    face_px: int = embedder.face_px  # type: ignore[assignment]
    matrices = crop_to_image(landmarks, face_px).numpy()

    def embedded(images: Tensor) -> Tensor:
        photos = (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        crops = [
            cv2.warpAffine(photo, cv2.invertAffineTransform(to_image), (face_px, face_px))
            for photo, to_image in zip(photos, matrices, strict=True)
        ]
        return embedding(embedder(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(images.device) / 255))

    return (embedded(lq) * embedded(out)).sum(dim=1)

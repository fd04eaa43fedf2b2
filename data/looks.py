"""Whether what lies in a folder of aligned faces looks like it: their place in the template, and detail as a camera sees it."""

from collections.abc import Iterator

import cv2
import numpy as np

from data.images import UnreadableImage
from data.landmarks import TEMPLATE, TEMPLATE_SIDE, Face, detector
from data.order import Draws
from data.reading import Images, read_photos

MIN_FACE_PX = 100.0  # in a 512 crop; an aligned face is about 350 high
FACE = (slice(160, 416), slice(128, 384))  # eyes to mouth of the template
FEW_PX = 128  # an image of which as many pixels a side tell all was enlarged
MIN_DETAIL = 7.0
LOOKED_AT = 8
OFF_PX = 80.0  # a face whose landmarks lie farther from the template's is not aligned


def middle_512(photo: np.ndarray) -> np.ndarray:
    """The middle square, which is what training sees, at the template's (512, 512)."""
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    square = photo[top : top + side, left : left + side]
    way = cv2.INTER_AREA if side > TEMPLATE_SIDE else cv2.INTER_CUBIC
    return square if side == TEMPLATE_SIDE else cv2.resize(square, (TEMPLATE_SIDE, TEMPLATE_SIDE), interpolation=way)


def template_face(crop: np.ndarray) -> Face | None:
    """The face of a (512, 512, 3) crop that lies nearest to the template, or None."""
    faces = detector("mobile", None, TEMPLATE_SIDE)(crop, MIN_FACE_PX)
    return min(faces, key=lambda face: float(np.abs(face.points - TEMPLATE).mean()), default=None)


def detail(crop: np.ndarray) -> float:
    """What the face of a (512, 512, 3) crop loses when it is brought to 128 x 128 and back, in percent of its contrast.

    Both are r.m.s. of luma between eyes and mouth. Faces of FFHQ's kind have 9.8 to 24, JPEG of quality 75 and a darker picture
    included; brought to 32 to 128 px and enlarged (linear, cubic, Lanczos) the same have 0.9 to 5.
    """
    luma = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(luma, (FEW_PX, FEW_PX), interpolation=cv2.INTER_AREA)
    lost = (luma - cv2.resize(small, luma.shape[::-1], interpolation=cv2.INTER_CUBIC))[FACE]
    contrast = float(luma[FACE].std())
    return 100 * float(np.sqrt(np.square(lost).mean())) / contrast if contrast else 0.0


def first_look(images: Images, is_degraded: bool, aligned: bool) -> Iterator[str]:
    """What a few images, spread over all, seem to be instead of what training takes them for; a sentence each.

    Args: is_degraded: the LQ is made of the image. aligned: they are to be aligned faces of 512 pixels or more.
    """
    count = len(images.source)
    numbers = sorted({place * count // LOOKED_AT for place in range(LOOKED_AT)})
    pictures = []
    for number in numbers:
        try:
            pictures.append(read_photos(images.files(number, Draws(0, number)), is_degraded))
        except UnreadableImage:  # what is to be done about it, data.on_error says
            continue
    seen = len(pictures)
    if not is_degraded and seen and all(np.array_equal(photos[0], photos[1]) for photos in pictures):
        yield f"in all {seen} pairs looked at LQ and HQ are the same picture, and nothing is to learn: is data.root the LQ?"
    if not aligned:
        return
    crops = [middle_512(photos[-1]) for photos in pictures]
    named = "python -m data.prepare check root=DIR out=OUT names each"
    if enlarged := sum(detail(crop) < MIN_DETAIL for crop in crops):
        yield f"{enlarged} of {seen} images looked at have no more detail than {FEW_PX} px enlarged: {named}"
    if off := sum(not is_in_place(crop) for crop in crops):
        yield f"{off} of {seen} images looked at show no face where FFHQ has it: {named}, and align cuts faces out"


def is_in_place(crop: np.ndarray) -> bool:
    """Whether a (512, 512, 3) crop shows a face about where the template has it."""
    face = template_face(crop)
    return face is not None and float(np.hypot(*(face.points - TEMPLATE).T).mean()) < OFF_PX

"""Pictures side by side with labels: a row for each image, a column for each who made it. No word lies on a picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LABEL_PX, GAP_PX = 18, 4
MIN_SIDE_PX = 128  # of a cell, for the words


def sheet(labels: Sequence[str], rows: Sequence[Sequence[np.ndarray]], names: Sequence[str], side: int) -> Image.Image:
    """A labelled grid: labels on top, over each row its name, and under each picture its PSNR against HQ.

    Args: labels: of the columns; "HQ" is what the others are compared with.
          rows: the pictures (h, w, 3) uint8 of each, one for each label.   names: of the rows.
          side: of a cell in pixels; a picture is brought to it, in its proportions.
    """
    height = side + 2 * LABEL_PX + GAP_PX
    page = Image.new("RGB", (len(labels) * (side + GAP_PX), LABEL_PX + len(rows) * height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for column, label in enumerate(labels):
        draw.text((column * (side + GAP_PX) + 2, 2), fitted(label, side), "black", font)
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = LABEL_PX + number * height
        draw.text((2, top + 2), fitted(name, side * len(labels)), "black", font)
        hq = row[labels.index("HQ")] if "HQ" in labels else None
        for column, (label, photo) in enumerate(zip(labels, row, strict=True)):
            left = column * (side + GAP_PX)
            page.paste(brought_to(photo, side), (left, top + LABEL_PX))
            draw.text((left + 2, top + LABEL_PX + side + 2), "" if label == "HQ" else psnr_words(photo, hq), "black", font)
    return page


def own_size(rows: Sequence[Sequence[np.ndarray]]) -> int:
    """The side of cells in which the largest picture keeps its pixels; each is a square of them where that is too small."""
    largest = max(max(photo.shape[:2]) for row in rows for photo in row)
    return largest * -(-MIN_SIDE_PX // largest)


def brought_to(photo: np.ndarray, side: int) -> Image.Image:
    picture = Image.fromarray(photo)
    picture.thumbnail((side, side))
    scale = min(side / picture.width, side / picture.height)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.NEAREST)


def fitted(text: str, width: int) -> str:
    """The end of a text, where all of it is too wide."""
    room = max(width // 7, 1)
    return text if len(text) <= room else f"…{text[1 - room :]}"


def psnr_words(photo: np.ndarray, hq: np.ndarray | None) -> str:
    """PSNR of a picture; empty without HQ, or where sizes differ."""
    if hq is None or photo.shape != hq.shape:
        return ""
    error = np.square(photo.astype(np.float64) - hq).mean()
    return f"{10 * np.log10(255**2 / error):.2f} dB" if error else "equal to HQ"

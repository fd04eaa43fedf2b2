"""A contact sheet: one photo under n draws of a degradation, with what was drawn under each tile."""

import math
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN_PX, LINE_PX, TEXT_PX = 8, 14, 12
WIDEST = 46  # letters to a line of text


class Degradation(Protocol):
    """Pipeline or Branches."""

    def sample(self, seed: int, position: int, size: tuple[int, int]) -> dict[str, Any]:
        """See Pipeline."""

    def apply(self, hq: Tensor, parameters: dict[str, Any]) -> dict[str, Tensor]:
        """See Pipeline."""


def described(parameters: dict[str, Any]) -> list[str]:
    """What was drawn, a line for each operator that was done; seeds and ways not taken are left out."""
    lines = []
    for name, drawn in parameters.items():
        if drawn.get("done") == 0:
            continue
        if "way" in drawn:
            inner = described(drawn[drawn["way"]])
            lines += [f"{name}: {drawn['way']}", *(f"  {line}" for line in inner)]
        else:
            values = [f"{key} {_short(value)}" for key, value in drawn.items() if key != "done" and not key.endswith("_seed")]
            lines.append(f"{name}: {', '.join(values)}" if values else name)
    return lines


def contact_sheet(hq: Tensor, degradation: Degradation, drawn: list[dict[str, Any]], tile_px: int) -> Image.Image:
    """The HQ, then an LQ for each set of parameters, as many rows as columns or fewer.

    Args:    hq: (3, h, w) in [0, 1]. tile_px: longer side of a tile; the pictures are shrunk by area averages to fit.
    """
    tiles = [(_picture(hq, tile_px), ["HQ"])]
    for parameters in drawn:
        images = {name: image for name, image in degradation.apply(hq, parameters).items() if name != "hq"}
        branched = parameters.keys() == images.keys()
        for name, image in images.items():
            lines = [f"{name}:", *described(parameters[name])] if branched else described(parameters)
            tiles.append((_picture(image, tile_px), [part for line in lines for part in _wrapped(line)]))
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width = max(tile_px, 280) + MARGIN_PX
    height = tile_px + LINE_PX * max(len(lines) for _, lines in tiles) + 2 * MARGIN_PX
    sheet = Image.new("RGB", (columns * width + MARGIN_PX, rows * height + MARGIN_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX)
    for number, (picture, lines) in enumerate(tiles):
        left, top = MARGIN_PX + number % columns * width, MARGIN_PX + number // columns * height
        sheet.paste(picture, (left, top))
        draw.multiline_text((left, top + tile_px + 2), "\n".join(lines), fill="black", font=font, spacing=LINE_PX - TEXT_PX)
    return sheet


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _wrapped(line: str) -> list[str]:
    """The line in pieces that fit under a tile, cut after commas."""
    pieces = [""]
    for part in line.replace(", ", ",|").split("|"):
        if pieces[-1] and len(pieces[-1]) + len(part) + 1 > WIDEST:
            pieces.append(f"    {part}")
        else:
            pieces[-1] = f"{pieces[-1]} {part}" if pieces[-1] else part
    return pieces


def _picture(image: Tensor, tile_px: int) -> Image.Image:
    photo_u8_hwc = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(photo_u8_hwc))
    factor = tile_px / max(picture.size)
    if factor < 1:
        picture = picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BOX)
    return picture

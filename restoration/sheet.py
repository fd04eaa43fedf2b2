"""One sheet of several restorations of the same images: python -m restoration.sheet lq=DIR A B … hq=DIR output=FILE.png"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from console import printing_never_fails
from data.reading import read_image
from data.sources.files import ImageFolder
from data.sources.shown import first_few, printable

USAGE = """python -m restoration.sheet [lq=DIR] A B … [hq=DIR] output=FILE.png [rows=N] [side=PIXELS]

A row for each image that every folder holds under one name, suffixes aside: LQ | A | B | … | HQ, and PSNR against HQ.
rows: at most so many (12); side: of a cell (256)."""
LABEL_PX, GAP_PX = 18, 4


def main() -> None:
    """Exit code 0, or 1 after an error."""
    printing_never_fails()
    arguments = sys.argv[1:]
    if not arguments or {"--help", "-h"} & set(arguments):
        print(USAGE)
        return
    try:
        print(write_sheet(arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {printable(str(error))}")


def write_sheet(arguments: list[str]) -> str:
    """Writes the sheet. Returns what to say. Raises ValueError: a mistake in the command, or the folders share no name."""
    keys = dict(argument.split("=", 1) for argument in arguments if argument.partition("=")[0] in KEYS and "=" in argument)
    folders = [argument for argument in arguments if argument.partition("=")[0] not in KEYS]
    if not folders or "output" not in keys:
        raise ValueError("give the folders to compare, and output=FILE.png (python -m restoration.sheet --help)")
    for key in ("rows", "side"):
        if not keys.get(key, "1").isdigit() or int(keys.get(key, "1")) < 1:
            raise ValueError(f"{key}={keys[key]}: give a whole number from 1")
    columns = {"LQ": keys.get("lq"), **{folder: folder for folder in folders}, "HQ": keys.get("hq")}
    sources = {label: ImageFolder(root=root) for label, root in columns.items() if root}
    names = {
        label: {str(Path(path).with_suffix("")): n for n, path in enumerate(each.paths)} for label, each in sources.items()
    }
    common = [name for name in next(iter(names.values())) if all(name in each for each in names.values())]
    everything = sorted({name for each in names.values() for name in each})
    lacking = {label: [name for name in everything if name not in each] for label, each in names.items()}
    missing = [f"{label} lacks {len(gone)} ({first_few(gone)})" for label, gone in lacking.items() if gone]
    if not common:
        raise ValueError(f"no name is in all folders: {'; '.join(missing)}")
    side, shown = int(keys.get("side", 256)), common[: int(keys.get("rows", 12))]
    rows = [{label: read_image(source, names[label][name]) for label, source in sources.items()} for name in shown]
    sheet(rows, shown, side).save(keys["output"])
    said = f"{keys['output']}: {len(shown)} of {len(common)} rows, {' | '.join(sources)}"
    return "\n".join([said, *(f"left out: {each}" for each in missing)])


KEYS = ("lq", "hq", "output", "rows", "side")


def sheet(rows: list[dict[str, np.ndarray]], names: list[str], side: int) -> Image.Image:
    """A labelled grid.

    Args: rows: label -> (h, w, 3) uint8, the same labels in each.   names: of the rows.   side: of a cell in pixels.
    """
    labels = list(rows[0])
    height = side + 2 * LABEL_PX + GAP_PX
    page = Image.new("RGB", (len(labels) * (side + GAP_PX), LABEL_PX + len(rows) * height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for column, label in enumerate(labels):
        draw.text((column * (side + GAP_PX) + 2, 2), fitted(label, side), "black", font)
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = LABEL_PX + number * height
        draw.text((2, top + 2), fitted(name, side * len(labels)), "black", font)
        for column, label in enumerate(labels):
            left = column * (side + GAP_PX)
            picture = Image.fromarray(row[label])
            picture.thumbnail((side, side))
            scale = min(side / picture.width, side / picture.height)
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.NEAREST)
            page.paste(picture, (left, top + LABEL_PX))
            draw.text((left + 2, top + LABEL_PX + side + 2), psnr_words(row, label), "black", font)
    return page


def fitted(text: str, width: int) -> str:
    """The end of a text, where all of it is too wide."""
    room = max(width // 7, 1)
    return text if len(text) <= room else f"…{text[1 - room :]}"


def psnr_words(row: dict[str, np.ndarray], label: str) -> str:
    """PSNR of a cell against HQ; empty where there is none, or sizes differ."""
    if label == "HQ" or "HQ" not in row or row[label].shape != row["HQ"].shape:
        return ""
    error = np.square(row[label].astype(np.float64) - row["HQ"]).mean()
    return f"{10 * np.log10(255**2 / error):.2f} dB" if error else "equal to HQ"


if __name__ == "__main__":
    main()

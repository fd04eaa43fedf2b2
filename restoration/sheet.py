"""One sheet of several restorations of the same images: python -m restoration.sheet lq=DIR A B … hq=DIR output=FILE.png"""

import contextlib
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from data.reading import read_image
from data.sheet import sheet
from data.sources.files import ImageFolder
from data.sources.shown import first_few, printable
from train.console import printing_never_fails

USAGE = """python -m restoration.sheet [lq=DIR] A B … [hq=DIR] output=FILE.png [rows=N] [side=PIXELS]

A row for each image that every folder holds under one name, suffixes aside: LQ | A | B | … | HQ, and PSNR against HQ.
A, B, …: folders of restored images, or runs and official files, which restore the LQ that are shown.
rows: at most so many (12); side: of a cell (256)."""
KEYS = ("lq", "hq", "output", "rows", "side")


def main() -> None:
    """Exit code 0, or 1 after an error."""
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
    keys, compared = taken_apart(arguments)
    columns = {**({"LQ": keys["lq"]} if "lq" in keys else {}), **compared, **({"HQ": keys["hq"]} if "hq" in keys else {})}
    folders = {label: ImageFolder(root=root) for label, root in columns.items() if not restores(root)}
    if (makers := [label for label in columns if label not in folders]) and "lq" not in keys:
        raise ValueError(f"{columns[makers[0]]} has nothing to restore: give lq=DIR")
    numbers = {label: stems(folder) for label, folder in folders.items()}
    common = [name for name in next(iter(numbers.values())) if all(name in each for each in numbers.values())]
    everything = sorted({name for each in numbers.values() for name in each})
    lacking = {label: [name for name in everything if name not in each] for label, each in numbers.items()}
    missing = [f"{columns[label]} lacks {len(gone)} ({first_few(gone)})" for label, gone in lacking.items() if gone]
    if not common:
        raise ValueError(f"no name is in all folders: {'; '.join(missing)}")
    shown = common[: int(keys.get("rows", 12))]
    photos = {label: [read_image(folder, numbers[label][name]) for name in shown] for label, folder in folders.items()}
    for label in makers:
        photos[label] = restored_by(columns[label], folders["LQ"], [numbers["LQ"][name] for name in shown])
    rows = list(zip(*(photos[label] for label in columns), strict=True))
    sheet(list(columns), rows, shown, int(keys.get("side", 256))).save(keys["output"])
    said = f"{keys['output']}: {len(shown)} of {len(common)} rows, {' | '.join(columns)}"
    return "\n".join([said, *(f"left out: {each}" for each in missing)])


def taken_apart(arguments: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The keys, and label -> path of what is compared. Raises ValueError: a mistake in the command."""
    pairs = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    places = [argument for argument in arguments if argument not in pairs]
    keys = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    if unknown := [key for key in keys if key not in KEYS]:
        raise ValueError(f"{unknown[0]}: there is no such key, and no such folder; the keys are {', '.join(KEYS)}")
    if twice := [each for each, count in Counter(pair.partition("=")[0] for pair in pairs).items() if count > 1]:
        raise ValueError(f"{twice[0]} is given twice: give it once")
    if not places or not keys.get("output"):
        raise ValueError("give the folders to compare, and output=FILE.png (python -m restoration.sheet --help)")
    for key in ("rows", "side"):
        if not keys.get(key, "1").isdigit() or int(keys.get(key, "1")) < 1:
            raise ValueError(f"{key}={keys[key]}: give a whole number from 1")
    if twice := [each for each, count in Counter(str(Path(place).resolve()) for place in places).items() if count > 1]:
        raise ValueError(f"{twice[0]} is given twice: give each folder once")
    return keys, dict(zip(told_apart(places), places, strict=True))


def told_apart(places: list[str]) -> list[str]:
    """A label each, of what differs in their paths: runs/a/out and runs/b/out are a and b."""
    parts = [Path(place).resolve().parts for place in places]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({each[end] for each in parts}) == 1:
            parts = [each[1:] if end == 0 else each[:-1] for each in parts]
    return [f"./{label}" if label in ("LQ", "HQ") else label for label in map("/".join, parts)]


def stems(folder: ImageFolder) -> dict[str, int]:
    """Name without its suffix -> number of the image."""
    return {str(Path(path).with_suffix("")): number for number, path in enumerate(folder.paths)}


def restores(path: str) -> bool:
    """Whether this is a run or a file of weights, and no folder of images."""
    return Path(path).is_file() or (Path(path) / "checkpoints").is_dir()


def restored_by(weights: str, lq: ImageFolder, numbers: list[int]) -> list[np.ndarray]:
    """What restore.py makes with a run or an official file of some images; nothing stays on the disk.

    Raises ValueError: it can't.
    """
    from restoration.cli import restored

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "lq", Path(folder) / "restored"
        for number in numbers:
            (given / lq.paths[number]).parent.mkdir(parents=True, exist_ok=True)
            (given / lq.paths[number]).symlink_to((lq.root / lq.paths[number]).resolve())
        typed = [f"ckpt={weights}", f"input={given}", f"output={made}"]
        with contextlib.redirect_stdout(None):  # how many went where is of no interest
            if not restored(typed):
                raise ValueError(f"{weights} did not restore every image of {lq.root}")
        images = ImageFolder(root=str(made))
        return [read_image(images, stems(images)[str(Path(lq.paths[number]).with_suffix(""))]) for number in numbers]


if __name__ == "__main__":
    printing_never_fails()
    main()

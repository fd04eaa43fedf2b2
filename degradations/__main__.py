"""python -m degradations preview image=PHOTO [degradation=NAME] [n=16] [KEY=VALUE ...]

Writes a contact sheet of the photo under n draws of a degradation of conf/degradation, with the drawn parameters under each
tile, and beside it the parameters as JSON. Further keys: seed=0, out=preview.png, tile=320 (pixels), parameters=FILE (the JSON
of an earlier preview: its parameters instead of drawn ones), and any key of the degradation, such as
degradation.operators.blur.sigma_px=[1,5].
"""

import difflib
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from degradations.preview import contact_sheet
from train.console import printing_never_fails
from train.trust import build, variable

CONF = Path(__file__).parent.parent / "conf"
KEYS = {
    "image": None,
    "degradation": "challenge",
    "n": "16",
    "seed": "0",
    "out": "preview.png",
    "tile": "320",
    "parameters": None,
}


def main(arguments: list[str]) -> None:
    """Raises ValueError with one sentence for the user."""
    if {"--help", "-h"} & set(arguments):
        print(__doc__)
        return
    if not arguments or arguments[0] != "preview":
        raise ValueError(f"give a command\n\n{__doc__}")
    OmegaConf.register_new_resolver("oc.env", variable, replace=True)
    options, overrides = parsed(arguments[1:])
    hq = read(options["image"])
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(overrides=[f"+degradation={options['degradation']}", *overrides])
    except HydraException as error:
        raise ValueError(f"degradation={options['degradation']}: {str(error).strip()}") from error
    try:
        degradation = build(OmegaConf.to_container(config.degradation, resolve=True))
    except (OmegaConfBaseException, ImportError, TypeError, ValueError) as error:
        raise ValueError(f"degradation={options['degradation']}: {error}") from error
    drawn = parameters_of(options) if options["parameters"] else drawn_by(degradation, options, hq)
    sheet = contact_sheet(hq, degradation, drawn, number(options, "tile", 16))
    out = Path(options["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    listed = out.with_suffix(".json")
    listed.write_text(
        json.dumps({"degradation": options["degradation"], "overrides": overrides, "parameters": drawn}, indent=1),
        encoding="utf-8",
    )
    print(f"{out} ({sheet.width}x{sheet.height}), {listed}")


def parsed(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The command's own keys with their defaults, and what Hydra is to read.

    Raises:  ValueError: no key=value, an unknown key, no image, or no picture to write.
    """
    options: dict[str, Any] = dict(KEYS)
    overrides = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key.lstrip("+~").startswith("degradation."):
            overrides.append(argument)
        elif not equals or key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {near[0]}=?" if near else f"the keys are {', '.join(KEYS)} and degradation.…"
            raise ValueError(f"{argument!r} is not understood: {hint}")
        else:
            options[key] = value
    if options["image"] is None:
        raise ValueError("image is not set: give a photo as image=PHOTO")
    if Path(options["out"]).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"out={options['out']} is no name of a picture: give one that ends with .png, as in out=preview.png")
    return options, overrides


def read(image: str) -> Tensor:
    """(3, h, w) float32 RGB in [0, 1]. Raises ValueError: no file, or no image."""
    if not Path(image).is_file():
        raise ValueError(f"image={image} does not exist (looked in {Path.cwd()})")
    photo_u8_hwc_bgr = cv2.imread(image, cv2.IMREAD_COLOR)
    if photo_u8_hwc_bgr is None:
        raise ValueError(f"image={image} can't be read as an image")
    return torch.from_numpy(photo_u8_hwc_bgr[..., ::-1].transpose(2, 0, 1).copy()).float() / 255


def drawn_by(degradation: Any, options: dict[str, Any], hq: Tensor) -> list[dict[str, Any]]:
    """What positions 0 .. n - 1 draw."""
    seed, size = number(options, "seed", 0), (hq.shape[1], hq.shape[2])
    return [degradation.sample(seed, position, size) for position in range(number(options, "n", 1))]


def parameters_of(options: dict[str, Any]) -> list[dict[str, Any]]:
    """What an earlier preview listed. Raises ValueError: no such file, another content, or of another degradation."""
    path = Path(options["parameters"])
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        of, drawn = str(listed["degradation"]), list(listed["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"parameters={path} can't be read ({type(error).__name__}): give the .json that a preview wrote"
        ) from error
    if of != options["degradation"]:
        raise ValueError(f"parameters={path} are of degradation={of}, not {options['degradation']}: give degradation={of} too")
    return drawn


def number(options: dict[str, Any], key: str, least: int) -> int:
    """Raises ValueError: it is none, or below least."""
    text = str(options[key])
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{key}={text} is out of range: give a whole number of at least {least}")
    return int(text)


if __name__ == "__main__":
    printing_never_fails()
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

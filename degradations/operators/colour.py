"""Colour: jitter, grey, shifts, faded and underexposed photographs (classical face degradation, after step 5)."""

from typing import Annotated

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from degradations.draws import Parameters, checked_range

NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Turn = Annotated[float, Ge(-0.5), Le(0.5)]
Part = Annotated[float, Ge(0), Le(1)]
SEPIA = (1.0, 0.87, 0.66)  # red, green, blue of a warm, yellowed white; chosen


def plain(photo: np.ndarray) -> np.ndarray:
    """(3, h, w) to (h, w), with the weights of cv2's RGB to grey."""
    red, green, blue = photo
    return np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue


def grey(image: Tensor) -> Tensor:
    """(b, 3, h, w) to (b, 1, h, w), with torchvision's weights."""
    red, green, blue = image.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def adjust_brightness(image: Tensor, factor: Tensor) -> Tensor:
    """image times factor, clamped to [0, 1]. All four: (b, 3, h, w) and (b,), as in torchvision.transforms.functional."""
    return (image * _broad(factor)).clamp(0, 1)


def adjust_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Blends with the mean grey; factor 0 is that grey, 1 the image."""
    mean = grey(image).mean((1, 2, 3), keepdim=True)
    return (mean + (image - mean) * _broad(factor)).clamp(0, 1)


def adjust_saturation(image: Tensor, factor: Tensor) -> Tensor:
    """Blends with the grey image; factor 0 is that, 1 the image."""
    plain = grey(image)
    return (plain + (image - plain) * _broad(factor)).clamp(0, 1)


def adjust_hue(image: Tensor, turn: Tensor) -> Tensor:
    """Turns the hue (HSV) by -0.5 to 0.5 of the circle."""
    most, least = image.amax(1, keepdim=True), image.amin(1, keepdim=True)
    spread = most - least
    red, green, blue = ((most - colour[:, None]) / torch.where(spread == 0, 1, spread) for colour in image.unbind(1))
    is_red, is_green = image[:, :1] == most, image[:, 1:2] == most
    sector = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    sector = torch.where(spread == 0, 0, sector)
    sector = (sector + 6 * _broad(turn)) % 6
    # A colour's value falls from the largest to the least with the distance of the hue from the colour's own.
    offset = (5 - 2 * torch.arange(3, device=image.device))[None, :, None, None]
    place = (offset + sector) % 6
    return most - spread * torch.minimum(place, 4 - place).clamp(0, 1)


def _broad(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]


ADJUST = {"b": adjust_brightness, "c": adjust_contrast, "s": adjust_saturation, "h": adjust_hue}
NAMES = {"b": "brightness", "c": "contrast", "s": "saturation", "h": "hue"}


class ColourJitter:
    """Brightness, contrast, saturation and hue in a drawn order, each clamped to [0, 1] (torchvision ColorJitter, GFPGAN).

    Args:    brightness, contrast, saturation: [low, high] of the uniform factor; 1 changes nothing.
             hue: [low, high] of the uniform turn in parts of the colour circle, -0.5 to 0.5.
    Raises:  ValueError: a range that is none.
    """

    def __init__(
        self,
        *,
        brightness: tuple[NonNegative, NonNegative],
        contrast: tuple[NonNegative, NonNegative],
        saturation: tuple[NonNegative, NonNegative],
        hue: tuple[Turn, Turn],
    ) -> None:
        self.ranges = {
            "brightness": checked_range("brightness", brightness, 0),
            "contrast": checked_range("contrast", contrast, 0),
            "saturation": checked_range("saturation", saturation, 0),
            "hue": checked_range("hue", hue, -0.5, 0.5),
        }

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """brightness, contrast, saturation, hue, and order: their first letters."""
        order = "".join(np.array(list(NAMES))[rng.permutation(4)])
        return {"order": order, **{name: rng.uniform(*bounds) for name, bounds in self.ranges.items()}}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns the same shape, in [0, 1]."""
        image = torch.from_numpy(np.ascontiguousarray(photo))[None]
        for letter in parameters["order"]:
            image = ADJUST[letter](image, torch.tensor([parameters[NAMES[letter]]], dtype=torch.float32))
        return image[0].numpy()


class ColourShift:
    """One number added to each colour, clipped to [0, 1] (GFPGAN, CodeFormer color_jitter_shift).

    Args:    shift_255: largest shift either way, in grey levels of 255; uniform and independent for each colour.
    """

    def __init__(self, *, shift_255: NonNegative) -> None:
        self.shift_255 = checked_range("shift_255", (0, shift_255), 0)[1]

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """red_255, green_255, blue_255."""
        return {name: rng.uniform(-self.shift_255, self.shift_255) for name in ("red_255", "green_255", "blue_255")}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns the same shape, in [0, 1]."""
        shifts = [parameters[name] / 255 for name in ("red_255", "green_255", "blue_255")]
        return np.clip(photo + np.array(shifts, dtype=np.float32)[:, None, None], 0, 1)


class ChannelShift:
    """Red and blue displaced against green, as a lens with lateral chromatic aberration or a worn print does.

    Args:    shift_px: largest displacement either way along each axis; uniform. Between pixels it is bilinear, borders mirror.
    """

    def __init__(self, *, shift_px: NonNegative) -> None:
        self.shift_px = checked_range("shift_px", (0, shift_px), 0)[1]

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """red_x_px, red_y_px, blue_x_px, blue_y_px: positive moves right and down."""
        names = ("red_x_px", "red_y_px", "blue_x_px", "blue_y_px")
        return {name: rng.uniform(-self.shift_px, self.shift_px) for name in names}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns the same shape."""
        moved = photo.copy()
        for plane, colour in ((0, "red"), (2, "blue")):
            moved[plane] = displaced(photo[plane], parameters[f"{colour}_x_px"], parameters[f"{colour}_y_px"])
        return moved


def displaced(plane: np.ndarray, x_px: float, y_px: float) -> np.ndarray:
    """(h, w) moved right and down by parts of a pixel; borders mirror without repeating the edge pixel."""
    height, width = plane.shape
    columns, rows = (
        np.arange(width, dtype=np.float32) - np.float32(x_px),
        np.arange(height, dtype=np.float32) - np.float32(y_px),
    )
    grid = (np.tile(columns, (height, 1)), np.tile(rows[:, None], (1, width)))
    return cv2.remap(plane, *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


class Grey:
    """The weighted mean of the colours (0.299, 0.587, 0.114), in all three."""

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Nothing."""
        return {}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns the same shape."""
        return np.repeat(plain(photo)[None], 3, axis=0)


class LowLight:
    """An underexposed photograph: gain * x ^ gamma. Ranges are ours; no recipe publishes any.

    Args:    gamma: [low, high], 1 changes nothing, above darkens the middle.
             gain: [low, high], 0 to 1.
    Raises:  ValueError: a range that is none.
    """

    def __init__(self, *, gamma: tuple[Positive, Positive], gain: tuple[Part, Part]) -> None:
        self.gamma, self.gain = checked_range("gamma", gamma, 1e-3), checked_range("gain", gain, 0, 1)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """gamma and gain."""
        return {"gamma": rng.uniform(*self.gamma), "gain": rng.uniform(*self.gain)}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns the same shape, in [0, 1]."""
        lit = np.clip(photo, 0, 1) ** np.float32(parameters["gamma"])
        return lit * np.float32(parameters["gain"])


class ColourFade:
    """An old print: colours move towards a yellowed grey, and black becomes lighter. Ranges are ours; no recipe publishes any.

    Args:    fade: [low, high], 0 keeps the colours, 1 leaves a sepia picture.
             black: [low, high], the value that black takes; white stays.
    Raises:  ValueError: a range that is none.
    """

    def __init__(self, *, fade: tuple[Part, Part], black: tuple[Part, Part]) -> None:
        self.fade, self.black = checked_range("fade", fade, 0, 1), checked_range("black", black, 0, 1)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """fade and black."""
        return {"fade": rng.uniform(*self.fade), "black": rng.uniform(*self.black)}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; returns the same shape, in [0, 1] if it was."""
        fade, black = np.float32(parameters["fade"]), np.float32(parameters["black"])
        sepia = plain(photo) * np.array(SEPIA, dtype=np.float32)[:, None, None]
        return black + (1 - black) * (photo + fade * (sepia - photo))

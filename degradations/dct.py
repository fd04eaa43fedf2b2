"""JPEG's arithmetic on tensors, any device: a file's exact one (libjpeg) and its differentiable approximation (diffjpeg).

RGB in and out is (b, 3, h, w) float32 in [0, 1]. Matrix products are in float64, as float32 may mean TF32's 11 bits on a GPU.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU T.81 annex K.1, rows by vertical frequency
# fmt: off
LUMINANCE = (
     16,  11,  10,  16,  24,  40,  51,  61,
     12,  12,  14,  19,  26,  58,  60,  55,
     14,  13,  16,  24,  40,  57,  69,  56,
     14,  17,  22,  29,  51,  87,  80,  62,
     18,  22,  37,  56,  68, 109, 103,  77,
     24,  35,  55,  64,  81, 104, 113,  92,
     49,  64,  78,  87, 103, 121, 120, 101,
     72,  92,  95,  98, 112, 100, 103,  99,
)
CHROMINANCE = (
     17,  18,  24,  47,  99,  99,  99,  99,
     18,  21,  26,  66,  99,  99,  99,  99,
     24,  26,  56,  99,  99,  99,  99,  99,
     47,  66,  99,  99,  99,  99,  99,  99,
     99,  99,  99,  99,  99,  99,  99,  99,
     99,  99,  99,  99,  99,  99,  99,  99,
     99,  99,  99,  99,  99,  99,  99,  99,
     99,  99,  99,  99,  99,  99,  99,  99,
)
# fmt: on
# JFIF 1.02: Y, Cb, Cr from R, G, B, and back
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
# The same in libjpeg's integers, times 2 ** 16
TO_YCC_INTEGER = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
TO_RGB_INTEGER = ((65536, 0, 91881), (65536, -22554, -46802), (65536, 116130, 0))
# The left half of libjpeg's DCT (jfdctint.c), times 2 ** 13 * sqrt(8): its constants are rounded one by one before they are
# summed, so some entries are 1 off the rounded cosine. Even rows are symmetric, odd ones antisymmetric.
INTEGER_DCT_LEFT = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def basis(device: torch.device) -> Tensor:
    """(8, 8) float64: row u of the orthonormal DCT-II."""
    u, x = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(8.0, dtype=torch.float64)
    rows = torch.cos((2 * x + 1) * u * torch.pi / 16) / 2
    rows[0] /= 2**0.5
    return rows.to(device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def integer_basis(device: torch.device) -> Tensor:
    """(8, 8) float64 of integers: libjpeg's DCT."""
    left = torch.tensor(INTEGER_DCT_LEFT, dtype=torch.float64)
    right = left.flip(1) * torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    return torch.cat([left, right], dim=1).to(device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def tables(device: torch.device) -> Tensor:
    """(2, 8, 8) float32: luminance and chrominance at quality 50."""
    return torch.tensor([LUMINANCE, CHROMINANCE], dtype=torch.float32, device=device).view(2, 8, 8)


def table_factor(quality: Tensor) -> Tensor:
    """What the tables are multiplied by, from a quality of 1 to 100; any shape."""
    return torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100


def libjpeg_tables(quality: Tensor) -> Tensor:
    """(b,) integers of 1 to 100 to (b, 2, 8, 8) float32: the whole numbers 1 to 255 that libjpeg writes into a file."""
    quality = quality.double()[:, None, None, None]
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    return ((tables(quality.device) * percent + 50) / 100).floor().clamp(1, 255).float()


def blocks(planes: Tensor) -> Tensor:
    """(b, c, h, w), sides multiples of 8, to (b, c, h / 8, w / 8, 8, 8)."""
    return planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)


def unblocks(cells: Tensor) -> Tensor:
    """What blocks undoes."""
    return cells.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def quantised(planes: Tensor, table: Tensor) -> Tensor:
    """Planes with values around 0 after DCT, rounding to multiples of the table, and back. table: as (b, c, 8, 8)."""
    rows = basis(planes.device)
    table = table[..., None, None, :, :]
    coefficients = torch.round(rows @ blocks(planes).double() @ rows.T / table) * table
    return unblocks(rows.T @ coefficients @ rows).float()


def mixed(image: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """(b, 3, h, w) with its three colours mixed by the rows of a 3x3 matrix."""
    red, green, blue = image.unbind(1)
    return torch.stack([a * red + b * green + c * blue for a, b, c in matrix], dim=1)


def diffjpeg(image: Tensor, quality: Tensor) -> Tensor:
    """BasicSR's DiffJPEG with differentiable=False (basicsr/utils/diffjpeg.py), quirks included.

    The luminance table is transposed, tables are not rounded to integers, samples not to 8 bit; borders are padded with zeros
    and colours enlarged by repetition.

    Args:    quality: (b,), 1 up to below 100 (at 100 its tables are 0).
    """
    height, width = image.shape[2:]
    ycc = mixed(F.pad(image, (0, -width % 16, 0, -height % 16)) * 255, TO_YCC)
    table = tables(image.device) * table_factor(quality)[:, None, None, None]
    luma = quantised(ycc[:, :1] - 128, table[:, :1].mT) + 128
    chroma = quantised(F.avg_pool2d(ycc[:, 1:], 2), table[:, 1:])
    chroma = F.interpolate(chroma, scale_factor=2, mode="nearest")
    return (mixed(torch.cat([luma, chroma], dim=1), TO_RGB)[..., :height, :width] / 255).clamp(0, 1)


def libjpeg(image: Tensor, quality: Tensor, sizes: Tensor) -> Tensor:
    """What libjpeg's decoder gives for the file that its encoder writes (4:2:0, exact integer DCT), on the grid of k / 255.

    Every number is a whole one below 2 ** 24 in float32 or below 2 ** 53 in float64, so that sums and products are exact.

    Args:    quality: (b,) integers of 1 to 100.
             sizes: (b, 2) int64, height and width of each sample in the upper left corner of the image; what lies beyond
                 changes nothing, and beyond them the result is arbitrary.
    """
    height, width = image.shape[2:]
    ycc = to_ycc(torch.round(image.clamp(0, 1) * 255))
    table = libjpeg_tables(quality)
    luma, chroma = whole_blocks(ycc, sizes)
    luma, chroma = coded(luma, table[:, :1]), coded(averaged(chroma), table[:, 1:])
    chroma = enlarged(chroma, sizes)
    return to_rgb(torch.cat([luma, chroma], dim=1)[..., :height, :width]) / 255


def to_ycc(rgb_255: Tensor) -> Tensor:
    """Integers 0 to 255 to such, by libjpeg's rounding (jccolor.c)."""
    scaled = mixed(rgb_255, TO_YCC_INTEGER)
    scaled[:, 0] += 32768
    scaled[:, 1:] += (128 << 16) + 32767
    return (scaled / 65536).floor()


def to_rgb(ycc_255: Tensor) -> Tensor:
    """Integers 0 to 255 to such, by libjpeg's rounding (jdcolor.c)."""
    centred = torch.cat([ycc_255[:, :1], ycc_255[:, 1:] - 128], dim=1)
    return ((mixed(centred, TO_RGB_INTEGER) + 32768) / 65536).floor().clamp(0, 255)


def whole_blocks(ycc: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Luma and chroma with sides that are multiples of 16, each sample continued beyond its own edges as libjpeg does."""
    height, width = ycc.shape[2:]
    tall, wide = sizes[:, :1], sizes[:, 1:]
    rows = torch.arange(height + -height % 16, device=ycc.device)
    columns = torch.arange(width + -width % 16, device=ycc.device).minimum(wide - 1)
    # Below the image it repeats the last row of luma, but of chroma the last row of averages.
    pairs = (2 * (rows // 2).minimum((tall - 1) // 2) + rows % 2).minimum(tall - 1)
    luma = picked(ycc[:, :1], rows.minimum(tall - 1), columns)
    return luma, picked(ycc[:, 1:], pairs, columns)


def averaged(planes: Tensor) -> Tensor:
    """(b, c, h, w), even sides, to (b, c, h / 2, w / 2): halves go down in even columns, up in odd ones (jcsample.c)."""
    halves = planes[:, :, ::2] + planes[:, :, 1::2]
    sums = halves[..., ::2] + halves[..., 1::2]
    bias = 1 + torch.arange(sums.shape[3], device=planes.device) % 2
    return ((sums + bias) / 4).floor()


def coded(planes: Tensor, table: Tensor) -> Tensor:
    """Integers 0 to 255 to such: DCT, quantisation and back (jfdctint.c, jcdctmgr.c, jidctint.c). table: (b, 1, 8, 8)."""
    rows, table = integer_basis(planes.device), table.double()[..., None, None, :, :]
    cells = half_up((blocks(planes) - 128).double() @ (rows.T / 2**11))
    cells = half_up(rows / 2**15 @ cells)  # 8 times the coefficients
    levels = half_up(cells.abs() / (8 * table)).copysign_(cells)
    cells = half_up(rows.T / 2**11 @ levels.mul_(table))
    cells = half_up(cells @ (rows / 2**18))
    return (unblocks(cells) + 128).clamp(0, 255).float()


def half_up(values: Tensor) -> Tensor:
    """Rounded in place, halves up."""
    return values.add_(0.5).floor_()


def enlarged(chroma: Tensor, sizes: Tensor) -> Tensor:
    """(b, 2, h, w) to (b, 2, 2h, 2w): 9, 3, 3 and 1 parts of the four nearest, halves up and down by turns (jdsample.c).

    Args:    sizes: (b, 2) of the image, of which chroma has half, rounded up. Images of up to 4 columns repeat it instead.
    """
    last, narrow = (sizes - 1) // 2, sizes[:, 1:] <= 4
    for axis in (2, 3):
        place = torch.arange(2 * chroma.shape[axis], device=chroma.device)
        near = place // 2
        far = (near - 1 + 2 * (place % 2)).clamp(min=0).minimum(last[:, axis - 2, None])
        far = torch.where(narrow, near, far)
        chroma = 3 * along(chroma, axis, near[None]) + along(chroma, axis, far[:, None])
    bias = 8 - torch.arange(chroma.shape[3], device=chroma.device) % 2
    return ((chroma + bias) / 16).floor()


def along(image: Tensor, axis: int, index: Tensor) -> Tensor:
    """(b, c, h, w) with other rows (axis 2) or columns (axis 3): index, (n,) to (b, c, n) once it broadcasts, says which."""
    index = index.expand(*image.shape[:2], index.shape[-1]).unsqueeze(5 - axis)
    shape = list(image.shape)
    shape[axis] = index.shape[axis]
    return image.gather(axis, index.expand(shape))


def picked(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(b, c, h, w) to (b, c, n, m): the pixels at each sample's own rows, (b, n), and columns, (b, m)."""
    return along(along(image, 2, rows[:, None]), 3, columns[:, None])

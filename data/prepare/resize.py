"""A folder of images to the same folder at another size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le
from PIL import Image

from data.prepare.jobs.files import Unusable, encode, output_stems, read_photo, write_bytes
from data.prepare.jobs.names import check_files
from data.prepare.jobs.records import Record, Shard
from data.prepare.jobs.work import listing, run

FILTERS = {"lanczos": Image.Resampling.LANCZOS, "area": Image.Resampling.BOX}


def resize(
    *,
    root: Path,
    out: Path,
    size: Annotated[int, Ge(1)] = 512,
    resample: Literal["lanczos", "area"] = "lanczos",
    suffix: Literal["png", "jpg"] = "png",
    jpeg_quality: Annotated[int, Ge(1), Le(100)] = 95,
    workers: Annotated[int, Ge(0)] = 0,
    shard: str = "",
) -> int:
    """Bring every image of a folder to another size, such as 1024 to 512.

    The shorter side gets `size`, the longer one follows. Images are 8-bit RGB afterwards. One that is smaller than `size` is
    named and left out: enlarging makes no training data.

    Args:
        root: folder of images, subfolders too
        out: folder for the results, with the same names and subfolders
        size: shorter side in pixels
        resample: lanczos (three lobes, sharp) or area (mean of the pixels that an output pixel covers); both without aliasing
        suffix: kind of file
        jpeg_quality: of suffix=jpg, 1 to 100, with full colour resolution
        workers: processes; 0 means one for each core
        shard: part i of n of the work as i/n; by default the task's place in a SLURM job array
    """
    place = Shard.parse(shard)
    paths = listing(root, out)
    names = {path: f"{stem}.{suffix}" for path, stem in output_stems(paths).items()}
    check_files(names, out)
    scale = Resized(root, out, names, size, resample, suffix, jpeg_quality)
    settings: Record = {"size": size, "resample": resample, "suffix": suffix}
    settings |= {"jpeg_quality": jpeg_quality} if suffix == "jpg" else {}
    work = run(name="resize", root=root, out=out, paths=paths, measure=scale, settings=settings, workers=workers, shard=place)
    unusable = work.unusable()
    print(f"{len(work.own) - unusable} of {len(work.own)} images are at {size} px in {out}, {unusable} not usable")
    if work.unfinished:
        print(f"shards not finished yet: {', '.join(map(str, work.unfinished))}")
    return 1 if unusable else 0


@dataclass(frozen=True)
class Resized:
    """One image to its smaller self; the fields are the command's keys."""

    root: Path
    out: Path
    names: dict[str, str]
    size: int
    resample: Literal["lanczos", "area"]
    suffix: str
    jpeg_quality: int

    def __call__(self, path: str) -> Record:
        photo = read_photo(self.root / path)
        height, width = photo.shape[:2]
        if min(height, width) < self.size:
            raise Unusable(f"{self.root / path} is {width}x{height}, smaller than size={self.size}")
        scale = self.size / min(height, width)
        image = Image.fromarray(photo).resize((round(width * scale), round(height * scale)), FILTERS[self.resample])
        output = self.names[path]
        write_bytes(self.out / output, encode(np.asarray(image), f".{self.suffix}", self.jpeg_quality))
        return {"outputs": [output]}

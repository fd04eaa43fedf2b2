"""Whole photographs: find the faces, restore each through a pipeline, and paste them back."""

import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt, Le

from data.images import write_png
from data.landmarks import TEMPLATE, TEMPLATE_SIDE, Detector, Face, scale_of, share_outside, similarity, warp
from data.photographs import Format, Photograph, read_photograph, write_photograph
from data.sources.files import Files
from data.sources.shown import printable
from data.writing import write_bytes
from restoration import faces
from restoration.chain import Chain, save, writing
from restoration.faces import Placed
from restoration.parser import ParseNet, Parser, labelled
from restoration.paste import parsed_mask, paste
from restoration.run import WORK, Settings, checked_record, kept, open_input, outputs_of, part, remove_empty, usable_device
from restoration.stage import Stage

CONTINUED = 1 / 16  # of a face's square, beyond the border of its photograph
ALIGNED_PX = 30.0  # landmarks of an aligned face lie nearer to the template than this on average, of 512


@dataclass(frozen=True, kw_only=True)
class PhotoSettings:
    """The keys of conf/restore.yaml for faces=photo and faces=auto, which says what each is."""

    faces: Literal["aligned", "photo", "auto"]
    face_px: Annotated[int, Ge(8)]
    upscale: Literal[1, 2, 4]
    background: str
    format: Format
    min_eye_px: Annotated[float, Gt(0)]
    min_score: Annotated[float, Ge(0), Le(1)]
    only_centre: bool
    keep_faces: bool
    faces_from: str | None
    detector: Any  # a node: a class of data.landmarks, or another Detector
    parser: str | None  # weights of restoration.parser.ParseNet


@dataclass(kw_only=True)
class Photographs:
    """A folder of photographs on its way through; its methods are the steps."""

    settings: Settings
    how: PhotoSettings
    stages: Mapping[str, Stage]
    background: Mapping[str, Stage]
    source: Files
    targets: list[Path]
    left: list[int]
    device: torch.device
    begin: Callable[[], None]  # before anything is restored
    parser: Parser | None = None
    has_begun: bool = False
    placed: dict[int, list[Placed]] = field(default_factory=dict)  # photograph -> its faces
    failed: dict[int, str] = field(default_factory=dict)
    done: int = 0
    seconds: float = 0.0  # of the faces' stages

    @property
    def work(self) -> Path:
        return Path(self.settings.output) / WORK

    def find(self, detector: Detector, given: dict[str, list[Placed]] | None) -> None:
        """The faces of each photograph, found or as given, and a crop of each that is to be restored."""
        for i in self.left:
            path = self.source.paths[i]
            try:
                photo = read_photograph(self.source.read(i), self.source.name(i))
            except (OSError, ValueError) as error:
                self.failed[i] = str(error)
                continue
            image = photo.srgb()
            found = detector(image, 1.0) if given is None else []
            self.placed[i] = self._judged(found, image) if given is None else given.get(path, [])
            for number, each in enumerate(self.placed[i]):
                if not each.skipped:
                    crop = self._crop(image, each)
                    target = self.work / "crops" / crop_name(path, number)
                    with writing(target):
                        write_bytes(target, cv2.imencode(".png", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))[1].tobytes())
            faces.write(self.work / "faces" / f"{path}.json", self.placed[i])

    def restore(self) -> None:
        """Every crop through the pipeline. Faces of one photograph share batches."""
        numbers = [(i, number) for i in self.left for number, each in enumerate(self.placed.get(i, [])) if not each.skipped]
        names = [crop_name(self.source.paths[i], number) for i, number in numbers]
        crops = Files(root=self.work / "crops", paths=names)
        restored = [self.work / "restored" / f"{name}.npy" for name in names]
        chain = Chain(
            stages=self.stages,
            source=crops,
            work=self.work / "of_faces",
            device=self.device,
            put=lambda k, image: save(restored[k], image),
            has=lambda k: restored[k].exists(),
            begin=self._begin,
            anew=self.settings.overwrite,
            kept=kept(self.settings.keep, list(self.stages)),
            rounded=self.settings.quantize == "8bit",
        )
        size = self.settings.batch_size
        together = [[k for k, (of, _) in enumerate(numbers) if of == i] for i in self.left]
        chain.run(chain.left([run[start : start + size] for run in together for start in range(0, len(run), size)]))
        for k, message in chain.failed.items():
            i, number = numbers[k]
            why = message.removeprefix(f"{crops.name(k)}: ")
            self.failed.setdefault(i, f"{self.source.name(i)}, face {number}: {why}")
        self.seconds = chain.seconds

    def restore_background(self) -> None:
        """Every photograph through the background's pipeline, if there is one."""
        if not self.background:
            return
        sources = [self.work / "background" / f"{self.source.paths[i]}.npy" for i in self.left]
        chain = Chain(
            stages=self.background,
            source=Files(root=self.source.root, paths=[self.source.paths[i] for i in self.left]),
            work=self.work / "of_photographs",
            device=self.device,
            put=lambda k, image: save(sources[k], image),
            has=lambda k: sources[k].exists(),
            begin=self._begin,
            anew=self.settings.overwrite,
        )
        chain.run(chain.left([[k] for k, i in enumerate(self.left) if i not in self.failed]))
        self.failed |= {self.left[k]: message for k, message in chain.failed.items()}

    def paste(self) -> None:
        """Every photograph with its restored faces, written."""
        self._begin()
        for i in self.left:
            if i in self.failed:
                continue
            try:
                photo = self._pasted(i)
                with writing(self.targets[i]):
                    write_photograph(self.targets[i], photo, self.how.format)
            except ValueError as error:
                self.failed[i] = str(error)
                continue
            self.done += 1
            self._let_go(i)

    def _begin(self) -> None:
        """Once, when all stages could be opened: what is to be made anew goes only now. Other shards keep what is theirs."""
        if self.has_begun:
            return
        if self.settings.overwrite:
            for i in self.left:
                self.targets[i].unlink(missing_ok=True)
                self._forget(i)
        self.begin()
        self.has_begun = True

    def _forget(self, i: int) -> None:
        """Removes what stages made of a photograph and of its faces."""
        path = self.source.paths[i]
        for place in (self.work / "restored", *(self.work / "of_faces" / stage for stage in self.stages)):
            shutil.rmtree(place / path, ignore_errors=True)
        behind = [(self.work / "of_photographs" / stage / path).with_suffix(".npy") for stage in self.background]
        for file in (self.work / "background" / f"{path}.npy", *behind):
            file.unlink(missing_ok=True)

    def _judged(self, found: list[Face], image: np.ndarray) -> list[Placed]:
        """Which faces are restored, the largest first; the others say why not."""
        height, width = image.shape[:2]
        if self.how.faces == "auto" and height == width and is_aligned(found, width):
            return [Placed.of(found[0], aligned=True)]
        placed = [Placed.of(face) for face in found]
        centre = np.array([width, height]) / 2
        distances = [float(np.linalg.norm(face.points.mean(axis=0) - centre)) for face in found]
        for each, distance in zip(placed, distances, strict=True):
            if each.score < self.how.min_score:
                each.skipped = f"score below min_score={self.how.min_score:g}"
            elif each.eye_px < self.how.min_eye_px:
                each.skipped = f"eyes nearer than min_eye_px={self.how.min_eye_px:g}"
            elif self.how.only_centre and distance > min(distances):
                each.skipped = "not the one nearest to the centre"
        return placed

    def _crop(self, image: np.ndarray, face: Placed) -> np.ndarray:
        """(face_px, face_px, 3) uint8."""
        side = self.how.face_px
        if face.aligned:
            return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if side < len(image) else cv2.INTER_CUBIC)
        return cut_out(image, to_face(face, side), side)

    def _pasted(self, i: int) -> Photograph:
        path = self.source.paths[i]
        photo = read_photograph(self.source.read(i), self.source.name(i))
        large = photo.resized(self.how.upscale)
        large = replace(large, pixels=large.pixels.copy())
        height, width = large.pixels.shape[:2]
        if self.background:
            image = fitted(loaded(self.work / "background" / f"{path}.npy"), height, width)
            np.copyto(large.pixels, in_range(in_colours_of(photo, image), large.pixels.dtype))
        faces_of = list(enumerate(self.placed[i]))
        for number, face in sorted(faces_of, key=lambda pair: pair[1].eye_px):  # the largest lies on top
            if face.skipped:
                continue
            image = loaded(self.work / "restored" / f"{crop_name(path, number)}.npy")
            if face.aligned:
                np.copyto(large.pixels, in_range(in_colours_of(photo, fitted(image, height, width)), large.pixels.dtype))
            else:
                place, mask = to_face(face, len(image)), self._mask(image)
                face_there = in_colours_of(photo, image)
                paste(large.pixels, face_there, place, upscale=self.how.upscale, mask=mask, within_square=True)
        return large

    def _mask(self, face: np.ndarray) -> np.ndarray | None:
        """(side, side) of what the parser finds in a restored face; None: there is no parser."""
        if self.parser is None:
            return None
        return cv2.resize(parsed_mask(labelled(self.parser, face)), face.shape[:2], interpolation=cv2.INTER_LINEAR)

    def _let_go(self, i: int) -> None:
        """Removes what was made of a photograph on the way, but for its table and what is to be kept."""
        path = self.source.paths[i]
        (self.work / "background" / f"{path}.npy").unlink(missing_ok=True)
        for folder in ("crops", "restored"):
            place = self.work / folder / path
            if not self.how.keep_faces:
                shutil.rmtree(place, ignore_errors=True)
            elif place.is_dir():
                keep(place, Path(self.settings.output) / "faces" / folder / path)


def restore_photographs(
    settings: Settings,
    how: PhotoSettings,
    stages: Mapping[str, Stage],
    background: Mapping[str, Stage],
    recipe: Mapping[str, Any],
    files: Mapping[str, Sequence[str]],
) -> bool:
    """As restore_folder, of photographs. Beside the outputs lies faces.csv, which faces_from takes."""
    source = open_input(settings.input)
    targets = outputs_of(source, settings, f".{how.format}")
    mine = part(range(len(source)), settings.shard)
    given = None if how.faces_from is None else faces.read_table(Path(how.faces_from), source.paths)
    now = checked_record(settings, recipe, files, targets)
    there = sum(targets[i].exists() for i in mine)
    run = Photographs(
        settings=settings,
        how=how,
        stages=stages,
        background=background,
        source=source,
        targets=targets,
        left=[i for i in mine if settings.overwrite or not targets[i].exists()],
        device=usable_device(settings.device),
        begin=now.write,
    )
    if how.parser is not None:
        run.parser = ParseNet(weights=how.parser)
        run.parser.open(run.device)
    try:
        run.find(how.detector, given)
        run.restore()
        run.restore_background()
        run.paste()
    finally:
        if run.has_begun:
            faces.write_table(run.work / "faces", Path(settings.output) / "faces.csv", source.paths)
            say(run, len(mine), there)
    remove_empty(run.work)
    return not run.failed


def say(run: Photographs, count: int, there: int) -> None:
    """What was done, and what a person would not see in a folder of pictures."""
    placed = {run.source.paths[i]: found for i, found in run.placed.items() if i not in run.failed}
    restored = [face for found in placed.values() for face in found if not face.skipped]
    pace = f", {run.seconds / len(restored):.2f} s a face on {run.device}" if restored else ""
    print(
        f"{run.done} of {count} photographs restored into {run.settings.output}, faces: {len(restored)}{pace}; "
        f"{there} were {'made anew' if run.settings.overwrite else 'there already'}"
    )
    if without := [printable(name) for name, found in placed.items() if not found]:
        print(f"no face: {', '.join(without)}")
    for why, number in Counter(face.skipped for found in placed.values() for face in found if face.skipped).items():
        print(f"faces left aside: {number}, {why} (faces.csv says which)")
    side = run.how.face_px
    if large := sum(not face.aligned and scale_of(to_face(face, side)) < 0.9 for face in restored):
        print(f"faces larger than the {side} pixels that they are restored at, which may come out softer: {large}")
    for _, message in sorted(run.failed.items()):
        print(f"error: {printable(message)}", file=sys.stderr)


def is_aligned(found: list[Face], side: int) -> bool:
    """Whether the largest face of a square photograph lies in it as the template says."""
    if not found:
        return False
    here = (found[0].points + 0.5) * (TEMPLATE_SIDE / side) - 0.5
    return float(np.linalg.norm(here - TEMPLATE, axis=1).mean()) < ALIGNED_PX


def to_face(face: Placed, side: int) -> np.ndarray:
    """(2, 3) from the photograph to the restored face of that side."""
    return similarity(face.landmarks, (TEMPLATE + 0.5) * (side / TEMPLATE_SIDE) - 0.5)


def cut_out(image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """The (side, side) square of a face. Beyond the photograph it is grey, as published.

    But first its outermost pixels go on for a little: a network mixes neighbours, and would draw a grey line along the border.
    """
    if share_outside(matrix, side, *image.shape[:2]) > 0:
        beyond = math.ceil(CONTINUED * side / scale_of(matrix))
        image = cv2.copyMakeBorder(image, beyond, beyond, beyond, beyond, cv2.BORDER_REPLICATE)
        matrix = matrix @ np.array([[1, 0, -beyond], [0, 1, -beyond], [0, 0, 1]])
    return warp(image, matrix, side, "grey")


def crop_name(path: str, number: int) -> str:
    """The name of a face, which its noise follows from."""
    return f"{path}/{number:02}.png"


def loaded(path: Path) -> np.ndarray:
    """(h, w, 3) float32 in 0 to 255 of what `save` wrote."""
    image: np.ndarray = np.load(path)
    return np.ascontiguousarray(image.clip(0, 1).transpose(1, 2, 0)) * np.float32(255)


def in_colours_of(photo: Photograph, image: np.ndarray) -> np.ndarray:
    """(h, w, 3) sRGB in 0 to 255 that a network made, in the colours and the range of the photograph; grey where it is grey."""
    if (photo.pixels == photo.pixels[..., :1]).all():
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    return photo.from_srgb(image)


def fitted(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 3)."""
    if image.shape[:2] == (height, width):
        return image
    smaller = image.shape[0] > height
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4)


def in_range(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded and cut off."""
    return np.rint(image).clip(0, np.iinfo(dtype).max).astype(dtype)


def keep(place: Path, folder: Path) -> None:
    """Moves what lies in a place, restored faces as PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(place.iterdir()):
        if file.suffix == ".npy":
            write_png(folder / file.stem, torch.from_numpy(np.load(file)))
            file.unlink()
        else:
            os.replace(file, folder / file.name)

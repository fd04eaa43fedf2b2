"""restore.py faces=photo as a user calls it: photographs in, the same with their faces restored out."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from skimage.data import astronaut
from torch import Tensor, nn

from data.images import to_tensor
from data.landmarks import TEMPLATE, Face, RetinaMobile, similarity, warp
from data.photographs import read_photograph
from models.elan import ELAN
from models.files.families import full_state
from restoration.cli import main
from restoration.faces import LANDMARKS as COLUMNS
from restoration.photo import cut_out
from tests.data.conftest import LANDMARKS
from tests.models.test_codeformer import tiny as codeformer
from tests.models.test_rrdb import tiny as rrdb
from tests.models.test_rrdb import write as write_rrdb
from tests.restoration.test_run import tiny_elan

Cli = Callable[..., tuple[int, str]]
TABLE = ("file", *COLUMNS, "skipped")


@pytest.fixture
def restore(command: Cli, tmp_path: Path) -> Cli:
    torch.save({"params": full_state(tiny_elan())}, tmp_path / "elan.pth")
    (tmp_path / "in").mkdir()
    common = ("ckpt=elan.pth", "input=in", "output=out", "device=cpu", "face_px=64", "faces=photo")
    return lambda *arguments: command(main, *common, *arguments)


def table(folder: Path, *faces: tuple[str, np.ndarray], skipped: str = "") -> str:
    """A table of faces, so that none must be found."""
    with (folder / "faces.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(TABLE)
        for name, points in faces:
            writer.writerow([name, *points.ravel().tolist(), skipped])
    return f"faces_from={folder / 'faces.csv'}"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what differs."""
    rows, columns = np.nonzero((before[..., :3] != after[..., :3]).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def found(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@torch.no_grad()
def test_the_face_is_found_restored_and_pasted_back(tmp_path: Path, restore: Cli) -> None:
    photo = astronaut()
    Image.fromarray(photo).save(tmp_path / "in" / "collins.png")
    Image.fromarray(photo[300:, 300:]).save(tmp_path / "in" / "nobody.png")
    code, printed = restore("keep_faces=true")
    assert code == 0, printed
    assert printed.startswith("2 of 2 photographs restored into out, faces: 1, ")
    assert "\nno face: nobody.png\n" in printed
    assert (pixels(tmp_path / "out" / "nobody.png") == photo[300:, 300:]).all()
    made = pixels(tmp_path / "out" / "collins.png")
    left, top, right, bottom = changed(photo, made)
    assert 130 < left < right < 325, "bit-identical beyond the face"
    assert 10 < top < bottom < 200
    [row] = found(tmp_path / "out" / "faces.csv")
    points = np.array([float(row[column]) for column in COLUMNS]).reshape(5, 2)
    np.testing.assert_allclose(points, LANDMARKS, atol=2)
    assert (row["file"], row["face"], row["skipped"]) == ("collins.png", "0", "")
    crop = pixels(tmp_path / "out" / "faces" / "crops" / "collins.png" / "00.png")
    restored = pixels(tmp_path / "out" / "faces" / "restored" / "collins.png" / "00.png")
    expected = tiny_elan()(to_tensor(crop)[None])[0].clamp(0, 1)
    torch.testing.assert_close(to_tensor(restored), expected, rtol=0, atol=0.51 / 255)
    y, x = (int(value) for value in LANDMARKS[2][::-1].round())
    place = similarity(points, TEMPLATE / 8) @ [x, y, 1]
    np.testing.assert_allclose(made[y, x].astype(int), restored[int(place[1]), int(place[0])], atol=40)
    before = (tmp_path / "out" / "collins.png").read_bytes()
    assert restore("keep_faces=true")[1].startswith("0 of 2 photographs restored into out, faces: 0; 2 were there already")
    (tmp_path / "out" / "collins.png").unlink()
    assert restore("keep_faces=true")[0] == 0
    assert (tmp_path / "out" / "collins.png").read_bytes() == before
    # the table can be given back, corrected
    moved = table(tmp_path, ("collins.png", LANDMARKS + np.array([100, 200])))
    assert restore("output=moved", moved)[0] == 0
    left, top, _, _ = changed(photo, pixels(tmp_path / "moved" / "collins.png"))
    assert left > 230
    assert top > 210
    none = table(tmp_path, ("collins.png", LANDMARKS), skipped="not she")
    assert "faces left aside: 1, not she" in restore("output=without", none)[1]
    assert (pixels(tmp_path / "without" / "collins.png") == photo).all()


def test_several_faces_over_each_other_and_over_the_border(
    tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each face becomes one colour by its number; the largest lies on top, whatever its number."""
    photo = np.full((200, 300, 3), 128, dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "in" / "a.png")
    level = iter([0.0, 1.0, 0.25])
    monkeypatch.setattr(ELAN, "forward", lambda network, lq: torch.full_like(lq, next(level)))
    large, small = TEMPLATE / 4, TEMPLATE / 8 + [60, 40]
    corner = TEMPLATE / 8 + [260, 160]
    faces = table(tmp_path, ("a.png", large), ("a.png", small), ("a.png", corner))
    code, printed = restore(faces, "upscale=2")
    assert code == 0, printed
    made = pixels(tmp_path / "out" / "a.png")
    assert made.shape == (400, 600, 3)
    assert (made[2 * 64, 2 * 64] == 0).all(), "the large face alone"
    assert (made[2 * 72, 2 * 92] == 0).all(), "the large over the small"
    assert (made[399, 599] == 64).all(), "to the corner of the photograph, without an edge there"
    assert (made[380, 300] == 128).all()


def test_no_grey_lies_next_to_the_border_of_the_photograph() -> None:
    red = np.full((100, 120, 3), (200, 30, 20), dtype=np.uint8)
    red[10:, 10:] = (20, 200, 30)
    points = TEMPLATE / 8 - 20  # eight pixels of the square each; its first 160 lie beyond two borders
    crop = cut_out(red, similarity(points, TEMPLATE), 512)
    beyond = 160 - 512 // 16
    assert (crop[: beyond - 20] == (132, 133, 135)).all()
    assert (crop[:, : beyond - 20] == (132, 133, 135)).all()
    assert (crop[beyond + 20 : 210, beyond + 20 : 210] == (200, 30, 20)).all()
    assert (crop[260:, 260:] == (20, 200, 30)).all()
    assert (cut_out(red, similarity(TEMPLATE / 8 + 20, TEMPLATE), 512) == (20, 200, 30)).all(), "all of it within"


@pytest.mark.parametrize(
    ("more", "restored"),
    [(["min_eye_px=20"], 2), (["min_eye_px=30"], 1), (["only_centre=true"], 1), (["min_score=1.0"], 0), ([], 3)],
)
def test_which_faces_are_restored(
    more: list[str], restored: int, tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [TEMPLATE / 4, TEMPLATE / 6 + [100, 60], TEMPLATE / 8 + [150, 100]]
    box = np.array([0.0, 0.0, 9.0, 9.0])
    faces = [Face(box, each, 0.95, 1.0) for each in points]
    monkeypatch.setattr(RetinaMobile, "__call__", lambda *_: faces)
    Image.new("RGB", (300, 200)).save(tmp_path / "in" / "a.png")
    code, printed = restore(*more)
    assert code == 0, printed
    assert f"1 of 1 photographs restored into out, faces: {restored}" in printed
    rows = found(tmp_path / "out" / "faces.csv")
    assert sum(row["skipped"] == "" for row in rows) == restored
    assert len(rows) == 3, "those that were left aside stand there too"


def test_transparency_depth_profile_and_exif_survive(tmp_path: Path, restore: Cli) -> None:
    deep = (astronaut()[:200, 100:300].astype(np.uint16) * 257) ^ 1
    alpha = np.full((200, 200), 30_000, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "in" / "deep.png"), cv2.cvtColor(np.dstack([deep, alpha]), cv2.COLOR_RGBA2BGRA))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    turned = Image.fromarray(astronaut()[:200, 100:300]).rotate(90, expand=True)
    turned.save(tmp_path / "in" / "turned.png", exif=exif)
    points = LANDMARKS - [100, 0]
    faces = table(tmp_path, ("deep.png", points), ("turned.png", points))
    code, printed = restore(faces)
    assert code == 0, printed
    made = cv2.cvtColor(cv2.imread(str(tmp_path / "out" / "deep.png"), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    assert made.dtype == np.uint16
    assert (made[..., 3] == 30_000).all()
    left, top, right, bottom = changed(deep, made)
    assert (made[:top, :, :3] == deep[:top]).all()
    assert 15 < left < right
    upright = Image.open(tmp_path / "out" / "turned.png")
    assert upright.getexif()[0x010F] == "a camera"
    assert 0x0112 not in upright.getexif()
    assert changed(astronaut()[:200, 100:300], np.asarray(upright)) == pytest.approx((left, top, right, bottom), abs=2)
    code, printed = restore(faces, "output=jpgs", "format=jpg")
    assert code == 1
    assert "error: deep.jpg has transparency, which JPEG can't hold" in printed
    assert Image.open(tmp_path / "jpgs" / "turned.jpg").format == "JPEG"


@torch.no_grad()
def test_the_background_goes_through_its_own_pipeline(tmp_path: Path, restore: Cli) -> None:
    photo = astronaut()[:200, 100:300]
    Image.fromarray(photo).save(tmp_path / "in" / "a.png")
    torch.save({"params": full_state(tiny_elan(1))}, tmp_path / "other.pth")
    faces = table(tmp_path, ("a.png", LANDMARKS - [100, 0]))
    code, printed = restore(faces, "background=network", "background.ckpt=other.pth")
    assert code == 0, printed
    made = pixels(tmp_path / "out" / "a.png")
    behind = (tiny_elan(1)(to_tensor(photo)[None])[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    left, _, right, _ = changed(behind, made)
    assert 15 < left < right
    code, printed = restore(faces, "background=network", "output=two")
    assert (code, "background.ckpt is not set: give background.ckpt=PATH" in printed) == (1, True)
    code, printed = restore(faces, "background.ckpt=other.pth", "output=two")
    assert "background.ckpt does nothing with background=none: add background=NAME" in printed


def test_a_grey_photograph_stays_grey(tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ELAN, "forward", lambda network, lq: torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(1, *lq.shape[1:]))
    Image.fromarray(astronaut()[:120, 100:260]).convert("L").save(tmp_path / "in" / "grey.png")
    Image.fromarray(astronaut()[:120, 100:260]).save(tmp_path / "in" / "red.png")
    faces = table(tmp_path, ("grey.png", TEMPLATE / 8), ("red.png", TEMPLATE / 8))
    for output, more in (("out", []), ("behind", ["background=network", "background.ckpt=elan.pth"])):
        code, printed = restore(faces, f"output={output}", *more)
        assert code == 0, printed
        assert (pixels(tmp_path / output / "grey.png")[32, 32] == 76).all(), "as bright as red"
        assert (np.ptp(pixels(tmp_path / output / "grey.png"), axis=2) == 0).all()
        assert pixels(tmp_path / output / "red.png")[32, 32].tolist() == [255, 0, 0]


@torch.no_grad()
def test_the_background_keeps_the_colours_of_a_profile(tmp_path: Path, restore: Cli) -> None:
    """A profile in which red and blue change places: networks see sRGB, and what they make goes back."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    path = tmp_path / "in" / "a.png"
    Image.fromarray(astronaut()[:120, 100:260]).save(path, icc_profile=swapped)
    photo = read_photograph(path.read_bytes(), "a.png")
    assert np.abs(photo.srgb().astype(int) - photo.pixels[..., ::-1]).max() < 8
    torch.save({"params": full_state(tiny_elan(1))}, tmp_path / "other.pth")
    code, printed = restore("background=network", "background.ckpt=other.pth", table(tmp_path, ("a.png", TEMPLATE / 8)))
    assert code == 0, printed
    behind = tiny_elan(1)(to_tensor(photo.srgb())[None])[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    expected = photo.from_srgb(behind)
    np.testing.assert_allclose(pixels(tmp_path / "out" / "a.png")[:, 70:].astype(float), expected[:, 70:], atol=0.51)


@torch.no_grad()
@pytest.mark.parametrize("upscale", [1, 2, 4])
def test_a_background_of_another_size_lies_in_place(upscale: int, tmp_path: Path, restore: Cli) -> None:
    photo = astronaut()[:120, 100:260]
    Image.fromarray(photo).save(tmp_path / "in" / "a.png")
    network = rrdb(scale=2, unshuffle=2, num_block=1)
    write_rrdb(network, tmp_path / "x2.pth")
    twice = network(to_tensor(photo)[None])[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    how = cv2.INTER_AREA if upscale == 1 else cv2.INTER_LANCZOS4
    size = (160 * upscale, 120 * upscale)
    expected = twice if upscale == 2 else cv2.resize(twice, size, interpolation=how)
    code, printed = restore(
        "background=network", "background.ckpt=x2.pth", f"upscale={upscale}", table(tmp_path, ("a.png", TEMPLATE / 8))
    )
    assert code == 0, printed
    made = pixels(tmp_path / "out" / "a.png")
    assert made.shape == (120 * upscale, 160 * upscale, 3)
    beyond = np.s_[:, 70 * upscale :]
    np.testing.assert_allclose(made[beyond].astype(float), expected[beyond].clip(0, 255), atol=0.51)


def test_auto_tells_aligned_faces_from_photographs(tmp_path: Path, restore: Cli) -> None:
    photo = astronaut()
    Image.fromarray(warp(photo, similarity(LANDMARKS, TEMPLATE), 512, "reflect")).save(tmp_path / "in" / "aligned.png")
    Image.fromarray(photo).save(tmp_path / "in" / "photo.png")
    code, printed = restore("faces=auto", "face_px=64")
    assert code == 0, printed
    rows = {row["file"]: row for row in found(tmp_path / "out" / "faces.csv")}
    assert (rows["aligned.png"]["aligned"], rows["photo.png"]["aligned"]) == ("true", "")
    names = ("aligned.png", "photo.png")
    differ = [pixels(tmp_path / "in" / name) != pixels(tmp_path / "out" / name) for name in names]
    whole, part = (each.any(axis=2).mean() for each in differ)
    assert (whole > 0.95, part < 0.15) == (True, True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["faces=aligned"], "face_px does nothing with faces=aligned: add faces=photo, or leave face_px out"),
        (["upscale=3"], "upscale=3: Input should be 1, 2 or 4"),
        (["format=gif"], "format='gif': Input should be 'png', 'jpg' or 'webp'"),
        (["faces=all"], "faces='all': Input should be 'aligned', 'photo' or 'auto'"),
        (["faces_from=gone.csv"], "faces_from=gone.csv can't be read"),
        (["faces_from=short.csv"], "faces_from=short.csv lacks the column left_eye_x"),
        (["faces_from=words.csv"], "faces_from=words.csv, line 2: could not convert string to float"),
        (["faces_from=same.csv"], "faces_from=same.csv, line 2: its landmarks are not five places"),
        (["faces_from=others.csv"], "faces_from=others.csv names photographs that input does not hold: b.png"),
        (["detector._target_=data.landmarks.Retina"], "detector._target_='data.landmarks.Retina' can't be imported"),
        (["detector.longest_px=9"], "detector.longest_px: there is no such key; did you mean detector.longest_side_px?"),
        (["background=elan"], "pipeline=elan: there is no such pipeline"),
        (["ckpt=codeformer.pth", "face_px=32"], "in/a.png, face 0: CodeFormer restores aligned faces of 16x16"),
    ],
)
def test_mistakes(given: list[str], says: str, tmp_path: Path, restore: Cli) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "in" / "a.png")
    torch.save({"params_ema": codeformer(img_size=16, connect_list=[8, 16]).state_dict()}, tmp_path / "codeformer.pth")
    head = ",".join(TABLE)
    (tmp_path / "short.csv").write_text("file\na.png\n")
    (tmp_path / "words.csv").write_text(f"{head}\na.png{',x' * 10},\n")
    (tmp_path / "same.csv").write_text(f"{head}\na.png{',1' * 10},\n")
    table(tmp_path, ("b.png", TEMPLATE / 8))
    (tmp_path / "faces.csv").rename(tmp_path / "others.csv")
    if "ckpt" in given[0]:
        given = [*given, table(tmp_path, ("a.png", TEMPLATE / 8))]
    code, printed = restore(*given)
    assert (code, "Traceback" in printed) == (1, False)
    assert says in printed
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_network_that_can_not_be_opened_leaves_the_way_free(tmp_path: Path, restore: Cli) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "in" / "a.png")
    faces = table(tmp_path, ("a.png", TEMPLATE / 8))
    assert "gone.pth does not exist" in restore("ckpt=gone.pth", faces)[1]
    assert restore(faces)[0] == 0


def test_a_command_that_was_killed_while_it_looked_for_faces_begins_again(tmp_path: Path, restore: Cli) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "in" / "a.png")
    faces = table(tmp_path, ("a.png", TEMPLATE / 8))
    left = tmp_path / "out" / ".stages" / "crops" / "a.png" / "07.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    (tmp_path / "out" / ".stages" / "faces").mkdir()
    (tmp_path / "out" / ".stages" / "faces" / "z.png.json").write_text("[")
    assert restore(faces)[0] == 0
    assert not left.exists()
    assert [row["file"] for row in found(tmp_path / "out" / "faces.csv")] == ["a.png"]


def test_a_photograph_of_which_a_face_fails_is_not_written(
    tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64), "red" if name == "a.png" else "blue").save(tmp_path / "in" / name)
    forward = ELAN.forward

    def fails(network: ELAN, lq: Tensor) -> Tensor:
        if lq[0, 0].mean() > 0.9:
            return torch.full_like(lq, torch.nan)
        return forward(network, lq)

    monkeypatch.setattr(ELAN, "forward", fails)
    faces = table(tmp_path, ("a.png", TEMPLATE / 8), ("b.png", TEMPLATE / 8))
    code, printed = restore(faces)
    assert code == 1
    assert "1 of 2 photographs restored into out, faces: 1" in printed
    assert "error: in/a.png, face 0: " in printed
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["b.png"]


class Halves(nn.Module):
    """In place of facexlib's ParseNet: the left half of every face is skin."""

    def __init__(self, in_size: int, out_size: int, parsing_ch: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.ones(()))
        self.labels = parsing_ch

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        assert faces.shape[1:] == (3, 512, 512)
        assert faces.abs().max() <= 1
        found = faces.new_zeros(len(faces), self.labels, 512, 512)
        found[:, 0, :, 256:] = 1
        found[:, 1, :, :256] = self.left
        return found, faces


def test_a_parser_says_what_is_pasted(tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (512, 512), "gray").save(tmp_path / "in" / "a.png")
    monkeypatch.setattr(ELAN, "forward", lambda network, lq: torch.ones_like(lq))
    faces = table(tmp_path, ("a.png", TEMPLATE))
    parser = "parser=parse.pth"
    torch.save({"left": torch.ones(())}, tmp_path / "parse.pth")
    code, printed = restore(faces, parser)
    assert (code, "parser needs the package facexlib: uv pip install facexlib" in printed) == (1, True), printed
    monkeypatch.setitem(sys.modules, "facexlib.parsing.parsenet", SimpleNamespace(ParseNet=Halves))
    code, printed = restore(faces, parser)
    assert code == 0, printed
    row = pixels(tmp_path / "out" / "a.png")[256, :, 0].astype(int)
    assert (row[100:200] == 255).all()
    assert (row[320:] == 128).all(), "the other half stays"
    assert (np.diff(row[200:320]) <= 0).all(), "softly"
    torch.save({"right": torch.ones(())}, tmp_path / "parse.pth")
    code, printed = restore(faces, parser, "output=other")
    assert (code, "parser=parse.pth is no ParseNet of facexlib" in printed) == (1, True), printed


def test_processes_share_photographs_also_when_all_are_made_anew(tmp_path: Path, restore: Cli) -> None:
    """One that begins later must not take away what another has found or restored."""
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 90, 90)).save(tmp_path / "in" / f"{number}.png")
    faces = table(tmp_path, *((f"{number}.png", TEMPLATE / 8) for number in range(6)))
    assert restore(faces)[0] == 0
    alone = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.png")}
    assert len(alone) == 6
    for more in (["output=shared"], ["output=shared", "overwrite=true"]):
        code, printed = restore(faces, "devices=2", *more)
        assert code == 0, printed
        assert {file.name: file.read_bytes() for file in (tmp_path / "shared").glob("*.png")} == alone
    assert len(found(tmp_path / "shared" / "faces.csv")) == 6


def test_one_shard_leaves_what_another_is_at(tmp_path: Path, restore: Cli) -> None:
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 90, 90)).save(tmp_path / "in" / f"{number}.png")
    faces = table(tmp_path, *((f"{number}.png", TEMPLATE / 8) for number in range(2)))
    other = tmp_path / "out" / ".stages" / "crops" / "1.png" / "00.png"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of the second shard")
    assert restore(faces, "shard=1/2")[0] == 0
    assert restore(faces, "shard=1/2", "overwrite=true")[0] == 0
    assert "gone.pth does not exist" in restore(faces, "shard=1/2", "overwrite=true", "ckpt=gone.pth")[1]
    assert other.read_bytes() == b"of the second shard"

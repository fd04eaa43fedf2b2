"""Eyes and mouth of a real portrait, and what becomes of images without a face."""

import csv
import zipfile

import cv2
import numpy as np
import pytest
import torch

from data.columns.components import COLUMNS, HASH, Components, read
from data.landmarks import TEMPLATE, affine, similarity
from data.prepare.components import components
from data.sources.files import ImageFolder
from tests.data.conftest import LANDMARKS
from tests.data.prepare.conftest import textured, write
from tests.data.samples import DRAWS, bound, picture

LEFT, RIGHT, _, *CORNERS = affine(similarity(LANDMARKS, TEMPLATE), LANDMARKS)  # of the portrait, to about 3 px
EXPECTED = np.array([LEFT, RIGHT, np.mean(CORNERS, axis=0)])


@pytest.fixture
def faces(tmp_path, portrait):
    """One face at two sizes, mirrored too; without a face, 60 px beside the middle, not square, cut off."""
    root = tmp_path / "faces"
    write(root / "a.png", portrait)
    write(root / "more" / "small.png", cv2.resize(portrait, (256, 256), interpolation=cv2.INTER_AREA))
    write(root / "mirrored.png", portrait[:, ::-1])
    write(root / "noise.png", textured(512, 512, seed=1))
    write(root / "beside.png", np.roll(portrait, 60, axis=1))
    write(root / "wide.png", portrait[64:448])
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:50_000])
    return root


def rows(out):
    with (out / "components.csv").open() as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_by_hand():
    points = np.array([[100, 200], [300, 200], [200, 300], [140, 380], [260, 390.0]])
    mouth = np.hypot(120, 10) / 2
    np.testing.assert_allclose(components(points), [[100, 200, 40], [300, 200, 40], [200, 385, mouth]])
    np.testing.assert_allclose(components(points / 10)[:, 2], [16, 16, 16])  # never smaller, as in the reference


def test_faces_are_found_and_others_named(prepare, faces, tmp_path):
    out = tmp_path / "out"
    code, text = prepare("landmarks", f"root={faces}", f"out={out}")
    assert code == 1
    assert "7 images, 2 without an aligned face, 2 not usable" in text
    assert "noise.png: no face was found with confidence 0.9 (best 0)\n" in text
    assert "beside.png: the face lies 60 px beside an aligned face's place (at most 40 px, at 512)" in text
    assert "wide.png is 512x384, not square: align its face (align)" in text
    assert "cut.png can't be read" in text
    assert f"train on them with data.components={out / 'components.csv'}" in text
    found = rows(out)
    assert [*found] == ["a.png", "mirrored.png", "more/small.png"]
    assert tuple(found["a.png"]) == (*COLUMNS, HASH)
    contents = read(str(out / "components.csv"))
    assert contents.side_px.tolist() == [512, 512, 256]
    plain, mirrored, small = contents.components
    np.testing.assert_allclose(plain[:, :2], EXPECTED, atol=4)
    np.testing.assert_allclose(plain[:, 2], [25.6, 25.6, 66], atol=2)
    np.testing.assert_allclose(small * 2, plain, atol=1)
    as_trained = column(out, ImageFolder(root=str(kept(faces, found))), 64)
    np.testing.assert_allclose(as_trained.of(picture(0, mirrored=True), DRAWS), mirrored / 8, atol=0.2)  # 1.6 px at 512
    np.testing.assert_allclose(as_trained.of(picture(2), DRAWS), small / 4, rtol=1e-5)


def column(out, source, size):
    """As a run with data.components finds them."""
    return bound(Components(key="data.components", path=str(out / "components.csv")), source, size=size)


def kept(root, found):
    """The folder without the files that have no line."""
    for path in [path for path in root.rglob("*.png") if path.relative_to(root).as_posix() not in found]:
        path.unlink()
    return root


def test_other_limits_read_what_was_found_before(prepare, faces, tmp_path):
    (faces / "wide.png").unlink()
    (faces / "cut.png").unlink()
    out = tmp_path / "out"
    assert prepare("landmarks", f"root={faces}", f"out={out}")[0] == 1
    code, text = prepare("landmarks", f"root={faces}", f"out={out}", "max_offset_px=80", "missing=template")
    assert code == 0
    assert "landmarks: 5 of 5 files were done before" in text
    assert "noise.png: no face was found with confidence 0.9 (best 0): the places of the mean face" in text
    assert "5 images, 1 without an aligned face, 0 not usable" in text
    numbers = {path: [float(row[name]) for name in COLUMNS[2:]] for path, row in rows(out).items()}
    mean_face = [[192.98138, 239.94708], [318.90277, 240.1936], [257.17511, 371.28081]]
    np.testing.assert_allclose(np.reshape(numbers["noise.png"], (3, 3))[:, :2], mean_face, atol=1e-3)
    np.testing.assert_allclose(np.reshape(numbers["beside.png"], (3, 3))[:, 0] - 60, EXPECTED[:, 0], atol=4)


def test_an_archive_in_two_parts(prepare, faces, tmp_path):
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for name in ("a.png", "mirrored.png"):
            archive.write(faces / name, f"inside/{name}")
    arguments = ["landmarks", f"root={tmp_path / 'faces.zip'}", f"out={tmp_path / 'out'}", "workers=1"]
    code, text = prepare(*arguments, "shard=2/2")
    assert (code, "shards not finished yet: 1/2; the last of them" in text) == (0, True)
    assert not (tmp_path / "out" / "components.csv").exists()
    assert prepare(*arguments, "shard=1/2")[0] == 0
    kept(faces, ["a.png", "mirrored.png"])
    contents = read(str(tmp_path / "out" / "components.csv"))
    assert contents.names == ["inside/a.png", "inside/mirrored.png"]
    theirs = column(tmp_path / "out", ImageFolder(root=str(faces)), 512)
    assert torch.equal(theirs.of(picture(1, size=512), DRAWS), torch.tensor(contents.components[1], dtype=torch.float32))


def test_other_faces_of_the_same_names_are_refused_and_other_sizes_are_not(prepare, portrait, tmp_path):
    names, out = ("a.png", "b.png"), tmp_path / "out"
    for name, photo in zip(names, (portrait, portrait[:, ::-1]), strict=True):
        write(tmp_path / "faces" / name, photo)
        write(tmp_path / "small" / name, cv2.resize(photo, (100, 100), interpolation=cv2.INTER_AREA))
        write(tmp_path / "blurred" / name, cv2.GaussianBlur(photo, None, 9))
        write(tmp_path / "others" / name, photo[:, ::-1])
    assert prepare("landmarks", f"root={tmp_path / 'faces'}", f"out={out}")[0] == 0

    def trained_on(folder):
        return column(out, ImageFolder(root=str(tmp_path / folder)), 64)

    for folder in ("faces", "small", "blurred"):
        trained_on(folder)
    with pytest.raises(ValueError, match=r"is of other images of these names: 2 of the first 2 of data\.root .*others/a\.png"):
        trained_on("others")
    (tmp_path / "others" / "a.png").write_bytes(b"cut")  # data.on_error says what becomes of it
    with pytest.raises(ValueError, match="1 of the first 1 of data"):
        trained_on("others")
    lines = (out / "components.csv").read_text().splitlines()
    (out / "components.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    trained_on("others")  # a file from before there were hashes says nothing

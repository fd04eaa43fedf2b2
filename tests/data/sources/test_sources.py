"""Folders and the bundled photographs."""

import numpy as np
import pytest
import skimage.data

from data.images import decode
from data.sources.bundled import TRAINING, BundledPhotographs
from data.sources.files import ImageFolder
from data.sources.source import Part, Source
from tests.data.conftest import textured


def test_folder_is_sorted_by_relative_path_and_knows_images(tmp_path):
    for name in ("b/2.PNG", "b/10.jpg", "a.jpeg", "notes.txt", "b/.hidden.png", "c/d/e.webp", "b.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    source = ImageFolder(root=str(tmp_path))
    names = ["a.jpeg", "b.tif", "b/10.jpg", "b/2.PNG", "c/d/e.webp"]
    assert [source.name(index) for index in range(len(source))] == [str(tmp_path / name) for name in names]
    assert source.read(3) == b"b/2.PNG"
    assert isinstance(source, Source)


def test_linked_folders_are_followed(tmp_path, folder):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "faces").symlink_to(folder)
    linked = ImageFolder(root=str(tmp_path / "links"))
    assert len(linked) == 7
    np.testing.assert_array_equal(decode(linked.read(3), linked.name(3)), textured(24, 20, 3))


def test_part(folder):
    part = Part(whole=ImageFolder(root=str(folder)), start=5, stop=7)
    assert [part.name(index) for index in range(len(part))] == [str(folder / f"img_{number}.png") for number in (5, 6)]
    assert part.read(1) == (folder / "img_6.png").read_bytes()
    assert isinstance(part, Source)


def test_folder_errors(tmp_path):
    with pytest.raises(ValueError, match=r"missing does not exist \(looked in .*\): give a folder of images"):
        ImageFolder(root=str(tmp_path / "missing"))
    (tmp_path / "face.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"face\.png is a file: give the folder"):
        ImageFolder(root=str(tmp_path / "face.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no image.*\.bmp, \.jpeg, \.jpg, \.png, \.tif, \.tiff, \.webp"):
        ImageFolder(root=str(tmp_path / "empty"))


def test_bundled_photographs():
    training, portrait = BundledPhotographs(root="training"), BundledPhotographs(root="portrait")
    assert len(training) == len(TRAINING) == 11
    assert len(portrait) == 1
    assert isinstance(training, Source)
    shapes = [decode(training.read(index), training.name(index)).shape for index in range(11)]
    assert min(min(shape[:2]) for shape in shapes) >= 256
    assert decode(portrait.read(0), portrait.name(0)).shape == (256, 256, 3)
    assert "astronaut" in portrait.name(0)
    np.testing.assert_array_equal(decode(portrait.read(0), ""), skimage.data.astronaut()[:256, 96:352])
    assert not any("astronaut" in training.name(index) for index in range(11))


def test_bundled_errors(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="faces is none of the bundled sets: give one of training, portrait"):
        BundledPhotographs(root="faces")  # type: ignore[arg-type]
    monkeypatch.setattr("data.sources.bundled.bundled_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"astronaut\.png not found in .*: reinstall scikit-image"):
        BundledPhotographs(root="portrait")

"""What a folder holds: each real folder once, nothing hidden, nothing left out unsaid; the same for archives."""

import os
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

import data.sources.listing
from data.images import UnreadableImage, decode
from data.sources.archives import Shards, TarImages, ZipImages
from data.sources.files import FileList, ImageFolder
from data.sources.hub import hugging_face
from data.sources.listing import FORMATS, LEFT_ASIDE, is_hidden, is_image
from data.sources.lmdb_images import LmdbImages
from data.sources.opening import open_images
from tests.data.conftest import as_bytes, textured
from tests.data.sources.test_archives import write_lmdb, write_tar
from tests.data.sources.test_hub import OPTIONS

HIDDEN = [
    *(".ipynb_checkpoints/img_0-checkpoint.png", ".Trash-1000/files/img_1.png", "__MACOSX/img_0.png", "._img_0.png"),
    *("deep/@eaDir/img_0.png", "lost+found/img_0.png", "$RECYCLE.BIN/img_0.png", "deep/.hidden.png"),
]
PICTURES = ["a.heic", "B.HEIC", "c.jp2", "deep/d.dng"]
ASIDE = r"left aside are 1 \.dng, 2 \.heic, 1 \.jp2, which are not read: make PNG or JPEG of them"


def write(root, names, contents=b"no image"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(contents)


def listed(root):
    return ImageFolder(root=str(root)).paths


@pytest.mark.parametrize("target", [".", "..", "../..", "/"])
def test_a_link_upwards_is_no_end(folder, target):
    (folder / "up").symlink_to(target)
    assert listed(folder) == [f"img_{number}.png" for number in range(7)]


def test_links_that_cross_each_other(folder):
    for name in ("one", "two"):
        (folder / name).mkdir()
        Image.new("RGB", (8, 8)).save(folder / name / "face.png")
        for other in ("one", "two"):
            (folder / name / f"to_{other}").symlink_to(folder / other)
        (folder / name / "to_all").symlink_to(folder)
    assert listed(folder)[7:] == ["one/face.png", "two/face.png"]


def test_a_folder_counts_under_its_own_path_and_one_outside_under_the_first_link(folder, tmp_path):
    write(tmp_path / "elsewhere", ["x.png", "deep/y.png", "back/z.png"])
    (tmp_path / "elsewhere" / "home").symlink_to(folder)
    write(folder, ["m/face.png"])
    for name, target in (("a", folder / "m"), ("b", tmp_path / "elsewhere" / "deep"), ("c", tmp_path / "elsewhere")):
        (folder / name).symlink_to(target)
    assert listed(folder)[:3] == ["b/y.png", "c/back/z.png", "c/x.png"]
    assert listed(folder)[-1] == "m/face.png"
    assert len(listed(folder)) == 11


def test_a_folder_that_can_not_be_read_stops_the_listing(folder, monkeypatch):
    """As root reads everything, the system's answer is made here."""
    write(folder, ["sub/private/face.png"])
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(data.sources.listing.os, "scandir", refused)
    with pytest.raises(ValueError, match=r"faces/sub/private can't be read \(Permission denied\): make it readable, or"):
        open_images(root=str(folder))
    with pytest.raises(ValueError, match=r"faces/sub/private can't be read"):
        open_images(root=str(folder / "sub" / "private"))


def test_links_to_nothing_are_named_by_who_reads_them(folder):
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "ring.png").symlink_to(folder / "ring.png")
    (folder / "beyond.png").symlink_to(folder / "img_0.png" / "inside")
    source = ImageFolder(root=str(folder))
    assert [source.paths[place] for place in (0, 1, 9)] == ["beyond.png", "gone.png", "ring.png"]
    for place in (0, 1, 9):
        with pytest.raises(OSError, match=source.paths[place]):
            source.read(place)


def test_what_would_be_waited_for_without_end_is_refused(folder):
    os.mkfifo(folder / "socket.lock")
    assert len(listed(folder)) == 7
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is a pipe or a device, no file: take it out"):
        listed(folder)
    (folder / "pipe.png").rename(folder / "socket.lock")
    (folder / "link.png").symlink_to(folder / "socket.lock")
    with pytest.raises(ValueError, match=r"link\.png is a pipe"):
        listed(folder)


def in_store(kind, root, files):
    """The root of a store with these files."""
    store = root.parent / f"faces.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(store, "w") as archive:
            for name, contents in files.items():
                archive.writestr(name, contents)
    elif kind == "tar":
        write_tar(store, files)
    elif kind == "shards":
        store.mkdir()
        write_tar(store / "000.tar", {f"./{name}": contents for name, contents in files.items()})
        (store / "._000.tar").write_bytes(b"of a Mac")
    else:
        return root
    return store


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "shards", "hf"])
def test_hidden_is_left_out_and_other_pictures_are_counted(kind, folder):
    write(folder, [*HIDDEN, *PICTURES, ".hidden/a.heic", "notes.txt"])
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    root = str(in_store(kind, folder, files))
    with pytest.warns(UserWarning, match=ASIDE) as warned:
        source = hugging_face(root=root, **OPTIONS) if kind == "hf" else open_images(root=root)
    assert len(warned) == 1, "once, however many there are"
    assert str(warned[0].message).startswith(root)
    assert type(source).__name__ == {"hf": "FileImages", "folder": "ImageFolder"}.get(kind, type(source).__name__)
    assert [name.rpartition("/")[2] for name in source.paths] == [f"img_{number}.png" for number in range(7)]


def test_hidden_is_left_out_of_an_lmdb(folder):
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    root = write_lmdb(folder.parent / "faces.lmdb", files | {".ipynb_checkpoints/img_0.png": b"", "._img_1.png": b""})
    assert LmdbImages(root=str(root)).paths == list(files)


def test_a_root_may_itself_be_hidden(folder):
    hidden = folder.rename(folder.parent / ".cache")
    assert len(listed(hidden)) == len(hugging_face(root=str(hidden), **OPTIONS)) == 7
    (folder.parent / "list.txt").write_text(".cache/img_0.png\n")
    assert len(FileList(root=str(folder.parent / "list.txt"), relative_to=None)) == 1, "listed by name"
    assert [is_hidden(path) for path in ("./a.png", "../a.png", "a/.b/c.png", "/.a.png")] == [False, False, True, True]


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_listed_can_be_opened(suffix, tmp_path):
    Image.fromarray(textured(20, 24, 0)).save(tmp_path / f"a{suffix}", format=FORMATS[suffix])
    source = ImageFolder(root=str(tmp_path))
    assert source.paths == [f"a{suffix}"]
    assert decode(source.read(0), source.name(0)).shape == (20, 24, 3)


def test_what_is_left_aside_is_not_opened_by_name_either():
    """The suffix decides what is listed, the contents what is opened: both of the same formats."""
    photo = Image.fromarray(textured(20, 24, 0))
    assert np.array_equal(decode(as_bytes(photo, "PNG"), "a.heic"), textured(20, 24, 0))
    for kind, suffix in {"JPEG2000": ".jp2", "PPM": ".ppm", "TGA": ".tga", "ICO": ".ico", "EPS": ".eps", "PCX": ".pcx"}.items():
        assert suffix in LEFT_ASIDE
        assert not is_image(f"a{suffix}")
        with pytest.raises(UnreadableImage, match=rf"a\{suffix} can't be read as an image"):
            decode(as_bytes(photo, kind), f"a{suffix}")


def test_a_list_is_one_path_a_line_whatever_the_names_hold(folder, tmp_path):
    odd = "line\u2028separated\x85.png"
    (folder / "img_0.png").rename(folder / odd)
    (tmp_path / "list.txt").write_text(f"faces/{odd}\r\nfaces/img_1.png\r\n", encoding="utf-8")
    assert FileList(root=str(tmp_path / "list.txt"), relative_to=None).paths == [f"faces/{odd}", "faces/img_1.png"]


def test_folders_of_a_tar_are_hidden_by_any_part(folder, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, "faces")
        archive.add(folder, "faces/.Trash-1000")
    assert len(TarImages(root=str(tmp_path / "a.tar"))) == len(Shards(root=str(tmp_path / "a.tar"), member=None)) == 7
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("faces/.x/a.png", "")
    with pytest.raises(ValueError, match=r"a\.zip holds no image"):
        ZipImages(root=str(tmp_path / "a.zip"))


def test_lines_of_a_list_that_can_be_no_path(folder, tmp_path):
    """The system refuses to look for them, which is not the same as to say that nothing is there."""
    listing = tmp_path / "list.txt"
    listing.write_text(f"# {'a remark ' * 500}\nfaces/img_0.png\n")
    assert FileList(root=str(listing), relative_to=None).paths == ["faces/img_0.png"]
    listing.write_text(f"{'long/' * 1000}\nnul\0.png\nfaces/img_0.png\n")
    with pytest.raises(ValueError, match=r"lists 3 files, 2 of which don't exist in .*, nul\\x00\.png; correct it"):
        FileList(root=str(listing), relative_to=None)

"""Packed images read as the folder does, whatever they are packed into."""

import os
import signal
import tarfile

import numpy as np
import pytest
from PIL import Image

import data.prepare.pack
from data.cutting import center_crop
from data.images import decode
from data.prepare.jobs.work import Stopped
from data.prepare.pack import pack
from data.sources.files import ImageFolder
from data.sources.hub import ParquetImages
from data.sources.lmdb_images import LmdbImages
from data.sources.opening import open_images
from tests.data.conftest import textured

KINDS = {"lmdb": LmdbImages, "tar": None, "parquet": ParquetImages}


def photos(source):
    return [decode(source.read(index), source.name(index)) for index in range(len(source))]


@pytest.mark.parametrize("to", KINDS)
def test_kept_files_are_the_same_bytes(to, folder, tmp_path, capsys):
    (folder / "sub").mkdir()
    (folder / "img_3.png").rename(folder / "sub" / "x.y.png")
    out = tmp_path / f"faces.{to}"
    assert pack(root=folder, out=out, to=to, shard_mb=1, workers=1) == 0
    assert f"7 of 7 images are in {out}, 0 not usable; train on them with data.root={out}" in capsys.readouterr().out
    packed, images = open_images(root=str(out)), ImageFolder(root=str(folder))
    assert [packed.read(index) for index in range(7)] == [images.read(index) for index in range(7)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", f"faces.{to}"]
    if to == "lmdb":
        assert (out / "meta_info.txt").read_text().splitlines()[-1] == "sub/x.y.png (24,20,3) 1"
        assert sorted(path.name for path in out.iterdir()) == ["data.mdb", "meta_info.txt"]
    elif to == "tar":
        with tarfile.open(out / "000000.tar") as archive:
            assert archive.getnames()[-1] == "sub/x_y.png"
    else:
        import datasets

        loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
        np.testing.assert_array_equal(np.asarray(loaded[2]["image"]), decode(images.read(2), ""))


@pytest.mark.parametrize("encoding", ["png", "bmp", "jpeg"])
def test_size_and_encoding(encoding, folder, tmp_path):
    Image.new("RGB", (8, 30)).save(folder / "small.png")
    out = tmp_path / "out.lmdb"
    assert pack(root=folder, out=out, encode=encoding, size=16, workers=1) == 1, "one is too small"
    packed = open_images(root=str(out))
    expected = [center_crop(photo, 16) for photo in photos(ImageFolder(root=str(folder)))[:7]]
    found = photos(packed)
    assert [packed.paths[0], len(found)] == [f"img_0.{'jpg' if encoding == 'jpeg' else encoding}", 7]
    if encoding != "jpeg":
        np.testing.assert_array_equal(found, expected)
    else:
        difference = max(np.abs(one.astype(int) - other).mean() for one, other in zip(found, expected, strict=True))
        assert 0 < difference < 12


def test_shards_are_filled_in_order(folder, tmp_path, monkeypatch):
    files = [data.prepare.pack.Packed(f"{n}.png", folder / f"img_{n}.png", 24, 20, 400_000) for n in range(7)]
    assert [len(part) for part in data.prepare.pack.shards(files, 1)] == [2, 2, 2, 1]
    data.prepare.pack.write_tar(files, tmp_path, 1)
    packed = open_images(root=f"{tmp_path}/{{000000..000003}}.tar")
    assert len(packed) == 7
    np.testing.assert_array_equal(decode(packed.read(6), "6.png"), textured(24, 20, 6))


@pytest.mark.parametrize("to", KINDS)
def test_stopped_and_continued(to, folder, tmp_path, monkeypatch):
    out = tmp_path / "packed"
    read = data.prepare.pack.read_bytes
    reads = []

    def interrupted(file):
        reads.append(file)
        if len(reads) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(file)

    monkeypatch.setattr(data.prepare.pack, "read_bytes", interrupted)
    if to != "parquet":  # whose first group of rows is read at once
        with pytest.raises(Stopped, match="the same command goes on from here"):
            pack(root=folder, out=out, to=to, encode="bmp", workers=1)
        assert not out.exists()
    monkeypatch.undo()
    assert pack(root=folder, out=out, to=to, encode="bmp", workers=1) == 0
    np.testing.assert_array_equal(photos(open_images(root=str(out))), photos(ImageFolder(root=str(folder))))


def test_pack_errors(folder, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=r"out=.*there exists: remove it, or give another out="):
        pack(root=folder, out=tmp_path / "there")
    with pytest.raises(ValueError, match=r"size=16 makes new images: say how to write them as encode=png, bmp or jpeg"):
        pack(root=folder, out=tmp_path / "new", size=16)
    (folder / "a_b.png").write_bytes((folder / "img_0.png").read_bytes())
    (folder / "a.b.png").write_bytes((folder / "img_0.png").read_bytes())
    with pytest.raises(ValueError, match=r"a\.b\.png and a_b\.png would both be a_b: rename one of them"):
        pack(root=folder, out=tmp_path / "new", to="tar")

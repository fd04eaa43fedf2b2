"""Which codes belong to which image."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.columns.codes import CodeFile, Codes, checksum, read
from data.columns.names import lacking, rows_of
from data.cutting import center_crop
from data.pairs import targets_of
from data.sources.files import FileList, ImageFolder
from tests.data.conftest import textured
from tests.data.samples import bound, training_faces

SIZE = 16


class Bytes:
    """Rows of a table: images with a number alone."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def name(self, index):
        return f"row {index}"

    def read(self, index):
        return self.source.read(index)


def code_file(folder, names=True):
    """Codes of the image number n are all n, of its mirror image all 10 + n."""
    files = sorted(folder.rglob("*.png"))
    photos = [center_crop(np.asarray(Image.open(file)), SIZE) for file in files]
    number = np.arange(len(files), dtype=np.int16)[:, None, None] + np.zeros((1, 2, 2), np.int16)
    sums = np.array([[checksum(photo), checksum(photo[:, ::-1])] for photo in photos])
    paths = [file.relative_to(folder).as_posix() for file in files]
    return CodeFile(paths if names else None, number, number + 10, sums, SIZE, "fingerprint")


def written(file, contents):
    file.write_bytes(contents.packed())
    return str(file)


def codes_in(file):
    return Codes(key="data.codes", path=file)


def dataset(source, codes, degradation, **changes):
    return training_faces(source, degradation, columns=[codes], hflip_prob=0.5, seed=2, **changes)


def assert_each_has_its_own(samples, photos):
    """photos: (size, size, 3) by the number that their codes tell."""
    seen = set()
    for position in range(12 * len(photos)):
        sample = samples[position]
        (code,) = set(sample["target_codes"].flatten().tolist())
        seen.add(code)
        photo = photos[code % 10][:, ::-1] if code >= 10 else photos[code % 10]
        np.testing.assert_array_equal((sample["hq"] * 255).round().byte().permute(1, 2, 0).numpy(), photo)
    assert seen == {number + mirrored for number in range(len(photos)) for mirrored in (0, 10)}


def cut(folder):
    return [center_crop(np.asarray(Image.open(file)), SIZE) for file in sorted(folder.rglob("*.png"))]


@pytest.mark.parametrize("batched", [False, True])
def test_an_image_and_its_mirror_image_have_their_own(folder, tmp_path, shade, batched):
    shade.batched = batched
    source = ImageFolder(root=str(folder))
    codes = codes_in(written(tmp_path / "codes.safetensors", code_file(folder)))
    assert_each_has_its_own(dataset(source, codes, shade), cut(folder))


def test_rows_of_a_table_go_by_their_number(folder, tmp_path, shade):
    file = written(tmp_path / "codes.safetensors", code_file(folder, names=False))
    source = Bytes(ImageFolder(root=str(folder)))
    assert_each_has_its_own(dataset(source, codes_in(file), shade), cut(folder))
    (folder / "img_6.png").unlink()
    with pytest.raises(ValueError, match=r"is of 7 images and data\.root holds 6, which have no names"):
        bound(codes_in(file), Bytes(ImageFolder(root=str(folder))))


def test_a_copy_at_the_training_size_and_a_part_of_the_images_have_the_same(folder, tmp_path, shade):
    file = written(tmp_path / "codes.safetensors", code_file(folder))
    (tmp_path / "packed").mkdir()
    for number, photo in enumerate(cut(folder)):
        Image.fromarray(photo).save(tmp_path / "packed" / f"img_{number}.bmp")
    packed = ImageFolder(root=str(tmp_path / "packed"))
    assert_each_has_its_own(dataset(packed, codes_in(file), shade), cut(folder))
    (folder / "kept.txt").write_text("img_5.png\nimg_2.png\n")
    kept = FileList(root=str(folder / "kept.txt"), relative_to=None)
    assert bound(codes_in(file), kept).rows.tolist() == [5, 2]


def test_codes_of_given_targets(folder, tmp_path):
    lq = tmp_path / "lq"
    lq.mkdir()
    for number in range(7):
        Image.fromarray(textured(24, 20, 20 + number)).save(lq / f"img_{number}.bmp")
    file = written(tmp_path / "codes.safetensors", code_file(folder))
    photos = ImageFolder(root=str(lq))
    targets = targets_of(photos, ImageFolder(root=str(folder)), "data.target_root")
    codes = codes_in(file)
    assert_each_has_its_own(dataset(photos, codes, None, targets=targets), cut(folder))
    with pytest.raises(
        ValueError, match=r"img_\d\.bmp has other pixels than the image of that name whose codes are in data\.cod"
    ):
        dataset(photos, codes, None, targets=photos)[0]


def test_an_image_that_could_not_be_encoded_has_none(folder, tmp_path, shade):
    contents = code_file(folder)
    contents.checksums[:] = -1
    source = ImageFolder(root=str(folder))
    codes = codes_in(written(tmp_path / "codes.safetensors", contents))
    with pytest.raises(ValueError, match="has other pixels"):
        dataset(source, codes, shade)[0]


def test_names_are_found_in_the_first_way_that_tells_all_apart():
    names = ["a/0.png", "b/0.png", "b/1.png"]
    assert rows_of(["b/1.png", "a/0.png"], names).tolist() == [2, 0]
    assert rows_of(["b/1.bmp", "b/0.bmp"], names).tolist() == [2, 1]
    assert rows_of(["0.png"], names) is None
    assert rows_of(["x/1.jpg", "y/2.jpg"], ["00/1.png", "00/2.png"]).tolist() == [0, 1]
    assert rows_of(["x/1.jpg", "y/1.jpg"], ["00/1.png", "00/2.png"]) is None
    assert rows_of(["00002.png", "00000.png"], ["00000000", "00000001", "00000002"]).tolist() == [2, 0]
    assert lacking(["a/00002.png", "00003.png"], ["00000000", "00000001", "00000002"]) == ["00003.png"]


def test_parts_of_larger_arrays_are_written_as_they_are(folder, tmp_path):
    contents = code_file(folder)
    both = np.stack([contents.orig, contents.hflip], axis=1)
    file = written(tmp_path / "codes.safetensors", replace(contents, orig=both[:, 0], hflip=both[:, 1]))
    np.testing.assert_array_equal(read(file).hflip, contents.hflip)

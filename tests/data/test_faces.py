"""Position to sample: crops, flips, errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.columns.real import RealFaces
from data.cutting import center_crop, random_crops
from data.images import UnreadableImage, to_tensor
from data.order import draws, image_at
from data.reading import read_image
from data.sources.files import ImageFolder
from tests.data.samples import training_faces, validation_faces


def textured(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def faces(folder, degradation, **changes):
    return training_faces(ImageFolder(root=str(folder)), degradation, **changes)


# crops


def test_center_crop_leaves_the_right_size_alone():
    photo = textured(16, 16)
    assert center_crop(photo, 16) is photo or np.array_equal(center_crop(photo, 16), photo)


def test_center_crop_halves_by_box_averages():
    photo = textured(32, 32)
    blocks = photo.reshape(16, 2, 16, 2, 3).astype(float).mean(axis=(1, 3))
    np.testing.assert_allclose(center_crop(photo, 16), blocks, rtol=0, atol=1)  # Pillow rounds after each axis


def test_center_crop_cuts_the_middle():
    photo = textured(16, 21)
    np.testing.assert_array_equal(center_crop(photo, 16), photo[:, 2:18])
    np.testing.assert_array_equal(center_crop(photo.transpose(1, 0, 2), 16), photo.transpose(1, 0, 2)[2:18])


def test_center_crop_between_two_sizes_is_bicubic():
    photo = textured(24, 24)
    expected = Image.fromarray(photo).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(center_crop(photo, 16), np.asarray(expected))


@pytest.mark.parametrize(("height", "width"), [(100, 37), (33, 70), (31, 31), (16, 300)])
def test_center_crop_of_any_shape(height, width):
    assert center_crop(textured(height, width), 16).shape == (16, 16, 3)
    flat = np.full((height, width, 3), 77, dtype=np.uint8)
    np.testing.assert_array_equal(center_crop(flat, 16), flat[:16, :16])


def test_random_crop_reaches_every_place():
    places = np.arange(4 * 5).reshape(4, 5, 1).astype(np.uint8)
    corners = [int(random_crops([places], 3, draws(0, position, "x"), "a")[0][0, 0, 0]) for position in range(600)]
    found = {corner: corners.count(corner) for corner in set(corners)}
    assert set(found) == {0, 1, 2, 5, 6, 7}
    assert [count / 600 for count in found.values()] == pytest.approx([1 / 6] * 6, abs=0.061)  # 4 standard errors


# samples


def test_sample(folder, shade):
    sample = faces(folder, shade)[9]
    assert sample["hq"].shape == sample["lq"].shape == (3, 16, 16)
    assert sample["hq"].dtype == torch.float32
    assert (sample["position"], sample["unreadable"]) == (9, 0)
    photo = np.asarray(Image.open(folder / f"img_{image_at(9, 7, 5)}.png"))
    np.testing.assert_array_equal((sample["hq"] * 255).round(), center_crop(photo, 16).transpose(2, 0, 1))
    assert torch.equal(sample["lq"], shade.apply(sample["hq"], shade.sample(5, 9, (16, 16)))["lq"])


def test_the_same_position_gives_the_same_sample(folder, shade):
    options = {"crop": "random", "hflip_prob": 0.5}
    one, two = faces(folder, shade, **options), faces(folder, shade, **options)
    for position in (30, 2, 17):
        assert torch.equal(one[position]["lq"], two[position]["lq"])
    for other in (one[31], faces(folder, shade, seed=6, **options)[30]):
        assert not torch.equal(one[30]["hq"], other["hq"])


def test_flip(folder, shade):
    plain, flipped, half = (faces(folder, shade, hflip_prob=prob) for prob in (0, 1, 0.5))
    assert torch.equal(plain[3]["hq"], flipped[3]["hq"].flip(2))
    seen = [torch.equal(half[position]["hq"], flipped[position]["hq"]) for position in range(200)]
    assert 0.4 < np.mean(seen) < 0.6
    assert all(
        torch.equal(half[position]["hq"], (flipped if mirrored else plain)[position]["hq"])
        for position, mirrored in enumerate(seen)
    )


# errors


def test_too_small(folder, shade):
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match=r"img_\d\.png is 20x24, smaller than data\.size=22: set data\.size to 20 or less"):
            faces(folder, shade, size=22, on_error=on_error)[0]


def break_images(folder, numbers):
    for number in numbers:
        path = folder / f"img_{number}.png"
        path.write_bytes(path.read_bytes()[:300])


def test_unreadable_stops(folder, shade):
    break_images(folder, [4])
    position = next(position for position in range(7) if image_at(position, 7, 5) == 4)
    with pytest.raises(UnreadableImage, match=r"img_4\.png can't be read as an image \(300 bytes\)"):
        faces(folder, shade)[position]


def test_a_file_that_vanished_is_unreadable(folder, shade):
    dataset = faces(folder, shade)
    (folder / f"img_{image_at(0, 7, 5)}.png").unlink()
    with pytest.raises(UnreadableImage, match=r"img_\d\.png can't be read: .*No such file"):
        dataset[0]


@pytest.mark.filterwarnings("ignore:data.on_error=skip passes over")
def test_skip_takes_the_next_and_counts(folder, shade):
    order = [image_at(position, 7, 5) for position in range(21)]
    whole = [faces(folder, shade)[position] for position in range(14)]
    break_images(folder, order[1:3])
    dataset = faces(folder, shade, on_error="skip")
    for position in range(14):
        ahead = next(step for step in range(7) if order[position + step] not in order[1:3])
        sample = dataset[position]
        assert (sample["position"], sample["unreadable"]) == (position, ahead)
        assert torch.equal(sample["lq"], shade.apply(sample["hq"], shade.sample(5, position, (16, 16)))["lq"])
        if ahead == 0:
            assert torch.equal(sample["lq"], whole[position]["lq"])
    assert sum(dataset[position]["unreadable"] for position in range(7)) >= 2


@pytest.mark.filterwarnings("ignore:data.on_error=skip passes over")
def test_skip_finds_the_only_readable_one(folder, shade):
    break_images(folder, range(6))
    expected = center_crop(np.asarray(Image.open(folder / "img_6.png")), 16).transpose(2, 0, 1)
    for position in range(14):
        np.testing.assert_array_equal((faces(folder, shade, on_error="skip")[position]["hq"] * 255).round(), expected)


@pytest.mark.filterwarnings("ignore:data.on_error=skip passes over")
def test_skip_with_nothing_readable(folder, shade):
    break_images(folder, range(7))
    with pytest.raises(UnreadableImage, match=r"none of the 7 images can be read, the first is .*img_0\.png"):
        faces(folder, shade, on_error="skip")[0]


# the fixed set


def fixed(folder, degradation, **changes):
    options = {"degradations_per_image": 3, "size": 16, "seed": 1}
    return validation_faces(ImageFolder(root=str(folder)), degradation, **(options | changes))


def test_fixed_set(folder, shade):
    dataset = fixed(folder, shade)
    assert len(dataset) == 21
    samples = [dataset[position] for position in (6, 7, 8)]
    assert [sample["position"] for sample in samples] == [6, 7, 8]
    assert all(torch.equal(sample["hq"], samples[0]["hq"]) for sample in samples)
    assert len({float(sample["lq"].sum()) for sample in samples}) == 3
    assert torch.equal(samples[1]["lq"], fixed(folder, shade)[7]["lq"])


def test_fixed_set_as_the_images_are(folder, shade):
    sample = fixed(folder, shade, size=None)[0]
    np.testing.assert_array_equal((sample["hq"] * 255).round(), textured(24, 20, 0).transpose(2, 0, 1))
    assert torch.equal(sample["lq"], shade.apply(sample["hq"], shade.sample(1, 0, (24, 20)))["lq"])


def test_fixed_set_errors(folder, shade):
    with pytest.raises(ValueError, match=r"img_0\.png is 20x24, smaller than data\.val_size=22"):
        fixed(folder, shade, size=22)[0]
    break_images(folder, [0])
    with pytest.raises(UnreadableImage, match=r"img_0\.png"):
        fixed(folder, shade)[0]


def test_clean_faces_for_discriminators_come_in_an_order_of_their_own(tmp_path, shade):
    """As many as there are photos, so that one order for both would pair them."""
    for kind in ("faces", "clean"):
        (tmp_path / kind).mkdir()
        for number in range(6):
            Image.fromarray(textured(20, 24, seed=number + 10 * (kind == "clean"))).save(tmp_path / kind / f"{number}.png")
    real = ImageFolder(root=str(tmp_path / "clean"))
    column = RealFaces(key="data.real_root", path=str(tmp_path / "clean"))
    dataset, without = faces(tmp_path / "faces", shade, columns=[column]), faces(tmp_path / "faces", shade)
    seen = [dataset[position] for position in range(6)]
    cut = [to_tensor(center_crop(read_image(real, index), 16)) for index in range(6)]
    indices = [next(index for index, photo in enumerate(cut) if torch.equal(photo, sample["real"])) for sample in seen]
    assert sorted(indices) == list(range(6)), "a pass shows each once"
    assert indices != [image_at(position, 6, 5) for position in range(6)]
    for position, sample in enumerate(seen):
        assert torch.equal(sample["lq"], without[position]["lq"]), "the photos are as they would be without"
        assert "real" not in without[position]
        assert torch.equal(sample["real"], dataset[position]["real"])


@pytest.mark.filterwarnings("ignore:data.on_error=skip passes over")
def test_an_unreadable_clean_face_is_passed_over_and_counted(tmp_path, folder, shade):
    clean = tmp_path / "clean"
    clean.mkdir()
    for number in range(5):
        Image.fromarray(textured(20, 24, seed=number + 20)).save(clean / f"img_{number}.png")
    order = [image_at(position, 5, 6) for position in range(20)]  # the seed of the photos is 5
    whole = [to_tensor(center_crop(read_image(ImageFolder(root=str(clean)), index), 16)) for index in range(5)]
    break_images(clean, order[1:3])
    column = RealFaces(key="data.real_root", path=str(clean))
    dataset = faces(folder, shade, columns=[column], on_error="skip")
    for position in range(10):
        ahead = next(step for step in range(5) if order[position + step] not in order[1:3])
        sample = dataset[position]
        assert sample["unreadable"] == ahead
        assert torch.equal(sample["real"], whole[order[position + ahead]])
    with pytest.raises(UnreadableImage, match=rf"clean/img_{order[1]}\.png can't be read as an image"):
        faces(folder, shade, columns=[column])[1]
    break_images(clean, range(5))
    with pytest.raises(UnreadableImage, match=r"none of the 5 images can be read, .*: check data\.real_root"):
        faces(folder, shade, columns=[column], on_error="skip")[0]

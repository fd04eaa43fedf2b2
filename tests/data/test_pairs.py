"""Photos with given targets: matched by name, and aligned under every crop, flip and augmentation."""

import albumentations
import numpy as np
import pytest
import torch
from PIL import Image

from data.augmentation import Augmentation
from data.order import draws, image_at
from data.pairs import targets_of
from data.sources.files import ImageFolder
from tests.data.samples import training_faces, validation_faces

NONE = Augmentation(transforms={})


def folder_of(root, shapes):
    """A folder with an image of random pixels for each name."""
    for number, (name, (height, width)) in enumerate(shapes.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return ImageFolder(root=str(root))


def enlarged(source, root, scale):
    """Each pixel of each image as scale x scale pixels, in PNG files."""
    for path in source.paths:
        pixels = np.asarray(Image.open(source.root / path)).repeat(scale, 0).repeat(scale, 1)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save((root / path).with_suffix(".png"))
    return ImageFolder(root=str(root))


@pytest.fixture
def lq(tmp_path):
    return folder_of(tmp_path / "lq", {"a/0.bmp": (30, 24), "a/1.bmp": (24, 24), "b/2.bmp": (26, 40)})


def pairs(lq, hq, **changes):
    options = {"degradation": None, "crop": "random", "hflip_prob": 0.5, "seed": 1} | changes
    return training_faces(lq, targets=targets_of(lq, hq, "data.target_root"), **options)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("crop", ["random", "center"])
def test_lq_and_hq_stay_aligned(lq, tmp_path, scale, crop):
    dataset = pairs(lq, enlarged(lq, tmp_path / "hq", scale), crop=crop)
    for position in range(30):
        sample = dataset[position]
        assert sample["hq"].shape == (3, 16, 16)
        assert sample["lq"].shape == (3, 16 // scale, 16 // scale)
        assert torch.equal(sample["hq"], sample["lq"].repeat_interleave(scale, 1).repeat_interleave(scale, 2))


def test_a_pair_is_cut_where_a_photo_alone_would_be(lq, tmp_path, shade):
    alone = training_faces(lq, shade, crop="random", hflip_prob=0.5, seed=1)
    paired = pairs(lq, enlarged(lq, tmp_path / "hq", 1))
    assert all(torch.equal(paired[position]["hq"], alone[position]["hq"]) for position in range(20))


def test_both_are_augmented_alike(lq, tmp_path):
    turned = Augmentation(transforms={"turn": albumentations.D4(p=1), "cut": albumentations.RandomCrop(20, 20)})
    dataset = pairs(lq, enlarged(lq, tmp_path / "hq", 1), augmentation=turned)
    assert all(torch.equal(sample["lq"], sample["hq"]) for sample in map(dataset.__getitem__, range(20)))
    smaller = pairs(lq, enlarged(lq, tmp_path / "hq2", 2), augmentation=turned)
    with pytest.raises(ValueError, match=r"\.bmp and its target differ in size, .* set augmentation=none"):
        smaller[0]


def test_a_larger_target_is_turned_alike(lq, tmp_path):
    turned = Augmentation(transforms={"turn": albumentations.D4(p=1)})
    dataset = pairs(lq, enlarged(lq, tmp_path / "hq", 2), augmentation=turned)
    samples = [dataset[position] for position in range(20)]
    assert all(torch.equal(sample["lq"], sample["hq"][:, ::2, ::2]) for sample in samples)


def test_scales_in_the_names_of_lqs_do_not_count(lq, tmp_path):
    shapes = {f"{name}x4.png": (8, 8) for name in ("0001", "0002", "0003")}
    small = folder_of(tmp_path / "X4", shapes)
    large = folder_of(tmp_path / "HR", {name.replace("x4", ""): (32, 32) for name in shapes})
    found = targets_of(small, large, "data.target_root=HR")
    assert [found.name(i).rpartition("/")[2] for i in range(3)] == ["0001.png", "0002.png", "0003.png"]
    mixed = folder_of(tmp_path / "mixed", {"0001x4.png": (8, 8), "0002x2.png": (8, 8)})
    with pytest.raises(ValueError, match="2 of 2 photos have no target"):
        targets_of(mixed, large, "data.target_root=HR")


def test_the_fixed_set_of_pairs(lq, tmp_path, shade):
    targets = targets_of(lq, enlarged(lq, tmp_path / "hq", 2), "data.target_root")
    fixed = validation_faces(lq, targets=targets, degradation=None, degradations_per_image=1, size=None, seed=0)
    assert (fixed[0]["lq"].shape, fixed[0]["hq"].shape) == ((3, 30, 24), (3, 60, 48))
    cut = validation_faces(lq, targets=targets, degradation=None, degradations_per_image=1, size=20, seed=0)[2]
    assert torch.equal(cut["lq"], fixed[2]["lq"][:, 8:18, 15:25])
    assert torch.equal(cut["hq"], fixed[2]["hq"][:, 16:36, 30:50])


def test_batched_and_not_batched_agree_on_targets(lq, tmp_path, shade):
    hq = folder_of(tmp_path / "hq", {"0.png": (30, 24), "1.png": (24, 24), "2.png": (26, 40)})
    plain, batched = (pairs(lq, hq, degradation=type(shade)(batched=flag)) for flag in (False, True))
    one, other = plain[3], batched[3]
    assert torch.equal(one["hq"], other["target"])
    assert torch.equal(one["lq"], shade.apply(other["hq"], shade.sample(1, 3, (16, 16)))["lq"])


def test_keep_decoded_keeps_both(lq, tmp_path):
    hq = enlarged(lq, tmp_path / "hq", 2)
    dataset, again = pairs(lq, hq, keep_decoded=True), pairs(lq, hq)
    assert all(torch.equal(dataset[position]["hq"], again[position]["hq"]) for position in (0, 3, 0))
    assert [len(each) for each in dataset.reader.decoded.values()] == [2] * len(
        {image_at(position, 3, 1) for position in (0, 3)}
    )


# names and sizes


def test_names_match_without_suffixes_and_subfolders(lq, tmp_path):
    hq = folder_of(tmp_path / "hq", {"2.png": (26, 40), "x/0.png": (30, 24), "x/1.webp": (24, 24)})
    targets = targets_of(lq, hq, "data.target_root")
    assert [targets.name(index).rpartition("/")[2] for index in range(3)] == ["0.png", "1.webp", "2.png"]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    shapes = {"a/0.png": (8, 8), "b/0.png": (9, 9)}
    lq, hq = folder_of(tmp_path / "lq", shapes), folder_of(tmp_path / "hq", shapes)
    assert targets_of(lq, hq, "data.target_root").name(1) == str(tmp_path / "hq" / "b" / "0.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "hq" / "a" / "0.bmp")
    with pytest.raises(ValueError, match=r"data\.target_root: several files are named a/0, suffixes aside"):
        targets_of(lq, ImageFolder(root=str(tmp_path / "hq")), "data.target_root")


def test_unmatched_names_are_listed(lq, tmp_path):
    hq = folder_of(tmp_path / "hq", {"0.png": (30, 24), **{f"other_{number}.png": (8, 8) for number in range(5)}})
    with pytest.raises(
        ValueError,
        match=r"2 of 3 photos have no target \(a/1\.bmp, b/2\.bmp\) and 5 of 6 targets have no photo "
        r"\(other_0\.png, other_1\.png, other_2\.png and 2 more\)",
    ):
        targets_of(lq, hq, "data.target_root")


@pytest.mark.parametrize("shape", [(45, 36), (29, 24), (60, 24), (15, 12)])
def test_sizes_that_do_not_fit(lq, tmp_path, shape):
    hq = folder_of(tmp_path / "hq", {"0.png": shape, "1.png": shape, "2.png": shape})
    fixed = validation_faces(lq, targets=targets_of(lq, hq, ""), degradation=None, degradations_per_image=1, size=None, seed=0)
    with pytest.raises(ValueError, match=rf"0\.bmp is 24x30 and its target {shape[1]}x{shape[0]}: a target must be"):
        fixed[0]


def test_crop_that_the_scale_does_not_divide(lq, tmp_path):
    with pytest.raises(ValueError, match=r"is 4 times smaller than its target, so the crop of 18 px must be a multiple of 4"):
        pairs(lq, enlarged(lq, tmp_path / "hq", 4), size=18)[0]


def test_a_degradation_that_changes_the_size_has_no_target(lq, tmp_path):
    class Half:
        batched = False

        def sample(self, seed, position, size):
            return {}

        def apply(self, hq, parameters):
            return {"lq": hq[:, ::2, ::2], "hq": hq[:, ::2, ::2]}

    with pytest.raises(ValueError, match=r"made an HQ of \(3, 8, 8\), but the target is \(3, 16, 16\)"):
        pairs(lq, enlarged(lq, tmp_path / "hq", 1), degradation=Half())[0]


# augmentation


def photo():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_augmentation_is_a_function_of_the_generator():
    transforms = {"rotate": albumentations.Rotate(limit=(-5, 5), p=0.5), "cut": albumentations.RandomCrop(16, 16)}
    one, two = Augmentation(transforms=transforms), Augmentation(transforms=transforms)
    for position in (7, 3, 7):
        (a,) = one.apply([photo()], draws(5, position, "data.augmentation"), "a.png")
        two.apply([photo()], draws(5, position + 1, "data.augmentation"), "a.png")
        (b,) = two.apply([photo()], draws(5, position, "data.augmentation"), "a.png")
        np.testing.assert_array_equal(a, b)
    made = {one.apply([photo()], draws(5, position, "data.augmentation"), "a.png")[0].tobytes() for position in range(20)}
    assert len(made) > 15


def test_augmentation_errors():
    cut = Augmentation(transforms={"cut": albumentations.RandomCrop(64, 64)})
    with pytest.raises(ValueError, match=r"augmentation of a\.png failed: Crop size .*; change augmentation\.transforms"):
        cut.apply([photo()], draws(0, 0, "x"), "a.png")
    with pytest.raises(ValueError, match=r"augmentation made \(32, 32, 3\) float32 of a\.png where .* uint8 is needed"):
        Augmentation(transforms={"norm": albumentations.Normalize()}).apply([photo()], draws(0, 0, "x"), "a.png")

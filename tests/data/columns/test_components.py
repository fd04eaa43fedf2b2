"""Where the eyes and the mouth of a training image are, and under which settings that is not known."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data.augmentation import Augmentation
from data.columns.components import COLUMNS, PARTS, ComponentFile, Components, read
from data.order import draws, image_at
from data.pairs import targets_of
from data.prepare.jobs.files import write_csv
from data.sources.files import ImageFolder
from data.sources.opening import open_images
from data.sources.source import Choices
from models.components import PARTS as PARTS_OF_MODELS
from models.components import mirrored
from tests.data.columns.test_codes import Bytes
from tests.data.conftest import textured
from tests.data.samples import DRAWS, bound, face_data, picture, training_faces
from tests.data.sources.test_archives import make

SIDE, SIZE = 32, 16
# left eye red, right eye green, mouth blue: x, y and half a side
PLACES = np.array([[[9.0 + n, 8, 3], [23 - n, 10, 3], [17, 24 - n, 4]] for n in range(4)])


def painted(places, side):
    """(side, side, 3) uint8: each part a square of 2 x 2 pixels of its colour around its centre."""
    photo = np.zeros((side, side, 3), np.uint8)
    for colour, (x, y, _) in enumerate(places.astype(int)):
        photo[y - 1 : y + 1, x - 1 : x + 1, colour] = 255
    return photo


def centres(image):
    """(3, 2) x and y in pixels: where each colour of (3, h, w) is; the first pixel reaches from 0 to 1."""
    rows, columns = (torch.arange(side) + 0.5 for side in image.shape[1:])
    mass = image.sum((1, 2))
    return torch.stack([(image.sum(1) * columns).sum(1) / mass, (image.sum(2) * rows).sum(1) / mass], 1)


@pytest.fixture
def root(tmp_path):
    """Four images of 32x32, 00000.png to 00003.png."""
    folder = tmp_path / "painted"
    folder.mkdir()
    for number, places in enumerate(PLACES):
        Image.fromarray(painted(places, SIDE)).save(folder / f"{number:05}.png")
    return folder


def write(file, names, components, side_px=SIDE):
    numbers = np.column_stack([np.full(len(names), side_px), components.reshape(-1, 9)]).tolist()
    rows = ({"path": name} | dict(zip(COLUMNS[1:], row, strict=True)) for name, row in zip(names, numbers, strict=True))
    write_csv(file, COLUMNS, rows)
    return str(file)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "components.csv", [f"{number:05}.png" for number in range(4)], PLACES)


def components_in(file):
    return Components(key="data.components", path=str(file))


def dataset(source, file, degradation, **changes):
    options = {"size": SIZE, "hflip_prob": 0.5, "seed": 2} | changes
    return training_faces(source, degradation, columns=[components_in(file)], **options)


@pytest.mark.parametrize(
    ("kind", "batched", "keep_decoded"),
    [("", False, True), ("", True, False), ("zip", False, False), ("lmdb", False, False), ("shards", False, False)],
)
def test_they_are_where_the_parts_are(root, file, shade, kind, batched, keep_decoded):
    shade.batched = batched
    source = open_images(root=str(make(kind, root) if kind else root))
    samples = dataset(source, file, shade, keep_decoded=keep_decoded)
    flips = set()
    for position in range(24):
        sample = samples[position]
        assert (sample["components"].shape, sample["components"].dtype) == ((3, 3), torch.float32)
        flipped = bool(sample["components"][0, 1] == 5)  # the mouth stays last, the eyes change places and colours
        colours = [1, 0, 2] if flipped else [0, 1, 2]
        flips.add(flipped)
        torch.testing.assert_close(sample["components"][:, :2], centres(sample["hq"])[colours], atol=0.15, rtol=0)
        assert sample["components"][:, 2].tolist() == [1.5, 1.5, 2]
    assert flips == {False, True}


def test_a_mirrored_sample_has_those_of_the_models(root, file, shade):
    source = ImageFolder(root=str(root))
    plain, flipped = (dataset(source, file, shade, hflip_prob=prob) for prob in (0, 1))
    for position in range(8):
        expected = mirrored(plain[position]["components"][None], SIZE)[0]
        assert torch.equal(flipped[position]["components"], expected)
        assert not torch.equal(expected, plain[position]["components"])


@pytest.mark.filterwarnings("ignore:data.on_error=skip passes over")
def test_an_image_that_stands_in_brings_its_own(root, file, shade):
    (root / "00001.png").write_bytes(b"gone")
    samples = dataset(ImageFolder(root=str(root)), file, shade, on_error="skip", hflip_prob=0)
    skipped = 0
    for position in range(12):
        sample = samples[position]
        index = image_at(position + sample["unreadable"], 4, 2)
        assert torch.equal(sample["components"], torch.tensor(PLACES[index] / 2, dtype=torch.float32))
        skipped += sample["unreadable"]
    assert skipped >= 3


def test_a_batch_has_them_and_validation_does_not(root, file, shade):
    data = face_data(root, shade, crop="center", components=file, val_images=1, num_workers=1, batch_size=3)
    batch, (fixed, *_) = next(iter(data.train_dataloader())), list(data.val_dataloader())
    assert (batch["components"].shape, batch["components"].dtype) == ((3, 3, 3), torch.float32)
    for position, components in zip(batch["position"].tolist(), batch["components"], strict=True):
        plain = torch.tensor(PLACES[image_at(position, 3, 3)] / 2, dtype=torch.float32)
        flipped = draws(3, position, "data.flip").random() < 0.5
        assert torch.equal(components, mirrored(plain[None], SIZE)[0] if flipped else plain)
    assert "components" not in fixed


def official(kind):
    """As scripts/parse_landmark.py of GFPGAN writes it, at 512."""
    parts = ("left_eye", "right_eye", "mouth")
    at_512 = PLACES * 16
    return {
        f"{n:08}": {part: kind(each) for part, each in zip(parts, of_image, strict=True)} for n, of_image in enumerate(at_512)
    }


@pytest.mark.parametrize("kind", [list, np.ndarray.tolist, np.asarray, np.float32, torch.tensor])
def test_the_official_file_goes_by_the_number(tmp_path, root, kind):
    torch.save(official(kind), tmp_path / "FFHQ_eye_mouth_landmarks_512.pth")
    (root / "00001.png").unlink()
    theirs = bound(components_in(tmp_path / "FFHQ_eye_mouth_landmarks_512.pth"), ImageFolder(root=str(root)), size=SIZE)
    expected = torch.tensor(PLACES[[0, 2, 3]] / 2, dtype=torch.float32)
    assert torch.equal(torch.stack([theirs.of(picture(index), DRAWS) for index in range(3)]), expected)


def test_a_file_that_wants_code_to_be_run_is_refused(tmp_path):
    torch.save({"00000000": re.compile("a")}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"data\.components=.*code\.pth is damaged or no file of components"):
        read(str(tmp_path / "code.pth"))


def test_damaged_files_are_refused(tmp_path, file):
    whole = (tmp_path / "components.csv").read_text()
    torch.save(official(list), tmp_path / "whole.pth")
    for name, contents, said in (
        ("header.csv", whole.replace("mouth_half", "half").encode(), r"\(it lacks the columns mouth_half\)"),
        ("word.csv", whole.replace("24.0", "low").encode(), r"\(could not convert string to float: 'low'\)"),
        ("short.csv", whole[:-20].encode(), r"\(float\(\) argument must be"),
        ("cut.pth", (tmp_path / "whole.pth").read_bytes()[:500], r"\("),
        ("empty.csv", b"", r"\(it lacks the columns left_eye_half, left_eye_x, left_eye_y and 8 more\)"),
    ):
        (tmp_path / name).write_bytes(contents)
        with pytest.raises(ValueError, match=rf"{name} is damaged or no file of components {said}.*: give components\.csv"):
            read(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"nowhere\.csv does not exist .*: give a file of python -m data\.prepare landmarks"):
        read("nowhere.csv")


@pytest.mark.parametrize(
    ("part", "number", "value"), [(0, 0, np.nan), (1, 1, np.inf), (2, 1, -1), (2, 0, SIDE + 1), (0, 2, 0), (2, 2, SIDE / 2 + 1)]
)
def test_places_that_are_none_are_refused(tmp_path, part, number, value):
    places = PLACES.copy()
    places[2, part, number] = value
    file = write(tmp_path / "wrong.csv", ["a.png", "b.png", "c.png", "d.png"], places)
    with pytest.raises(ValueError, match=r"the components of 1 images are no numbers, or lie out of the image \(c\.png\)"):
        read(file)


def test_sides_that_are_none_are_refused():
    contents = ComponentFile(["a", "b"], np.array([32.0, 32.0]), PLACES[:2], [None, None])
    assert contents.impossible() == []
    for side in (0, -32, np.nan, np.inf):
        assert replace(contents, side_px=np.array([32, side])).impossible() == ["b"]


def test_images_that_are_not_in_it_are_named(root, file, shade, tmp_path):
    Image.fromarray(textured(SIDE, SIDE, 9)).save(root / "00004.png")
    with pytest.raises(
        ValueError, match=r"lacks 1 of the 5 images of data\.root \(00004\.png\): take them out.*missing=template"
    ):
        dataset(ImageFolder(root=str(root)), file, shade)
    for folder in ("a", "b"):
        (root / folder).mkdir()
        Image.fromarray(textured(SIDE, SIDE, 9)).save(root / folder / "00000.png")
    (root / "00004.png").unlink()
    with pytest.raises(ValueError, match=r"has several images of one name: rename them, or run python"):
        dataset(ImageFolder(root=str(root)), file, shade)


def test_rows_of_a_table_go_by_their_number(root, tmp_path):
    table = Bytes(ImageFolder(root=str(root)))
    file = write(tmp_path / "rows.csv", ["0", "1", "2", "3"], PLACES)
    assert torch.equal(
        bound(components_in(file), table, size=SIDE).of(picture(3, size=SIDE), DRAWS),
        torch.tensor(PLACES[3], dtype=torch.float32),
    )
    (root / "00003.png").unlink()
    with pytest.raises(ValueError, match=r"is of 4 images and data\.root holds 3, which have no names"):
        bound(components_in(file), Bytes(ImageFolder(root=str(root))), size=SIDE)


def test_settings_under_which_they_would_be_elsewhere_are_refused(root, file, shade):
    source = ImageFolder(root=str(root))
    drawn = Choices(whole=source, of_photo=[[0]] * 4)
    for changes, said in (
        ({"crop": "random"}, r"data\.crop=random, where center is needed: change that, or set data\.components=null"),
        ({"augmentation": Augmentation(transforms={"flip": None})}, "augmentation=flip, where none is needed"),
        ({"targets": drawn}, r"targets that are drawn \(data=hggt\)"),
    ):
        with pytest.raises(ValueError, match=rf"data\.components=.*tells places in whole images.*{said}"):
            dataset(source, file, shade, **changes)


def test_an_image_that_is_not_square_is_named(root, file, shade):
    Image.fromarray(textured(SIDE, SIDE + 2, 9)).save(root / "00002.png")
    samples = dataset(ImageFolder(root=str(root)), file, shade)
    position = next(position for position in range(4) if image_at(position, 4, 2) == 2)
    with pytest.raises(ValueError, match=r"00002\.png is 34x32, and data\.components are of square images: align its face"):
        samples[position]


def test_given_targets(root, file, tmp_path):
    lq = tmp_path / "lq"
    lq.mkdir()
    for number in range(4):
        Image.fromarray(textured(SIDE // 2, SIDE // 2, number)).save(lq / f"{number:05}.png")
    photos = ImageFolder(root=str(lq))
    targets = targets_of(photos, ImageFolder(root=str(root)), "data.target_root")
    samples = dataset(photos, file, None, targets=targets, size=SIDE, hflip_prob=0)
    torch.testing.assert_close(samples[0]["components"][:, :2], centres(samples[0]["hq"]))
    with pytest.raises(ValueError, match=r"png has an HQ of 32x32, larger than itself.*: set data\.size=32"):
        dataset(photos, file, None, targets=targets)[0]


def test_bfloat16_would_round_them(root, file, shade):
    data = face_data(root, shade, crop="center", components=file, val_images=1)
    data.trainer = type("Trainer", (), {"precision": "bf16-true", "global_step": 0, "accumulate_grad_batches": 1})()
    with pytest.raises(ValueError, match=r"trainer\.precision=bf16-true would round data\.components to 2 px"):
        data.train_dataloader()


def test_data_and_models_mean_the_same_parts_in_the_same_order():
    """Two constants, for neither room may import the other."""
    assert PARTS == PARTS_OF_MODELS

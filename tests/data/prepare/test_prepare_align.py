"""Faces of real photographs, found and brought to the template."""

import csv

import cv2
import numpy as np
import pytest

from data.landmarks import TEMPLATE, affine, similarity
from data.prepare.align import COLUMNS, POINTS
from tests.data.conftest import LANDMARKS
from tests.data.prepare.conftest import textured, write


def rows(out):
    with (out / "faces.csv").open() as file:
        return list(csv.DictReader(file))


def landmarks(row):
    return np.array([[float(row[f"{point}_{axis}"]) for axis in "xy"] for point in POINTS])


@pytest.fixture
def photographs(tmp_path, photograph):
    root = tmp_path / "photographs"
    write(root / "one.jpg", photograph)
    smaller = cv2.resize(photograph[:, ::-1], (384, 384), interpolation=cv2.INTER_AREA)
    both = np.full((512, 896, 3), 128, dtype=np.uint8)
    both[:, :512], both[:384, 512:] = photograph, smaller
    write(root / "more" / "two.png", both)
    write(root / "empty.png", textured(300, 300, seed=1))
    (root / "cut.png").write_bytes((root / "more" / "two.png").read_bytes()[:50_000])
    return root


def test_all_faces_are_found_cut_and_listed(prepare, photographs, tmp_path):
    out = tmp_path / "faces"
    code, text = prepare("align", f"root={photographs}", f"out={out}")
    assert code == 1
    assert "4 photographs, 3 faces, 1 photographs without a face, 1 not usable" in text
    assert "not used: " in text
    assert "cut.png can't be read as an image (50000 bytes)" in text
    found = rows(out)
    assert tuple(found[0]) == COLUMNS
    assert [row["file"] for row in found] == ["more/two_00.png", "more/two_01.png", "one_00.png"]
    assert (out / "without_faces.txt").read_text() == "empty.png\n"
    np.testing.assert_allclose(landmarks(found[0]), LANDMARKS, atol=2)
    mirrored = (np.array([511, 0]) + LANDMARKS * [-1, 1] + 0.5) * 0.75 - 0.5 + [512, 0]
    np.testing.assert_allclose(landmarks(found[1]), mirrored[[1, 0, 2, 4, 3]], atol=2)
    np.testing.assert_allclose([float(row["face_px"]) for row in found], [120, 86, 120], atol=6)
    np.testing.assert_allclose([float(row["crop_px"]) for row in found], [170, 128, 170], atol=3)
    assert [row["outside"] for row in found] == ["0.0"] * 3
    assert all(cv2.imread(str(out / row["file"])).shape == (512, 512, 3) for row in found)

    # an aligned face stays where it is
    code, _ = prepare("align", f"root={out}", f"out={tmp_path / 'again'}", "min_face_px=100")
    assert code == 0
    again = rows(tmp_path / "again")
    assert len(again) == 3
    for row in again:
        moved = affine(similarity(landmarks(row), TEMPLATE), TEMPLATE) - TEMPLATE
        assert np.linalg.norm(moved, axis=1).mean() < 0.5, row["file"]


def test_the_largest_alone_at_another_size(prepare, photographs, tmp_path):
    (photographs / "cut.png").unlink()
    out = tmp_path / "faces"
    code, text = prepare("align", f"root={photographs}", f"out={out}", "largest=true", "size=128")
    assert code == 0
    assert [row["file"] for row in rows(out)] == ["more/two_00.png", "one_00.png"]
    assert cv2.imread(str(out / "one_00.png")).shape == (128, 128, 3)
    np.testing.assert_allclose(float(rows(out)[0]["crop_px"]), 170, atol=3)
    assert sorted(path.name for path in out.rglob("*.png")) == ["one_00.png", "two_00.png"]

    code, text = prepare("align", f"root={photographs}", f"out={out}", "size=128")
    assert code == 1
    assert "faces was begun with largest=True (now False): give these values again, or another out=" in text


def test_what_retinaface_lacks_is_said_before_the_work(prepare, photographs, tmp_path):
    code, text = prepare("align", f"root={photographs}", f"out={tmp_path / 'faces'}", "detector=retinaface")
    assert code == 1
    assert text.startswith("error: detector=retinaface needs weights=FILE")
    assert not (tmp_path / "faces").exists()

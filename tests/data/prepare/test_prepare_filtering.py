"""Which faces are kept, why others are not, and the page that shows it."""

import base64
import csv
import re
import shlex

import cv2
import numpy as np
import pytest

from data.prepare import filtering
from data.prepare.filtering import Bound, check_names
from data.prepare.jobs.report import Chart, Tile, page
from data.sources.opening import open_images
from tests.data.prepare.conftest import textured, write


@pytest.fixture
def faces(tmp_path, portrait):
    """sharp.png alone is good: the portrait is an enlargement, so it is sharpened first."""
    root = tmp_path / "faces"
    sharp = np.clip(4.0 * portrait - 3.0 * cv2.GaussianBlur(portrait, (0, 0), 2), 0, 255).astype(np.uint8)
    write(root / "a" / "sharp.png", sharp)
    write(root / "blurred.png", cv2.GaussianBlur(portrait, (0, 0), 3))
    covered = sharp.copy()
    covered[290:460, 160:350] = (60, 90, 120)  # nose, mouth and chin
    write(root / "covered.png", covered)
    write(root / "field.png", textured(512, 512, seed=1, cell=256))
    (root / "cut.png").write_bytes((root / "covered.png").read_bytes()[:9_000])
    return root


def table(out):
    with (out / "figures.csv").open() as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_good_faces_are_kept_and_the_others_shown_with_reasons(prepare, faces, tmp_path):
    out = tmp_path / "kept"
    code, text = prepare("filter", f"root={faces}", f"out={out}")
    assert code == 1
    assert "cut.png can't be read as an image (9000 bytes)" in text
    assert "1 of 5 files kept" in text
    assert (out / "kept.txt").read_text() == "# paths start from ../faces\na/sharp.png\n"
    found = table(out)
    assert list(found) == ["a/sharp.png", "blurred.png", "covered.png", "cut.png", "field.png"]
    assert [row["kept"] for row in found.values()] == ["1", "0", "0", "0", "0"]
    said = re.fullmatch(r"sharpness ([\d.]+) is below 50", found["blurred.png"]["reasons"])
    assert said
    assert float(said[1]) == pytest.approx(float(found["blurred.png"]["sharpness"]), rel=0.01)
    assert re.fullmatch(r"spread_px [\d.]+ is above 6", found["covered.png"]["reasons"])
    assert found["field.png"]["reasons"] == "confidence 0 is below 0.95; spread_px could not be measured"
    assert float(found["a/sharp.png"]["spread_px"]) < 5 < 6 < float(found["covered.png"]["spread_px"])

    html = (out / "report.html").read_text()
    assert "<h2>Dropped: 4</h2>" in html
    assert "<h2>Kept: 1</h2>" in html
    assert "http" not in html  # nothing is fetched
    pictures = [base64.b64decode(code) for code in re.findall(r"data:image/jpeg;base64,([^\"]+)", html)]
    assert [cv2.imdecode(np.frombuffer(one, np.uint8), 1).shape for one in pictures] == [(128, 128, 3)] * 4
    assert found["blurred.png"]["reasons"] in html

    # other limits need no second look; what align knows of the photograph counts
    record = out / ".filter" / "1-of-1.jsonl"
    lines = record.read_text().count("\n")
    (faces / "cut.png").unlink()
    (faces / "faces.csv").write_text("file,face_px\na/sharp.png,90\nblurred.png,300\n")
    off = ("min_sharpness=0", "min_confidence=0", "max_spread_px=0", "thumbnails=1")
    code, text = prepare("filter", f"root={faces}", f"out={out}", "min_face_px=100", *off)
    assert code == 0
    assert (out / "kept.txt").read_text() == "# paths start from ../faces\nblurred.png\ncovered.png\n"
    assert table(out)["a/sharp.png"]["reasons"] == "face_px 90 is below 100"
    assert record.read_text().count("\n") == lines
    list_itself = shlex.split(text.partition("train on them: ")[2])
    assert list_itself[:3] == ["python", "train.py", "model=swinir_ffhq"]
    assert list_itself[3] == f"data.root={out / 'kept.txt'}"
    images = open_images(root=list_itself[3].partition("=")[2])
    assert [images.name(index) for index in range(2)] == [
        str(out / "../faces" / name) for name in ("blurred.png", "covered.png")
    ]
    assert f"why, with pictures: {out / 'report.html'}" in text
    html = (out / "report.html").read_text()
    assert "<h2>Kept: 2 (1 of them shown)</h2>" in html
    assert "2 files are not in it" in html


def test_lists_wait_for_all_shards(prepare, faces, tmp_path):
    (faces / "cut.png").unlink()
    out = tmp_path / "kept"
    text = prepare("filter", f"root={faces}", f"out={out}", "shard=1/2")[1]
    assert "shards not finished yet: 2/2; the last of them, or this command again after it, writes kept.txt" in text
    assert not (out / "kept.txt").exists()
    assert prepare("filter", f"root={faces}", f"out={out}", "shard=2/2")[0] == 0
    assert (out / "kept.txt").read_text() == "# paths start from ../faces\na/sharp.png\n"


def test_bounds():
    assert Bound("sharpness", 50, True).fails({"sharpness": 50.0}) == ""
    assert Bound("sharpness", 50, True).fails({"sharpness": 49.5}) == "sharpness 49.5 is below 50"
    assert Bound("quality", 5, False).fails({"quality": 5.25}) == "quality 5.25 is above 5"
    assert Bound("face_px", 5, True).fails({}) == "face_px could not be measured"


@pytest.mark.parametrize("name", ["# a.png", "a\nb.png", " a.png", "a\udcff.png"])
def test_names_that_a_list_cannot_hold(name):
    check_names(["a #1.png", "sub/ü.png"])
    with pytest.raises(ValueError, match=r"1 names can't stand in a list of paths, the first is .*: rename these files"):
        check_names(["a.png", name])


def test_quality_says_what_is_missing(prepare, faces, tmp_path, monkeypatch):
    command = ("filter", f"root={faces}", f"out={tmp_path / 'kept'}")
    assert prepare(*command, "quality_limit=50") == (1, "error: quality_limit=50 needs quality=, such as quality=musiq\n")
    monkeypatch.setattr(filtering.importlib.util, "find_spec", lambda name: None)
    code, text = prepare(*command, "quality=musiq")
    assert code == 1
    assert text == "error: quality=musiq needs the package pyiqa: uv pip install pyiqa, or leave out quality=\n"
    assert not (tmp_path / "kept").exists()


def test_names_are_escaped_and_charts_drawn(tmp_path):
    tiles = [Tile("<b>.png", "", ("a & b",))]
    charts = [Chart("sharpness", [0.0, 1.0, 1.0, 4.0], 2.0), Chart("none", [], None), Chart("flat", [3.0], None)]
    html = page(title="t", root=tmp_path, rows={"kept": "<1>"}, tiles=tiles, charts=charts, most=5)
    assert "&lt;b&gt;.png" in html
    assert "a &amp; b" in html
    assert "&lt;1&gt;" in html
    assert "<div>unreadable</div>" in html
    assert html.count("<svg") == 2
    assert html.count("<rect") == 80
    (limit,) = re.findall(r'<line x1="([\d.]+)"', html)
    # 2 of 0 to the 99th percentile of 0, 1, 1, 4, which is 1 + 3 * 0.97, in 320 px
    assert float(limit) == pytest.approx(320 * 2 / 3.91, abs=0.06)

"""Planted faults are named, each for what it is; sound files are not."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest

from data.prepare.check import Limits, findings
from tests.data.prepare.conftest import textured, write


def moved(portrait, matrix):
    return cv2.warpAffine(portrait, np.array(matrix, dtype=float), (512, 512), borderMode=cv2.BORDER_REFLECT)


@pytest.fixture
def planted(tmp_path, portrait):
    """A sound portrait and eleven files with one fault each. A mirrored portrait is another picture.

    The portrait is an enlargement: grain makes it sharp.
    """
    root, coarse = tmp_path / "faces", moved(portrait[:, ::-1], [[1, 0, 0], [0, 1, -20]])
    grain = np.random.default_rng(0).normal(0, 8, (512, 512, 1))
    portrait = (portrait + grain).clip(0, 255).round().astype(np.uint8)
    mirror = portrait[:, ::-1].copy()
    write(root / "a.png", portrait)
    write(root / "enlarged.png", cv2.resize(cv2.resize(coarse, (128, 128)), (512, 512), interpolation=cv2.INTER_CUBIC))
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:20_000])
    (root / "text.png").write_text("no image")
    write(root / "small.png", cv2.resize(mirror, (100, 100), interpolation=cv2.INTER_AREA))
    (root / "b").mkdir()
    shutil.copy(root / "a.png", root / "b" / "copy.png")
    write(root / "coded.jpg", portrait, [cv2.IMWRITE_JPEG_QUALITY, 75])
    write(root / "shifted.png", moved(portrait, [[1, 0, 60], [0, 1, 0]]))
    write(root / "turned.png", moved(portrait, cv2.getRotationMatrix2D((256, 256), 15, 1)))
    write(root / "large.png", moved(portrait, cv2.getRotationMatrix2D((256, 300), 0, 1.4)))
    write(root / "field.png", textured(512, 512, seed=1, cell=256))
    write(root / "grey.png", np.repeat(moved(mirror, [[1, 0, 0], [0, 1, 20]])[..., 1:2], 3, axis=2))
    return root


EXPECTED = {
    ("b/copy.png", "duplicate", 0),
    ("coded.jpg", "duplicate", 0),
    ("cut.png", "corrupt", 20_000),
    ("enlarged.png", "enlarged", 4.5),
    ("field.png", "no_face", 0),
    ("grey.png", "grey", 0),
    ("large.png", "misaligned", 1.4),
    ("shifted.png", "off_centre", 60),
    ("small.png", "small", 100),
    ("text.png", "corrupt", 8),
    ("turned.png", "misaligned", -15),
}


def test_planted_faults_are_named(prepare, planted, tmp_path):
    out = tmp_path / "report"
    code, text = prepare("check", f"root={planted}", f"out={out}")
    assert code == 1
    with (out / "report.csv").open() as file:
        found = list(csv.DictReader(file))
    assert {(row["path"], row["kind"]) for row in found} == {(path, kind) for path, kind, _ in EXPECTED}
    assert len(found) == len(EXPECTED) == 11
    for path, kind, figure in EXPECTED:
        (row,) = (row for row in found if row["path"] == path)
        assert float(row["figure"]) == pytest.approx(figure, abs={"off_centre": 4, "duplicate": 4}.get(kind, 1.5)), path
        assert f"{path}: {kind}: {row['reason']}" in text.splitlines()
    assert (
        "12 files, 11 with something wrong: 2 corrupt, 1 small, 1 grey, 1 enlarged, 2 duplicate, 1 no_face, 1 off_centre"
        in text
    )
    assert "b/copy.png: duplicate: the same bytes as a.png" in text
    report = json.loads((out / "report.json").read_text())
    assert report["files"] == 12
    assert report["counts"]["duplicate"] == 2
    assert report["limits"]["max_rotation_deg"] == 10

    # other limits need no second look at the files, and what is mended is looked at again
    record = out / ".check-faces" / "1-of-1.jsonl"
    lines = record.read_text().count("\n")
    for name in ("cut.png", "text.png", "small.png", "b/copy.png", "coded.jpg", "field.png"):
        (planted / name).unlink()
    wide = ("max_offset_px=70", "max_rotation_deg=20", "max_scale=1.5")
    code, text = prepare("check", f"root={planted}", f"out={out}", "kinds=off_centre,misaligned,duplicate", *wide)
    assert code == 0, text
    assert "6 files, 0 with something wrong" in text
    assert record.read_text().count("\n") == lines
    assert (out / "report.csv").read_text() == "path,kind,figure,limit,unit,reason\n"


def test_shards_equal_one_process(prepare, planted, tmp_path):
    (planted / "text.png").unlink()
    cheap = "kinds=small,grey,duplicate"
    assert prepare("check", f"root={planted}", f"out={tmp_path / 'one'}", cheap)[0] == 1
    command = ("check", f"root={planted}", f"out={tmp_path / 'three'}", cheap)
    for part, missing in ((3, "1/3, 2/3"), (1, "2/3")):
        text = prepare(*command, f"shard={part}/3")[1]
        assert f"shards not finished yet: {missing}; the last of them, or this command again" in text
        assert not (tmp_path / "three" / "report.csv").exists()
    assert "not finished" not in prepare(*command, "shard=2/3")[1]
    for name in ("report.csv", "report.json"):
        assert (tmp_path / "three" / name).read_text() == (tmp_path / "one" / name).read_text()
    found = (tmp_path / "one" / "report.csv").read_text()
    assert found.count("\n") == 1 + 5  # cut.png too: a file that can't be decoded is always named


LIMITS = Limits(512, 8, 12, 0.9, 40, 10, 1.25)
SOUND = {"width": 512, "height": 600, "grey_spread_255": 8.5, "confidence": 0.9, "offset_px": 40.0}
SOUND |= {"rotation_deg": -10.0, "scale": 0.8, "bytes": 1, "hash": "00" * 32, "sha256": "0"}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, None),
        ({"height": 511}, "small"),
        ({"grey_spread_255": 8.0}, "grey"),
        ({"confidence": 0.89}, "no_face"),
        ({"offset_px": 40.1}, "off_centre"),
        ({"rotation_deg": -10.1}, "misaligned"),
        ({"scale": 0.79}, "misaligned"),
        ({"error": "cut"}, "corrupt"),
    ],
)
def test_limits(change, kind):
    kinds = ("small", "grey", "duplicate", "no_face", "off_centre", "misaligned")
    found = findings({"a": SOUND | change}, kinds, LIMITS)
    assert [one.kind for one in found] == ([kind] if kind else [])
    if kind and kind != "corrupt":
        assert found[0].figure == pytest.approx(next(iter(change.values())))
    assert findings({"a": SOUND | change}, ("duplicate",), LIMITS) == [] or kind == "corrupt"


def test_enlarged_faces_are_named():
    (finding,) = findings({"a": SOUND | {"detail": 4.2}, "b": SOUND | {"detail": 9.8}, "c": SOUND}, ("enlarged",), LIMITS)
    assert (finding.path, finding.figure, finding.limit) == ("a", 4.2, 7.0)
    assert finding.reason == "no more detail than 128 px enlarged: 4.2 % of its contrast, below 7"

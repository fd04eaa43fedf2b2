"""Sizes and names; and, since it is the cheapest command, stopping, killing, continuing and splitting."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.prepare.jobs import work
from data.prepare.jobs.files import encode, output_stems
from data.prepare.jobs.work import Progress
from tests.data.prepare.conftest import textured, write
from tests.toy import ROOT


def pngs(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_sizes_names_and_filters(prepare, tmp_path):
    root = tmp_path / "images"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write(root / "a.png", pixels)
    write(root / "sub" / "wide.jpg", textured(64, 96, seed=1))
    write(root / "sub" / "wide.png", textured(96, 64, seed=2))
    write(root / "tiny.png", textured(16, 40, seed=3))
    code, text = prepare("resize", f"root={root}", f"out={tmp_path / 'area'}", "size=32", "resample=area")
    assert code == 1
    assert f"not used: {root / 'tiny.png'} is 40x16, smaller than size=32" in text
    assert "3 of 4 images are at 32 px" in text
    made = {name: Image.open(tmp_path / "area" / name).size for name in pngs(tmp_path / "area")}
    assert made == {"a.png": (32, 32), "sub/wide.jpg.png": (48, 32), "sub/wide.png.png": (32, 48)}
    means = pixels.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    # rows and columns are rounded each
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "area" / "a.png")), means, rtol=0, atol=1)

    (root / "tiny.png").unlink()
    code, _ = prepare("resize", f"root={root}", f"out={tmp_path / 'jpg'}", "size=32", "suffix=jpg", "jpeg_quality=90")
    assert code == 0
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.LANCZOS)).astype(int)
    found = np.asarray(Image.open(tmp_path / "jpg" / "a.jpg")).astype(int)
    assert 0 < np.abs(found - expected).mean() < 12  # noise is what JPEG keeps worst
    assert Image.open(tmp_path / "jpg" / "a.jpg").layer[0][1:3] == (1, 1)  # colour at full resolution


def test_only_what_is_not_done_is_done(prepare, tmp_path):
    root, out = tmp_path / "images", tmp_path / "small"
    for seed in range(4):
        write(root / f"{seed}.png", textured(48, 48, seed))
    (root / "broken.png").write_bytes(b"")
    command = ("resize", f"root={root}", f"out={out}", "size=24")
    assert prepare(*command)[0] == 1
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    (out / "1.png").unlink()
    write(root / "2.png", textured(48, 48, seed=9))
    write(root / "broken.png", textured(48, 48, seed=10))
    code, text = prepare(*command)
    assert code == 0
    assert "resize: 2 of 5 files were done before" in text
    done_again = {path.name for path in out.glob("*.png") if path.stat().st_mtime_ns != times.get(path.name)}
    assert done_again == {"1.png", "2.png", "broken.png"}
    assert prepare(*command)[1] == f"5 of 5 images are at 24 px in {out}, 0 not usable\nresize: 5 of 5 files were done before\n"


def test_shards_equal_one_process(prepare, tmp_path, monkeypatch):
    root = tmp_path / "images"
    for seed in range(5):
        write(root / f"{seed}.png", textured(48, 48, seed))
    assert prepare("resize", f"root={root}", f"out={tmp_path / 'one'}", "size=24")[0] == 0
    command = ("resize", f"root={root}", f"out={tmp_path / 'three'}", "size=24")
    text = prepare(*command, "shard=2/3")[1]
    assert "2 of 2 images are at 24 px" in text
    assert "shards not finished yet: 1/3, 3/3" in text
    for task, expected in ((7, 2), (9, 1)):
        for name, value in (("ID", task), ("MIN", 7), ("MAX", 9), ("COUNT", 3)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        text = prepare(*command)[1]
        monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
        assert f"{expected} of {expected} images are at 24 px" in text
    assert "not finished" not in text
    assert pngs(tmp_path / "three") == pngs(tmp_path / "one")
    wanted = Image.fromarray(textured(48, 48, 4)).resize((24, 24), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "three" / "4.png")), np.asarray(wanted))


def wait_for_lines(record, more, process=None):
    """Until so many files more are on record."""
    before = record.read_bytes().count(b"\n") if record.exists() else 1
    deadline = time.monotonic() + 60
    while not record.exists() or record.read_bytes().count(b"\n") < before + more:
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.005)


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [below for child in children for below in descendants(child)]


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def photographs(tmp_path):
    """60 of them, which take one worker about two seconds."""
    for seed in range(60):
        write(tmp_path / "images" / f"{seed:03}.png", textured(700, 700, seed))
    return tmp_path / "images"


def halving(root, out):
    """Arguments, and the file with a line for each image that is done."""
    return ("resize", f"root={root}", f"out={out}", "size=350", "workers=1"), out / ".resize" / "1-of-1.jsonl"


def goes_on(prepare, out, arguments, record):
    """To the end, from where it was, and nothing is done twice."""
    code, text = prepare(*arguments)
    assert code == 0
    assert 5 <= int(text.partition(" of 60 files were done before")[0].rpartition(" ")[2]) < 60
    assert len(record.read_bytes().splitlines()) == 1 + 60
    expected = Image.fromarray(textured(700, 700, 59)).resize((350, 350), Image.Resampling.LANCZOS)
    assert len(pngs(out)) == 60
    np.testing.assert_array_equal(cv2.imread(str(out / "059.png"))[..., ::-1], np.asarray(expected))


@pytest.mark.slow
def test_killed_work_leaves_no_process_and_goes_on(prepare, tmp_path, photographs):
    out = tmp_path / "small"
    arguments, record = halving(photographs, out)
    command = [sys.executable, "-m", "data.prepare", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as running:
        wait_for_lines(record, 5, running)
        helpers = descendants(running.pid)
        running.kill()
    assert len(helpers) >= 2
    deadline = time.monotonic() + 20
    while any(map(alive, helpers)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.01)
    goes_on(prepare, out, arguments, record)


def test_stopped_work_goes_on(prepare, tmp_path, photographs):
    out = tmp_path / "small"
    arguments, record = halving(photographs, out)

    def stop():
        wait_for_lines(record, 5)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    code, text = prepare(*arguments)
    stopper.join()
    assert code == 75
    assert "stopped by SIGTERM: the same command goes on from here" in text
    goes_on(prepare, out, arguments, record)


class Killer:
    """Ends the process that runs it, as the system does when memory runs out."""

    def __call__(self, path):
        os.kill(os.getpid(), signal.SIGKILL)


class Full:
    """A disk without space."""

    def __call__(self, path):
        raise OSError(28, "No space left on device", path)


class Fault:
    """A fault of ours on one file."""

    def __call__(self, path):
        if path == "1.png":
            raise RuntimeError("unheard of")
        return {"figure": 1}


@pytest.mark.parametrize(("measure", "said"), [(Killer(), "a worker process was killed.*workers="), (Full(), "No space left")])
def test_what_ends_the_work(tmp_path, measure, said):
    root, out = tmp_path / "images", tmp_path / "out"
    write(root / "0.png", textured(8, 8, 0))
    with pytest.raises((ValueError, OSError), match=said):
        run(root, out, measure)


def test_a_fault_on_one_file_does_not(tmp_path, capsys):
    root, out = tmp_path / "images", tmp_path / "out"
    for number in range(3):
        write(root / f"{number}.png", textured(8, 8, number))
    done = run(root, out, Fault())
    assert [record.get("figure") for record in done.records.values()] == [1, None, 1]
    assert done.unusable() == 1
    assert f"not used: {root / '1.png'}: RuntimeError: unheard of" in capsys.readouterr().err


def run(root, out, measure):
    paths = work.listing(root, out)
    options = {"name": "try", "settings": {}, "workers": 1, "shard": work.Shard(1, 1)}
    return work.run(root=root, out=out, paths=paths, measure=measure, **options)


def test_progress_line():
    progress = Progress("align", total=1000, done=0)
    for _ in range(100):
        progress.step(failed=False)
    progress.step(failed=True)
    assert progress.line(10.0).rstrip() == "align: 101/1000 files, 10.0 a second, 0:01:29 left, 1 not usable"


def test_names_that_would_meet():
    assert output_stems(["a.png", "b/a.png", "b/a.jpg"]) == {"a.png": "a", "b/a.png": "b/a.png", "b/a.jpg": "b/a.jpg"}
    with pytest.raises(ValueError, match=r"a\.png and a\.png\.jpg would be written as one file"):
        output_stems(["a.jpg", "a.png", "a.png.jpg"])


def test_png_is_exact():
    pixels = textured(20, 30, seed=4)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(encode(pixels, ".png"), np.uint8), 1)[..., ::-1], pixels)

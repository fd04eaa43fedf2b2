"""2,000 damaged small files of every kind that is opened: each ends soon, in little memory, with success or one sentence."""

import io
import os
import random
import resource
import shutil
import signal
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hydra.errors import HydraException
from PIL import Image

from data.images import decode
from data.reading import read_image
from data.sources.opening import open_images
from models.files import official
from models.files.families import full_state
from tests.data.sources.test_archives import write_lmdb, write_tar
from tests.models import test_elan
from tests.models.files.test_official import arguments, filled, save_run
from train.conf import refuse_shadows
from train.jobs.arguments import compose, continued
from train.runs.checkpoint import load

pytestmark = pytest.mark.slow
LIMIT_S, SPARE = 5, 1 << 30  # of one file: seconds, and bytes of memory beside what the process has
SAID = (ValueError, OSError, HydraException, yaml.YAMLError)  # what the commands print as one sentence


def opened(root: Path) -> None:
    source = open_images(root=str(root))
    for number in range(min(len(source), 8)):
        read_image(source, number)


def of_a_run(folder: Path) -> None:
    os.chdir(folder.parent)
    continued([f"resume={folder.name}", "name=x"])


def composed(folder: Path) -> None:
    refuse_shadows(folder)
    compose([f"hydra.searchpath=['file://{folder}']", "experiment=theirs"])


def weights(file: Path) -> None:
    official.inspect(str(file))
    official.build(file)


def pictures() -> dict[str, bytes]:
    """PNGs of every depth, and a JPEG."""
    pixels = Image.fromarray(np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3))
    made = {f"{mode}.png": pixels.convert(mode) for mode in ("RGB", "L", "P", "RGBA", "1")}
    made |= {"deep.png": Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 255), "a.jpg": pixels}
    found = {}
    for name, image in made.items():
        file = io.BytesIO()
        image.save(file, "JPEG" if name == "a.jpg" else "PNG")
        found[name] = file.getvalue()
    return found


def seeds(folder: Path) -> dict[str, tuple[list[Path], Callable[[Path], None], int]]:
    """Kind -> whole files (or folders of files), what opens them, and how many damaged ones are tried."""
    images = pictures()
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for name, content in images.items():
        (photos / name).write_bytes(content)
    save_run(folder / "run", filled(), filled(name="average/"), arguments("diffbir"))
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "global_step": 1, "effective_batch": 1, "slurm_job": None}, checkpoint)
    torch.save({"params_ema": full_state(test_elan.tiny()), "x": np.float64(3)}, folder / "elan.pth")
    torch.save(full_state(test_elan.tiny()), folder / "old.pth", _use_new_zipfile_serialization=False)
    official.export(folder / "run", folder / "run.safetensors", "safetensors")
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in images.items():
            archive.writestr(f"deep/{name}", content)
    write_tar(folder / "a.tar", images)
    write_lmdb(folder / "lmdb", images)
    rows = [{"bytes": content, "path": name} for name, content in images.items()]
    pq.write_table(pa.table({"image": pa.array(rows)}), folder / "a.parquet")
    (folder / "list.txt").write_text("".join(f"photos/{name}\n" for name in images))
    (folder / "of_run").mkdir()
    written = {
        "name": "x",
        "arguments": ["model=swinir_ffhq", "optimizer.lr=1e-3", "name=x"],
        "seed": 0,
        "data": {"root": "${a}"},
    }
    (folder / "of_run" / "config.yaml").write_text(yaml.safe_dump(written))
    (folder / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /model: swinir_ffhq\nname: &a x\nseed: 1\nnetwork: {depths: [1, 1]}\n"
    (folder / "conf" / "experiment" / "theirs.yaml").write_text(text)
    return {
        "checkpoint": ([folder / "elan.pth", folder / "old.pth"], weights, 300),
        "checkpoint of a run": ([checkpoint], lambda file: load(file) and None, 150),
        "safetensors": ([folder / "run.safetensors"], weights, 200),
        "zip": ([folder / "a.zip"], opened, 250),
        "tar": ([folder / "a.tar"], opened, 250),
        "lmdb": ([folder / "lmdb"], opened, 100),
        "parquet": ([folder / "a.parquet"], opened, 150),
        "picture": ([photos / name for name in images], lambda file: decode(file.read_bytes(), file.name) is None or None, 250),
        "list": ([folder / "list.txt"], opened, 100),
        "yaml of a run": ([folder / "of_run"], of_a_run, 150),
        "yaml of a folder": ([folder / "conf"], composed, 100),
    }


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, put in or copied, most of them near the ends, where the heads of files lie."""
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        size = len(made)
        if not size:
            break
        low, high = rng.choice([(0, min(size, 4096)), (0, size), (max(0, size - 4096), size)])
        at, other = rng.randrange(low, high), rng.randrange(size)
        match rng.randrange(6):
            case 0:
                made[at] = rng.randrange(256)
            case 1:
                del made[at : at + rng.choice([1, 4, 100])]
            case 2:
                made[at:at] = rng.randbytes(rng.choice([1, 4]))
            case 3:
                made[at : at + 40] = made[other : other + 40]
            case 4:
                made[at] ^= 1 << rng.randrange(8)
            case 5:  # a number becomes large
                made[at : at + 4] = rng.choice([b"\xff" * 4, b"9999", b"\x7f\xff\xff\xff", b"\0" * 4])
    return bytes(made)


def place(seed: Path, folder: Path, rng: random.Random) -> Path:
    """A damaged copy; of a folder one file is."""
    copy = folder / seed.name
    if seed.is_dir():
        shutil.copytree(seed, copy)
        file = rng.choice(sorted(each for each in copy.rglob("*") if each.is_file() and each.name != "lock.mdb"))
    else:
        shutil.copy(seed, copy)
        file = copy
    content = file.read_bytes()
    if zipfile.is_zipfile(file) and file.suffix in (".pth", ".ckpt") and rng.random() < 0.7:  # the pickle within
        file.write_bytes(_with_damaged_pickle(content, rng))
    else:
        file.write_bytes(damaged(content, rng))
    return copy


def _with_damaged_pickle(content: bytes, rng: random.Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as written:
        for name in archive.namelist():
            member = archive.read(name)
            written.writestr(name, damaged(member, rng) if name.endswith("data.pkl") else member)
    return out.getvalue()


def opens(open_file: Callable[[Path], None], file: Path) -> None:
    """Raises AssertionError: a whole file is refused, so that damaged ones would say nothing of what reads them."""
    try:
        open_file(file)
    except SAID as error:
        raise AssertionError(f"{file} is whole") from error


def ended(open_file: Callable[[Path], None], file: Path, report: Path) -> str:
    """What came of it in a process of its own: empty, or what was wrong with how it ended."""
    child = os.fork()
    if not child:
        try:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + SPARE, now + SPARE))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LIMIT_S)
            open_file(file)
        except SAID as error:
            if not str(error).strip():
                report.write_text(f"without a word: {traceback.format_exc()}")
        except BaseException:
            report.write_text(traceback.format_exc())
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return report.read_text() if report.exists() else ""


KINDS = ("checkpoint", "checkpoint of a run", "safetensors", "zip", "tar", "lmdb", "parquet", "picture", "list")
KINDS += ("yaml of a run", "yaml of a folder")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets  # noqa: F401  # once, not in each process

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    kinds = seeds(tmp_path / "whole")
    assert sum(count for _, _, count in kinds.values()) == 2000
    assert tuple(kinds) == KINDS
    whole, open_file, count = kinds[kind]
    assert not [said for file in whole if (said := ended(lambda file: opens(open_file, file), file, tmp_path / "report"))]
    rng = random.Random(kind)
    wrong: dict[str, str] = {}
    case = tmp_path / "case"
    for number in range(count):
        (case / "in").mkdir(parents=True)
        file = place(rng.choice(whole), case / "in", rng)
        if kind == "list":
            shutil.copytree(tmp_path / "whole" / "photos", case / "in" / "photos")
        before = sorted(case.rglob("*"))
        said = ended(open_file, file, tmp_path / "report")
        if sorted(case.rglob("*")) != before or {path.name for path in tmp_path.iterdir()} - NAMES:
            said += "\nleft something behind"
        if said:
            wrong.setdefault(said.strip().splitlines()[-1][:200], f"{kind} {number}: {said[-1500:]}")
            (tmp_path / "report").unlink(missing_ok=True)
        shutil.rmtree(case)
    assert not wrong, "\n\n".join(wrong.values())


NAMES = {"whole", "case", "temporary", "report"}

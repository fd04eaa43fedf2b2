"""restore.py as a user calls it: runs and files in, PNGs out, and what can go wrong."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import to_tensor
from models.codeformer import CodeFormer
from models.elan import ELAN
from models.families import full_state
from tests.toy import ROOT, write_photographs
from train.restore import main

Cli = Callable[..., tuple[int, str]]
TINY = {"m_elan": 2, "c_elan": 15, "n_share": 0, "r_expand": 2, "window_sizes": [4, 8, 16], "img_range": 255.0}


@pytest.fixture
def restore(command: Cli) -> Cli:
    return lambda *arguments: command(main, *arguments)


@pytest.fixture
def elan(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save({"params": full_state(ELAN(scale=1, **TINY))}, tmp_path / "elan.pth")  # type: ignore[arg-type]
    return tmp_path / "elan.pth"


def test_a_folder(elan: Path, tmp_path: Path, restore: Cli) -> None:
    photographs = write_photographs(tmp_path / "in" / "deep", count=3, size=80)
    arguments = [f"ckpt={elan}", f"input={photographs.parent}", f"output={tmp_path / 'out'}", "tile_px=48", "overlap_px=16"]
    code, printed = restore(*arguments)
    assert code == 0, printed
    assert printed.startswith(f"3 of 3 images restored into {tmp_path / 'out'}, ")
    made = sorted((tmp_path / "out" / "deep").iterdir())
    assert [file.name for file in made] == ["00.png", "01.png", "02.png"]
    assert np.asarray(Image.open(made[0])).shape == (80, 80, 3)
    made[1].unlink()
    before = made[0].stat().st_mtime_ns
    assert restore(*arguments)[1].startswith("1 of 3 images restored"), "it goes on where it ended"
    assert made[0].stat().st_mtime_ns == before
    assert restore(*arguments, "overwrite=true")[1].startswith("3 of 3")


def test_one_image_through_the_script(elan: Path, tmp_path: Path) -> None:
    photo = write_photographs(tmp_path / "in", count=1) / "00.png"
    command = [sys.executable, str(ROOT / "restore.py"), f"ckpt={elan}", f"input={photo}", "output=out", "device=cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "00.png").is_file()


def test_codeformer_at_several_w(tmp_path: Path, restore: Cli) -> None:
    torch.manual_seed(0)
    small = {"img_size": 16, "nf": 32, "ch_mult": [1, 2], "res_blocks": 1, "attn_resolutions": [8], "codebook_size": 24}
    network = CodeFormer(
        **small, emb_dim=8, dim_embd=16, n_head=8, n_layers=1, connect_list=[8, 16], fix_modules=["quantize", "generator"]
    ).eval()
    torch.save({"params_ema": network.state_dict()}, tmp_path / "codeformer.pth")
    photo = write_photographs(tmp_path / "in", count=1, size=16) / "00.png"
    code, printed = restore(f"ckpt={tmp_path / 'codeformer.pth'}", f"input={photo}", "output=out", "w=[0,0.5,1]")
    assert code == 0, printed
    strip = to_tensor(np.asarray(Image.open(tmp_path / "out" / "00.png")))
    with torch.no_grad():
        lq = to_tensor(np.asarray(Image.open(photo)))[None]
        each = [network(lq, w=w, adain=True).restored[0].clamp(0, 1) for w in (0, 0.5, 1)]
    torch.testing.assert_close(strip, torch.cat(each, dim=-1), rtol=0, atol=0.51 / 255)
    code, printed = restore(f"ckpt={tmp_path / 'codeformer.pth'}", f"input={photo}", "output=out2", "w=-1")
    assert code == 1
    assert "w=-1.0: fidelity is 0 or more" in printed


def test_bad_images_are_named_and_the_rest_is_done(elan: Path, tmp_path: Path, restore: Cli) -> None:
    photographs = write_photographs(tmp_path / "in", count=2)
    (photographs / "00.png").write_bytes(b"not a picture")
    Image.fromarray(np.zeros((5, 5, 3), dtype=np.uint8)).save(photographs / "tiny.png")
    code, printed = restore(f"ckpt={elan}", f"input={photographs}", f"output={tmp_path / 'out'}")
    assert code == 1
    assert "1 of 3 images restored" in printed
    assert f"error: {photographs / '00.png'}" in printed
    assert f"error: {photographs / 'tiny.png'}: an image of 5x5 is too small" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "ckpt is not set: give ckpt=FILE input=DIR output=DIR"),
        (["ckpt={elan}", "inptu=x"], "inptu=x: give KEY=VALUE with a key of .*; did you mean input"),
        (["ckpt={elan}", "input={here}/gone", "output=o"], "gone"),
        (["ckpt={here}/gone.pth", "input={photos}", "output=o"], "gone.pth"),
        (["ckpt={elan}", "input={photos}", "output=o", "tile_px=many"], "tile_px: .*many"),
        (["ckpt={elan}", "input={photos}", "output=o", "which=best"], "which=best: give ema or network"),
        (["ckpt={elan}", "input={photos}", "output=o", "device=tpu9"], "device=tpu9 can't be used"),
        (["ckpt={elan}", "input={twins}", "output=o"], "several images would become o/a.png"),
    ],
)
def test_mistakes(
    arguments: list[str],
    says: str,
    elan: Path,
    tmp_path: Path,
    restore: Cli,
) -> None:
    photos = write_photographs(tmp_path / "photos", count=1)
    twins = tmp_path / "twins"
    twins.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.open(photos / "00.png").save(twins / name)
    places = {"elan": elan, "here": tmp_path, "photos": photos, "twins": twins}
    code, printed = restore(*(argument.format(**places) for argument in arguments))
    assert code == 1
    assert re.search(says, printed), printed
    assert "Traceback" not in printed

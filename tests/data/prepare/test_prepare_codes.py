"""Codes made before training: the same as those computed on the fly, and refused where they would not be."""

import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from data.columns.codes import CodeFile, read
from data.cutting import center_crop
from data.images import to_tensor
from data.prepare.__main__ import COMMANDS
from data.prepare.jobs.arguments import main
from models.vqgan import VQAutoEncoder
from tests.toy import write_photographs

SIZE = 32
NETWORK = {"img_size": SIZE, "nf": 32, "ch_mult": [1, 2], "res_blocks": 1, "attn_resolutions": [16]}
NETWORK |= {"codebook_size": 16, "emb_dim": 8}
STAGE2 = [
    *("model=codeformer_stage2", "init.stage1=vq.ckpt", "data.root=photographs", "network.ch_mult=[1,2]"),
    *("network.img_size=32", "network.nf=32", "network.res_blocks=1", "network.attn_resolutions=[16]"),
    *("network.codebook_size=16", "network.emb_dim=8", "network.dim_embd=16", "network.n_head=2", "network.n_layers=1"),
    *("network.connect_list=[32]", "data.size=32", "data.val_size=32", "data.val_images=2", "data.batch_size=2"),
    *("data.num_workers=0", "trainer.max_steps=6", "trainer.val_check_interval=6", "trainer.log_every_n_steps=1"),
    *("trainer.accumulate_grad_batches=1", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu"),
    "validation.lpips=null",
]


def write_teacher(path, seed=0):
    """A run's checkpoint."""
    torch.manual_seed(seed)
    network = VQAutoEncoder(**NETWORK)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    config = {"network": {"_target_": "models.vqgan.VQAutoEncoder", **NETWORK}}
    torch.save({"state_dict": state, "config": config}, path)
    return network.eval()


@pytest.fixture
def teacher(tmp_path):
    """What vq.ckpt holds, beside six photographs/ of 40x40, 00.png to 05.png."""
    write_photographs(tmp_path / "photographs", size=40)
    return write_teacher(tmp_path / "vq.ckpt")


@pytest.fixture
def prepare(command):
    """Arguments in, (exit code, what was printed) out; in tmp_path."""
    return lambda *arguments: command(lambda: sys.exit(main(COMMANDS, list(arguments))))


@pytest.fixture
def made(teacher, tmp_path, prepare):
    """codes/codes.safetensors of photographs/."""
    code, printed = prepare("codes", "root=photographs", "out=codes", "ckpt=vq.ckpt", "size=32", "workers=1")
    assert code == 0, printed
    assert "6 of 6 images have codes, 0 not usable\ntrain on them with data.codes=codes/codes.safetensors" in printed
    return tmp_path / "codes" / "codes.safetensors"


@torch.no_grad()
def on_the_fly(teacher, file):
    """(2, h, w): codes of an image and of its mirror image."""
    image = to_tensor(center_crop(np.asarray(Image.open(file)), SIZE))
    return teacher.quantize.nearest(teacher.encode(torch.stack([image, image.flip(2)]))).numpy()


def rewritten(file, **changes):
    """Another file of codes with changed parts."""
    other = file.with_name(f"{'_'.join(changes)}.safetensors")
    other.write_bytes(CodeFile(**(read(str(file)).__dict__ | changes)).packed())
    return other


def weights(name):
    saved = torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)
    return saved["state_dict"]


def test_training_ends_in_the_same_weights(made, cli):
    assert cli(*STAGE2, "name=fly")[0] == 0
    assert cli(*STAGE2, "name=made", f"data.codes={made}", "data.num_workers=1")[0] == 0
    fly, with_codes = weights("fly"), weights("made")
    assert all(torch.equal(fly[key], with_codes[key]) for key in fly)
    changed = rewritten(made, hflip=(read(str(made)).hflip + 1) % 16)
    assert cli(*STAGE2, "name=changed", f"data.codes={changed}")[0] == 0
    assert not all(torch.equal(fly[key], value) for key, value in weights("changed").items()), "they are read, flips too"


def test_the_official_file_is_read(made, cli, tmp_path):
    ours = read(str(made))
    official = {
        way: {f"0{n}": codes.astype(np.int64) for n, codes in enumerate(getattr(ours, way))} for way in ("orig", "hflip")
    }
    torch.save(official, tmp_path / "latent_gt_code16.pth")
    theirs = read("latent_gt_code16.pth")
    np.testing.assert_array_equal(theirs.orig, ours.orig)
    np.testing.assert_array_equal(theirs.hflip, ours.hflip)
    old = tmp_path / "numpy1.pth"
    with zipfile.ZipFile("latent_gt_code16.pth") as whole, zipfile.ZipFile(old, "w", zipfile.ZIP_STORED) as copy:
        for member in whole.namelist():
            copy.writestr(member, whole.read(member).replace(b"numpy._core.", b"numpy.core."))
    np.testing.assert_array_equal(read(str(old)).orig, ours.orig)
    assert cli(*STAGE2, "name=official", "trainer.max_steps=1", "data.codes=latent_gt_code16.pth")[0] == 0
    torch.save({way: {name: 15 - each for name, each in codes.items()} for way, codes in official.items()}, "other.pth")
    code, printed = cli(*STAGE2, "name=other", "data.codes=other.pth")
    assert code == 1
    assert "data.codes=other.pth was made by another network than codes.teacher=vq.ckpt" in printed


def test_what_does_not_fit_is_refused(made, cli, tmp_path):
    write_photographs(tmp_path / "more", count=7, size=40)
    write_photographs(tmp_path / "larger", size=48)
    (tmp_path / "cut.safetensors").write_bytes(made.read_bytes()[:3000])
    moved = ["data.crop=random", "augmentation=dihedral", "degradation.hq_too=[blur]"]
    for given, message in [
        ([f"data.codes={rewritten(made, teacher='another')}"], "was made by another network than codes.teacher=vq.ckpt"),
        ([f"data.codes={rewritten(made, size=48)}"], "is of images at 48 px, and data.size=32"),
        (["data.root=more"], "is of 6 other images than the 7 of data.root: 1 are not in it (06.png)"),
        (["data.root=larger"], "larger/0"),
        (["data.root=larger"], "has other pixels than the image of that name whose codes are in data.codes="),
        (moved, "data.crop=random, where center is needed; augmentation="),
        (moved, "degradation.hq_too=['blur'], where [] is needed: change that, or set data.codes=null"),
        (["data.codes=nowhere"], "nowhere does not exist"),
        (["data.codes=cut.safetensors"], "data.codes=cut.safetensors is truncated or no file of codes"),
        (["data.codes=vq.ckpt"], "data.codes=vq.ckpt is truncated or no file of codes"),
    ]:
        code, printed = cli(*STAGE2, f"data.codes={made}", *given)
        assert code == 1
        assert message in printed
        assert "Traceback" not in printed


def test_any_source_and_bad_images(teacher, tmp_path, prepare):
    photographs = tmp_path / "photographs"
    (photographs / "03.png").write_bytes(b"gone")
    Image.new("RGB", (40, 20)).save(photographs / "05.png")
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for file in photographs.iterdir():
            archive.write(file, f"inside/{file.name}")
    arguments = ["codes", "root=faces.zip", "out=codes", "ckpt=vq.ckpt", "size=32", "workers=1"]
    code, printed = prepare(*arguments, "shard=1/2")
    assert (code, "shards not finished yet: 2/2" in printed) == (0, True)
    code, printed = prepare(*arguments, "shard=2/2")
    assert code == 1
    assert "inside/03.png can't be read" in printed
    assert "inside/05.png is 40x20, smaller than size=32" in printed
    assert "1 of 3 images have codes, 2 not usable\ntrain on them" in printed
    codes = load_file(tmp_path / "codes" / "codes.safetensors")
    assert {name: (value.shape, str(value.dtype)) for name, value in codes.items()} == {
        "orig": ((6, 16, 16), "int16"),
        "hflip": ((6, 16, 16), "int16"),
        "checksums": ((6, 2), "int64"),
    }
    for number in (0, 1, 2, 4):
        expected = on_the_fly(teacher, photographs / f"{number:02}.png")
        np.testing.assert_array_equal([codes["orig"][number], codes["hflip"][number]], expected)
    assert codes["checksums"][[3, 5]].tolist() == [[-1, -1], [-1, -1]]
    assert read(str(tmp_path / "codes" / "codes.safetensors")).names[4] == "inside/04.png"


def test_only_what_is_new_is_encoded(made, prepare, tmp_path, teacher):
    write_photographs(tmp_path / "photographs", count=7, size=40)  # the first six again, with other times
    arguments = ["codes", "root=photographs", "out=codes", "ckpt=vq.ckpt", "size=32", "workers=1"]
    assert prepare(*arguments)[0] == 0
    code, printed = prepare(*arguments)
    assert (code, "codes: 7 of 7 files were done before" in printed) == (0, True)
    np.testing.assert_array_equal(read(str(made)).orig[6], on_the_fly(teacher, tmp_path / "photographs" / "06.png")[0])
    write_teacher(tmp_path / "vq.ckpt", seed=1)
    code, printed = prepare(*arguments)
    assert code == 1
    assert "codes was begun with teacher=" in printed


def test_mistakes_are_named_before_the_work(teacher, tmp_path, prepare):
    torch.save({"params": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "other.pth")
    for given, message in [
        (["ckpt=nowhere"], "nowhere does not exist: give a checkpoint file"),
        (["ckpt=other.pth"], "other.pth: "),
        (["ckpt=vq.ckpt", "size=33"], "size=33 can't be encoded by ckpt="),
    ]:
        code, printed = prepare("codes", "root=photographs", "out=codes", *given)
        assert code == 1
        assert message in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "codes").exists()

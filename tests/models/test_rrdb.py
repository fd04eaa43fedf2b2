"""RRDBNet: agreement with spandrel's, the official files under their three kinds of names, and tiles."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from spandrel import ModelLoader
from torch import Tensor, nn

from models.files import official
from models.files.families import rrdb as rrdb_files
from models.files.official import CheckpointError
from models.rrdb import Form, RRDBNet
from restoration.tiles import Tileable, restore_tiled
from tests.parity import fill

TINY: dict[str, Any] = {"scale": 4, "unshuffle": 1, "num_feat": 8, "num_block": 2, "num_grow_ch": 4, "form": "real_esrgan"}
# What there are official files of; spandrel has 32 channels to grow by in its code.
FORMS: dict[str, dict[str, Any]] = {
    "real_esrgan_x4": {},
    "real_esrgan_x2": {"scale": 2, "unshuffle": 2},
    "real_esrgan_x1": {"scale": 1, "unshuffle": 4},
    "bsrgan_x4": {"form": "esrgan"},
    "bsrgan_x2": {"form": "esrgan", "scale": 2},
    "old_x1": {"form": "esrgan_old", "scale": 1},
    "old_x4": {"form": "esrgan_old"},
    "old_x8": {"form": "esrgan_old", "scale": 8},
}


def tiny(**changes: Any) -> RRDBNet:
    network = RRDBNet(**{**TINY, **changes}).eval()
    network.load_state_dict({key: fill.weight(key, value.shape) for key, value in network.state_dict().items()})
    return network


def image(*shape: int) -> Tensor:
    return fill.tensor("input/rrdb", shape, kind="uniform")


def write(network: RRDBNet, path: Path) -> Path:
    torch.save(rrdb_files.write(network), path)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_equals_spandrel(name: str, tmp_path: Path) -> None:
    """Its own reading of the file that we write, values and gradients, at a size that needs padding."""
    ours = tiny(**FORMS[name], num_grow_ch=32)
    path = write(ours, tmp_path / "net.pth")
    theirs = cast(nn.Module, ModelLoader().load_from_file(path).model).double()
    ours = ours.double()
    lq = image(2, 3, 9, 7).double().requires_grad_()
    restored, expected = ours(lq), theirs(lq)
    assert restored.shape == (2, 3, 9 * ours.scale, 7 * ours.scale)
    torch.testing.assert_close(restored, expected)
    (gradient,) = torch.autograd.grad(restored.square().mean(), lq)
    (wanted,) = torch.autograd.grad(expected.square().mean(), lq)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("name", FORMS)
def test_a_file_opens_strictly_and_goes_back(name: str, tmp_path: Path) -> None:
    network = tiny(**FORMS[name])
    path = write(network, tmp_path / "given.pth")
    found = official.identify(official.read(path))
    assert (found.family, found.arguments, found.assumed) == ("rrdb", {**TINY, **FORMS[name]}, [])
    opened = official.build(path)
    assert all(torch.equal(value, opened.state_dict()[key]) for key, value in network.state_dict().items())
    for form in ("official", "safetensors"):
        out = tmp_path / f"out.{'pth' if form == 'official' else 'safetensors'}"
        official.export(path, out, cast(official.Form, form))
        again = official.build(out)
        assert isinstance(again, RRDBNet)
        assert again.form == network.form
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())
    given, written = (torch.load(tmp_path / f"{each}.pth", weights_only=True) for each in ("given", "out"))
    assert list(given) == list(written)


@pytest.mark.parametrize("wrapper", ["params", "params_ema"])
def test_full_size_keys(wrapper: str, tmp_path: Path) -> None:
    """The names and counts of the released files, written out by hand."""
    with torch.device("meta"):
        network = RRDBNet(scale=2, unshuffle=2, num_feat=64, num_block=23, num_grow_ch=32, form="real_esrgan")
    state = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    dense = [(64, 32), (96, 32), (128, 32), (160, 32), (192, 64)]
    wanted: dict[str, tuple[int, ...]] = {"conv_first.weight": (64, 12, 3, 3), "conv_first.bias": (64,)}
    for block in range(23):
        for rdb in (1, 2, 3):
            for i, (into, out) in enumerate(dense, start=1):
                wanted[f"body.{block}.rdb{rdb}.conv{i}.weight"] = (out, into, 3, 3)
                wanted[f"body.{block}.rdb{rdb}.conv{i}.bias"] = (out,)
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        wanted |= {f"{name}.weight": (64, 64, 3, 3), f"{name}.bias": (64,)}
    wanted |= {"conv_last.weight": (3, 64, 3, 3), "conv_last.bias": (3,)}
    assert state == wanted
    assert list(state) == list(wanted)
    torch.save({wrapper: tiny().state_dict()}, tmp_path / "net.pth")
    assert isinstance(official.build(tmp_path / "net.pth"), RRDBNet)


@pytest.mark.parametrize("form", ["esrgan", "esrgan_old"])
def test_names_of_the_other_files(form: Form) -> None:
    keys = [key for key in rrdb_files.write(tiny(form=form, num_block=2)) if key.endswith(".weight")]
    blocks = [(n, rdb, conv) for n in (0, 1) for rdb in (1, 2, 3) for conv in (1, 2, 3, 4, 5)]
    if form == "esrgan":
        body = [f"RRDB_trunk.{n}.RDB{rdb}.conv{conv}" for n, rdb, conv in blocks]
        names = ["conv_first", *body, "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last"]
    else:
        body = [f"model.1.sub.{n}.RDB{rdb}.conv{conv}.0" for n, rdb, conv in blocks]
        names = ["model.0", *body, "model.1.sub.2", "model.3", "model.6", "model.8", "model.10"]
    assert keys == [f"{name}.weight" for name in names]


def test_any_form_gives_starting_weights_to_a_network_of_another() -> None:
    source, network = tiny(form="esrgan_old"), RRDBNet(**TINY)
    official.load_into(network, rrdb_files.write(source))
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in source.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 4, "unshuffle": 2},
        {"scale": 2, "unshuffle": 1},
        {"form": "esrgan", "scale": 8},
        {"form": "esrgan", "scale": 2, "unshuffle": 2},
        {"form": "esrgan_old", "scale": 2, "unshuffle": 2},
    ],
)
def test_what_no_program_builds_has_no_official_form(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"has no official file of form=.*use --format safetensors"):
        rrdb_files.write(tiny(**changes))


def test_a_file_with_parts_missing_is_refused(tmp_path: Path) -> None:
    state = tiny().state_dict()
    del state["conv_hr.weight"]
    torch.save({"params_ema": state}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(conv_hr.weight\)"):
        official.build(tmp_path / "net.pth")


def test_tiles_are_the_whole_image() -> None:
    network = tiny(scale=2, unshuffle=2, num_block=1)
    assert isinstance(network, Tileable)
    with torch.no_grad():  # 15 convolutions and 4 more see 2 * 16 + 3 pixels around
        lq = image(1, 3, 321, 33)
        tiled = restore_tiled(network, lq, tile_px=300, overlap_px=148, multiple=network.multiple)
        torch.testing.assert_close(tiled, network(lq), rtol=0, atol=1e-5)


def test_an_image_too_small_to_pad() -> None:
    with pytest.raises(ValueError, match=r"an image of 1x5 is too small .* network.unshuffle=2"):
        tiny(scale=2, unshuffle=2)(image(1, 3, 1, 5))

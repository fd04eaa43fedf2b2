"""Opening, recognising, loading and writing checkpoints: round trips with spandrel, every wrapper, every kind of bad file."""

import argparse
import datetime
import decimal
import os
import resource
import subprocess
import sys
import uuid
from collections import defaultdict
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.trainer.states import RunningStage
from omegaconf import OmegaConf
from safetensors.torch import save_file
from spandrel import ModelLoader
from torch import Tensor, nn

from models.files import official
from models.files.families import full_state
from models.files.official import CheckpointError, build, load_into, read, recognise
from models.files.wrappers import WRAPPERS, unwrap
from models.swinir import SwinIR
from tests.models.diffusion.test_stable_diffusion import control
from tests.parity import fill

BODY: dict[str, Any] = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3], "window_size": 4, "mlp_ratio": 2.0}
DIFFBIR = {"unshuffle": 8, "upscale": 8, "upsampler": "nearest+conv"}
FORMS: dict[str, dict[str, Any]] = {
    "diffbir": DIFFBIR,
    "diffbir_x4": {"unshuffle": 4, "upscale": 4, "upsampler": "nearest+conv"},
    "real_sr": {"upscale": 4, "upsampler": "nearest+conv", "resi_connection": "3conv"},
    "classical_x4": {"upscale": 4, "upsampler": "pixelshuffle"},
    "classical_x3": {"upscale": 3, "upsampler": "pixelshuffle"},
    "lightweight_x2": {"upscale": 2, "upsampler": "pixelshuffledirect"},
    "jpeg_grey": {"in_chans": 1, "window_size": 7, "img_size": 14, "img_range": 255.0},
}
WRAPPER = {"diffbir": None, "diffbir_x4": None, "real_sr": "params_ema"}  # all others: params
SIDES = {"diffbir": 64, "diffbir_x4": 64, "jpeg_grey": 28}


def arguments(form: str, **changes: Any) -> dict[str, Any]:
    common = {"img_size": 16, "in_chans": 3, "unshuffle": 1, "upscale": 1, "upsampler": "", "resi_connection": "1conv"}
    return {**common, "img_range": 1.0, **BODY, **FORMS[form], **changes}


def filled(form: str = "diffbir", *, name: str = "", **changes: Any) -> SwinIR:
    network = SwinIR(**arguments(form, **changes)).eval()
    network.load_state_dict({key: fill.weight(name + key, value.shape) for key, value in network.state_dict().items()})
    return network


def image(side: int, channels: int = 3) -> Tensor:
    return fill.tensor("input/official", (1, channels, side, side), kind="uniform")


def same_weights(ours: nn.Module, theirs: nn.Module) -> bool:
    a, b = ours.state_dict(), theirs.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def unwrapped(content: object, which: str | None = None) -> dict[str, Tensor]:
    return unwrap(content, which, "FILE")[0]


def last_bias(network: nn.Module) -> Tensor:
    """What `filled` gives it does not depend on the network: it follows from the parameter's name."""
    return network.get_parameter("conv_last.bias")


def save_run(folder: Path, network: nn.Module, average: nn.Module | None, config: dict[str, Any]) -> Path:
    """A run folder with a training checkpoint: the network, its average if any, and the resolved config."""
    state = {f"network.{k}": v for k, v in network.state_dict().items()}
    state |= {f"ema.average.{k}": v for k, v in average.state_dict().items()} if average else {}
    (folder / "checkpoints").mkdir(parents=True)
    content = {"state_dict": state, "global_step": 3, "config": {"network": {"_target_": "models.swinir.SwinIR", **config}}}
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture
def diffbir(tmp_path: Path) -> Path:
    torch.save(official.full_state(filled()), tmp_path / "diffbir.pth")
    return tmp_path / "diffbir.pth"


# Round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("file_format", ["official", "safetensors"])
def test_export_is_read_by_spandrel_and_by_us(tmp_path: Path, form: str, file_format: Any) -> None:
    network = filled(form)
    run = save_run(tmp_path / "run", network, None, arguments(form))
    output = tmp_path / ("out.safetensors" if file_format == "safetensors" else "out.pth")
    official.export(run, output, file_format)

    lq = image(SIDES.get(form, 16), arguments(form)["in_chans"])
    theirs = ModelLoader().load_from_file(output).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs.model(lq), network(lq), atol=1e-5, rtol=0)
    assert same_weights(build(output), network)
    assert recognise(read(output).state).arguments == arguments(form)


@pytest.mark.parametrize("form", FORMS)
def test_official_wrapper(tmp_path: Path, form: str) -> None:
    official.export(save_run(tmp_path / "run", filled(form), None, arguments(form)), tmp_path / "out.pth", "official")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    wrapper = WRAPPER.get(form, "params")
    state = content if wrapper is None else content[wrapper]
    assert wrapper is None or list(content) == [wrapper]
    last = next(key for key in reversed(state) if key.endswith(".bias"))
    assert torch.equal(state[last], fill.weight(last, state[last].shape))
    assert list(state)[2:5] == [
        "patch_embed.norm.weight",
        "patch_embed.norm.bias",
        "layers.0.residual_group.blocks.0.norm1.weight",
    ]
    block = "layers.0.residual_group.blocks.1."
    assert [key.removeprefix(block) for key in state if key.startswith(block)][:6] == [
        "attn_mask",
        "norm1.weight",
        "norm1.bias",
        "attn.relative_position_bias_table",
        "attn.relative_position_index",
        "attn.qkv.weight",
    ]


def test_official_to_official_is_the_same_file(diffbir: Path, tmp_path: Path) -> None:
    official.export(diffbir, tmp_path / "again.pth", "official")
    before, after = (torch.load(path, weights_only=True) for path in (diffbir, tmp_path / "again.pth"))
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_a_file_without_masks_never_shifts(tmp_path: Path) -> None:
    network = filled(img_size=4)
    torch.save(official.full_state(network), tmp_path / "small.pth")
    rebuilt = build(tmp_path / "small.pth")
    with torch.no_grad():
        assert torch.equal(rebuilt(image(64)), network(image(64)))
        assert not torch.equal(rebuilt(image(64)), filled(img_size=16)(image(64)))


def test_stripped_file_says_what_was_assumed() -> None:
    found = recognise(filled().state_dict())
    assert found.arguments == arguments("diffbir", img_size=64)
    assert [note.split(":")[0] for note in found.assumed] == ["img_size=64", "img_range=1"]


@pytest.mark.parametrize(("embed_dim", "hidden"), [(49, 1), (12, 31), (60, 160)])
def test_mlp_ratio_survives_truncation(embed_dim: int, hidden: int) -> None:
    ratio = (hidden + 0.5) / embed_dim
    network = SwinIR(**arguments("diffbir", embed_dim=embed_dim, num_heads=[1, 1], mlp_ratio=ratio))
    rebuilt = SwinIR(**recognise(official.full_state(network)).arguments)
    assert rebuilt.layers[0].residual_group["blocks"][0].mlp["fc1"].out_features == hidden


# Wrappers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "params", "params_ema", "state_dict", "model_state_dict"])
def test_wrappers(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    network = filled()
    state = {f"{prefix}{key}": value for key, value in official.full_state(network).items()}
    torch.save(state if wrapper is None else {wrapper: state, "iteration": 5}, tmp_path / "wrapped.pth")
    assert same_weights(build(tmp_path / "wrapped.pth"), network)


PREFIXES = ("module.", "_orig_mod.", "model.", "net_g.", "generator.", "net.", "g_ema.")


@pytest.mark.parametrize(
    "prefix", [*PREFIXES, *("".join(pair) for pair in permutations(PREFIXES, 2)), "model.module._orig_mod.net_g."]
)
def test_beginnings_in_every_order(prefix: str) -> None:
    network = filled()
    checkpoint = unwrapped({f"{prefix}{key}": value for key, value in network.state_dict().items()})
    assert list(checkpoint) == list(network.state_dict())
    assert recognise(checkpoint).family == "swinir"


@pytest.mark.parametrize(
    "holders",
    [
        *((name,) for name, which in WRAPPERS.items() if which != "discriminator"),
        *(("model", "state_dict"), ("state_dict", "model"), ("generator", "params_ema"), ("net", "model", "params", "net_g")),
    ],
)
def test_holders_and_their_nesting(holders: tuple[str, ...]) -> None:
    content: dict[str, Any] = {f"module.model.{key}": value for key, value in filled().state_dict().items()}
    for holder in reversed(holders):
        content = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "step": torch.ones(()), holder: content}
    assert list(unwrapped(content)) == list(filled().state_dict())


def test_one_of_two_nested_networks_is_the_average() -> None:
    network, average = filled().state_dict(), filled(name="average/").state_dict()
    together = {f"net_g.{key}": v for key, v in network.items()} | {f"net_g_ema.{key}": v for key, v in average.items()}
    for content in (
        {"state_dict": together},
        {"model": {"params": network, "params_ema": average}},
        {"net": {"state_dict": network}, "g_ema": {"model": average}},
        {
            "state_dict": {
                f"{start}{key}": v for start, s in (("net_g.", network), ("net_g_ema.", average)) for key, v in s.items()
            }
        },
    ):
        assert torch.equal(unwrapped(content)["conv_last.bias"], average["conv_last.bias"])
        assert torch.equal(unwrapped(content, "network")["conv_last.bias"], network["conv_last.bias"])


def test_a_training_with_other_networks_beside_it() -> None:
    others = {"loss.vgg.weight": torch.ones(3), "net_d.conv.weight": torch.ones(3)}
    content = {"state_dict": {**others, **{f"net_g.{key}": value for key, value in filled().state_dict().items()}}}
    assert list(unwrapped(content)) == list(filled().state_dict())


def test_compiled_parts() -> None:
    state = {key.replace("layers.1.", "layers.1._orig_mod."): value for key, value in filled().state_dict().items()}
    assert list(unwrapped(state)) == list(filled().state_dict())


def test_beginnings_of_a_network_without_a_family() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    weights = {"net_d.module.0.weight": torch.eye(2), "net_d.module.0.bias": torch.ones(2)}
    assert load_into(network, {"discriminator": weights}).complete
    assert torch.equal(network.get_parameter("0.bias"), torch.ones(2))


@dataclass
class Unknown:
    width: int = 3


HARMLESS: dict[str, Any] = {
    "numpy": np.float64(0.5),
    "array": np.arange(3),
    "posix_path": PurePosixPath("/a/b"),
    "path": Path("a"),
    "datetime": datetime.datetime(2024, 1, 2),
    "delta": datetime.timedelta(1),
    "namespace": argparse.Namespace(width=3, path=Path("a")),
    "defaultdict": defaultdict(list, {"a": [Path("b")]}),
    "decimal": decimal.Decimal(1),
    "uuid": uuid.UUID(int=3),
    "omegaconf": OmegaConf.create({"width": [3, {"a": "${width}"}]}),
    "stage": RunningStage.TRAINING,
    "attributes": AttributeDict(width=3),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", [*HARMLESS, "all"])
def test_harmless_values_are_passed_over(tmp_path: Path, name: str, zipped: bool) -> None:
    values = HARMLESS if name == "all" else {name: HARMLESS[name]}
    content = {"hyper_parameters": values, "params": filled().state_dict(), "list": list(values.values())}
    torch.save(content, tmp_path / "foreign.pth", _use_new_zipfile_serialization=zipped)
    assert same_weights(build(tmp_path / "foreign.pth"), filled())


def test_an_unknown_class_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"params": filled().state_dict(), "a": HARMLESS, "options": Unknown()}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=r"foreign\.pth is refused: .* \(it calls for \S*test_official\.Unknown\)"):
        read(tmp_path / "foreign.pth")


@pytest.mark.parametrize(
    "note", ["swinir", "", "3", "[1, 2]", "null", '{"_class": "SwinIR"}', '{"_target_": 3}', "[" * 100_000, "9" * 9000]
)
def test_foreign_metadata_are_ignored(tmp_path: Path, note: str) -> None:
    save_file(filled().state_dict(), tmp_path / "foreign.safetensors", {"network": note, "format": "pt"})
    assert read(tmp_path / "foreign.safetensors").recorded is None
    assert same_weights(build(tmp_path / "foreign.safetensors"), filled())


def test_legacy_file_without_zip(tmp_path: Path) -> None:
    network = filled()
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same_weights(build(tmp_path / "old.pth"), network)
    assert torch.equal(last_bias(build(tmp_path / "old.pth")), fill.weight("conv_last.bias", (3,)))


def test_params_ema_goes_before_params(tmp_path: Path) -> None:
    network, average = filled(), filled(name="average/")
    torch.save({"params": network.state_dict(), "params_ema": average.state_dict()}, tmp_path / "both.pth")
    assert same_weights(build(tmp_path / "both.pth"), average)
    assert same_weights(build(tmp_path / "both.pth", "ema"), average)
    assert same_weights(build(tmp_path / "both.pth", "network"), network)
    assert torch.equal(last_bias(build(tmp_path / "both.pth")), fill.weight("average/conv_last.bias", (3,)))


def test_run_folder(tmp_path: Path) -> None:
    network, average = filled(image_skip=True), filled(name="average/", image_skip=True)
    run = save_run(tmp_path / "x", network, average, arguments("diffbir", image_skip=True))
    assert same_weights(build(run), average)
    rebuilt = build(run / "checkpoints" / "last.ckpt", "network")
    assert same_weights(rebuilt, network)
    assert isinstance(rebuilt, SwinIR)
    assert rebuilt.image_skip
    assert not rebuilt.training
    assert read(run).wrapper == "state_dict, ema.average.*"
    assert torch.equal(last_bias(rebuilt), fill.weight("conv_last.bias", (3,)))


def test_missing_average_is_an_error(tmp_path: Path) -> None:
    run = save_run(tmp_path / "x", filled(), None, arguments("diffbir"))
    with pytest.raises(CheckpointError, match=r"last\.ckpt has no 'ema' weights, only: state_dict, network\.\*"):
        read(run, "ema")


# Files that are refused ----------------------------------------------------------------------------------------------


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": filled().state_dict(), "extra": Payload(tmp_path / "executed")}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"bad\.pth is refused: .* would run code .*\(it calls for posix\.mkdir\).* safetensors"
    ):
        read(tmp_path / "bad.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated(tmp_path: Path, diffbir: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cut{suffix}"
    if suffix == ".safetensors":
        save_file(filled().state_dict(), path)
    else:
        path.write_bytes(diffbir.read_bytes())
    size = path.stat().st_size
    os.truncate(path, int(kept * size) if 0 < kept < 1 else int(kept))
    with pytest.raises(CheckpointError, match=rf"cut\{suffix} is truncated or "):
        read(path)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pth does not exist"):
        read(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match=r"checkpoints/last\.ckpt does not exist"):
        read(tmp_path)
    (tmp_path / "photo.pth").write_bytes(b"\x89PNG\r\n\x1a\n" * 40)
    with pytest.raises(CheckpointError, match=r"photo\.pth is truncated or not a checkpoint"):
        read(tmp_path / "photo.pth")


@pytest.mark.parametrize(
    ("content", "there"),
    [
        ({}, "nothing"),
        ({"step": 3}, "step"),
        ({"state_dict": {}}, "state_dict"),
        ([1, 2], "a list"),
        (torch.ones(2), "a Tensor"),
        ({"mine": {"weight": torch.ones(2)}, "step": 3, "\x1b[31m": 1, "b": 2}, r"mine, step, \\x1b\[31m, \.\.\."),
    ],
)
def test_no_tensors(tmp_path: Path, content: object, there: str) -> None:
    torch.save(content, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=rf"empty\.pth holds no tensors under the usual names, but {there}: give a file"):
        read(tmp_path / "empty.pth")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1", r"it begins with b'version https://git-lfs\.'"),
        (b"<!DOCTYPE html><html><body>", r"it begins with b'<!DOCTYPE html><html><bo'"),
        (b"\x1b[2J" * 40, r"it begins with b'\\x1b\[2J"),
    ],
)
def test_what_is_no_checkpoint_is_told_by_its_beginning(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "page.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"page\.pth is truncated or not a checkpoint \({says}"):
        read(tmp_path / "page.pth")


def test_safetensors_under_another_name(tmp_path: Path) -> None:
    save_file(filled().state_dict(), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pth")
    assert same_weights(build(tmp_path / "a.pth"), filled())


def test_strange_entries(tmp_path: Path) -> None:
    torch.save({**filled().state_dict(), "step": 3}, tmp_path / "mixed.pth")
    with pytest.raises(CheckpointError, match=r"mixed\.pth: 1 entries are no tensors \(step\)"):
        read(tmp_path / "mixed.pth")


def test_unknown_network() -> None:
    with pytest.raises(CheckpointError, match=r"first keys are a\.weight, b\.weight; families known: adm, codeformer, vqgan, "):
        recognise({"a.weight": torch.ones(1), "b.weight": torch.ones(1)})
    state = official.full_state(filled())
    del state["layers.0.residual_group.blocks.0.mlp.fc1.weight"]
    with pytest.raises(CheckpointError, match=r"looks like swinir, .*blocks\.0\.mlp\.fc1\.weight"):
        recognise(state)


def test_recorded_class_is_not_imported(tmp_path: Path) -> None:
    run = save_run(tmp_path / "x", filled(), None, {**arguments("diffbir"), "_target_": "os.mkdir"})
    with pytest.raises(CheckpointError, match=r"records network 'os\.mkdir'; families known: adm, codeformer, vqgan, elan, "):
        build(run)


def test_recorded_arguments_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not give a swinir network: .*widht"):
        build(save_run(tmp_path / "x", filled(), None, {**arguments("diffbir"), "widht": 3}))
    with pytest.raises(CheckpointError, match=r"file float32 \(12, 192, 3, 3\), network float32 \(24, 192, 3, 3\)"):
        build(save_run(tmp_path / "y", filled(), None, arguments("diffbir", embed_dim=24)))


# Loading into a network ----------------------------------------------------------------------------------------------


def test_full_match_reports_every_key(diffbir: Path) -> None:
    network = SwinIR(**arguments("diffbir"))
    report = load_into(network, diffbir)
    assert (len(report.matched), report.missing, report.unexpected, report.mismatched) == (
        len(network.state_dict()),
        [],
        [],
        [],
    )
    assert same_weights(network, filled())
    assert torch.equal(last_bias(network), fill.weight("conv_last.bias", (3,)))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"conv_last.bias": None}, r"1 missing \(conv_last\.bias\)"),
        ({"head.extra": torch.ones(3)}, r"1 unexpected \(head\.extra\)"),
        ({"conv_last.bias": torch.ones(4)}, r"1 mismatched \(conv_last\.bias: file float32 \(4,\), network float32 \(3,\)\)"),
        ({"conv_last.bias": torch.ones(1)}, r"1 mismatched \(conv_last\.bias: file float32 \(1,\)"),  # never broadcast
        ({"conv_last.bias": torch.ones(3).double()}, r"1 mismatched \(conv_last\.bias: file float64 \(3,\)"),
        ({"conv_last.bias": torch.ones(3).int()}, r"1 mismatched \(conv_last\.bias: file int32 \(3,\)"),
    ],
)
def test_anything_but_a_full_match_raises(tmp_path: Path, damage: dict[str, Tensor | None], says: str) -> None:
    state = {k: v for k, v in {**official.full_state(filled()), **damage}.items() if v is not None}
    torch.save(state, tmp_path / "damaged.pth")
    network = SwinIR(**arguments("diffbir"))
    before = network.conv_last.weight.clone()
    with pytest.raises(CheckpointError, match=rf"damaged\.pth does not fit SwinIR: \d+ keys match, {says}.*init\.strict=false"):
        load_into(network, tmp_path / "damaged.pth")
    assert torch.equal(network.conv_last.weight, before)

    report = load_into(network, tmp_path / "damaged.pth", strict=False)
    assert len(report.missing) + len(report.unexpected) + len(report.mismatched) == 1
    assert torch.equal(network.conv_last.weight, filled().conv_last.weight)


def test_other_size_loads_what_matches(diffbir: Path) -> None:
    network = SwinIR(**arguments("diffbir", embed_dim=24))
    report = load_into(network, diffbir, strict=False)
    assert "conv_last.weight" in report.matched
    assert torch.equal(last_bias(network), fill.weight("conv_last.bias", (3,)))
    assert "conv_first.1.weight: file float32 (12, 192, 3, 3), network float32 (24, 192, 3, 3)" in report.mismatched


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    """Whoever loads: a network before it trains, and one that a file says how to build."""
    state = filled().state_dict()
    state["conv_last.bias"][1] = value
    torch.save({"params": {**state, "step": torch.tensor(3)} if value > 0 else state}, tmp_path / "broken.pth")
    network, said = (
        filled(name="own/"),
        r"holds values that are not finite, in conv_last\.bias: fetch it again, or give a checkp",
    )
    with pytest.raises(CheckpointError, match=rf"broken\.pth {said}"):
        load_into(network, tmp_path / "broken.pth", strict=False)
    assert same_weights(network, filled(name="own/")), "before the network is touched"
    del state["conv_last.weight"]
    torch.save(filled().state_dict() | state, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=rf"broken\.pth .*{said}"):
        build(tmp_path / "broken.pth")
    report = load_into(network, tmp_path / "broken.pth", strict=False, parts=["conv_first"])
    assert report.matched, "what is not taken may be anything"


def test_nothing_in_common_raises_even_when_lenient(diffbir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit Linear: 0 keys match, 2 missing \(weight, bias\)"):
        load_into(nn.Linear(2, 2), diffbir, strict=False)


def test_half_precision_is_widened_and_said() -> None:
    network = SwinIR(**arguments("diffbir"))
    halves = {key: value.half() for key, value in filled().state_dict().items()}
    report = load_into(network, halves)
    assert len(report.widened) == len(report.matched) == len(halves)
    assert torch.equal(network.conv_last.weight, halves["conv_last.weight"].float())


# Writing and the command line ----------------------------------------------------------------------------------------


def test_image_skip_has_no_official_form(tmp_path: Path) -> None:
    run = save_run(tmp_path / "x", filled(image_skip=True), None, arguments("diffbir", image_skip=True))
    with pytest.raises(CheckpointError, match=r"image_skip=true has no official form: use --format safetensors"):
        official.export(run, tmp_path / "out.pth", "official")
    assert not (tmp_path / "out.pth").exists()
    official.export(run, tmp_path / "out.safetensors", "safetensors")
    rebuilt = build(tmp_path / "out.safetensors")
    with torch.no_grad():
        assert torch.equal(rebuilt(image(64)), filled(image_skip=True)(image(64)))


def test_unequal_unshuffle_has_no_official_form(tmp_path: Path) -> None:
    changes = {"unshuffle": 2, "upscale": 4}
    run = save_run(tmp_path / "x", filled(**changes), None, arguments("diffbir", **changes))
    with pytest.raises(CheckpointError, match=r"unshuffle=2 with upscale=4 has no official form"):
        official.export(run, tmp_path / "out.pth", "official")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.pth"
    target.write_bytes(b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        official.write(target, fail)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_safetensors_record_the_arguments(tmp_path: Path, diffbir: Path) -> None:
    official.export(diffbir, tmp_path / "out.safetensors", "safetensors")
    written = read(tmp_path / "out.safetensors")
    assert written.recorded == {"_target_": "models.swinir.SwinIR", **arguments("diffbir")}
    assert torch.equal(written.state["conv_last.bias"], fill.weight("conv_last.bias", (3,)))


def test_inspect_prints_what_is_in_a_file(diffbir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official.main(["inspect", str(diffbir)])
    out = capsys.readouterr().out
    parameters = sum(p.numel() for p in filled().parameters())
    assert "family      swinir (models.swinir.SwinIR), recognised from keys and shapes" in out
    assert "wrapper     none: a bare state dict" in out
    assert f"parameters  {parameters:,} in {len(filled().state_dict())} tensors, and 6 derived tensors" in out
    assert "  depths          [2, 2]" in out
    assert "dtype       float32" in out


def test_export_names_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_run(tmp_path / "mine", filled(), filled(name="average/"), arguments("diffbir"))
    official.main(["export", str(run), "--format", "official", "--which", "network"])
    assert capsys.readouterr().out == f"wrote {run / 'mine.pth'}\n"
    assert same_weights(build(run / "mine.pth"), filled())
    assert torch.equal(last_bias(build(run / "mine.pth")), fill.weight("conv_last.bias", (3,)))


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["inspect", "gone.pth"], 1, "gone.pth does not exist"),
        (["export", "diffbir.pth", "--format", "official"], 1, "diffbir.pth exists: name the file to write with --output"),
        (["export", "diffbir.pth", "--format", "official", "--output", "no/where.pth"], 1, "No such file or directory"),
        (["export", "diffbir.pth", "--format", "official", "--output", "a.safetensors"], 2, "must end with .pth"),
        (["export", "diffbir.pth", "--format", "safetensors", "--output", "a.pth"], 2, "must end with .safetensors"),
        (["export", "diffbir.pth", "--format", "onnx"], 2, "'onnx'"),
        (["export", "diffbir.pth", "--format", "official", "--which", "ema", "--output", "a.pth"], 1, "has no 'ema' weights"),
        (["export", "diffbir.pth", "--format", "diffusers"], 1, "diffbir.pth holds swinir, which has no diffusers form"),
        (["inspekt"], 2, "'inspekt'"),
        ([], 2, "command"),
    ],
)
def test_errors_are_one_line(
    diffbir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(diffbir.parent)
    with pytest.raises(SystemExit) as stopped:
        official.main(command)
    err = capsys.readouterr().err or f"{stopped.value.code}\n"  # sys.exit(text) prints it and exits with 1
    assert (stopped.value.code if isinstance(stopped.value.code, int) else 1) == code
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("form", "name"), [("official", "a.pth"), ("safetensors", "a.safetensors"), ("diffusers", "a")])
def test_a_disk_without_room_leaves_nothing_behind(tmp_path: Path, form: str, name: str) -> None:
    torch.save(full_state(control()), tmp_path / "control.pth")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # a real error of the system's, as of a full disk
    try:
        with pytest.raises(SystemExit, match=rf"/{name} can't be written \(.*[Ff]ile too large.*\): free space there, or name"):
            official.main(["export", str(tmp_path / "control.pth"), "--format", form, "--output", str(tmp_path / name)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["control.pth"]


def test_as_a_command(diffbir: Path) -> None:
    run = [sys.executable, "-m", "models.official", "export", str(diffbir), "--format", "safetensors"]
    done = subprocess.run(run, cwd=Path(official.__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {diffbir.with_suffix('.safetensors')}\n", "")
    assert torch.equal(last_bias(build(diffbir.with_suffix(".safetensors"))), fill.weight("conv_last.bias", (3,)))
    again = subprocess.run(run, cwd=Path(official.__file__).parents[2], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout, again.stderr.count("\n")) == (1, "", 1)

"""Checkpoints from strangers: what asks for more than its own size is refused before anything is allocated."""

import json
import os
import resource
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.files import official
from models.files.official import CheckpointError, build, load_into, read
from tests.models import test_elan
from tests.models.diffusion import test_ircontrolnet
from tests.models.files.test_official import arguments, filled, save_run

SPARE = 1 << 30  # bytes that opening one of these files may take


@pytest.fixture(autouse=True)
def frugal() -> Iterator[None]:
    """With more memory than that the system refuses, and the sentence would be another."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(path: Path, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        build(path)
    assert len(str(caught.value)) < 1500
    assert str(caught.value).isprintable()


# Networks without end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embed_dim": 400_000}, "records arguments that no network has: embed_dim"),
        ({"depths": [10**7, 2]}, "records arguments that no network has: depths"),
        ({"depths": [1] * 10**5}, "records arguments that no network has: depths"),
        ({"depths": [[2]]}, "records arguments that no network has: depths"),
        ({"img_range": float("nan")}, "records arguments that no network has: img_range"),
        ({"mlp_ratio": "2" * 1000}, "records arguments that no network has: mlp_ratio"),
        ({"embed_dim": 90_000}, "does not give a swinir network: the network that it asks for is larger than its 76 tensors"),
        ({"mlp_ratio": 90_000.0}, "the network that it asks for is larger"),
        ({"depths": [90_000, 2]}, "the network that it asks for is larger"),
        ({"window_size": 90_000, "img_size": 90_000}, "the network that it asks for is larger"),
        ({"embed_dim": -3}, "does not give a swinir network"),
        ({"depths": [], "num_heads": []}, "does not give a swinir network"),
        ({"unshuffle": 0}, "does not give a swinir network"),
        ({"upscale": None}, "does not give a swinir network"),
        ({"\x1b[2J": 3}, r"records arguments that no network has: \\x1b\[2J"),
    ],
)
@pytest.mark.parametrize("form", ["run", "safetensors"])
def test_recorded_arguments(tmp_path: Path, changes: dict[str, Any], says: str, form: str) -> None:
    recorded = arguments("diffbir") | changes
    if form == "run":
        path = save_run(tmp_path / "run", filled(), None, recorded)
    else:
        path = tmp_path / "x.safetensors"
        note = json.dumps({"_target_": "models.swinir.SwinIR", **recorded})
        save_file(filled().state_dict(), path, {"network": note})
    refused(path, says)


def test_recorded_arguments_that_double(tmp_path: Path) -> None:
    lists: list[Any] = [1]
    for _ in range(60):
        lists = [lists, lists]
    refused(save_run(tmp_path / "run", filled(), None, arguments("diffbir") | {"depths": lists}), "no network has: depths")


FAR = {  # a key of a far layer, for the file of each family
    "swinir": (filled, "layers.0.residual_group.blocks.0.", "layers.{}.residual_group.blocks.0."),
    "swinir_block": (filled, "layers.0.residual_group.blocks.0.", "layers.0.residual_group.blocks.{}."),
    "elan": (test_elan.tiny, "body.0.modules_gmsa.gmsa_0.", "body.0.modules_gmsa.gmsa_{}."),
    "ircontrolnet": (test_ircontrolnet.tiny, "input_blocks.0.0.", "input_blocks.{}.0."),
}


@pytest.mark.parametrize("number", [10**6, 10**12, "9" * 5000])
@pytest.mark.parametrize("name", FAR)
def test_keys_of_far_layers(tmp_path: Path, name: str, number: int | str) -> None:
    make, near, far = FAR[name]
    state = make().state_dict()
    state |= {key.replace(near, far.format(number)): value for key, value in state.items() if key.startswith(near)}
    torch.save(state, tmp_path / "far.pth")
    refused(tmp_path / "far.pth", rf"far\.pth.*(looks like {name[:6]}|does not give a {name[:6]}\w* network)")


# Tensors without end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(10**6, 10**6 * 3 // 4),  # 3 TB
        torch.zeros(2).as_strided((10**5, 10**5), (0, 1 * 0)),
        torch.zeros(10**4).as_strided((9000, 1000), (1, 1)),
    ],
)
def test_tensors_of_more_than_is_stored(tmp_path: Path, value: Tensor) -> None:
    torch.save({"params": {**filled().state_dict(), "a\x1b[2J": value}}, tmp_path / "wide.pth")
    shape = rf"\(a\\x1b\[2J has the shape \({value.shape[0]}, {value.shape[1]}\)\)"
    refused(tmp_path / "wide.pth", rf"wide\.pth is refused: its tensors ask for [\d,]+ bytes, and [\d,]+ are stored {shape}")
    network = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="are stored"):
        load_into(network, {"weight": value, "bias": torch.ones(2)}, strict=False)


def test_tensors_that_share_one_storage(tmp_path: Path) -> None:
    shared = torch.zeros(1000, 1000)
    torch.save({f"{i}.weight": shared for i in range(1000)}, tmp_path / "shared.pth")
    refused(tmp_path / "shared.pth", "its tensors ask for 4,000,000,000 bytes, and 4,000,000 are stored")


def test_tied_layers_are_read(tmp_path: Path) -> None:
    shared = torch.ones(3)
    torch.save({"a.weight": shared, "b.weight": shared}, tmp_path / "tied.pth")
    assert list(read(tmp_path / "tied.pth").state) == ["a.weight", "b.weight"]


@pytest.mark.parametrize(
    "value",
    [
        torch.sparse_coo_tensor(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0), (10**6, 10**6)),
        torch.empty(10**6, 10**6, device="meta"),
        torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
    ],
    ids=["sparse", "meta", "quantised"],
)
def test_tensors_without_plain_values(tmp_path: Path, value: Tensor) -> None:
    torch.save({**filled().state_dict(), "odd": value}, tmp_path / "odd.pth")
    refused(tmp_path / "odd.pth", r"odd\.pth: 1 tensors are sparse, quantised or without values \(odd\)")


def test_a_compressed_archive(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(10**7)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as bomb:
        for member in plain.namelist():
            bomb.writestr(member, plain.read(member))
    refused(tmp_path / "bomb.pth", r"bomb\.pth is refused: its members unpack to 40,\d{3},\d{3} bytes, more than it has")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_storage_longer_than_the_file(tmp_path: Path, zipped: bool) -> None:
    """The pickle says how many values a storage has: here 1,000 times as many as there are."""
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "short.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "short.pth").read_bytes()
    assert content.count(b"M" + struct.pack("<H", 1000)) == 2  # of the storage, of the shape
    lie = b"J" + struct.pack("<i", 10**9)
    if not zipped:
        (tmp_path / "long.pth").write_bytes(content.replace(b"M" + struct.pack("<H", 1000), lie))
    else:
        with zipfile.ZipFile(tmp_path / "short.pth") as short, zipfile.ZipFile(tmp_path / "long.pth", "w") as long:
            for member in short.namelist():
                long.writestr(member, short.read(member).replace(b"M" + struct.pack("<H", 1000), lie))
    refused(tmp_path / "long.pth", r"long\.pth is (truncated or not a checkpoint|refused)")


# Pickles -------------------------------------------------------------------------------------------------------------


def test_mappings_within_themselves(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content["state_dict"] = content["params"] = content["net"] = content
    torch.save(content, tmp_path / "endless.pth")
    refused(tmp_path / "endless.pth", r"holds no tensors under the usual names, but \w+, \w+, \w+, \.\.\.: give")


@pytest.mark.parametrize("method", ["get", "values"])
def test_mappings_with_methods_of_a_file(tmp_path: Path, method: str) -> None:
    content = OrderedDict(filled().state_dict())
    content.__dict__[method] = 3
    torch.save(content, tmp_path / "odd.pth")
    refused(tmp_path / "odd.pth", r"odd\.pth holds no mapping that can be read \('int' object is not callable\)")


class Calls:
    """Makes a folder when unpickled by what a stranger's file names."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.function, self.given = function, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.given


@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_passed_over_is_not_run(tmp_path: Path, zipped: bool) -> None:
    """The names of passed-over modules too stand for nothing: numpy.save would write a file, Path(…) would be a path."""
    import numpy as np

    victim = tmp_path / "victim.npy"
    content = {"params": filled().state_dict(), "a": Calls(np.save, str(victim), [1, 2]), "b": Calls(Path, str(victim))}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    assert len(read(tmp_path / "bad.pth").state) == len(filled().state_dict())
    assert not victim.exists()


@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, exec, getattr, torch.load, official.read, os._exit])
def test_what_is_not_passed_over_is_refused(tmp_path: Path, function: Any) -> None:
    victim = tmp_path / "victim"
    torch.save({"params": filled().state_dict(), "a": Calls(function, str(victim))}, tmp_path / "bad.pth")
    refused(tmp_path / "bad.pth", rf"bad\.pth is refused: .*\(it calls for \S*\.{function.__name__}\)")
    assert not victim.exists()


# Texts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        {"\x1b]0;title\x07.weight": torch.ones(3), "\x1b[2J": torch.ones(3)},
        {"params": {"\x1b[2J\n": torch.ones(3), "step\x9b2J": 3}},
        {"\x1b[2J": {"weight": torch.ones(3)}},
        {**filled().state_dict(), "\x1b[2J": torch.ones(3)},
        {"\x1b[2J" * 10**4: torch.ones(3)},
    ],
)
def test_keys_are_shown_as_escapes(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "loud.pth")
    refused(tmp_path / "loud.pth", r"\\x[19]b")
    with pytest.raises(CheckpointError) as caught:
        load_into(nn.Linear(2, 2), tmp_path / "loud.pth", strict=False)
    assert str(caught.value).isprintable()


def test_what_was_around_the_weights_is_shown_as_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"adversary.discriminators.\x1b[2J.network.{key}": value for key, value in filled().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "loud.pth")
    official.main(["inspect", str(tmp_path / "loud.pth")])
    assert "wrapper     state_dict, adversary.discriminators.\\x1b[2J.network.*\n" in capsys.readouterr().out
    with pytest.raises(
        CheckpointError, match=r"has no 'ema' weights, only: state_dict, adversary\.discriminators\.\\x1b\[2J\."
    ):
        read(tmp_path / "loud.pth", "ema")


@pytest.mark.parametrize(("form", "name"), [("official", "a.pth"), ("safetensors", "a.safetensors")])
def test_an_export_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any, name: str) -> None:
    """A name that could be told beforehand, such as one with the process's number, could be a link of the folder's."""
    seen: list[Path] = []
    put = os.replace
    monkeypatch.setattr(os, "replace", lambda temporary, path: (seen.append(Path(temporary)), put(temporary, path)))
    torch.save(filled().state_dict(), tmp_path / "x.pth")
    (tmp_path / name).symlink_to(tmp_path / "outside")
    for _ in range(2):
        official.export(tmp_path / "x.pth", tmp_path / name, form)
    assert len({each.name for each in seen}) == 2
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / name).is_symlink()

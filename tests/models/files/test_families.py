"""Families: each file is taken by one of them alone, and a further family is one further module."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.files import families, official
from models.files.families import FAMILIES, find_families, full_state
from tests.models import test_codeformer, test_elan, test_gfpgan, test_rrdb, test_vqgan
from tests.models.diffusion import test_adm, test_ircontrolnet
from tests.models.files.test_official import FORMS, filled
from tests.parity.cases import folders, manifest, manifests_in

NETWORKS: dict[str, tuple[str, Any]] = {
    **{f"swinir_{form}": ("swinir", lambda form=form: filled(form)) for form in FORMS},
    **{f"elan_x{scale}": ("elan", lambda scale=scale: test_elan.tiny(scale=scale)) for scale in (1, 2, 3, 4)},
    "codeformer": ("codeformer", test_codeformer.tiny),
    "vqgan": ("vqgan", test_vqgan.tiny),
    "gfpgan": ("gfpgan", test_gfpgan.tiny),
    "gfpgan_bilinear": ("gfpgan", lambda: test_gfpgan.tiny(resample_kernel=None)),
    "gfpgan_clean": ("gfpgan_clean", lambda: test_gfpgan.tiny(clean=True)),
    "ircontrolnet": ("ircontrolnet", test_ircontrolnet.tiny),
    "rrdb": ("rrdb", test_rrdb.tiny),
    "adm": ("adm", test_adm.tiny),
}
# Manifests of official files, by the beginnings of their names; those of other networks belong to no family.
OFFICIAL: dict[str, str | None] = {
    "swinir_": "swinir",
    "diffbir_swinir": "swinir",
    "dtbfr_difface_swinir": "swinir",
    "elan_": "elan",
    "codeformer_vqgan_stage1": "vqgan",
    "codeformer_vqgan_discriminator": None,
    "gfpgan_arcface": None,
    "gfpgan_facial_component_discriminator": None,
    "codeformer_": "codeformer",
    "gfpgan_v1clean": "gfpgan_clean",
    "gfpgan_": "gfpgan",
    "diffbir_controlnet": "ircontrolnet",
    "adm_": "adm",
}
TOY = """
from torch import Tensor, nn

from models.files.family import Family


class Toy(nn.Module):
    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.toy = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.toy(x)


toy = Family(
    name="toy",
    network=Toy,
    recognise=lambda shapes: ({"width": shapes["toy.weight"][0]}, ["nothing"]) if "toy.weight" in shapes else None,
    write=lambda network: {"toy": 1, "params": network.state_dict()},
    derived=(".ones",),
)
"""


def takers(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    return [name for name, family in FAMILIES.items() if family.recognise(shapes)]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_is_taken_by_its_family_alone(name: str) -> None:
    family, make = NETWORKS[name]
    assert takers({key: tuple(value.shape) for key, value in full_state(make()).items()}) == [family]


def test_no_family_is_left_out_of_that() -> None:
    assert {family for family, _ in NETWORKS.values()} == set(FAMILIES)


MANIFESTS = [path for folder in folders() for path in manifests_in(folder)]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name.split(".")[0])
def test_an_official_file_is_taken_by_its_family_alone(path: Path) -> None:
    content = manifest(path)
    keys = content.get("keys") or content.get("state_dict")
    wanted = next((family for start, family in OFFICIAL.items() if path.name.startswith(start)), None)
    bare = {key.removeprefix(content.get("key_prefix") or ""): tuple(shape) for key, shape in keys.items()}
    assert takers(bare) == ([wanted] if wanted else [])


def test_families_stand_in_the_order_of_their_modules() -> None:
    assert list(find_families()) == [
        "adm",
        "codeformer",
        "vqgan",
        "elan",
        "gfpgan",
        "gfpgan_clean",
        "ircontrolnet",
        "rrdb",
        "swinir",
    ]


def test_two_families_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "double.py").write_text(TOY.replace('name="toy"', 'name="swinir"'))
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    with pytest.raises(AssertionError, match=r"two families have one name: .*'swinir'.*'swinir'"):
        find_families()


def test_a_further_family_is_one_further_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    found = find_families()
    assert list(found) == [*FAMILIES, "toy"]
    monkeypatch.setitem(FAMILIES, "toy", found["toy"])

    weights = {"toy.weight": torch.eye(3), "toy.bias": torch.arange(3.0), "a.ones": torch.ones(2)}
    torch.save(weights, tmp_path / "toy.pth")
    network = official.build(tmp_path / "toy.pth")
    assert torch.equal(network(torch.ones(1, 3)), torch.tensor([[1.0, 2.0, 3.0]]))
    official.main(["inspect", str(tmp_path / "toy.pth")])
    out = capsys.readouterr().out
    assert "family      toy (models.files.families.toy.Toy), recognised from keys and shapes\n  width           3\n" in out
    assert "parameters  12 in 2 tensors, and 1 derived tensors" in out

    official.export(tmp_path / "toy.pth", tmp_path / "out.pth", "official")
    assert torch.load(tmp_path / "out.pth", weights_only=True)["toy"] == 1
    official.export(tmp_path / "toy.pth", tmp_path / "out.safetensors", "safetensors")
    checkpoint = official.read(tmp_path / "out.safetensors")
    assert checkpoint.recorded == {"_target_": "models.files.families.toy.Toy", "width": 3}
    assert list(checkpoint.state) == ["toy.bias", "toy.weight"]
    with pytest.raises(official.CheckpointError, match="holds toy, which has no diffusers form: give a control network"):
        official.export(tmp_path / "toy.pth", tmp_path / "out", "diffusers")

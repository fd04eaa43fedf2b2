"""Our code against numbers that the official code gave. PARITY_DIR names the folders of cases; see tests/golden/README.md."""

import json
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.arcface import ResNetArcFace
from models.elan import ELAN
from models.files.official import full_state, recognise
from models.swinir import SwinIR
from tests.parity import families, fill, runners
from tests.parity.cases import (
    GOLDEN,
    RTOL,
    Apart,
    Case,
    cases_in,
    compare,
    families_in,
    folders,
    manifest,
    manifests_in,
    problems,
    sampled,
)
from tests.parity.families.elan import elan_arguments
from tests.parity.families.swinir import swinir_arguments
from tests.parity.runners import is_covered, kind_of, kinds

STORED_MANIFESTS = 27

ALL = list({case.contents: case for folder in folders() for case in cases_in(folder)}.values())  # each once
COVERED = sorted(module.name for module in iter_modules(families.__path__))
CASES = [case for case in ALL if is_covered(case.family)]
NOT_COVERED = sorted({family for folder in folders() for family in families_in(folder) if not is_covered(family)})
MANIFESTS = [path for folder in folders() for path in manifests_in(folder)]
SWINIRS = [path for path in MANIFESTS if "swinir" in path.name]
ELANS = [path for path in MANIFESTS if path.name.startswith("elan")]


def named(path: Path) -> str:
    return path.name.split(".json")[0]


@pytest.mark.parametrize("folder", folders(), ids=str)
def test_folder_is_complete(folder: Path) -> None:
    assert problems(folder) == []


def test_project_keeps_its_cases() -> None:
    stored = Counter(case.family for case in cases_in(GOLDEN))
    assert Counter({family: runners.module_of(family).KEPT for family in COVERED}) == stored
    assert len(manifests_in(GOLDEN)) == STORED_MANIFESTS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    kind = kind_of(case)
    kind.check(case, kind.run(case), kind.apart)


@pytest.mark.parametrize("family", NOT_COVERED)
def test_not_covered(family: str) -> None:
    names = ", ".join(case.path.stem for case in ALL if case.family == family)
    pytest.skip(f"not covered: {family}: {names or 'no case'}")


@pytest.mark.parametrize("family", COVERED)
def test_left_out(family: str) -> None:
    """Reports what is not compared."""
    every = [case for case in CASES if case.family == family]
    if less := [f"{case.name}: {kind.less}" for case in every if (kind := kind_of(case)).less]:
        pytest.skip("not compared: " + "; ".join(less))


@pytest.mark.parametrize("path", SWINIRS, ids=named)
def test_swinir_has_the_official_keys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for draw in ("trunc_normal_", "uniform_", "kaiming_uniform_"):  # only keys and shapes count, and drawing takes seconds
        monkeypatch.setattr(torch.nn.init, draw, lambda values, *_, **__: values)
    official = manifest(path)
    network = SwinIR(**swinir_arguments(official["config"]))
    ours = network.state_dict() | network.derived_buffers()
    assert {key: list(value.shape) for key, value in ours.items()} == official["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == official["n_params"]


@pytest.mark.parametrize("path", SWINIRS, ids=named)
def test_swinir_is_recognised(path: Path) -> None:
    official = manifest(path)
    state = {key: torch.empty(shape, device="meta") for key, shape in official["state_dict"].items()}
    found = recognise(state)
    assert (found.family, found.arguments) == ("swinir", swinir_arguments(official["config"]))
    assert len(found.assumed) == 1
    assert found.assumed[0].startswith(f"img_range={official['config']['img_range']:g}")


@pytest.mark.parametrize("path", ELANS, ids=named)
def test_elan_has_the_official_keys_and_is_recognised(path: Path) -> None:
    official = manifest(path)
    network = ELAN(**elan_arguments(official["config"]))
    ours = full_state(network)
    assert {key: list(value.shape) for key, value in ours.items()} == official["state_dict"]
    assert list(ours) == list(official["state_dict"])  # in the official order too
    assert sum(p.numel() for p in network.parameters()) == official["n_trainable"]
    found = recognise(ours)
    assert (found.family, found.arguments) == ("elan", elan_arguments(official["config"]))
    untold = "window_sizes=[4, 8, 16]" + (" and img_range=255" if network.scale == 1 else "")
    assert found.assumed == [f"{untold}: no key tells; so they are in every official file"]


# The harness itself --------------------------------------------------------------------------------------------------


def test_fill_gives_the_makers_numbers() -> None:
    # Printed by the program that made the cases.
    assert fill.tensor("input/x", (2,), kind="uniform").tolist() == [0.6252471804618835, 0.6551544666290283]
    assert fill.weight("a.weight", (2, 3)).flatten()[:2].tolist() == [-0.3759986460208893, -0.6490788459777832]
    assert fill.weight("a.weight", (2,)).tolist() == [0.9348751306533813, 0.8875762224197388]
    assert fill.weight("a.bias", (2,)).tolist() == [0.009964324533939362, -0.18868330121040344]
    assert fill.weight("a.running_var", (2,)).tolist() == [1.0489959716796875, 0.6836052536964417]


def test_fill_scales_matrices_only() -> None:
    state = fill.state_dict({"a.weight": [2, 3], "a.bias": [2], "a.mask": [2]}, scale=0.5, leave_out=["a.mask"])
    assert list(state) == ["a.weight", "a.bias"]
    assert torch.equal(state["a.weight"], fill.weight("a.weight", (2, 3)) / 2)
    assert torch.equal(state["a.bias"], fill.weight("a.bias", (2,)))


def small_case(folder: Path, *, outputs: str = '[{"name": "out", "full_shape": [2], "sampling": "full", "atol": 0.1}]') -> Case:
    (folder / "toy").mkdir(parents=True)
    (folder / "toy/one.json").write_text(f'{{"reference": "a toy", "outputs": {outputs}}}')
    np.savez(folder / "toy/one.npz", out=np.array([1, 2], dtype=np.float32))
    return Case(folder / "toy/one.json")


def test_complete_folder_has_no_problem(tmp_path: Path) -> None:
    small_case(tmp_path)
    assert problems(tmp_path) == []


def test_problems_are_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "gone") == [f"PARITY_DIR: '{tmp_path / 'gone'}' is no folder"]
    assert problems(tmp_path) == [f"PARITY_DIR: {tmp_path} holds no case (FAMILY/NAME.json and .npz)"]
    case = small_case(tmp_path)
    case.path.with_suffix(".npz").rename(case.path.with_name("two.npz"))
    assert problems(tmp_path) == [f"{case.path} has no .npz", f"{case.path.with_name('two.npz')} has no .json"]


def test_folders_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_DIR", "a:b")
    assert folders() == [Path("a"), Path("b")]
    monkeypatch.delenv("PARITY_DIR")
    assert folders() == [GOLDEN]


@pytest.mark.parametrize(
    ("produced", "says"),
    [
        ({"out": torch.tensor([1.0, 2.2])}, "toy/one out: Tensor-likes are not close"),
        ({"out": torch.tensor([1.0])}, r"toy/one out: \[1\], not \[2\]"),
        ({"other": torch.tensor([1.0, 2.0])}, r"the runner gave \['other'\] of \['out'\]"),
        ({"out": torch.tensor([1.0, float("nan")])}, "toy/one out"),
    ],
)
def test_compare_sees_a_difference(tmp_path: Path, produced: dict[str, Tensor], says: str) -> None:
    case = small_case(tmp_path)
    compare(case, {"out": torch.tensor([1.0, 2.0 + 0.1])})
    with pytest.raises(AssertionError, match=says):
        compare(case, produced)


def test_compare_takes_the_tolerance_of_the_case(tmp_path: Path) -> None:
    case = small_case(tmp_path, outputs='[{"name": "out", "full_shape": [2], "sampling": "full"}]')
    case.facts["tolerance"] = {"atol": 0.01, "rtol": 0}
    compare(case, {"out": torch.tensor([1.0, 2.009])})
    with pytest.raises(AssertionError, match="not close"):
        compare(case, {"out": torch.tensor([1.0, 2.011])})
    compare(case, {"out": torch.tensor([1.0, 2.011])}, {"out": Apart(atol=0.02)})


def test_compare_allows_a_share_to_be_off(tmp_path: Path) -> None:
    case, half = small_case(tmp_path), {"out": Apart(share=0.5, most=1)}
    compare(case, {"out": torch.tensor([1.0, 3.0])}, half)
    with pytest.raises(AssertionError, match=r"toy/one out: 100.00% of the values are off, not 50.00%"):
        compare(case, {"out": torch.tensor([2.0, 3.0])}, half)
    with pytest.raises(AssertionError, match="not close"):
        compare(case, {"out": torch.tensor([1.0, 3.1])}, half)


def test_compare_wants_something_to_compare(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no output is compared"):
        compare(small_case(tmp_path), {}, {"out": Apart(skip=True)})


@pytest.mark.parametrize("family", COVERED)
def test_every_kind_and_rule_is_of_a_case(family: str) -> None:
    if len(folders()) > 1:  # with the full vectors at hand
        every = [case for case in CASES if case.family == family]
        for kind in kinds(family):
            outputs = {output["name"] for case in every if kind.tells(case) for output in case.outputs}
            assert any(kind.tells(case) for case in every), kind
            assert [rule for rule in kind.apart if not any(fnmatch(name, rule) for name in outputs)] == [], kind


def test_compare_wants_every_output_listed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="lists no output"):
        compare(small_case(tmp_path, outputs="[]"), {})


def test_sampling() -> None:
    full = torch.arange(24).view(2, 3, 4)
    assert torch.equal(sampled(full, "full"), full)
    assert torch.equal(sampled(full, "out[:, ::2, 1:3]"), full[:, ::2, 1:3])
    assert torch.equal(sampled(full, "strided", 5), torch.tensor([0, 5, 10, 15, 20]))
    assert torch.equal(sampled(full, "full", 1), full)
    assert RTOL == 2e-5


def test_outputs_by_name_may_be_strided(tmp_path: Path) -> None:
    case = small_case(tmp_path, outputs='{"out": {"shape": [2, 2], "stored": "strided", "stride": 2, "atol": 0.1}}')
    compare(case, {"out": torch.tensor([[1.0, 9.0], [2.0, 9.0]])})
    with pytest.raises(AssertionError, match="toy/one out: Tensor-likes are not close"):
        compare(case, {"out": torch.tensor([[1.0, 2.0], [9.0, 9.0]])})


def test_other_files_are_no_cases(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    (tmp_path / "toy" / "keymap.json").write_text('{"note": "names of keys", "unet": {}}')
    (tmp_path / "toy" / "values.json").write_text('{"reference": "a script", "input": 1, "output": 2}')  # complete without npz
    (tmp_path / "toy" / "make.py").write_text("")
    (tmp_path / "toy" / "landmarks").mkdir()
    (tmp_path / "bare").mkdir()
    assert problems(tmp_path) == []
    assert [each.path.stem for each in cases_in(tmp_path)] == [case.path.stem, "values"]
    assert families_in(tmp_path) == ["bare", "toy"]


def test_a_further_family_is_one_further_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = small_case(tmp_path)
    assert not is_covered("toy")
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "toy.py").write_text(
        "import torch\nfrom tests.parity.runners import Kind, gives\n\n"
        "KINDS = [Kind(tells=gives('out'), run=lambda case: {'out': torch.tensor([1.0, 2.0])})]\n"
    )
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "families")])
    assert is_covered("toy")
    kind = kind_of(case)
    kind.check(case, kind.run(case), kind.apart)
    case.facts["outputs"][0]["name"] = "other"
    with pytest.raises(
        AssertionError, match=r"toy/one: 0 kinds of families/toy.py fit it: reference a toy, outputs \['other'\]"
    ):
        kind_of(case)


def further_case(folder: Path, name: str, change: dict[str, Any]) -> Case:
    """A golden case under another name, with other settings, and with what our own code makes of them as its outputs."""
    family, stem = name.split("/")
    facts = json.loads((GOLDEN / family / f"{stem}.json").read_text())
    for path, value in change.items():
        *nodes, key = path.split("/")
        node = facts
        for each in nodes:
            node = node[each]
        node[key] = value
    (folder / family).mkdir()
    case = Case(folder / family / "of_another_name.json")
    case.path.write_text(json.dumps(facts))
    given = dict(Case(GOLDEN / family / f"{stem}.json").stored)  # what the outputs are made from lies beside them
    np.savez(case.path.with_suffix(".npz"), **{key: value.numpy() for key, value in given.items()})
    produced = kind_of(Case(case.path)).run(Case(case.path))
    stored = {key: value.detach() for key, value in produced.items() if key in given}
    for output in Case(case.path).outputs:
        if output["name"] in stored:
            part = output.get("sampling", output.get("stored"))
            given[output["name"]] = sampled(stored[output["name"]], part, output.get("stride"))
    np.savez(case.path.with_suffix(".npz"), **{key: value.numpy() for key, value in given.items()})
    return Case(case.path)


def with_excitation() -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in ResNetArcFace(layers=[2, 2, 2, 2], use_se=True).state_dict().items()}


FURTHER: dict[str, tuple[str, dict[str, Any], list[str]]] = {  # case, other settings, outputs that must differ from its own
    "qualities": (
        "degradations/diffjpeg_odd_size",
        {"config/batch": "hard.batch: quality tensor [20.0, 50.0]"},
        ["hard.batch"],
    ),
    "noise": (
        "degradations/noise_given",
        {
            "config/sigma": 9.5,
            "config/poisson_scale": 0.9,
            "config/pt.gauss.mixed": "sigma tensor [9.5, 30.0], gray flags [1, 0]",
            "config/pt.poisson": "scale tensor [0.9, 2.5]",
            "config/replaced/torch.randn(b,3,h,w)": "fill.tensor('randn/other/pt_color', (2,3,h,w))",
        },
        ["np.gauss.clip", "np.poisson", "pt.gauss", "pt.gauss.mixed", "pt.poisson", "pt.poisson.mixed"],
    ),
    "use_se": ("gfpgan/arcface_small", {"config/use_se": True, "state_dict": with_excitation()}, ["embedding"]),
    "styles": ("gfpgan/gfpganv1_small", {"config/input_is_latent": False}, ["image"]),
    "styles_clean": ("gfpgan/gfpganv1clean_small", {"config/input_is_latent": False}, ["image"]),
    "fills": ("swinir/restore_gray_ws7", {"input/name": "input/of_another_name", "scale": 0.9}, ["out"]),
    "padding": ("swinir/diffbir_ws8_padded", {"input/name": "input/of_another_name"}, ["out"]),
    "rgb_range": ("elan/elan_x4", {"config/rgb_range": 255, "input/multiply_by": 255}, ["out"]),
    "codebook": ("codeformer/vq_nearest", {"config/beta": 0.5, "input/z/fill": "input/other/z"}, ["loss", "grad_loss_z"]),
    "tower": ("ircontrolnet/eps_probe_unet", {"inputs/x/fill": "input/other/x"}, ["out_no_control"]),
}


@pytest.mark.parametrize("name", FURTHER)
def test_a_further_case_runs_from_its_json(name: str, tmp_path: Path) -> None:
    source, change, differ = FURTHER[name]
    case = further_case(tmp_path, source, change)
    kind = kind_of(case)
    kind.check(case, kind.run(case), kind.apart)
    before = Case(GOLDEN / f"{source}.json").stored
    for output in differ:
        assert not torch.allclose(case.stored[output], before[output], rtol=1e-3, atol=1e-4), output
    if name != "padding":  # its kind has other values at the edge alone
        case.stored[differ[0]] += 1
        with pytest.raises(AssertionError, match=f"{case.family}/of_another_name {differ[0]}"):
            kind.check(case, kind.run(case), kind.apart)

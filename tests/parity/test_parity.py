"""Our code against numbers that the official code gave. PARITY_DIR names the folders of cases; see tests/golden/README.md."""

from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.elan import ELAN
from models.files.official import full_state, recognise
from models.swinir import SwinIR
from tests.parity import distributions, fill
from tests.parity.cases import GOLDEN, RTOL, Apart, Case, cases_in, compare, folders, manifest, manifests_in, problems, sampled
from tests.parity.runners import APART, LESS, elan_arguments, runner_for, swinir_arguments

STORED = {
    "adaface": 1,
    "codeformer": 4,
    "degradations": 12,
    "elan": 2,
    "gfpgan": 6,
    "ircontrolnet": 10,
    "swinir": 3,
}  # cases of each family in tests/golden
STORED_MANIFESTS = 26

ALL = list({case.contents: case for folder in folders() for case in cases_in(folder)}.values())  # each once
CASES = [case for case in ALL if not case.path.stem.startswith(("dist_", "keymap_"))]  # tests/models has the map of keys
DISTRIBUTIONS = [case for case in ALL if case.path.stem.startswith("dist_")]
MANIFESTS = [path for folder in folders() for path in manifests_in(folder)]
SWINIRS = [path for path in MANIFESTS if "swinir" in path.name]
ELANS = [path for path in MANIFESTS if path.name.startswith("elan")]


def named(path: Path) -> str:
    return path.name.split(".json")[0]


@pytest.mark.parametrize("folder", folders(), ids=str)
def test_folder_is_complete(folder: Path) -> None:
    assert problems(folder) == []


def test_project_keeps_its_cases() -> None:
    assert Counter(case.path.parent.name for case in cases_in(GOLDEN)) == STORED
    assert len(manifests_in(GOLDEN)) == STORED_MANIFESTS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    run = runner_for(case)
    if run is None:
        pytest.skip(f"not covered: {case.name}")
    compare(case, run(case), APART)


@pytest.mark.parametrize("case", DISTRIBUTIONS, ids=lambda case: case.name)
def test_distribution(case: Case) -> None:
    assert distributions.complaints(case, distributions.drawn_for(case.path.stem)) == []


@pytest.mark.parametrize("case", [case for case in ALL if case.name in LESS], ids=lambda case: case.name)
def test_left_out(case: Case) -> None:
    pytest.skip(f"not compared: {case.name}: {LESS[case.name]}")


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
    (folder / "toy/one.json").write_text(f'{{"outputs": {outputs}}}')
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
    compare(case, {"out": torch.tensor([1.0, 2.011])}, {"toy/* out": Apart(atol=0.02)})


def test_compare_allows_a_share_to_be_off(tmp_path: Path) -> None:
    case, half = small_case(tmp_path), {"toy/one out": Apart(share=0.5, most=1)}
    compare(case, {"out": torch.tensor([1.0, 3.0])}, half)
    with pytest.raises(AssertionError, match=r"toy/one out: 100.00% of the values are off, not 50.00%"):
        compare(case, {"out": torch.tensor([2.0, 3.0])}, half)
    with pytest.raises(AssertionError, match="not close"):
        compare(case, {"out": torch.tensor([1.0, 3.1])}, half)


def test_compare_wants_something_to_compare(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no output is compared"):
        compare(small_case(tmp_path), {}, {"toy/one out": Apart(skip=True)})


def test_every_rule_and_reason_is_of_a_case() -> None:
    if len(folders()) > 1:  # with the full vectors at hand
        names = {case.name for case in ALL}
        assert [name for name in LESS if name not in names] == []
        assert [each for each in APART if not any(fnmatch(name, each.split(" ")[0]) for name in names)] == []


def test_compare_wants_every_output_listed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="lists no output"):
        compare(small_case(tmp_path, outputs="[]"), {})


def test_sampling() -> None:
    full = torch.arange(24).view(2, 3, 4)
    assert torch.equal(sampled(full, "full"), full)
    assert torch.equal(sampled(full, "out[:, ::2, 1:3]"), full[:, ::2, 1:3])
    assert RTOL == 2e-5


def test_no_runner_for_an_unknown_family(tmp_path: Path) -> None:
    assert runner_for(small_case(tmp_path)) is None

"""Stored cases: which folders hold them, and what one case says. FAMILY/NAME.json is what was run, .npz what came out."""

import gzip
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.parity import fill

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RTOL = 2e-5  # common to all networks; atol stands with each output
GIVEN = {"input", "kernel", "kernel1", "kernel2", "sinc_kernel"}  # stored beside the outputs (up to a dot) but put in, not made


@dataclass(frozen=True)
class Case:
    """One json, with its npz if it has one."""

    path: Path

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    @property
    def contents(self) -> tuple[str, ...]:
        """Equal for cases of one name whose files are the same."""
        files = [self.path, *(p for p in [self.path.with_suffix(".npz")] if p.exists())]
        return (self.name, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())  # type: ignore[no-any-return]

    @property
    def family(self) -> str:
        return self.path.parent.name

    @property
    def reference(self) -> str:
        """What was run: the project, file and class; some families give them by name."""
        given = self.facts["reference"]
        return given if isinstance(given, str) else " ".join(map(str, given.values()))

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """Each with its name; a json lists them, or has them by name."""
        given = self.facts.get("outputs", [])
        return [{"name": name, **entry} for name, entry in given.items()] if isinstance(given, dict) else given

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        with np.load(self.path.with_suffix(".npz"), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    @property
    def weights(self) -> dict[str, Tensor]:
        facts = self.facts
        return fill.state_dict(facts["state_dict"], scale=facts["scale"], leave_out=facts["derived_buffers"])

    @property
    def input(self) -> Tensor:
        """The one input as drawn, times `multiply_by`; mapping it to another range is the runner's."""
        entry = self.facts["input"]
        return fill.tensor(entry["name"], entry["shape"], kind=entry["kind"]) * entry.get("multiply_by", 1)

    def tolerances(self, entry: dict[str, Any]) -> tuple[float, float]:
        """atol and rtol of an output: its own, those that the case has for its name, or those of the case."""
        common = self.facts.get("tolerance", {})
        if "atol" in entry:
            return entry["atol"], entry.get("rtol", common.get("rtol", RTOL))
        name = entry["name"]
        own = common.get(name)
        tolerance = own if isinstance(own, dict) else common  # words are in the rules of its kind
        if own == "exact" or tolerance.get("exact") or name.endswith("/timesteps"):
            return 0.0, 0.0
        if "tables_rtol" not in tolerance:
            return tolerance["atol"], tolerance.get("rtol", 0.0)
        if name.startswith("rescaled_cfg"):
            return tolerance["rescaled_cfg_atol"], 0.0
        return 0.0, tolerance["betas_rtol" if name.endswith(("/betas", "/alphas_cumprod")) else "tables_rtol"]


@dataclass(frozen=True)
class Apart:
    """How an output is compared where its json says so in words alone.

    Args:    atol: in place of the case's. share: of the values may be off by more, each by `most`: those behind a
                 rounding or a threshold that fell on the other side. skip: not compared.
    """

    atol: float | None = None
    share: float = 0.0
    most: float = 0.0
    skip: bool = False


def folders() -> list[Path]:
    """PARITY_DIR, folders joined as in PATH; without it, the cases kept in the project."""
    given = os.environ.get("PARITY_DIR")
    return [GOLDEN] if given is None else [Path(part) for part in given.split(os.pathsep)]


def cases_in(folder: Path) -> list[Case]:
    """The jsons that say what was run; others, such as maps of keys, are no cases."""
    return [case for path in _family_files(folder, ".json") if "reference" in (case := Case(path)).facts]


def families_in(folder: Path) -> list[str]:
    """Every folder of a family, whatever it holds."""
    return sorted(path.name for path in folder.glob("[!._]*/") if path.name != "manifests")


def _family_files(folder: Path, suffix: str) -> list[Path]:
    return [path for family in families_in(folder) for path in sorted((folder / family).glob(f"*{suffix}"))]


def manifests_in(folder: Path) -> list[Path]:
    return sorted([*folder.glob("manifests/*.json"), *folder.glob("manifests/*.json.gz")])


def manifest(path: Path) -> dict[str, Any]:
    """Keys and shapes of a full-size official checkpoint."""
    return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


def problems(folder: Path) -> list[str]:
    """Why a folder can't be trusted to be complete; empty if it can.

    A json that lists `outputs` needs its npz. One without `outputs` (distributions, key maps) is complete by itself.
    """
    if not str(folder).strip() or not folder.is_dir():
        return [f"PARITY_DIR: {str(folder)!r} is no folder"]
    cases = cases_in(folder)
    found = [] if cases else [f"PARITY_DIR: {folder} holds no case (FAMILY/NAME.json and .npz)"]
    lone = [c for c in cases if "outputs" in c.facts and not c.path.with_suffix(".npz").is_file()]
    arrays = [path for path in _family_files(folder, ".npz") if not path.with_suffix(".json").is_file()]
    return found + [f"{c.path} has no .npz" for c in lone] + [f"{path} has no .json" for path in arrays]


def sampled(full: Tensor, sampling: str, stride: int | None = None) -> Tensor:
    """The stored part of a full output.

    Args:    sampling: "full", or a slice such as "[:, ::16, ::4, ::4]", with or without "out" before it.
             stride: given: over the flattened output in place of it; 1 is the whole.
    """
    if stride is not None:
        return full if stride == 1 else full.flatten()[::stride]
    if sampling == "full":
        return full
    text = sampling[sampling.index("[") + 1 : sampling.rindex("]")]
    slices = [slice(*(int(n) if n.strip() else None for n in axis.split(":"))) for axis in text.split(",")]
    return full[tuple(slices)]


def compare(case: Case, produced: Mapping[str, Tensor], apart: Mapping[str, Apart] | None = None) -> None:
    """Every stored array against what a runner produced, at the case's own tolerance.

    Args:    apart: pattern of an output -> how it is compared; the first that fits.
    Raises:  AssertionError naming the case and output, for a value, a shape, or an output that is listed, stored or
             produced without the others.
    """
    outputs = {entry["name"]: entry for entry in case.outputs}
    assert outputs, f"{case.name} lists no output"
    assert set(outputs) == set(case.stored), (
        f"{case.name}: the json lists {sorted(outputs)}, the npz holds {sorted(case.stored)}"
    )
    rules = {name: _rule(name, apart or {}) for name in outputs}
    made = {name for name in outputs if name.split(".")[0] not in GIVEN and not rules[name].skip}
    assert made, f"{case.name}: no output is compared"
    assert made <= set(produced), f"{case.name}: the runner gave {sorted(produced)} of {sorted(made)}"
    for name in sorted(made):
        full, entry = produced[name], outputs[name]
        shape, part = entry.get("full_shape", entry.get("shape")), entry.get("sampling", entry.get("stored"))
        ours = sampled(full, part, entry.get("stride"))
        assert list(full.shape) == shape, f"{case.name} {name}: {list(full.shape)}, not {shape}"
        _compare_values(f"{case.name} {name}", ours, case.stored[name], case.tolerances(entry), rules[name])


def _rule(name: str, apart: Mapping[str, Apart]) -> Apart:
    return next((rule for pattern, rule in apart.items() if fnmatch(name, pattern)), Apart())


def _compare_values(name: str, ours: Tensor, stored: Tensor, tolerances: tuple[float, float], rule: Apart) -> None:
    atol, rtol = tolerances
    atol = atol if rule.atol is None else rule.atol
    if rule.share:
        off = (ours - stored).abs() > atol + rtol * stored.abs()
        assert off.double().mean() <= rule.share, (
            f"{name}: {off.double().mean():.2%} of the values are off, not {rule.share:.2%}"
        )
        atol = rule.most
    torch.testing.assert_close(ours, stored, atol=atol, rtol=rtol, msg=lambda text: f"{name}: {text}")

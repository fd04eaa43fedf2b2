"""Stored cases: which folders hold them, and what one case says. FAMILY/NAME.json is what was run, .npz what came out."""

import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.parity import fill

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RTOL = 2e-5  # common to all networks; atol stands with each output
OTHER_TESTS = {GOLDEN / "degradations"}  # excerpts in another form, read by tests/degradations


@dataclass(frozen=True)
class Case:
    """One json, with its npz if it has one."""

    path: Path

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

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


def folders() -> list[Path]:
    """PARITY_DIR, folders joined as in PATH; without it, the cases kept in the project."""
    given = os.environ.get("PARITY_DIR")
    return [GOLDEN] if given is None else [Path(part) for part in given.split(os.pathsep)]


def cases_in(folder: Path) -> list[Case]:
    return [Case(path) for path in _family_files(folder, ".json")]


def _family_files(folder: Path, suffix: str) -> list[Path]:
    files = sorted(folder.glob(f"*/*{suffix}"))
    return [p for p in files if p.parent.name != "manifests" and p.parent.resolve() not in OTHER_TESTS]


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


def sampled(full: Tensor, sampling: str) -> Tensor:
    """The stored part of a full output: "full", or a slice such as "[:, ::16, ::4, ::4]", with or without "out" before it."""
    if sampling == "full":
        return full
    text = sampling[sampling.index("[") + 1 : sampling.rindex("]")]
    slices = [slice(*(int(n) if n.strip() else None for n in axis.split(":"))) for axis in text.split(",")]
    return full[tuple(slices)]


def compare(case: Case, produced: Mapping[str, Tensor]) -> None:
    """Every stored array against what a runner produced, at the case's own tolerance.

    Raises: AssertionError naming the case and output, for a value, a shape, or an output that is listed, stored or
            produced without the others.
    """
    outputs = {entry["name"]: entry for entry in case.facts["outputs"]}
    assert outputs, f"{case.name} lists no output"
    assert set(outputs) == set(case.stored), (
        f"{case.name}: the json lists {sorted(outputs)}, the npz holds {sorted(case.stored)}"
    )
    assert set(outputs) <= set(produced), f"{case.name}: the runner gave {sorted(produced)} of {sorted(outputs)}"
    for name, entry in outputs.items():
        full = produced[name]
        assert list(full.shape) == entry["full_shape"], f"{case.name} {name}: {list(full.shape)}, not {entry['full_shape']}"
        torch.testing.assert_close(
            sampled(full, entry["sampling"]),
            case.stored[name],
            atol=entry["atol"],
            rtol=RTOL,
            msg=lambda text, name=name: f"{case.name} {name}: {text}",
        )

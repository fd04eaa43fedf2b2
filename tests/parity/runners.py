"""How a case is run on our code: families/FAMILY.py holds the kinds of cases of its family in KINDS.

Add a family by writing its file; no list names it. A kind is told by what a case says and holds, never by its file's name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from tests.parity import families
from tests.parity.cases import Apart, Case, compare


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of case.

    Args:    tells: whether a case is of this kind.
             run: case -> {output name: full tensor}, or what `check` takes.
             apart: pattern of an output -> how it is compared; the first that fits.
             less: what of such a case is not compared, or in another way than it was made; reported with its name.
             check: compares the case with what was run.
    """

    tells: Callable[[Case], bool]
    run: Callable[[Case], Any]
    apart: Mapping[str, Apart] = field(default_factory=dict)
    less: str = ""
    check: Callable[[Case, Any, Mapping[str, Apart]], None] = compare


def refers(pattern: str) -> Callable[[Case], bool]:
    """Whether a case's reference fits a pattern."""
    return lambda case: re.search(pattern, case.reference) is not None


def gives(*names: str) -> Callable[[Case], bool]:
    """Whether a case has an output of each of these beginnings."""
    return lambda case: all(any(output["name"].startswith(name) for output in case.outputs) for name in names)


def is_covered(family: str) -> bool:
    return find_spec(f"{families.__name__}.{family}") is not None


def module_of(family: str) -> Any:
    """The file of a covered family; importing some takes seconds."""
    return import_module(f"{families.__name__}.{family}")


def kinds(family: str) -> Sequence[Kind]:
    return module_of(family).KINDS  # type: ignore[no-any-return]


def kind_of(case: Case) -> Kind:
    """Raises AssertionError, which names the case: of its family, none or several kinds are told by it."""
    found = [kind for kind in kinds(case.family) if kind.tells(case)]
    assert len(found) == 1, (
        f"{case.name}: {len(found)} kinds of families/{case.family}.py fit it: reference {case.reference}, outputs "
        f"{[output['name'] for output in case.outputs]}"
    )
    return found[0]

"""What a configuration may do, whoever wrote it: which names it builds, and which variables of the environment it reads.

A class that a configuration names is imported and called: a configuration is code. So a name is judged before anything is
imported. Free are the classes of this project and of LIBRARIES, and whatever conf/ itself names. Anything else the user
allows by its name in the variable FACEWRIGHT_TARGETS; no configuration, checkpoint or run can.
"""

import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from train.conf import CONF

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch.optim", "lightning.pytorch.strategies", "lightning.pytorch.profilers", "albumentations")
OPT_IN = "FACEWRIGHT_TARGETS"  # environment variable: packages, or names in them, set off by commas
VARIABLES = "FACEWRIGHT_"  # how the variables begin that a configuration may read
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_"}


class NotAllowed(ValueError):
    """A name that a configuration may not build; nothing was imported for it."""


def named(name: object) -> Any:
    """The class or function that a `_target_` names.

    Raises: NotAllowed: see above; ImportError: there is no such thing, or its package fails to load.
    """
    if not isinstance(name, str) or not all(map(str.isidentifier, name.split("."))):
        raise ImportError(f"{name!r} is no dotted name of a class")
    if _lies_in(name, os.environ.get(OPT_IN, "").split(",")):
        return _imported(name)
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"there is no package {package} here: check its spelling, or install it (uv pip install {package})")
    free = [package] if (ROOT / package / "__init__.py").is_file() else [each for each in LIBRARIES if _lies_in(name, [each])]
    if free and inspect.isclass(found := _imported(name)) and _lies_in(found.__module__, free):
        return found
    if name in _names_in_conf():
        return _imported(name)
    raise NotAllowed(
        f"a configuration may build classes of this project and of {', '.join(LIBRARIES)}, and what conf/ names; "
        f"where you trust it and whoever wrote it, set {OPT_IN}={name} in the environment"
    )


def build(node: Any) -> Any:
    """What a resolved node names, with the nodes within it; `_partial_` gives a functools.partial.

    Not by Hydra, which would read ${x} in a value again. A key that a class does not take has done its work: others follow it
    (conf/data/ffhq.yaml), or the task reads it (conf/task/regression.yaml). train/jobs/config.py refuses every other key.

    Raises: what `named` and the constructors do.
    """
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [build(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: build(value) for key, value in node.items()}
    target = named(node["_target_"])
    parameters = inspect.signature(target).parameters
    takes_all = not parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    taken = {key: node[key] for key in node.keys() - HYDRA_KEYS if takes_all or key in parameters}
    values = {key: build(taken[key]) for key in node if key in taken}
    return partial(target, **values) if node.get("_partial_") else target(**values)


def variable(name: str, *default: str) -> str:
    """What ${oc.env:NAME} and ${oc.env:NAME,DEFAULT} give: a password in the environment gets into no saved configuration.

    Raises: ValueError: it is none of ours, or it is not set and there is no default.
    """
    if not name.startswith(VARIABLES):
        raise ValueError(
            f"${{oc.env:{name}}}: a configuration reads variables that begin with {VARIABLES} alone; give the value on the "
            f'command line, as in KEY="${name}"'
        )
    found = os.environ.get(name, *default)
    if found is None:
        raise ValueError(f"${{oc.env:{name}}}: {name} is not set in the environment")
    return found


def _lies_in(name: str, packages: list[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in packages)


def _imported(name: str) -> Any:
    """Raises ImportError: there is no such module, class or function."""
    first, *parts = name.split(".")
    try:
        found: Any = importlib.import_module(first)
        module = first
        for part in parts:
            module = f"{module}.{part}"
            if not hasattr(found, part) and inspect.ismodule(found):
                importlib.import_module(module)
            found = getattr(found, part)
    except ImportError as error:
        raise ImportError(f"{error}") from error
    except Exception as error:
        raise ImportError(f"{type(error).__name__}: {error}") from error
    if not callable(found):
        raise ImportError(f"{name} is no class")
    return found


@cache
def _names_in_conf() -> set[str]:
    files = CONF.rglob("*.yaml")
    return {name for file in files for name in re.findall(r"_target_: *([\w.]+)", file.read_text(encoding="utf-8"))}

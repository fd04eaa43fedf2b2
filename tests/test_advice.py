"""What a message advises works: each KEY=VALUE and each command in our texts exists, and what refusals advise is followed."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from data.prepare.__main__ import COMMANDS
from tests.test_imports import MODULES
from tests.toy import ROOT
from train.conf import choices, groups
from train.jobs import cli as command_line
from train.jobs.arguments import compose
from train.jobs.cli import register_resolvers
from train.jobs.config import RUN, plain, valid_keys

Cli = Callable[..., tuple[int, str]]
OVERRIDE = re.compile(r"(?<![\w./{}…~+-])~?([a-z]\w*(?:[./]\w+)+)=(?=[\w\[…{'\"])")
MODULE = re.compile(r"python -m ([a-z][\w.]*)(?: ([a-z]\w*))?")
SCRIPT = re.compile(r"python (\w+\.py)")
VERBS = {
    "data.prepare": set(COMMANDS),
    "models.official": {"inspect", "export"},
    "models.weights": {"list", "fetch", "verify"},
    "train.stages": {file.stem for file in choices("stages")},
    "degradations": {"preview"},
    "models.diffusion.tiny": set(),
    "restoration.sheet": set(),
}


@cache
def texts() -> list[tuple[str, str]]:
    """(file:line, text) of every string of ours that is no docstring; what a text takes in is … in it."""
    found = []
    for file in MODULES.values():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
        parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) not in parts and (text := "".join(_flat(node))):
                found.append((f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", text))
    return found


def _flat(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from _flat(value) if isinstance(value, ast.Constant) else ["…"]


SOURCES = [[f"data/source={file.stem}"] for file in choices("data/source")]


@cache
def keys() -> set[str]:
    """Every dotted key that train.py takes with one of the models, and the keys of Hydra that our texts name."""
    register_resolvers()
    found = {*RUN, *groups()}
    for arguments in ([], *([f"model={file.stem}"] for file in choices("model")), *SOURCES, ["data=hggt"], ["schedule=cosine"]):
        config = plain(compose(["trainer=cpu", *arguments]))
        found |= {*valid_keys(config, config)}
    return found


def test_every_key_that_a_text_names_with_a_value_exists() -> None:
    named = {(key, place) for place, text in texts() for key in OVERRIDE.findall(text)}
    hydra = ("hydra.", "hydra/", "data/source", "train.", "models.")
    unknown = sorted(f"{place}: {key}" for key, place in named if key not in keys() and not key.startswith(hydra))
    assert not unknown
    assert len(named) > 40


def test_every_command_that_a_text_names_exists() -> None:
    seen = 0
    for place, text in texts():
        for module, verb in MODULE.findall(text):
            seen += 1
            assert module in VERBS, f"{place} names python -m {module}"
            assert not verb or not VERBS[module] or verb in VERBS[module], f"{place} names python -m {module} {verb}"
        for script in SCRIPT.findall(text):
            seen += 1
            assert (ROOT / script).is_file(), f"{place} names {script}"
    assert seen > 20


def test_every_key_that_a_text_gives_to_a_preparation_exists() -> None:
    pattern = re.compile(r"python -m data\.prepare (\w+)((?: \w+=\S+)+)")
    found = [(place, *match) for place, text in texts() for match in pattern.findall(text)]
    for place, verb, given in found:
        for key in re.findall(r"(\w+)=", given):
            taken = inspect.signature(COMMANDS[verb]).parameters
            assert key in taken, f"{place}: {verb} takes no {key}"


# What was typed, and what its message advises; followed, it is accepted. In the third column * stands for it where it
# replaces the last argument; an empty one adds it.
FOLLOWED = [
    (["experiment=demo", "task=adversarial"], r"choose one: adversary=.*\bor (unet_sn)", "adversary=unet_sn"),
    (["experiment=demo", "~optimizer"], r"choose one: (optimizer=adam)", "*"),
    (["experiment=demo", "schedule=null"], r"choose one: (schedule=constant)", "*"),
    (["experiment=demo", "~augmentation"], r"or (none)", "augmentation=none *"),
    (["experiment=demo", "optimizer.lrr=1e-4"], r"did you mean (optimizer\.lr)\?", "* optimizer.lr=1e-4"),
    (["experiment=demo", "data.codes=c.npz"], r"set (data\.codes=null)", ""),
    (["experiment=demo", "adversary=unet_sn"], r"leave adversary out \((~adversary)\)", "*"),
    (["model=elan_enhance", "data.root=x", "task=regression", "loss=l1"], r"leave adversary out \((~adversary)\)", ""),
    (["experiment=demo", "trainer.precision=64-true"], r"take (32-true)", "* trainer.precision=32-true"),
    (["experiment=demo", "logger.tensorboard=null"], r"leave it out with (~logger\.tensorboard)", "*"),
]


@pytest.mark.parametrize(("typed", "advice", "how"), FOLLOWED, ids=[" ".join(typed) for typed, _, _ in FOLLOWED])
def test_an_advice_that_is_followed_is_accepted(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, typed: list[str], advice: str, how: str
) -> None:
    monkeypatch.setattr(command_line, "train", lambda _: None)
    code, printed = cli(*typed)
    assert code == 1, printed
    found = re.search(advice, printed)
    assert found, printed
    given = typed[:-1] if "*" in how else typed
    more = how.replace("*", "").split() or [found[1]]
    code, printed = cli(*given, *more)
    assert code == 0, printed

"""Where in a checkpoint its networks lie: under which names, and what the keys themselves begin with."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from models.files.families import is_known
from models.files.family import CheckpointError, first, shown
from models.files.sizes import check_stored

Which = str  # ema, network, or discriminator NAME

# Under which names files hold a network, as keys or as beginnings of keys, the one to prefer first; and, below, prefixes
# within the state_dict of our own checkpoints.
WRAPPERS: dict[str, Which] = {
    **dict.fromkeys(("params_ema", "g_ema", "net_g_ema", "model_ema", "ema"), "ema"),
    **dict.fromkeys(("params", "state_dict", "model_state_dict", "model", "network", "net", "net_g", "netG"), "network"),
    **dict.fromkeys(("generator", "g", "G", "weights", "module"), "network"),
    **dict.fromkeys(("params_d", "net_d", "netD", "discriminator", "d", "D"), "discriminator"),
}
NESTED = 4  # names around a network, at most
OURS: dict[str, Which] = {"ema.average.": "ema", "network.": "network"}
COMPILED = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # wherever a part was wrapped
DISCRIMINATOR = re.compile(r"adversary\.discriminators\.([^.]+)\.network\.")


def unwrap(content: object, which: Which | None, where: str) -> tuple[dict[str, Tensor], str]:
    """The bare state dict in whatever a checkpoint held, and the names that were around it.

    Usual beginnings of keys, such as `net_g.`, are taken off where a family then knows the keys.
    """
    parts = _parts(content) if isinstance(content, Mapping) else []
    if not parts:
        there = first(list(map(str, content))) if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CheckpointError(
            f"{where} holds no tensors under the usual names, but {there or 'nothing'}: give a file with a state dict, bare or "
            "under params, state_dict, model or the like"
        )
    own = "discriminator" if which and which.startswith("discriminator ") else None  # a file without discriminators' names
    chosen = next((part for part in parts if which is None or part[1] in (which, own)), None)
    if chosen is None:
        raise CheckpointError(
            f"{where} has no '{which}' weights, only: {first(list(dict.fromkeys(part[0] for part in parts)))}"
        )
    wrapper, _, state = chosen
    if strange := [str(k) for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor))]:
        raise CheckpointError(f"{where}: {len(strange)} entries are no tensors ({first(strange)}): give the bare state dict")
    check_stored(state, where)
    state, wrappings = _unwrapped(state)
    known = next(((more, below) for more, below in nested(state, which) if is_known(below)), ("", state))
    return known[1], ", ".join(map(shown, [wrapper, *wrappings, *([f"{known[0]}*"] if known[0] else [])]))


def _parts(content: Mapping[Any, Any]) -> list[tuple[str, Which, Mapping[Any, Any]]]:
    """(wrapper, which, state dict) for all weights in a file, the EMA first."""
    trained = content.get("state_dict")
    trained = trained if isinstance(trained, Mapping) else {}
    found = {match[0]: f"discriminator {match[1]}" for key in trained if (match := DISCRIMINATOR.match(str(key)))}
    ours = [
        (f"state_dict, {prefix}*", kind, {k.removeprefix(prefix): v for k, v in trained.items() if str(k).startswith(prefix)})
        for prefix, kind in (OURS | found).items()
    ]
    if any(part[2] for part in ours):
        return [part for part in ours if part[2]]
    held = list(_held(content, (), "network"))
    # A file with one network does not say which: it may be a discriminator.
    return held + [(wrapper, "discriminator", state) for wrapper, kind, state in held if kind == "network"]


def _held(content: Mapping[Any, Any], names: tuple[str, ...], which: Which) -> Iterator[tuple[str, Which, Mapping[Any, Any]]]:
    """(wrapper, which, state dict) for each mapping with tensors under the usual names, and else for `content` itself."""
    below = [
        part
        for name, kind in WRAPPERS.items()
        if isinstance(content.get(name), Mapping) and len(names) < NESTED
        for part in _held(content[name], (*names, name), which if which != "network" else kind)
    ]
    if not below and any(isinstance(value, Tensor) for value in content.values()):
        below = [(", ".join(names) or "none: a bare state dict", which, content)]
    yield from below


def _unwrapped(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Without what DataParallel, torch.compile and FSDP put around a network or a part of it, and what that was."""
    found: list[str] = []
    bare = {COMPILED.sub("", key): value for key, value in state.items()}
    if len(bare) == len(state):
        found = sorted({f"{match[0]}*" for key in state if (match := COMPILED.search(key))})
    else:  # two keys became one
        bare = dict(state)
    while all(key.startswith("module.") for key in bare):
        bare, found = {key.removeprefix("module."): value for key, value in bare.items()}, [*found, "module.*"]
    return bare, found


def nested(
    state: dict[str, Tensor], which: Which | None = None, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dict itself, and what is left of it under the usual names that keys begin with: `net_g.`, `model.net.`, …"""
    yield prefix, state
    starts = {key.partition(".")[0] for key in state}
    for name, kind in WRAPPERS.items():
        if name not in starts or depth == NESTED or (len(starts) > 1 and which not in (None, kind)):
            continue
        if below := {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}:
            yield from nested(below, which, f"{prefix}{name}.", depth + 1)

"""Where two configurations differ. Some keys may differ between two attempts at a run, none between its ranks."""

import hashlib
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from train.ranks import gather

# Keys that may differ between two attempts at a run: they change where and for how long it trains and what is shown of it, not
# what it computes.
MAY_DIFFER = (
    *("name", "arguments", "resume", "preflight", "validate", "logger", "checkpoint", "guard"),
    *("data.num_workers", "data.keep_decoded", "data.val_batch_size", "validation.pictures", "network.gradient_checkpointing"),
    *("trainer.max_steps", "trainer.val_check_interval", "trainer.log_every_n_steps", "trainer.enable_progress_bar"),
    *("trainer.max_time", "trainer.accelerator", "trainer.strategy"),
    # Their product is the effective batch, which must not change; train/runs/resume.py compares it.
    *("trainer.devices", "trainer.num_nodes", "trainer.accumulate_grad_batches", "data.batch_size"),
)
# Keys that say how a command was given and what it shows, and nothing of the training.
OF_THE_COMMAND = (
    *("name", "arguments", "resume", "preflight", "validate", "logger"),
    *("trainer.enable_progress_bar", "trainer.max_time"),
)


def differing_keys(before: dict[str, Any], now: dict[str, Any], may_differ: tuple[str, ...] = MAY_DIFFER) -> list[str]:
    """`key: old -> new` for every leaf that differs, but for those that may.

    null is no difference to a key that is not there, so that a run goes on when a later version knows more keys.
    """
    old, new = flatten(before), flatten(now)
    different = []
    for key in sorted(old.keys() | new.keys()):
        was, is_now = (side.get(key, "absent") for side in (old, new))
        if old.get(key) != new.get(key) and not any(key == name or key.startswith(f"{name}.") for name in may_differ):
            different.append(f"{key}: {was} -> {is_now}")
    return different


def within(different: list[str], parts: Iterable[str]) -> list[str]:
    """Those of them that belong to parts of the configuration: patterns of keys, such as adversary.discriminators.*.network."""
    keys = (each.partition(": ")[0] for each in different)
    return [
        each
        for key, each in zip(keys, different, strict=True)
        if any(fnmatchcase(key, pattern) for part in parts for pattern in (part, f"{part}.*"))
    ]


def listed(different: list[str]) -> str:
    """The first eight of them, for a message."""
    return f"{', '.join(different[:8])}{' …' if len(different) > 8 else ''}"


def flatten(node: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> value of every leaf."""
    if not isinstance(node, dict) or not node:
        return {path: node}
    return {key: value for name, child in node.items() for key, value in flatten(child, f"{path}.{name}".lstrip(".")).items()}


def check_same_config(config: dict[str, Any]) -> None:
    """Raises ValueError on every rank when the ranks were not given one and the same resolved configuration."""
    config = {key: value for key, value in config.items() if key != "arguments"}  # what came of them counts
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    if len(set(gather(digest))) == 1:
        return
    configs = [flatten(each) for each in gather(config)]
    keys = sorted({key for each in configs for key in each if any(other.get(key) != each[key] for other in configs)})
    values = "; ".join(
        f"{key}: {', '.join(f'{each.get(key)!r} on rank {n}' for n, each in enumerate(configs))}" for key in keys
    )
    raise ValueError(f"the ranks were given different configurations ({values}): start every rank with the same command")

"""What a file asks for is told before it is allocated: a few bytes can ask for a network, or for tensors, without end."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from models.files.family import CheckpointError, first

SPARE = 1 << 26  # values that a network may have beyond those of its file, such as tables that follow from its arguments
SPARE_PARTS = 1000  # the same of parameters and buffers


def is_argument(name: object, value: object) -> bool:
    """Whether a recorded argument is one that networks have: a word, a number, or a short list of these."""
    if isinstance(value, list):
        return len(value) <= 100 and all(not isinstance(each, list) and is_argument(name, each) for each in value)
    small = (
        abs(value) < 1e5 if isinstance(value, int | float) else len(value) <= 100 if isinstance(value, str) else value is None
    )
    return small and isinstance(name, str) and name.isidentifier()


@contextmanager
def on_paper(state: Mapping[str, Tensor]) -> Iterator[None]:
    """A context in which networks are made without memory (torch's meta device), as long as they suit the weights of a file.

    Raises: ValueError when a network has got many more parts or values than `state`.
    """
    parts = len(state) + SPARE_PARTS
    values = sum(value.numel() for value in state.values()) + SPARE

    def count(_: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal parts, values
        parts, values = parts - 1, values - (0 if value is None else value.numel())
        if parts < 0 or values < 0:
            raise ValueError(
                f"the network that it asks for is larger than its {len(state)} tensors of "
                f"{sum(value.numel() for value in state.values()):,} values (at {name!r})"
            )

    hooks = (
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
        module.register_module_module_registration_hook(lambda parent, name, _: count(parent, name, None)),
    )
    try:
        with torch.device("meta"):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def check_archive(path: Path) -> None:
    """Raises CheckpointError: torch's zip file holds more than its own bytes. torch.save compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        declared = sum(member.file_size for member in archive.infolist())
    if declared > path.stat().st_size:
        raise CheckpointError(
            f"{path} is refused: its members unpack to {declared:,} bytes, more than it has; torch.save makes no such file"
        )


def check_stored(state: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError: tensors that are no plain rows of numbers, or show twice as many values as are stored.

    Tied layers share what is stored, but a few bytes that stand for terabytes (a stride of 0) are no weights.
    """
    if odd := [key for key, value in state.items() if value.layout != torch.strided or value.is_meta or value.is_quantized]:
        raise CheckpointError(f"{where}: {len(odd)} tensors are sparse, quantised or without values ({first(odd)})")
    storages = {(each := value.untyped_storage()).data_ptr(): each.nbytes() for value in state.values()}
    declared, stored = sum(value.nbytes for value in state.values()), sum(storages.values())
    if declared > 2 * stored:
        key = max(state, key=lambda key: state[key].nbytes)
        raise CheckpointError(
            f"{where} is refused: its tensors ask for {declared:,} bytes, and {stored:,} are stored "
            f"({first([key])} has the shape {tuple(state[key].shape)})"
        )

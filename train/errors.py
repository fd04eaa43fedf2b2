"""How a command ends when something is wrong: with one message and a non-zero exit code."""

import errno
import os
import sys
from pathlib import Path
from typing import NoReturn

from data.sources.shown import printable

ERROR_FILE = "FACEWRIGHT_ERROR_FILE"  # environment variable: where a process leaves its message for the one that started it
# What allocators that don't raise torch.OutOfMemoryError say when memory has run out.
OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


def message_of(error: Exception) -> str:
    """The error's own message. Of an error in a data worker torch makes a longer one, which begins with a traceback."""
    text, kind = str(error), type(error)
    if "in DataLoader worker process" not in text.partition("\n")[0]:
        return text
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return text.rpartition(f"\n{name}: ")[2].strip()


def not_given(key: str) -> str:
    """The sentence for a file that a recipe starts from and that nobody has named."""
    return (
        f"init.{key} is not set, and this recipe starts from trained weights: give init.{key}=PATH "
        "(a run, a file, or a folder of weights)"
    )


def fail(message: str) -> NoReturn:
    """Ends the process with exit code 1 and this message: on stderr, or where the process that started this one reads it.

    What moves a terminal's cursor, as a stranger's names and files may, is shown as an escape.
    """
    if file := os.environ.get(ERROR_FILE):
        Path(file).write_text(message, encoding="utf-8", errors="surrogateescape")
    else:
        lead = "" if message.startswith("Traceback") else "error: "
        print("\n".join(f"{lead}{printable(line)}" for line in message.splitlines() if line.strip()), file=sys.stderr)
    sys.exit(1)


def ran_out(error: BaseException) -> bool:
    """True for an error that says that the memory of a GPU or of the machine ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # a data worker that could not be started
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)

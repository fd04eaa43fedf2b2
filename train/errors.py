"""How a command of ours ends when something is wrong: what the errors mean, and the one message that tells them."""

import errno
import os
import sys
from pathlib import Path
from typing import NoReturn

# Besides torch.OutOfMemoryError, which not every allocator raises.
MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


class Diverged(Exception):
    """Training can't go on from these weights; the ones of the last checkpoint are good."""

    def __init__(self, step: int, reason: str) -> None:
        self.step, self.reason = step, reason
        super().__init__(f"update {step}: {reason}")


def message_of(error: Exception) -> str:
    """Without the traceback that torch puts before it when a data worker raised it."""
    text, kind = str(error), type(error)
    if "in DataLoader worker process" not in text.partition("\n")[0]:
        return text
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return text.rpartition(f"\n{name}: ")[2].strip()


def fail(message: str) -> NoReturn:
    """Ends the process with one error: on stderr, or where the process that started this one looks for it."""
    if file := os.environ.get("FACEWRIGHT_ERROR_FILE"):
        Path(file).write_text(message)
    elif message.startswith("Traceback"):
        print(message, file=sys.stderr)
    else:
        print("\n".join(f"error: {line}" for line in message.splitlines() if line.strip()), file=sys.stderr)
    sys.exit(1)


def ran_out(error: BaseException) -> bool:
    """True for an error that says that the memory of a GPU or of the machine ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # a data worker that could not be started
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in MESSAGES)

"""When data workers can't live in the surroundings of a run: what is too small there, and the ways out, in one sentence."""

import errno
import re
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

SHARED = Path("/dev/shm")  # where torch puts the batches that workers hand over
# What torch says of it: where it finds no room there, and where a worker touched a page for which there was none (SIGBUS).
SHARED_IS_FULL = r"unable to (allocate|mmap|resize|write|open).*(shared memory|/torch_)|insufficient shared memory|[Bb]us error"
KILLED = r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)"
# What stands for an error before it, which says more: Lightning fails too when it clears away after workers that could not be
# started, and torch finds a worker gone of which it knows already what ended it.
FOLLOWS = r"iter\(combined_loader\)|exited unexpectedly"


@contextmanager
def workers_explained(config: dict[str, Any]) -> Iterator[None]:
    """Raises ValueError with the advice below in place of an error of data workers' surroundings; other errors pass."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        first: BaseException = error
        while re.search(FOLLOWS, str(first)) and first.__context__:
            first = first.__context__
        if advice := worker_advice(first, config["data"]["num_workers"]):
            _MultiProcessingDataLoaderIter._shutdown = True  # of one that never began; at its end torch asks for it
            raise ValueError(advice) from error
        raise first from None


def worker_advice(error: BaseException, workers: int) -> str | None:
    """One sentence that holds the way out, or None where the error is of another kind.

    Args: workers: data.num_workers of the run.
    """
    alone = "set data.num_workers=0, which reads in the training process"
    text, number = str(error), error.errno if isinstance(error, OSError) else None
    in_workers = any("multiprocessing" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
    if re.search(SHARED_IS_FULL, text) or (number == errno.ENOSPC and in_workers):
        size = f" ({shutil.disk_usage(SHARED).total / 2**20:.0f} MiB)" if SHARED.exists() else ""
        return (
            f"data.num_workers={workers}: {SHARED}{size}, through which data workers hand over their batches, is too small: "
            f"{alone}, or make it larger (docker run --shm-size=8g)"
        )
    if number == errno.EMFILE or "Too many open files" in text or "items of ancdata" in text:
        return f"too many files are open (data.num_workers={workers}): give ulimit -n 65536 before the command, or {alone}"
    if re.search(KILLED, text):
        return (
            f"data.num_workers={workers}: a data worker was killed from outside, often as the machine's memory runs out: "
            f"set fewer, or {alone.removeprefix('set ')}"
        )
    return None

"""No process outlives the one that started it."""

import contextlib
import ctypes
import os
import signal


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends, even by a SIGKILL (Linux; elsewhere nothing).

    Args: parent: id of the process that started this one, which may have ended before this call.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)

"""No process outlives the one that started it by multiprocessing."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Ends this process when that one ends or has ended, even by a SIGKILL.

    The kernel could do it (PR_SET_PDEATHSIG), but takes the end of the thread that started this process for that.
    """
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)

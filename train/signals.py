"""Signals that ask a run to end. Imports nothing heavy: the handlers must stand before torch is loaded."""

import math
import signal
import time
from types import FrameType, TracebackType

REQUEUE = 75  # exit code: "I was asked to end and saved everything; start me again" (EX_TEMPFAIL of sysexits.h)
NEAR_LIMIT = (signal.SIGUSR1, signal.SIGUSR2)  # SLURM sends one when the time limit is near (submitit asks for the second)
ASKING = (signal.SIGTERM, *NEAR_LIMIT, signal.SIGINT)
TIME_IS_UP = signal.SIGALRM  # nobody sends it: stop_signal says it after trainer.max_time


class Interrupted(Exception):
    """A signal asked the run to end; everything up to `step` is saved."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum, self.step = signum, step
        name = "trainer.max_time" if signum == TIME_IS_UP else signal.Signals(signum).name
        super().__init__(
            f"{name}: everything up to update {step} is saved; the same command, without resume=never, goes on from there"
        )

    @property
    def exit_code(self) -> int:
        return exit_code(self.signum)


def exit_code(signum: int) -> int:
    """Exit code of a process that ends because of a signal: REQUEUE, or after Ctrl-C (and any other) 130, as shells have it."""
    return REQUEUE if signum in (signal.SIGTERM, *NEAR_LIMIT, TIME_IS_UP) else 130


class Signals:
    """Inside this context SIGTERM, SIGUSR1, SIGUSR2 and the first Ctrl-C are only noted; train/runs/checkpoint.py asks for the
    note between two updates.

    A handler that saved the run itself could interrupt an update half-way, and a collective inside a handler would hang.

    Args: within_s: seconds from now on after which the run is asked to end too.
    """

    received = 0  # the signal; 0 again when the outermost context ends
    deadline = math.inf  # of time.monotonic()

    def __init__(self, within_s: float = math.inf) -> None:
        self.within_s = within_s

    def __enter__(self) -> None:
        self._deadline_before, Signals.deadline = Signals.deadline, min(Signals.deadline, time.monotonic() + self.within_s)
        self._before = {signum: signal.signal(signum, self._note) for signum in ASKING}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        Signals.deadline = self._deadline_before
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._note not in self._before.values():
            Signals.received = 0

    @staticmethod
    def _note(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and Signals.received == signal.SIGINT:
            raise KeyboardInterrupt
        if not (signum == signal.SIGTERM and Signals.received in NEAR_LIMIT):  # the limit itself, after its announcement
            Signals.received = signum


class Interrupting(Signals):
    """Inside this context the first of these signals raises KeyboardInterrupt; stop_signal tells which it was.

    For work of which only the piece in hand is lost. Further signals (`timeout` sends two) don't cut off the last messages;
    only a second Ctrl-C does.
    """

    @staticmethod
    def _note(signum: int, frame: FrameType | None) -> None:
        first = not stop_signal()
        Signals._note(signum, frame)
        if first:
            raise KeyboardInterrupt


def stop_signal() -> int:
    """The signal that asked this process to end, TIME_IS_UP where it has had its time, or 0."""
    return Signals.received or (TIME_IS_UP if time.monotonic() >= Signals.deadline else 0)

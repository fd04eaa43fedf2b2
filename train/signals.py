"""Signals that ask a run to end. Imports nothing heavy: the handlers must stand before torch is loaded."""

import signal
from types import FrameType, TracebackType

REQUEUE = 75  # exit code: "I was asked to end and saved everything; start me again" (EX_TEMPFAIL of sysexits.h)
NEAR_LIMIT = (signal.SIGUSR1, signal.SIGUSR2)  # SLURM, as it was told, when the time limit is near (submitit takes the second)
ASKING = (signal.SIGTERM, *NEAR_LIMIT, signal.SIGINT)


class Interrupted(Exception):
    """A signal asked the run to end; everything up to `step` is saved."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum, self.step = signum, step
        name = signal.Signals(signum).name
        super().__init__(
            f"{name}: everything up to update {step} is saved; the same command, without resume=never, goes on from there"
        )

    @property
    def exit_code(self) -> int:
        return exit_code(self.signum)


def exit_code(signum: int) -> int:
    """Of a process that ends as a signal asked it to: 130, as a shell says it, of Ctrl-C, or of no signal that we know."""
    return REQUEUE if signum in (signal.SIGTERM, *NEAR_LIMIT) else 130


class Signals:
    """Within it SIGTERM, SIGUSR1, SIGUSR2 and the first Ctrl-C only leave a note, which
    train/runs/checkpoint.py reads between updates.

    Saving inside a handler would meet half an update, and a collective there would hang.
    """

    received = 0  # stays so until the outermost of them ends

    def __enter__(self) -> None:
        self._before = {signum: signal.signal(signum, self._note) for signum in ASKING}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
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
    """Within it the first of them breaks off what is under way, as Ctrl-C does by itself; stop_signal tells which it was.

    For work of which only the piece in hand is lost. What comes after it (`timeout` sends two) lets the last words be said; a
    second Ctrl-C does not.
    """

    @staticmethod
    def _note(signum: int, frame: FrameType | None) -> None:
        first = not stop_signal()
        Signals._note(signum, frame)
        if first:
            raise KeyboardInterrupt


def stop_signal() -> int:
    """The signal that asked this process to end, or 0."""
    return Signals.received

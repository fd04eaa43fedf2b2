"""What every command does before its first word, so that no word of it can end it. The commands call it, nothing else does."""

import errno
import io
import sys
import warnings
from typing import Any

GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader, a terminal that was closed


class Unheeded(io.FileIO):
    """A stream that goes on without its reader: what is written to `| head -1` after the first line is dropped."""

    def write(self, chunk: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            return super().write(chunk)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return len(chunk)


def printing_never_fails() -> None:
    """From now on stdout and stderr take any character, escaped where the locale has no sign for it, and may lose their reader.

    A run is worth more than what it says: it goes on, and its exit code tells how it ended. A warning is one line.
    """
    warnings.formatwarning = _one_line
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: >&-
            continue
        raw = Unheeded(stream.fileno(), "w", closefd=False)
        buffer: Any = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)
        spoken = io.TextIOWrapper(
            buffer,  # without one under python -u
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, spoken)


def _one_line(message: Warning | str, *place: object, **more: object) -> str:
    """Without the place in the code that a warning comes from."""
    return f"warning: {message}\n"

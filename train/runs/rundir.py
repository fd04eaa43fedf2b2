"""A run's folder: its lock, its configuration and summary, and files that are written whole or not at all."""

import fcntl
import io
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, TextIO

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.writing import open_own, write_bytes
from train.conf import check_yaml

RUNS = Path("runs")
LOCK_WAIT_S = 5.0  # an attempt that was just killed may still be going down


def lock(directory: Path) -> TextIO:
    """Locks a run's folder. The lock is held until the process ends, however it ends, or until `release`.

    Raises: ValueError: another process trains here; the message says which.
    """
    path = directory.with_name(f".{directory.name}.lock")  # beside it: the folder itself may be renamed
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.TextIOWrapper(open_own(path), encoding="utf-8", write_through=True)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # belongs to this process alone: data workers don't inherit it
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
            file.close()  # the process that held it deleted it meanwhile
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise ValueError(
                    f"{directory} is being trained by {owner}: wait for it, end it, or give this run its own name=…"
                ) from None
            file.close()
            time.sleep(0.2)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file


def release(file: TextIO, directory: Path) -> None:
    """Gives the lock back. Where the run wrote nothing, the lock's file and empty folders go too."""
    if not directory.exists():
        Path(file.name).unlink()
        for folder in (directory.parent, *directory.parent.parents):
            if folder == Path("."):
                break
            try:
                folder.rmdir()
            except OSError:  # not empty
                break
    file.close()


def set_aside(path: Path, suffix: str) -> Path:
    """Renames a file or folder to the first free NAME.suffixN and returns the new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{suffix}{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def write_text(path: Path, text: str) -> None:
    """The file has its old or its new content, whatever happens in between, also a power cut."""
    write_bytes(path, text.encode(), synced=True)


def no_such(resume: str) -> str:
    """The sentence where resume=… names nothing."""
    return f"resume={resume}: no such file; give auto, never, a run's folder or the path of a checkpoint"


def read_summary(directory: Path) -> dict[str, Any] | None:
    """summary.json of a run that reached its last update, or None."""
    path = directory / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def saved_config(directory: Path) -> dict[str, Any]:
    """The configuration that config.yaml of a run's folder describes. Raises ValueError: no run wrote this file."""
    file = directory / "config.yaml"
    check_yaml(file, aliases=False)
    try:
        saved = OmegaConf.to_container(OmegaConf.load(file))
    except OmegaConfBaseException as error:
        raise ValueError(f"{file} is no configuration of a run: {' '.join(str(error).split())}") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{file} is no configuration of a run: it holds no keys")
    return {str(key): value for key, value in saved.items()}

"""The loop that every command shares: all files of a folder, on all cores, one shard of them, to be stopped and continued."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from data.images import UnreadableImage
from data.parent import end_with_parent
from data.prepare.jobs.files import Unusable
from data.prepare.jobs.records import Record, Records, Shard
from data.sources.files import Files, ImageFolder
from data.sources.shown import printable
from data.sources.source import Source
from data.writing import refuse_links_out

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TERMINAL_S, LOG_S = 0.5, 60.0  # seconds between two progress lines

Measure = Callable[[str], Record]


class Stopped(Exception):
    """A signal ended the work; what was finished is on record."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 130 if signum == signal.SIGINT else 75
        super().__init__(f"stopped by {signal.Signals(signum).name}: the same command goes on from here")


@dataclass
class Work:
    """What is on record: `records` of all files by path in order, `own` of this shard alone, and the shards that lack files."""

    records: dict[str, Record]
    own: dict[str, Record]
    unfinished: list[Shard]

    def unusable(self) -> int:
        """Names this shard's files that could not be used, on stderr. Returns: how many."""
        errors = [record["error"] for record in self.own.values() if "error" in record]
        for error in errors:
            print(f"not used: {printable(error)}", file=sys.stderr)
        return len(errors)

    def complete(self, result: str) -> bool:
        """Whether all shards are done; says which are not, and that this keeps back the result."""
        if self.unfinished:
            names = ", ".join(map(str, self.unfinished))
            print(f"shards not finished yet: {names}; the last of them, or this command again after it, writes {result}")
        return not self.unfinished


def listing(root: Path, out: Path) -> list[str]:
    """The images below root as sorted relative paths.

    Raises:  ValueError: there are none, or out lies in root, where a later run would take its files for inputs.
    """
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"out={out} lies in root={root}: give a folder outside of it")
    return ImageFolder(root=str(root)).paths


def store(source: Source, root: Path) -> list[int] | None:
    """Bytes and time of what images that are no files of their own lie in, so that a change is noticed; else None."""
    if isinstance(source, Files) or not root.exists():
        return None
    states = [file.stat() for file in ([root] if root.is_file() else sorted(root.iterdir()))]
    return [sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)]


def run(
    *,
    name: str,
    root: Path,
    out: Path,
    paths: list[str],
    measure: Measure,
    settings: Record,
    workers: int,
    shard: Shard,
    preload: tuple[str, ...] = ("torch", "cv2"),
) -> Work:
    """measure(path) for each file of the shard that is not on record yet.

    A file is done again when it changed, when it could not be used, or when one of the outputs on its record is gone.

    Args:    name: for progress, and of the record's folder OUT/.name.
             measure: relative path to what is known of the file. UnreadableImage and Unusable are put on record; so is any
                 other error but OSError, which ends the work (the disk is full, …). "outputs" are files below out.
             settings: what the records depend on.
             workers: processes; 0 means one for each core.
             preload: slow imports, made once for all workers.
    Raises:  Stopped: by a signal. ValueError: see Records.
    """
    refuse_links_out(out)
    records = Records(out / f".{name}", shard, settings | {"root": str(root.resolve())})
    try:
        known = records.read()
        own = shard.own(paths)
        todo = [path for path in own if not _is_done(known.get(path), root, out)]
        progress = Progress(name, len(own), len(own) - len(todo))
        with signals() as received:
            for record in _results(_Task(measure, root), todo, _Pool(workers or cores(), preload), received):
                records.append(record)
                progress.step("error" in record)
            progress.end()
            if received:
                raise Stopped(received[0])
        known = records.read()
    finally:
        records.close()
    return _gather(paths, known, shard)


def _gather(paths: list[str], known: dict[str, Record], shard: Shard) -> Work:
    parts = [Shard(index, shard.count) for index in range(1, shard.count + 1)]
    unfinished = [part for part in parts if any(path not in known for path in part.own(paths))]
    own = {path: known[path] for path in shard.own(paths)}
    return Work({path: known[path] for path in paths if path in known}, own, unfinished)


def _is_done(record: Record | None, root: Path, out: Path) -> bool:
    if record is None or "error" in record or (record["bytes"], record["modified_ns"]) != _state(root / record["path"]):
        return False
    return all((out / output).exists() for output in record.get("outputs", ()))


def _state(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # whoever reads it says why
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class _Task:
    measure: Measure
    root: Path

    def __call__(self, path: str) -> Record:
        size, modified_ns = _state(self.root / path)
        record: Record = {"path": path, "bytes": size, "modified_ns": modified_ns}
        try:
            return record | self.measure(path)
        except (UnreadableImage, Unusable) as error:
            return record | {"error": str(error)}
        except OSError:
            raise
        except Exception as error:  # a fault of ours on one file must not end a night's work
            return record | {"error": f"{self.root / path}: {type(error).__name__}: {error}"}


@dataclass(frozen=True)
class _Pool:
    workers: int
    preload: tuple[str, ...]

    def start(self, task: _Task, files: int) -> ProcessPoolExecutor:
        """Each worker gets the task once: with a name for every file it may be large."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(self.preload))
        asked = {signum: signal.signal(signum, signal.SIG_IGN) for signum in SIGNALS}
        try:
            forkserver.ensure_running()  # SLURM signals every process: those that start here inherit that they ignore it
        finally:
            for signum, handler in asked.items():
                signal.signal(signum, handler)
        workers = min(self.workers, files)
        return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(task,))


def _results(task: _Task, paths: list[str], pool_of: _Pool, received: list[int]) -> Iterator[Record]:
    """Records as they come. A bounded number of files is on its way; after a signal only these are finished."""
    if not paths:
        return
    remaining = iter(paths)
    with pool_of.start(task, len(paths)) as pool:
        waiting: set[Future[Record]] = set()
        try:
            while True:
                free = 0 if received else 2 * pool_of.workers - len(waiting)
                waiting |= {pool.submit(_do, path) for path in islice(remaining, free)}
                if not waiting:
                    return
                if received:
                    waiting = {future for future in waiting if not future.cancel()}
                done, waiting = wait(waiting, timeout=TERMINAL_S, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            if not received:
                raise ValueError(
                    "a worker process was killed, mostly for want of memory: give fewer workers=; what is finished is kept"
                ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_of_this_worker: list[_Task] = []


def _do(path: str) -> Record:
    return _of_this_worker[0](path)


def _start_worker(task: _Task) -> None:
    """Workers are the parallelism: one thread each. The parent answers signals; when it is killed, its workers end too."""
    import cv2
    import torch

    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    _of_this_worker[:] = [task]
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    end_with_parent()


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that receives the first signal; a second one acts as usual."""
    received: list[int] = []

    def note(signum: int, frame: Any) -> None:
        received.append(signum)
        for each in SIGNALS:
            signal.signal(each, before[each])

    before = {signum: signal.signal(signum, note) for signum in SIGNALS}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class Progress:
    """Files done, rate and time left on stderr: one line that changes on a terminal, else a line a minute.

    Args:    total: files there are. done: of them before this run.
    """

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.done, self.before, self.failed = name, total, done, done, 0
        self.terminal = sys.stderr.isatty()
        self.start = self.shown = time.monotonic()
        self.counted = 0  # since start, which is when the first file was done: imports are no part of the rate
        if done:
            print(f"{name}: {done} of {total} files were done before", file=sys.stderr)

    def step(self, failed: bool) -> None:
        self.done += 1
        self.failed += failed
        now = time.monotonic()
        if self.done == self.before + 1:
            self.start = now
        else:
            self.counted += 1
        if now - self.shown >= (TERMINAL_S if self.terminal else LOG_S):
            self.shown = now
            print(self.line(now - self.start), end="\r" if self.terminal else "\n", file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """As that many seconds after the first file."""
        rate = self.counted / max(seconds, 1e-6)
        left = int((self.total - self.done) / rate) if rate else 0
        failed = f", {self.failed} not usable" if self.failed else ""
        shown = f"{self.name}: {self.done}/{self.total} files, {rate:.1f} a second"
        return f"{shown}, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left{failed}   "

    def end(self) -> None:
        if self.done > self.before:
            print(self.line(time.monotonic() - self.start).rstrip(), file=sys.stderr, flush=True)

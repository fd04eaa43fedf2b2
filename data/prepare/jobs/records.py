"""What is known about each file, kept so that work can be stopped, continued, and split over machines."""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

Record = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """Part index (1 .. count) of the work: every count-th file of the sorted list."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def own(self, paths: list[str]) -> list[str]:
        return paths[self.index - 1 :: self.count]

    @staticmethod
    def parse(text: str, environment: Mapping[str, str] = os.environ) -> "Shard":
        """i/n; an empty text means the place in a SLURM job array, or 1/1 outside of one.

        Raises:  ValueError: not i/n with 1 <= i <= n, or an array whose task numbers leave gaps.
        """
        if not text:
            return Shard._of_slurm(environment)
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"shard={text}: give part i of n as i/n with i from 1 to n, such as 1/8")
        return Shard(int(found[1]), int(found[2]))

    @staticmethod
    def _of_slurm(environment: Mapping[str, str]) -> "Shard":
        if "SLURM_ARRAY_TASK_ID" not in environment:
            return Shard(1, 1)
        task, first, last, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT"))
        step = (last - first) // (count - 1) if count > 1 else 1
        if first + (count - 1) * step != last or (task - first) % step:
            raise ValueError(
                f"the SLURM array has {count} tasks from {first} to {last} with gaps, so task {task}'s part can't be told: "
                "give shard=i/n, or an array without gaps such as --array=1-8"
            )
        return Shard((task - first) // step + 1, count)


class Records:
    """One JSON line a file of the data set, in folder/I-of-N.jsonl; each shard appends to its own file and all are read.

    The first line holds the settings under which the lines were made. A line cut off by a kill is dropped.

    Args:    folder: made when missing.
             settings: what the lines depend on.
    Raises:  ValueError: made with other settings, or another process writes this shard now.
    """

    def __init__(self, folder: Path, shard: Shard, settings: Record) -> None:
        self.folder = folder
        self.settings = settings
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{shard.index}-of-{shard.count}.jsonl"
        self.file = self._open(shard)
        self._check_settings()

    def _open(self, shard: Shard) -> TextIO:
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ValueError(f"another process works on shard {shard} in {self.folder.parent}: wait for it") from error
        contents = self.path.read_bytes()
        whole = contents.rfind(b"\n") + 1
        os.ftruncate(file.fileno(), whole)
        if not whole:
            self._write(file, {"settings": self.settings})
        return file

    @staticmethod
    def _write(file: TextIO, line: Record) -> None:
        file.write(json.dumps(line) + "\n")
        file.flush()  # survives the death of this process

    def _check_settings(self) -> None:
        for path in self._files():
            made = next(_lines(path), {}).get("settings", self.settings)
            differing = {key for key in {*made, *self.settings} if made.get(key) != self.settings.get(key)}
            if differing:
                self.file.close()
                changed = ", ".join(f"{key}={made.get(key)} (now {self.settings.get(key)})" for key in sorted(differing))
                raise ValueError(f"{self.folder.parent} was begun with {changed}: give these values again, or another out=")

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*-of-*.jsonl"))

    def append(self, record: Record) -> None:
        self._write(self.file, {**record, "at_s": time.time()})

    def read(self) -> dict[str, Record]:
        """The records of all shards by path; of two for one file, the later one."""
        found: dict[str, Record] = {}
        for path in self._files():
            for record in _lines(path):
                if "path" in record and record["at_s"] >= found.get(record["path"], record)["at_s"]:
                    found[record["path"]] = record
        return found

    def close(self) -> None:
        os.fsync(self.file.fileno())
        self.file.close()


def _lines(path: Path) -> Iterator[Record]:
    """The whole lines of a file that another process may be writing."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)

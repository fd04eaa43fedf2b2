import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """A script's main in this process, in an empty folder: main and arguments in, (exit code, everything printed) out."""

    def call(main: Callable[[], None], *arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return call


@pytest.fixture
def cli(command: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """train.py: arguments in, (exit code, everything printed) out."""
    from train.cli import main

    return lambda *arguments: command(main, *arguments)

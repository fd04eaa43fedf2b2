"""No word of a command can end it: any locale, and a reader that has gone."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.test_imports import MODULES
from tests.toy import ROOT, TINY_DATA, TINY_NETWORK, TINY_RUN
from train.console import Unheeded, printing_never_fails

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # else Python makes UTF-8 of it
COMMANDS = [
    *("train.py", "restore.py", "evaluate.py", "train/stages.py", "data/prepare/__main__.py", "degradations/__main__.py"),
    *("models/official.py", "models/weights.py", "models/diffusion/tiny.py", "restoration/sheet.py"),
]


def test_every_script_begins_with_it() -> None:
    ours = [ROOT / "train.py", ROOT / "restore.py", ROOT / "evaluate.py", *MODULES.values()]
    scripts = {file: file.read_text(encoding="utf-8").partition('if __name__ == "__main__":\n')[2] for file in ours}
    found = {str(file.relative_to(ROOT)): text for file, text in scripts.items() if text}
    assert sorted(found) == sorted(COMMANDS)
    for name, text in found.items():
        assert text.startswith("    printing_never_fails()\n"), name


def test_no_text_is_read_or_written_in_the_encoding_of_the_locale() -> None:
    seen, wrong = 0, []
    for file in MODULES.values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name) and is_text(node):
                seen += 1
                if not any(keyword.arg == "encoding" for keyword in node.keywords):
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not wrong
    assert seen > 30


def is_text(call: ast.Call) -> bool:
    """PATH.read_text(), PATH.write_text(TEXT), PATH.open("a"): what opens a text file by pathlib."""
    if not isinstance(call.func, ast.Attribute):
        binary = any(isinstance(each, ast.Constant) and "b" in str(each.value) for each in call.args[1:])
        return isinstance(call.func, ast.Name) and call.func.id == "open" and not binary
    modes = [each.value for each in call.args if isinstance(each, ast.Constant)]
    opens_text = call.func.attr == "open" and bool(modes) and str(modes[0]).strip("rwa+") == "" and len(call.args) == 1
    newline = any(keyword.arg == "newline" for keyword in call.keywords)
    return call.func.attr in ("read_text", "write_text") or opens_text or (call.func.attr == "open" and newline)


@pytest.mark.parametrize("script", ["train.py", "restore.py"])
def test_help_in_a_locale_without_the_sign_and_for_a_reader_who_has_gone(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | ASCII, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"[KEY=VALUE \\u2026]" in done.stdout
    reading, writing = os.pipe()
    os.close(reading)
    unread = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (unread.returncode, unread.stderr) == (0, b"")


def in_ascii() -> None:
    """This process is in a locale of ASCII, and begins as the scripts do."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]
    printing_never_fails()


def to_nobody() -> None:
    """So too, and it speaks into a pipe that nobody reads."""
    in_ascii()
    reading, writing = os.pipe()
    os.close(reading)
    for descriptor in (1, 2):
        os.dup2(writing, descriptor)


def test_a_run_goes_on_without_its_reader_and_when_given_again_says_that_it_is_finished(tmp_path: Path) -> None:
    arguments = ["experiment=demo", *TINY_NETWORK, *TINY_DATA, *TINY_RUN, "validation.lpips=null", "data.val_degradations=1"]
    arguments.remove("trainer.enable_progress_bar=false")
    codes, output = [], tmp_path / "output"
    for before in (to_nobody, in_ascii):
        process = warm.start(arguments, cwd=tmp_path, stdout=output, stderr=output, environment={}, before=before)
        process.join(120)
        codes.append(process.exitcode)
    assert codes == [0, 0], output.read_text()
    assert (tmp_path / "runs/demo/summary.json").exists()
    assert "runs/demo is finished" in output.read_text()
    assert r"another name=\u2026" in output.read_text()


def test_other_errors_of_a_stream_are_raised(tmp_path: Path) -> None:
    """A full disk under `> log` is the user's to mend."""
    with Unheeded("/dev/full", "w") as full, pytest.raises(OSError, match="No space left"):
        full.write(b"x")


def test_a_stream_without_a_buffer_or_closed_stays_usable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "said").open("wb", buffering=0) as file:
        unbuffered = io.TextIOWrapper(file, encoding="latin-1", write_through=True)  # type: ignore[type-var]  # python -u
        monkeypatch.setattr(sys, "stdout", unbuffered)
        monkeypatch.setattr(sys, "stderr", None)  # 2>&-
        printing_never_fails()
        print("é …")
        assert (tmp_path / "said").read_bytes() == b"\xe9 \\u2026\n"
        assert sys.stderr is None

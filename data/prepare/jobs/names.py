"""Names judged by what they will stand in, before the first image is touched, so that none spoils the work of all."""

import os
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from data.sources.shown import first_few

Rule = Callable[[str], str]  # a name to why it can't be written, '' where it can


def judge(names: Mapping[str, str], rule: Rule, where: str) -> None:
    """Raises ValueError, which says how many names can't be written, why, and the first few of the images that have them.

    Args:    names: path of an image -> its name where it is written. where: what that is, in words.
    """
    wrong = {path: why for path, name in names.items() if (why := rule(name))}
    if wrong:
        why, few = ", or ".join(dict.fromkeys(wrong.values())), first_few([*wrong])
        raise ValueError(f"{len(wrong)} names can't stand in {where}, the first is {few} (they {why}): rename these files")


def of_text(name: str) -> str:
    """Of a column of text: Linux takes any bytes as a name, text is UTF-8."""
    return "are not UTF-8" if name != name.encode("utf-8", "replace").decode() else ""


def of_line(name: str) -> str:
    """Of a line of a text file, such as the list of an LMDB's keys: where it ends must be plain to every reader."""
    if any(unicodedata.category(each) in ("Cc", "Zl", "Zp") for each in name):
        return "hold line breaks or control characters"
    return of_text(name)


def of_listed(name: str) -> str:
    """Of a line of a list of images (data.sources.files.FileList), which strips lines and skips those that begin with #."""
    return of_line(name) or ("begin with # or begin or end with blanks" if name != name.strip() or name[0] == "#" else "")


def leads_out(name: str) -> bool:
    """Whether a name below a folder is not below it, as members of an archive and lines of a list may be called."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def check_files(names: Mapping[str, str], out: Path) -> None:
    """Whether files of these names can all be written below out, which need not be there yet.

    Raises:  ValueError: names lead out of it or are too long for the file system, or two are one file or file and folder.
    """
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    most, most_of_path = os.pathconf(there, "PC_NAME_MAX"), os.pathconf(there, "PC_PATH_MAX")
    before = len(os.fsencode(out.absolute())) + 1

    def of_file(name: str) -> str:
        encoded = os.fsencode(name)
        if any(len(part) > most for part in encoded.split(b"/")) or before + len(encoded) >= most_of_path:
            return f"would be longer than {most} bytes, or with their folders than {most_of_path}"
        return ""

    judge(names, lambda name: "lead out of it" if leads_out(name) else "", str(out))
    judge(names, of_file, str(out))
    folders = {parent.as_posix() for name in names.values() for parent in PurePosixPath(name).parents}
    judge(names, lambda name: "would also be those of folders" if name in folders else "", str(out))
    same = Counter(name.casefold() for name in names.values())
    if len(same) < len(names) and takes_case_for_same(there):
        judge(names, lambda name: "differ by case alone" if same[name.casefold()] > 1 else "", str(out))


def takes_case_for_same(folder: Path) -> bool:
    """Whether A and a are one file there, as on most Macs, on Windows and on memory cards."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".case.") as file:
        return Path(file.name).with_name(Path(file.name).name.swapcase()).exists()

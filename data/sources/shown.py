"""Names of files as others see them. A stranger may have chosen them: on a terminal and in a table they do nothing."""

from collections.abc import Sequence

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet computes a cell that begins so


def printable(text: str) -> str:
    """The text on one line: control characters, which move a terminal's cursor or colour it, and half characters as escapes."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def first_few(names: Sequence[str]) -> str:
    """Three names for a message, and how many more there are."""
    return ", ".join(map(printable, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def in_cell(text: str) -> str:
    """The text for a cell of a CSV file: a ' in front where a spreadsheet would take it for a formula; `of_cell` undoes it."""
    return f"'{text}" if text.lstrip("'").startswith(FORMULA) else text


def of_cell(cell: str) -> str:
    """What `in_cell` was given."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell

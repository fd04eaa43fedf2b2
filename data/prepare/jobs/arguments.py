"""key=value arguments bound to a command's signature; usage made of signatures and docstrings."""

import difflib
import errno
import inspect
import os
import sys
import textwrap
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from data.prepare.jobs.work import Stopped
from data.sources.shown import printable

Command = Callable[..., int]
PROGRAM = "python -m data.prepare"


class BadArguments(ValueError):
    """What is wrong with a command line, one line for each mistake."""


def main(commands: Mapping[str, Command], arguments: list[str]) -> int:
    """Runs one command.

    Returns: exit code: what the command says (0 clean, 1 something was found or could not be used), 1 after an error, 2 for bad
             arguments, 130 after Ctrl-C and 75 after another signal, when the same command goes on.
    """
    asked = {"--help", "-h"} & set(arguments)
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    if name is None:
        print(overview(commands), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        command = find(commands, name)
        if asked:
            print(usage(name, command))
            return 0
        bound = bind(name, command, arguments[1:])
    except BadArguments as error:
        return fail(error, 2)
    try:
        return command(**bound)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:  # a second one, or before the work began
        return 130
    except (OSError, ValueError) as error:
        if os.environ.get("FACEWRIGHT_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return fail(f"{error}: what was written is whole; free space and give the same command again to go on", 1)
        return fail(error, 1)


def fail(error: Exception | str, code: int) -> int:
    print("\n".join(f"error: {printable(line)}" for line in str(error).splitlines()), file=sys.stderr)
    return code


def find(commands: Mapping[str, Command], name: str) -> Command:
    """Raises BadArguments, which names the commands there are."""
    if name not in commands:
        raise BadArguments(f"{name}: there is no such command (there are {', '.join(commands)}){nearest(name, commands)}")
    return commands[name]


def nearest(wrong: str, valid: Mapping[str, Any]) -> str:
    match = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else ""


def bind(name: str, command: Command, arguments: list[str]) -> dict[str, Any]:
    """The arguments as the command's parameters, converted and checked; lists are written a,b,c.

    Raises:  BadArguments: every unknown, repeated, missing and wrong argument.
    """
    keys, kinds = inspect.signature(command).parameters, _kinds(command)
    bound: dict[str, Any] = {}
    wrong = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            wrong.append(f"{argument}: arguments are key=value")
        elif key not in keys:
            wrong.append(f"{key}: {name} has no such key{nearest(key, keys)}")
        elif key in bound:
            wrong.append(f"{key}: given twice")
        else:
            try:
                bound[key] = _convert(text, kinds[key])
            except ValidationError as error:
                said = error.errors()[0]["msg"].removeprefix("Value error, ").removeprefix("Input ")
                wrong.append(f"{key}={text}: {said}")
                bound[key] = None
    needed = [key for key, parameter in keys.items() if parameter.default is parameter.empty]
    wrong += [f"{key}= is needed: {_describe(command).get(key, '')}" for key in needed if key not in bound]
    if wrong:
        raise BadArguments("\n".join([*wrong, f"{PROGRAM} {name} --help shows every key"]))
    return bound


def _convert(text: str, kind: Any) -> Any:
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    value: Any = text.split(",") if get_origin(bare) in (list, tuple) else text
    converted = TypeAdapter(kind).validate_python(value)
    return converted.expanduser() if isinstance(converted, Path) else converted


def _kinds(command: Command) -> dict[str, Any]:
    return get_type_hints(command, include_extras=True)


def overview(commands: Mapping[str, Command]) -> str:
    """Every command with the first line of its docstring."""
    lines = [f"{PROGRAM} COMMAND key=value …", ""]
    lines += [f"  {name:<10}{(inspect.getdoc(command) or '').splitlines()[0]}" for name, command in commands.items()]
    return "\n".join([*lines, "", f"{PROGRAM} COMMAND --help shows a command's keys."])


def usage(name: str, command: Command) -> str:
    """A command's docstring, and each key with its kind, default and meaning."""
    about = (inspect.getdoc(command) or "").partition("\nArgs:")[0].strip()
    keys, kinds, described = inspect.signature(command).parameters, _kinds(command), _describe(command)
    needed = " ".join(f"{key}=…" for key, parameter in keys.items() if parameter.default is parameter.empty)
    lines = [f"{PROGRAM} {name} {needed} [key=value …]", "", about, ""]
    for key, parameter in keys.items():
        default = "needed" if parameter.default is parameter.empty else f"default {_shown(parameter.default)}"
        lines.append(f"  {key}={_kind_shown(kinds[key])}  ({default})")
        lines += textwrap.wrap(described.get(key, ""), 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _describe(command: Command) -> dict[str, str]:
    """What the docstring's Args say of each key."""
    block = (inspect.getdoc(command) or "").partition("\nArgs:")[2].partition("\nReturns:")[0].partition("\nRaises:")[0]
    keys = inspect.signature(command).parameters
    found: dict[str, str] = {}
    key = ""
    for line in block.splitlines():
        start, colon, rest = line.strip().partition(": ")
        if colon and start in keys:
            key, found[start] = start, rest
        elif key:
            found[key] += f" {line.strip()}"
    return found


def _kind_shown(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind_shown(inner[0])
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin in (list, tuple):
        return f"{_kind_shown(inner[0])}, any of them with commas" if get_origin(inner[0]) is Literal else "A,B,…"
    if origin in (Union, types.UnionType):
        return "|".join(_kind_shown(one) for one in inner if one is not type(None))
    return {bool: "true|false", int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}.get(kind, str(kind))


def _shown(default: Any) -> str:
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else "none" if default in (None, "") else str(default)

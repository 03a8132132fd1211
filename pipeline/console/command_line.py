"""Share what the commands of both programs need: names in UTF-8, and one sentence where arguments are missing."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import NoReturn

MISSING = "the following arguments are required: "


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode where the locale has another encoding.

    Names of files and classes are UTF-8 on every machine of a cluster. A machine whose locale says Latin-1 or ASCII would read
    `café` as other letters, store those in classes.txt, and fail where it has to print them.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


class Parser(argparse.ArgumentParser):
    """Parses arguments, and answers a command without its arguments briefly."""

    def error(self, message: str) -> NoReturn:
        if not message.startswith(MISSING):
            super().error(message)
        names = [name.upper() if name.isidentifier() else name for name in message.removeprefix(MISSING).split(", ")]
        kinds = [", ".join(action.choices) for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        listed = f" ({kinds[0]})" if kinds and names == ["COMMAND"] else ""
        example = next((line.strip() for line in (self.epilog or "").splitlines() if line.startswith(f"  {self.prog} ")), None)
        line = "" if example is None else f"; type, for example\n  {example}"
        self.exit(2, f"error: {self.prog} needs {' and '.join(names)}{listed}{line}\n`{self.prog} --help` explains more\n")


def chosen_command(words: Sequence[str]) -> str:
    """Return the command that a line names; empty where it names none."""
    return next((word for word in words if not word.startswith("-")), "")


def add_commands(
    parser: argparse.ArgumentParser,
    commands: Mapping[str, tuple[str, str]],
    *,
    chosen: str,
    for_all: Callable[[argparse.ArgumentParser], object] = lambda _command: None,
) -> None:
    """Add a program's commands: `arguments.function` is the `run` of the chosen one, whose module alone is imported.

    Args:
        commands: by name, the module, which has `EPILOG`, `add_arguments` and `run`, and what the command does.
        for_all: adds what every command takes.
    """
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, help) in commands.items():
        command = added.add_parser(name, help=help, description=help, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == chosen:
            module = import_module(module_name)
            command.epilog = module.EPILOG
            for_all(command)
            module.add_arguments(command)
            command.set_defaults(function=module.run)

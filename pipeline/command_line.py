"""Command lines that lack something: one sentence, and a line to type, taken from the command's own examples."""

from __future__ import annotations

import argparse
from typing import NoReturn

MISSING = "the following arguments are required: "


class Parser(argparse.ArgumentParser):
    """An argument parser whose answer to a command without its words is short."""

    def error(self, message: str) -> NoReturn:
        if not message.startswith(MISSING):
            super().error(message)
        names = [name.upper() if name.isidentifier() else name for name in message.removeprefix(MISSING).split(", ")]
        kinds = [", ".join(action.choices) for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        listed = f" ({kinds[0]})" if kinds and names == ["COMMAND"] else ""
        example = next((line.strip() for line in (self.epilog or "").splitlines() if line.startswith(f"  {self.prog} ")), None)
        line = "" if example is None else f"; type, for example\n  {example}"
        self.exit(2, f"error: {self.prog} needs {' and '.join(names)}{listed}{line}\n`{self.prog} --help` explains more\n")

"""`python -m data_tools COMMAND`: parses the arguments, runs a command, and turns its error into an exit code.

A command's module has `EPILOG`, `add_arguments(parser)` and `run(arguments)`. Only the requested command's module is imported.
"""

from __future__ import annotations

import argparse
import signal
import sys

from data_tools.arguments import add_workers
from data_tools.shares import ShareDone
from pipeline.console.command_line import Parser, add_commands, chosen_command, use_utf8
from pipeline.errors import ExitCode, PipelineError
from pipeline.launch.imports import exit_without_collecting

COMMANDS = {  # each command's module and description
    "make": ("data_tools.make.command", "pack images into shuffled shards, and index them"),
    "index": ("data_tools.index_command", "index the .tar files of a folder or URL, whoever wrote them"),
    "verify": (
        "data_tools.verify.command",
        "decode every image, find what is damaged, odd or unlabelled, and list what to leave out",
    ),
    "stats": (
        "data_tools.stats.command",
        "count classes, image sizes, formats and bytes, and draw a page with a contact sheet",
    ),
    "dedup": (
        "data_tools.dedup.command",
        "find copies of test images in a corpus, and copies inside it, and list what to leave out",
    ),
    "prepare": ("data_tools.prepare", "make, verify, dedup and index in one go, with the same workers"),
    "plan": ("data_tools.plan.command", "compute on paper what preparing a corpus takes: hours, traffic, disk, memory, money"),
    "offline-sets": ("data_tools.offline_sets", "make two small downstream sets of what installed packages ship: no download"),
}


def make_parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser of one command. The other commands are only named in it."""
    parser = Parser(
        prog="python -m data_tools",
        description="Make and index corpora of WebDataset shards.",
        epilog="example:\n  python -m data_tools make /raw/imagenet/train /data/imagenet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_commands(parser, COMMANDS, chosen=chosen, for_all=add_workers)
    return parser


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    arguments = make_parser(chosen_command(words)).parse_args(words)
    previous = signal.signal(signal.SIGTERM, _interrupt)  # a command has workers to end, and jobs to cancel
    try:
        code = arguments.function(arguments)
    except ShareDone as done:
        print(f"{done}; the same command without --share does what follows, and what other shares have left undone")
        return ExitCode.DONE
    except PipelineError as error:
        print(f"\nerror: {error}", file=sys.stderr)  # the message starts below a progress bar that may be open
        return ExitCode.ERROR
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes", file=sys.stderr)
        return ExitCode.STOPPED_AT_ONCE
    finally:
        signal.signal(signal.SIGTERM, previous)
    return code or 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    use_utf8()
    exit_without_collecting()
    sys.exit(main())

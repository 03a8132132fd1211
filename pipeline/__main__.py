"""`python -m pipeline COMMAND`: parses the arguments, runs a command, and turns its error into an exit code.

An expected error is printed once, in words, with exit code 2. Heavy imports wait until signal handlers are installed and the
arguments are valid.
"""

from __future__ import annotations

import argparse
import keyword
import os
import shlex
import sys
from typing import Literal

from pipeline.commands import COMMANDS
from pipeline.console.command_line import Parser, add_commands, chosen_command, use_utf8
from pipeline.errors import ExitCode, PipelineError, StoppedError
from pipeline.files import check_surroundings
from pipeline.launch.imports import exit_without_collecting
from pipeline.launch.signals import Interrupted, StopRequest, interruption_behind

LONG_COMMANDS = ("train", "evaluate", "embed")  # they listen to signals, and their output's reader may leave


def make_parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser of one command. The other commands are only named in it.

    Args:
        chosen: the command whose options it takes. Its module alone is imported.
    """
    parser = Parser(
        prog="python -m pipeline",
        description="Pretrain Vision Transformers on WebDataset shards.",
        epilog="example:\n  python -m pipeline train configs/l16_in21k.yaml data.train=/data/in21k",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    modules = {name: (f"pipeline.commands.{_module_of(name)}", help) for name, help in COMMANDS.items()}
    add_commands(parser, modules, chosen=chosen)
    return parser


def _module_of(name: str) -> str:
    """Return a command's module: `import` is a word of Python's, and its module has an underscore behind it."""
    return f"{name.replace('-', '_')}{'_' * keyword.iskeyword(name)}"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse options and key=value overrides in any order, which argparse alone does not allow with subcommands."""
    parser = make_parser(chosen_command(sys.argv[1:] if argv is None else argv))
    arguments, rest = parser.parse_known_args(argv)
    _refuse_dashes(parser, arguments, rest)
    unknown = [text for text in rest if text.startswith("-") or "=" not in text]
    if unknown or (rest and "overrides" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _refuse_dashes(parser: argparse.ArgumentParser, arguments: argparse.Namespace, rest: list[str]) -> None:
    """Refuse settings with dashes, and say how to write `--trainer.devices 2` or `--trainer.devices=2`."""
    overrides = getattr(arguments, "overrides", [])
    for word in rest:
        key, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not (equals or "." in key) or "overrides" not in arguments:
            continue
        if not equals:
            value = next((text for text in [*overrides, *rest] if "=" not in text and not text.startswith("-")), "VALUE")
        parser.error(f"{word}: settings are written without dashes; type {shlex.quote(f'{key}={value}')}")


def main(argv: list[str] | None = None, *, process: Literal["own", "shared"] = "own") -> int:
    """Run a command. Return the exit code.

    Args:
        process: "shared" leaves signals and streams as they are, for callers that go on afterwards.
    """
    stop = StopRequest()
    if process == "own":
        _prepare(chosen_command(sys.argv[1:] if argv is None else argv), stop)
    arguments = parse_arguments(argv)
    os.umask(os.umask(0o077) | 0o002)  # whatever a shell or a scheduler set: nobody else may write our files
    try:
        if arguments.command in LONG_COMMANDS:
            check_surroundings()
        code = arguments.function(arguments, stop)
        if sys.__stdout__ is not None:  # None if whoever started this closed it
            sys.stdout.flush()  # here, where a reader that has gone is handled
        return code
    except StoppedError as error:
        if not error.on_all_ranks or os.environ.get("RANK", "0") == "0":
            print(f"[run] {error}", flush=True)
        return ExitCode.STOPPED
    except PipelineError as error:
        _print_error(error)
        return ExitCode.ERROR
    except Interrupted as signal:
        return _end_stopped(arguments.command, signal)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.STOPPED_AT_ONCE
    except BrokenPipeError:  # `| head` has read enough; nothing more can be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    except Exception as error:  # a library that was interrupted failed to clean up
        if (behind := interruption_behind(error)) is None:
            raise
        return _end_stopped(arguments.command, behind)


def _end_stopped(command: str, signal: Interrupted) -> int:
    print(f"[{command}] stopped by {signal}; the same command resumes from here", flush=True)
    return ExitCode.STOPPED


def _prepare(command: str, stop: StopRequest) -> None:
    """Prepare the process before anything else: a signal may come at once, and the output's reader may close."""
    if command in LONG_COMMANDS:
        (stop.install if command == "train" else stop.install_everywhere)()
        from pipeline.console.streams import open_outlets

        open_outlets()


def _print_error(error: PipelineError) -> None:
    """Print an error once: an error that all ranks share by the first of them, any other by the rank that raised it."""
    from pipeline.credentials import redact
    from pipeline.launch.environment import read_ranks
    from pipeline.launch.ranks import ALONE

    try:
        world = read_ranks()
    except PipelineError:  # the very error that every rank is reporting
        world = ALONE
    if world.rank == 0 or not error.on_all_ranks:
        rank = f" (rank {world.rank})" if world.size > 1 and not error.on_all_ranks else ""
        # Start a new line, below a progress bar that may be open.
        print(f"{os.linesep if world.size > 1 else ''}error{rank}: {redact(str(error))}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    use_utf8()
    exit_without_collecting()
    sys.exit(main())

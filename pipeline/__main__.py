"""The commands: `python -m pipeline COMMAND --help` explains each.

An expected error is printed once, in words, with exit code 2. Heavy imports wait until signals are in hand and the
arguments are known to be good.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Literal

from pipeline.console.command_line import Parser, use_utf8
from pipeline.errors import ExitCode, PipelineError, StoppedError
from pipeline.files import check_surroundings
from pipeline.launch.signals import Interrupted, StopRequest
from pipeline.plan.arguments import add_plan_arguments


def train(arguments: argparse.Namespace, stop: StopRequest) -> int:
    """First launch and every relaunch: the same line. Resumes from the newest complete checkpoint by itself."""
    from pipeline.commands.train import run_training

    return run_training(arguments.config, arguments.overrides, stop)


def evaluate(arguments: argparse.Namespace, stop: StopRequest) -> int:
    """Evaluate every checkpoint of a run that has not been evaluated; with --watch, go on as new ones come."""
    from pipeline.console.streams import keep_output_in
    from pipeline.run.folder import RunFolder

    keep_output_in(RunFolder(Path(arguments.run_dir)).output_log)
    print(f"[eval] evaluating {arguments.run_dir}; loading torch", flush=True)
    from pipeline.build.training import make_evaluator
    from pipeline.config.read import load_config
    from pipeline.errors import ConfigError
    from pipeline.evaluation.watch import wait_for_weights, watch_run
    from pipeline.launch.allotment import Torch, check_visible

    folder = RunFolder(Path(arguments.run_dir))
    if arguments.watch:
        wait_for_weights(folder, stop=stop, poll_s=arguments.poll_seconds)
    if not folder.config.exists():
        raise ConfigError(f"{folder.root} is not a run folder: it has no config.yaml; `python -m pipeline train` makes one")
    foreign = [text for text in arguments.overrides if text.partition(".")[0] not in ("evaluation", "tracking")]
    if foreign:
        raise ConfigError(f"{foreign[0]}: `evaluate` takes evaluation.* and tracking.* alone; the rest is the run's own")
    config = load_config(folder.config, arguments.overrides)
    if config.evaluation.hardware == "allotted":
        check_visible(os.environ, Torch.look(), setting="evaluation.hardware=found")
    evaluator = make_evaluator(folder, config)
    watch_run(evaluator, folder, watch=arguments.watch, stop=stop, poll_s=arguments.poll_seconds)
    return 0


def report(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Print a run's results and draw its curves."""
    from pipeline.errors import ConfigError
    from pipeline.report.report import write_report

    written = write_report(Path(arguments.run_dir), Path(arguments.out) if arguments.out else None)
    print(written.text)
    if written.error is not None:
        raise ConfigError(written.error)
    return 0


def status(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Print what runs are doing."""
    from pipeline.monitor.status_text import Style, show

    style = Style.of(sys.stdout, term=os.environ.get("TERM"), no_color=os.environ.get("NO_COLOR"))
    show(arguments.run_dirs, output="json" if arguments.json else "text", watch=arguments.watch, style=style)
    return 0


def samples(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Print what a run sees at a step."""
    from pipeline.commands.samples import list_samples
    from pipeline.config.read import load_config
    from pipeline.console.lines import print_lines
    from pipeline.run.checkpoint import RunFolder

    place = Path(arguments.run)
    config = load_config(RunFolder(place).config if place.is_dir() else place, arguments.overrides)
    picture = Path(arguments.picture) if arguments.picture else None
    print_lines(
        list_samples(config, step=arguments.step, num_steps=arguments.steps, picture=picture),
        when_unread="stop" if picture is None else "go on",
    )
    return 0


def show_config(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Print the resolved configuration."""
    from pipeline.config.read import load_config

    print(load_config(arguments.config, arguments.overrides).to_yaml(), end="")
    return 0


def plan(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Print what a run will need and cost."""
    from pipeline.config.read import load_config
    from pipeline.plan.arguments import read_cluster
    from pipeline.plan.forecast import make_forecast
    from pipeline.plan.plot import draw_simulation, simulate_failures
    from pipeline.plan.text import to_json, to_text

    cluster = read_cluster(arguments)
    config = load_config(arguments.config, arguments.overrides)
    forecast = make_forecast(config, cluster=cluster, num_samples=arguments.samples, image_bytes=arguments.image_bytes)
    simulation = simulate_failures(forecast.checkpoints) if arguments.simulate else None
    if simulation is not None:
        draw_simulation(simulation, forecast=forecast, path=Path(arguments.simulate))
    print((to_json if arguments.json else to_text)(forecast, simulation))
    return 0


def demo(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """The whole story on a laptop CPU."""
    from pipeline.commands.demo import run_demo

    run_demo(Path(arguments.out))
    return 0


def benchmark(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Print a table of measurements."""
    if arguments.what == "scale":
        from pipeline.benchmark.scale import measure_scale

        print(measure_scale(num_shards=arguments.shards, samples_per_shard=arguments.samples_per_shard, num_ranks=arguments.ranks,
                            num_workers=arguments.workers, global_batch_size=arguments.batch))  # fmt: skip
        return 0
    from pipeline.benchmark.loader import compare_loaders

    print(compare_loaders(arguments.folder, num_workers=arguments.workers, batch_size=arguments.batch, image_size=arguments.image_size,
                          num_batches=arguments.batches, num_rounds=arguments.rounds, only=arguments.only))  # fmt: skip
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pipeline",
        description="Pretrain Vision Transformers on WebDataset shards.",
        epilog="example:\n  python -m pipeline train configs/l16_in21k.yaml data.train=/data/in21k",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, function: object, help: str, epilog: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.set_defaults(function=function)
        return command

    def add_config(
        command: argparse.ArgumentParser, name: str = "config", help: str = "YAML file; configs/ holds the recipes"
    ) -> None:
        command.add_argument(name, help=help)
        example = "trainer.max_steps=100 optimizer.learning_rate=3e-4"
        command.add_argument(
            "overrides",
            nargs="*",
            default=[],
            metavar="section.key=value",
            help=f"settings that replace the file's, for example {example}",
        )

    command = add(
        "train", train, "pretrain; the same line starts a run and resumes it",
        "examples:\n  python -m pipeline train configs/l16_in21k.yaml data.train=/data/in21k\n"
        "  python -m pipeline train configs/demo.yaml trainer.devices=2\n\n"
        "One machine: starts trainer.devices ranks by itself. Under srun or torchrun: is one of their ranks.\n"
        "Ctrl-C, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2 save at the end of the step; a second Ctrl-C does not wait. A terminal or\n"
        "pipe that closes does not end a training; what it prints then goes to RUN_DIR/output.log.\n"
        "Exit codes: 0 done, 2 a named error, 70 no step ended for trainer.hang_timeout_s (RUN_DIR/hangs says where), 75 told to\n"
        "stop and saved (the same command goes on).",
    )  # fmt: skip
    add_config(command)
    command = add(
        "evaluate", evaluate, "linear and few-shot accuracy of a run's checkpoints, in a process of its own",
        "examples:\n  python -m pipeline evaluate runs/l16_in21k --watch\n"
        "  python -m pipeline evaluate runs/demo evaluation.protocols.few_shot.shots=[10]\n\n"
        "Reads weights/ only and appends to evaluations.jsonl; what stands there is not computed again.\n"
        "Several may run at once. With --watch it ends when the run's last step is evaluated, or the run has failed. Told to stop it ends at once, with exit\n"
        "code 75: the same command goes on.",
    )  # fmt: skip
    command.add_argument("run_dir", help="folder of a run, for example runs/l16_in21k")
    command.add_argument(
        "overrides", nargs="*", default=[], metavar="evaluation.key=value", help="settings that replace the run's"
    )
    command.add_argument("--watch", action="store_true", help="wait for new checkpoints until the run is complete")
    command.add_argument("--poll-seconds", type=float, default=5.0, help="how often to look for new weights (default: 5)")
    command = add(
        "report", report, "print a run's results and draw its curves", "example:\n  python -m pipeline report runs/demo"
    )
    command.add_argument("run_dir")
    command.add_argument(
        "--out",
        metavar="FILE|FOLDER",
        help="picture to write (default: RUN_DIR/report.png), or an existing folder: FOLDER/NAME_OF_THE_RUN.png",
    )
    command = add(
        "status", status, "what a run is doing, from its files alone: from any machine that sees the folder",
        "examples:\n  python -m pipeline status runs/l16_in21k --watch\n  python -m pipeline status runs        # a line a run\n"
        "  python -m pipeline status runs/l16_in21k --json | jq .state\n\n"
        "States: starting, running, saving, waiting for data, finished, stopped by signal, failed, died (its process on this\n"
        "machine is gone), silent (nothing heard for a minute and ten steps, or for half an hour while starting or saving).",
    )  # fmt: skip
    command.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="folder of a run, or a folder of such folders")
    command.add_argument("--watch", action="store_true", help="again every two seconds, until no run trains any more")
    command.add_argument("--json", action="store_true", help="everything, for programs")
    command = add(
        "samples", samples, "print the samples that a run sees at a step, without running it: for loss spikes",
        "examples:\n  python -m pipeline samples runs/l16_in21k --step 41250 --picture spike.png\n"
        "  python -m pipeline samples configs/l16_in21k.yaml data.train=/data/in21k --step 1 | cut -f 5\n\n"
        "A line a position: step, position, corpus, shard, key, class, sample id, and what it stands in for if an image was\n"
        "unreadable. Steps count as in metrics.jsonl and on the dashboard. With --picture the augmented images too.",
    )  # fmt: skip
    add_config(command, "run", "folder of a run, or a YAML file")
    command.add_argument("--step", type=int, required=True, help="step as in metrics.jsonl; the first is 1")
    command.add_argument("--steps", type=int, default=1, help="how many steps from there (default: 1)")
    command.add_argument(
        "--picture",
        metavar="FILE|FOLDER",
        help="contact sheet of what the model sees; into an existing folder as NAME_OF_THE_RUN-step-N.png",
    )
    command = add(
        "show-config", show_config, "print the resolved configuration",
        "example:\n  python -m pipeline show-config configs/h14_in21k.yaml trainer.zero_stage=3",
    )  # fmt: skip
    add_config(command)
    command = add(
        "plan", plan, "what a run will need and cost, on paper: memory, hours, store, checkpoints; no data, no GPU",
        "examples:\n  python -m pipeline plan configs/l16_in21k.yaml --nodes 4 --samples 14197122 --price 2.50\n"
        "  python -m pipeline plan configs/h14_in21k.yaml trainer.zero_stage=2 --nodes 16 --gpu h200 --samples 14197122 --simulate lost.png\n\n"
        "Where data.train has an index, the number and size of images are read from it. docs/planning.md has the formulas.",
    )  # fmt: skip
    add_config(command)
    add_plan_arguments(command)
    command = add(
        "benchmark", benchmark, "measure the loader beside its peers, or what planning costs at scale",
        "examples:\n  python -m pipeline benchmark loader /data/imagenet-sample --workers 2\n  python -m pipeline benchmark scale\n\n"
        "loader: every contender runs in a process of its own, in turns, on the same images and cores. `make peers` installs\n"
        "timm, litdata and mosaicml-streaming; those not installed are left out with a word.\n"
        "scale: plans a corpus of 300 M samples for 4,096 ranks; no image is read.",
    )  # fmt: skip
    kinds = command.add_subparsers(dest="what", required=True, metavar="loader|scale")
    loader = kinds.add_parser("loader", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    loader.add_argument("folder", help="indexed shards of real photos, at least one shard a worker")
    loader.add_argument("--workers", type=int, default=2, help="worker processes of each loader")
    loader.add_argument("--batch", type=int, default=64, help="images in a batch")
    loader.add_argument("--image-size", type=int, default=224, help="pixels")
    loader.add_argument("--batches", type=int, default=10, help="batches in a round")
    loader.add_argument("--rounds", type=int, default=7, help="rounds; the table shows their median")
    loader.add_argument("--only", nargs="*", default=[], help="contenders whose name has one of these in it")
    scale = kinds.add_parser("scale", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    scale.add_argument("--shards", type=int, default=30_000)
    scale.add_argument("--samples-per-shard", type=int, default=10_000)
    scale.add_argument("--ranks", type=int, default=4096)
    scale.add_argument("--workers", type=int, default=8, help="worker processes a rank")
    scale.add_argument("--batch", type=int, default=32_768, help="global batch size")
    command = add("demo", demo, "shards, pretraining on two ranks, a kill, a resume, evaluation and plots, on a CPU", "")
    command.add_argument(
        "--out", default="runs/demo-story", help="folder for everything (default: runs/demo-story); emptied first"
    )
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Options and key=value overrides may come in any order, which argparse alone does not allow with subcommands."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    _refuse_dashes(parser, arguments, rest)
    unknown = [text for text in rest if text.startswith("-") or "=" not in text]
    if unknown or (rest and "overrides" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _refuse_dashes(parser: argparse.ArgumentParser, arguments: argparse.Namespace, rest: list[str]) -> None:
    """Settings are written without dashes: say how, where somebody wrote `--trainer.devices 2` or `--trainer.devices=2`."""
    overrides = getattr(arguments, "overrides", [])
    for word in rest:
        key, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not (equals or "." in key) or "overrides" not in arguments:
            continue
        if not equals:
            value = next((text for text in [*overrides, *rest] if "=" not in text and not text.startswith("-")), "VALUE")
        parser.error(f"{word}: settings are written without dashes; type {shlex.quote(f'{key}={value}')}")


def main(argv: list[str] | None = None, *, process: Literal["own", "shared"] = "own") -> int:
    """Run a command. Returns the exit code.

    Args:
        process: "shared" leaves signals and streams as they are, for callers that go on afterwards.
    """
    stop = StopRequest()
    if process == "own":
        _prepare(_command(argv), stop)
    arguments = parse_arguments(argv)
    os.umask(os.umask(0o077) | 0o002)  # whatever a shell or a scheduler left: nothing of ours may be writable by everybody
    try:
        if arguments.command in ("train", "evaluate"):
            check_surroundings()
        code = arguments.function(arguments, stop)
        if sys.__stdout__ is not None:  # else whoever started this closed it
            sys.stdout.flush()  # here, where a reader that has gone is answered
        return code
    except StoppedError as error:
        if not error.on_all_ranks or os.environ.get("RANK", "0") == "0":
            print(f"[run] {error}", flush=True)
        return ExitCode.STOPPED
    except PipelineError as error:
        _print_error(error)
        return ExitCode.ERROR
    except Interrupted as signal:
        print(f"[{arguments.command}] stopped by {signal}; the same command goes on from here", flush=True)
        return ExitCode.STOPPED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough; nothing more can be written, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE


def _prepare(command: str, stop: StopRequest) -> None:
    """Before anything else: a signal may come at once, and the output's reader may go."""
    if command in ("train", "evaluate"):
        (stop.install if command == "train" else stop.install_everywhere)()
        from pipeline.console.streams import open_outlets

        open_outlets()


def _command(argv: list[str] | None) -> str:
    return next((text for text in (sys.argv[1:] if argv is None else argv) if not text.startswith("-")), "")


def _print_error(error: PipelineError) -> None:
    """Once: an error that all ranks share by the first of them, any other by the rank that met it."""
    from pipeline.credentials import redact
    from pipeline.launch.environment import ALONE, read_ranks

    try:
        world = read_ranks()
    except PipelineError:  # which is what is being told, by every rank
        world = ALONE
    if world.rank == 0 or not error.on_all_ranks:
        rank = f" (rank {world.rank})" if world.size > 1 and not error.on_all_ranks else ""
        # A line of its own, below a progress bar that may be open.
        print(f"{os.linesep if world.size > 1 else ''}error{rank}: {redact(str(error))}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())

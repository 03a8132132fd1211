"""Measure the accuracy of a run's checkpoints, in a process of its own, or of a model from anywhere."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

if TYPE_CHECKING:
    from pipeline.evaluation.runner import Evaluator
    from pipeline.evaluation.section import EvaluationSection
    from pipeline.run.folder import RunFolder

EPILOG = (
    "examples:\n  python -m pipeline evaluate runs/l16_in21k --watch\n"
    "  python -m pipeline evaluate runs/demo evaluation.protocols.few_shot.shots=[10]\n"
    "  python -m pipeline evaluate runs/l16_in21k --suite configs/suites/big_vision_few_shot.yaml --dry-run\n"
    "  python -m pipeline evaluate google/L_16.npz --suite configs/suites/vtab1k.yaml --out runs/google_l16\n"
    "  python -m pipeline evaluate --list\n\n"
    "Reads weights/ only and appends to evaluations.jsonl; what is in there already is not computed again.\n"
    "A model that is no run (a weights file, .npz, a folder of timm or transformers) gets a folder of its own, where\n"
    "its results are kept and `report` finds them.\n"
    "Several may run at once. With --watch it ends when the run's last step is evaluated, or the run has failed. A "
    "signal ends it at once, with exit\n"
    "code 75: the same command resumes."
)


class ListSuites(argparse.Action):
    """Lists what can be measured, and ends, as `--help` does: nothing else has to be named."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option_string: str | None = None
    ) -> None:
        del namespace, values, option_string
        from pipeline.build.suites import describe_suites

        print(describe_suites())
        parser.exit()


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "run_dir",
        metavar="RUN_OR_WEIGHTS",
        help="folder of a run, for example runs/l16_in21k, or anything that `import` reads",
    )
    command.add_argument(
        "overrides", nargs="*", default=[], metavar="evaluation.key=value", help="settings that replace the run's"
    )
    command.add_argument(
        "--suite", metavar="FILE", help="a file whose section `evaluation` replaces the run's settings (configs/suites)"
    )
    command.add_argument(
        "--out", metavar="FOLDER", help="of a model that is no run: folder for its results (default: runs/evaluated/NAME)"
    )
    command.add_argument("--list", action=ListSuites, nargs=0, help="list protocols and suites, and end")
    command.add_argument("--dry-run", action="store_true", help="say what would be measured, and end")
    command.add_argument("--watch", action="store_true", help="wait for new checkpoints until the run is complete")
    command.add_argument("--poll-seconds", type=float, default=5.0, help="how often to look for new weights (default: 5)")


def run(arguments: argparse.Namespace, stop: StopRequest) -> int:
    from pipeline.console.streams import keep_output_in
    from pipeline.errors import ConfigError
    from pipeline.exchange.places import place_of

    if "=" in arguments.run_dir and not Path(arguments.run_dir).exists():
        raise ConfigError(f"{arguments.run_dir} is a setting, but the first argument is a run folder or weights")
    foreign = [text for text in arguments.overrides if text.partition(".")[0] not in ("evaluation", "tracking")]
    if foreign:
        raise ConfigError(f"{foreign[0]}: `evaluate` takes evaluation.* and tracking.* alone; the rest is the run's own")
    path = place_of(arguments.run_dir)
    is_model = _is_model(path)
    folder = _results_of(path, arguments.out, is_model=is_model)
    if is_model and arguments.watch:
        raise ConfigError(f"--watch waits for the checkpoints of a run; {arguments.run_dir} is a model, which has no others")
    if not arguments.dry_run:
        keep_output_in(folder.output_log)
    print(f"[eval] evaluating {arguments.run_dir}; loading torch", flush=True)
    if arguments.watch:
        from pipeline.evaluation.watch import wait_for_weights

        wait_for_weights(folder, stop=stop, poll_s=arguments.poll_seconds)
    evaluator = _open_model(path, folder, arguments) if is_model else _open_run(folder, arguments)
    if arguments.dry_run:
        print("\n".join(evaluator.plan()))
        return 0
    from pipeline.evaluation.watch import watch_run

    watch_run(evaluator, folder, watch=arguments.watch, stop=stop, poll_s=arguments.poll_seconds)
    return 0


def _is_model(path: Path) -> bool:
    """Return whether a path is a model that is no run: a file, or a folder as timm, transformers and their caches have it."""
    from pipeline.run.folder import RunFolder

    is_folder = (path / "config.json").exists() or (path / "snapshots").is_dir()
    return path.is_file() or (is_folder and not RunFolder(path).config.exists())


def _results_of(path: Path, out: str | None, *, is_model: bool) -> RunFolder:
    """Return the folder of the results."""
    from pipeline.errors import ConfigError
    from pipeline.run.folder import RunFolder

    if is_model:
        name = path.resolve().name if path.is_dir() else path.stem
        return RunFolder(Path("runs") / "evaluated" / name if out is None else Path(out))
    if out is not None:
        raise ConfigError(f"--out is for a model that is no run; the results of a run are kept in its folder, {path}")
    return RunFolder(path)


def _open_run(folder: RunFolder, arguments: argparse.Namespace) -> Evaluator:
    with collector_paused():
        from pipeline.build.evaluator import make_evaluator
        from pipeline.config.evaluation import read_suite
        from pipeline.config.read import load_config
        from pipeline.errors import ConfigError

    if not folder.config.exists():
        raise ConfigError(f"{folder.root} is not a run folder: it has no config.yaml; `python -m pipeline train` makes one")
    more = None if arguments.suite is None else {"evaluation": read_suite(Path(arguments.suite))}
    config = load_config(folder.config, arguments.overrides, more=more)
    _check_hardware(config.evaluation)
    return make_evaluator(folder, config)


def _open_model(path: Path, folder: RunFolder, arguments: argparse.Namespace) -> Evaluator:
    with collector_paused():
        from pipeline.build.evaluator import make_model_evaluator
        from pipeline.config.evaluation import load_evaluation

    config = load_evaluation(None if arguments.suite is None else Path(arguments.suite), arguments.overrides)
    _check_hardware(config.evaluation)
    return make_model_evaluator(path, folder, config)


def _check_hardware(section: EvaluationSection) -> None:
    from pipeline.launch.allotment import Torch, check_visible

    if section.hardware == "allotted":
        check_visible(os.environ, Torch.look(), setting="evaluation.hardware=found")

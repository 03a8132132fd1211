"""Train and evaluate one of many runs, as `train` and `evaluate` do: what is done already is not done again."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pipeline.build.evaluator import make_evaluator
from pipeline.config.read import load_config
from pipeline.config.run import RunConfig
from pipeline.errors import ExitCode, StoppedError, TrainingError
from pipeline.evaluation.watch import watch_run
from pipeline.files import write_whole
from pipeline.launch.children import last_line, run_logged
from pipeline.launch.signals import StopRequest
from pipeline.run.folder import RunFolder, WeightsName


@dataclass(frozen=True)
class MeasuredSteps(RunFolder):
    """Shows the evaluator the weights of some steps of a run folder alone."""

    steps: frozenset[int]

    def weight_names(self) -> list[WeightsName]:
        return [name for name in super().weight_names() if name.step in self.steps]


def train_and_measure(
    config: RunConfig,
    *,
    stop: StopRequest,
    first_too: bool = False,
    variables: Mapping[str, str] | None = None,
) -> RunFolder:
    """Train a run in a process of its own, and evaluate its last weights. What both print goes to NAME.log next to its folder.

    NAME.yaml there is the configuration: `python -m pipeline train NAME.yaml` is this run alone.

    Args:
        first_too: the weights of step 0 are evaluated as well.
        variables: of the training's environment.

    Raises:
        StoppedError: the training was asked to stop. It has saved, and the next call resumes it.
        TrainingError: it has failed.
        Interrupted: this process was asked to stop. The training has saved.
    """
    folder, out = RunFolder(config.run_dir), config.run_dir.parent
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{config.name}.log").open("a", encoding="utf-8") as log:
        if not is_trained(folder, config):
            _train(config, path=out / f"{config.name}.yaml", log=log, variables=variables or {})
        steps = {max(folder.weight_steps()), *([0] if first_too else [])}
        with redirect_stdout(log), redirect_stderr(log):
            measured = MeasuredSteps(folder.root, frozenset(steps))
            watch_run(make_evaluator(measured, config), measured, watch=False, stop=stop, poll_s=1.0)
    return folder


def is_trained(folder: RunFolder, config: RunConfig) -> bool:
    """Return whether the run has ended under this configuration. How it is evaluated may have changed since."""
    if not folder.complete.exists():
        return False
    return load_config(folder.config).model_copy(update={"evaluation": config.evaluation}) == config


def _train(config: RunConfig, *, path: Path, log: TextIO, variables: Mapping[str, str]) -> None:
    write_whole(path, config.to_yaml().encode())
    command = [sys.executable, "-m", "pipeline", "train", str(path)]
    code = run_logged(command, environment={**os.environ, **variables}, output=log)
    if code in (ExitCode.STOPPED, ExitCode.STOPPED_AT_ONCE):
        raise StoppedError(f"{config.name} was stopped; the same command resumes it")
    if code != 0:
        raise TrainingError(f"its training ended with exit code {code}; {log.name} says why: {last_line(Path(log.name))}")

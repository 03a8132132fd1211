"""Train and evaluate every variant by every seed, one run after another, as `train` and `evaluate` do."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from pipeline.benchmark.choices.results import RunResult
from pipeline.benchmark.choices.variants import UNTRAINED, Settings, configure
from pipeline.build.sub_runs import train_and_measure
from pipeline.config.read import load_config
from pipeline.config.run import RunConfig
from pipeline.console.progress import progress
from pipeline.data.shards.index import load_index
from pipeline.errors import DataError, PipelineError, StoppedError
from pipeline.launch.signals import StopRequest
from pipeline.run.evaluations import MeasureResults, group_results, read_results
from pipeline.run.folder import RunFolder
from pipeline.run.records import Row, number, read_metrics

PROBES, TEST = "probe", "test"  # names of the set that the probes are fitted to, and of the held-out images
AT_THE_END = 0.1  # part of the steps over which the training's own accuracy is averaged
WARMUP = 0.1  # part of the run


@dataclass(frozen=True)
class Outcome:
    """Holds what was measured, and in words which runs failed."""

    results: list[RunResult]
    failures: list[str]


def make_base(config: str, overrides: list[str], *, train: str, probe: str, test: str, epochs: float | None) -> RunConfig:
    """Return the configuration that every variant begins with.

    Args:
        train: shards to train on; its classes are the model's.
        probe: shards that the probes are fitted to.
        test: shards that the model itself and the probes are tested on.
        epochs: length of each run, a tenth of it warmup; the configuration's if None.

    Raises:
        ConfigError: the configuration is wrong.
        DataError: shards without an index, or without labels.
    """
    length = [] if epochs is None else [f"trainer.duration={epochs:g} epochs", f"schedule.warmup={WARMUP * epochs:g} epochs"]
    largest = load_index(train).max_label
    if largest is None:
        raise DataError(
            f"{train}: none of its samples has a label, so there is nothing to compare; name shards with .cls members"
        )
    return load_config(
        config,
        [
            f"data.train={json.dumps(train)}",
            f"evaluation.datasets={json.dumps([{'name': PROBES, 'train': probe, 'test': test}])}",
            f"evaluation.validation={json.dumps([{'name': TEST, 'shards': test, 'class_map': 'numbers'}])}",
            f"model.num_classes={largest + 1}",
            *length,
            *overrides,
        ],
    )


def run_study(base: RunConfig, variants: Mapping[str, Settings], *, num_seeds: int, out: Path, stop: StopRequest) -> Outcome:
    """Train and evaluate what is not done yet. A run that fails is named, and the others are made all the same.

    Args:
        out: folder of the runs, of their configurations and of their output.

    Raises:
        ConfigError: a variant does not fit the base configuration. Nothing has been trained then.
        StoppedError: a training was asked to stop. It has saved, and the same command resumes it.
        Interrupted: this process was asked to stop. The training has saved.
    """
    configs = {
        (name, seed): configure(base, settings, name=f"{name}-s{seed}", seed=seed, output_dir=str(out))
        for seed in range(num_seeds)  # a study that is stopped early has each variant, with fewer seeds
        for name, settings in variants.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    outcome = Outcome([], [])
    with progress(total=len(configs), description="runs", unit="run") as bar:
        for (name, seed), config in configs.items():
            begin = time.monotonic()
            try:
                rows = _run(config, variant=name, seed=seed, stop=stop)
            except StoppedError:
                raise
            except PipelineError as error:
                outcome.failures.append(f"{config.name}: {error}")
                print(f"[choices] {outcome.failures[-1]}", flush=True)
            else:
                outcome.results.extend(rows)
                print(f"[choices] {rows[-1].describe()} ({time.monotonic() - begin:.0f} s)", flush=True)
            bar.update()
    return outcome


def _run(config: RunConfig, *, variant: str, seed: int, stop: StopRequest) -> list[RunResult]:
    """Train and evaluate one run. Return its results: of untrained weights first, where they are measured, then of the last."""
    untrained = next((name for name, trained in UNTRAINED.items() if trained == variant), None)
    folder = train_and_measure(config, stop=stop, first_too=untrained is not None)
    last = max(folder.weight_steps())
    rows = {last: variant} if untrained is None else {0: untrained, last: variant}
    return [_read_result(folder, config, variant=rows[step], seed=seed, step=step) for step in sorted(rows)]


def _read_result(folder: RunFolder, config: RunConfig, *, variant: str, seed: int, step: int) -> RunResult:
    """Read what a run's files say of its weights at a step. A few-shot accuracy is the mean over its draws."""
    model = config.model.resolve(head_bias=config.objective.head_bias)
    measures = {
        _name(results): (100 if results.quantity == "accuracy" else 1) * fmean(results.by_step[step])
        for results in group_results(read_results(folder).rows)
        if step in results.by_step and results.measure != f"{TEST} top-5"
    }
    lines = read_metrics(folder.metrics) if step > 0 else []
    last = [line for line in lines if line["step"] > step * (1 - AT_THE_END)]
    if accuracies := _values(last, "train/accuracy"):
        measures["train top-1 %"] = 100 * fmean(accuracies)
    speeds = _values(lines, "speed/images_per_s")
    return RunResult(
        variant=variant,
        seed=seed,
        parameters=sum(parameter.numel() for parameter in model.build().parameters()),
        macs=model.cost.macs,
        images_per_s=median(speeds) if speeds else None,
        measures=measures,
    )


def _name(results: MeasureResults) -> str:
    return results.measure.removeprefix(f"{PROBES} ") + (" %" if results.quantity == "accuracy" else "")


def _values(lines: Sequence[Row], key: str) -> list[float]:
    return [value for line in lines if (value := number(line, key)) is not None]

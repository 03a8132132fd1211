"""Run a grid of fine-tunings, choose a point by its dev images, train finally on all training images, and test once.

RUN_DIR/splits/{rest,held_out}.safetensors     indexes of the training images without, and of, the dev images
RUN_DIR/grid/POINT/                            run folder of each point, and POINT.yaml, POINT.log next to it
RUN_DIR/final-s0/                              run folder of a final training
RUN_DIR/finetune.json                          the table: each point's dev value, the choice, the test results
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from pipeline.build.initial import open_initial
from pipeline.build.sub_runs import train_and_measure
from pipeline.config.finetune import FinetuneSection
from pipeline.config.run import RunConfig
from pipeline.console.progress import progress
from pipeline.data.shards.hold_out import hold_out
from pipeline.errors import ConfigError, PipelineError, StoppedError, TrainingError
from pipeline.finetune.points import DEV, Point, configure_final, configure_point, list_points
from pipeline.json_text import parse_json
from pipeline.launch.signals import StopRequest
from pipeline.report.finetune import Final, PointResult, Table, write_table
from pipeline.run.evaluations import MeasureResults, group_results, read_results
from pipeline.run.folder import RunFolder

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Holds a fine-tuning: its configuration and its points, each with the configuration of its run."""

    base: RunConfig
    section: FinetuneSection
    points: Sequence[Point]
    configs: Sequence[RunConfig] = field(default=())

    def config_of(self, point: Point) -> RunConfig:
        return self.configs[list(self.points).index(point)]


def make_plan(base: RunConfig, *, tell: Tell) -> Plan:
    """Hold out the dev images, and configure every point: a mistake is an error of the first minute.

    Raises:
        ConfigError: a setting of the grid is none, or there is nothing to begin with or to test on.
        DataError: the training images cannot be read, or are too few.
    """
    section = base.finetune or FinetuneSection()  # type: ignore[call-arg]
    if base.init_from is None:
        raise ConfigError("finetune begins with weights: set init_from=RUN_OR_WEIGHTS (docs/finetuning.md says what it may be)")
    if not base.evaluation.validation:
        raise ConfigError(
            "finetune tests its final weights on evaluation.validation, which names no set; set evaluation.validation="
            "'[{name: test, shards: TEST_SHARDS}]'"
        )
    points = list_points(section.grid)
    train, dev = _divide(base, section, tell=tell)
    configs = [configure_point(base, point, train=train, dev=dev) for point in points]
    for config in configs:
        config.model.resolve()
    open_initial(base)
    return Plan(base, section, points, configs)


def _divide(base: RunConfig, section: FinetuneSection, *, tell: Tell) -> tuple[Any, Any]:
    """Return the shards that points train on, and those that they are compared on."""
    given = base.model_dump(mode="json")["data"]["train"]
    if section.dev_shards is not None:
        return given, section.dev_shards.model_dump(mode="json")
    corpora = () if isinstance(base.data.train, str) else base.data.train
    first = next(iter(corpora), None)
    if len(corpora) > 1 or (first is not None and first.first_class):
        raise ConfigError("finetune holds a part of one corpus out; for a mixture set finetune.dev_shards")
    path, index = (str(base.data.train), None) if first is None else (first.path, first.index)
    parts = hold_out(path, index, share=section.dev, seed=section.dev_seed, out=base.run_dir / "splits")
    tell(f"points train on {parts.num_rest} images, and are compared on {parts.num_held_out} others of the training set")
    root = path.removesuffix("/index.safetensors")
    return [{"path": root, "index": parts.rest}], {"path": root, "index": parts.held_out}


def run_point(plan: Plan, point: Point, *, stop: StopRequest) -> PointResult:
    """Train a point and measure it on the dev images; what is done already is read.

    Raises:
        StoppedError: it was asked to stop; the same command resumes.
    """
    begin = time.monotonic()
    try:
        folder = train_and_measure(plan.config_of(point), stop=stop, variables=_group(plan.base))
        value, quantity = _value(folder, f"{DEV} {plan.section.choose_by}")
    except StoppedError:
        raise
    except PipelineError as error:
        return PointResult(point.name, dict(point.settings), None, error=str(error))
    return PointResult(point.name, dict(point.settings), value, quantity=quantity, seconds=round(time.monotonic() - begin))


def _group(base: RunConfig) -> dict[str, str]:
    """Return variables that put all runs of a grid into one group of W&B."""
    return {"WANDB_RUN_GROUP": base.name}


def _value(folder: RunFolder, measure: str) -> tuple[float, str]:
    """Return a measure of a run's last weights.

    Raises:
        TrainingError: it was not measured.
    """
    last = max(folder.weight_steps())
    measures = group_results(read_results(folder).rows)
    found = next((results for results in measures if results.measure == measure and last in results.by_step), None)
    if found is None:
        known = ", ".join(results.measure for results in measures) or "nothing"
        raise TrainingError(f"{measure!r} was not measured at step {last} ({known} was); set finetune.choose_by")
    value = fmean(found.by_step[last])
    if not math.isfinite(value):
        raise TrainingError(f"its {measure} is {value}: the training has diverged; a smaller learning rate may not")
    return value, found.quantity


def choose(results: Sequence[PointResult]) -> PointResult:
    """Return the best point; of equal ones the first.

    Raises:
        TrainingError: none could be measured.
    """
    measured = [result for result in results if result.value is not None and math.isfinite(result.value)]
    if not measured:
        reasons = "; ".join(dict.fromkeys(result.error or f"measured as {result.value}" for result in results))
        raise TrainingError(f"no point of the grid has a result: {reasons}")
    sign = -1 if measured[0].quantity == "loss" else 1
    return max(measured, key=lambda result: sign * (result.value or 0.0))


def run_grid(plan: Plan, *, stop: StopRequest, tell: Tell, only: Sequence[Point] | None = None) -> Table:
    """Run what is not done of a grid, then the final trainings. Return the table, which is written after every run.

    Args:
        only: points to run, without choosing among them: other processes run the others.

    Raises:
        StoppedError: it was asked to stop; the same command resumes.
        TrainingError: no point has a result, or a final training failed.
    """
    points = plan.points if only is None else only
    results: list[PointResult] = []
    with progress(total=len(points), description="points", unit="point") as bar:
        for point in points:
            results.append(run_point(plan, point, stop=stop))
            tell(results[-1].describe())
            if only is None:  # other processes would write theirs
                write_table(plan.base.run_dir, Table(plan.base.name, plan.section.choose_by, results))
            bar.update()
    if only is not None:
        return Table(plan.base.name, plan.section.choose_by, results)
    check_beginnings(RunFolder(config.run_dir) for config in plan.configs)
    best = choose(results)
    tell(f"chosen by {plan.section.choose_by} of the dev images: {best.name}")
    (point,) = (point for point in plan.points if point.name == best.name)
    finals = [_run_final(plan, point, seed=seed, stop=stop, tell=tell) for seed in range(plan.section.seeds)]
    table = Table(plan.base.name, plan.section.choose_by, results, chosen=best.name, finals=finals)
    write_table(plan.base.run_dir, table)
    return table


def check_beginnings(folders: Iterable[RunFolder]) -> None:
    """Compare the weights that runs began with. Those of a run that still trains are others from one point to the next.

    Raises:
        TrainingError: they are not the same for all.
    """
    sources: dict[str, str] = {}  # by digest, where they were read
    for folder in folders:
        if folder.initial.exists():
            record = parse_json(folder.initial.read_bytes())
            sources.setdefault(str(record.get("digest")), f"{record.get('source')} ({folder.root.name})")
    if len(sources) > 1:
        raise TrainingError(
            f"points began with different weights: {' and '.join(list(sources.values())[:2])}; give one file, init_from="
            "RUN/weights/step_N.safetensors, and another run folder (name=...)"
        )


def _run_final(plan: Plan, point: Point, *, seed: int, stop: StopRequest, tell: Tell) -> Final:
    config = configure_final(plan.base, point, seed=seed)
    folder = train_and_measure(config, stop=stop, variables=_group(plan.base))
    last = max(folder.weight_steps())
    measures = [results for results in group_results(read_results(folder).rows) if last in results.by_step]
    final = Final(seed, {results.measure: _shown(results, last) for results in measures}, str(folder.weights_of(last)))
    tell(final.describe())
    return final


def _shown(results: MeasureResults, step: int) -> dict[str, Any]:
    return {"value": fmean(results.by_step[step]), "quantity": results.quantity}

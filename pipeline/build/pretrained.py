"""Open weights from anywhere as one model: those of a run folder, with what the run knows of them, or a published file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.config.read import load_config
from pipeline.config.run import RunConfig
from pipeline.data.shards.class_names import parse_class_names
from pipeline.errors import ExchangeError
from pipeline.exchange.own import read_own
from pipeline.exchange.places import place_of
from pipeline.exchange.pretrained import Preprocessing, Pretrained
from pipeline.exchange.source import read_pretrained
from pipeline.image_size import ImageSize
from pipeline.run.evaluations import MeasureResults, group_results, read_results
from pipeline.run.folder import RunFolder, WeightsKind, WeightsName
from pipeline.run.records import Row

AVERAGE = " (average)"  # ends the names of measures of averaged weights


@dataclass(frozen=True)
class RunWeights:
    """Names weights of a run, and holds what the run knows of them.

    Attributes:
        results: lines of evaluations.jsonl that are of these weights.
    """

    folder: RunFolder
    name: WeightsName
    config: RunConfig
    results: list[Row]

    def open(self) -> Pretrained:
        """Return the model, with the names of its classes and the evaluator's preprocessing.

        Raises:
            CheckpointError: the weights are damaged.
        """
        path = self.folder.weights_of(self.name.step, self.name.kind)
        return replace(
            read_own(path),
            source=str(path),
            class_names=_class_names(self.folder),
            probabilities=self.config.objective.probabilities,
            preprocessing=Preprocessing(short_side=self.config.evaluation.short_side),
        )


def open_pretrained(
    path: str | Path, *, step: int | None = None, kind: WeightsKind = "raw", size: ImageSize | None = None
) -> Pretrained:
    """Return the model of a run folder, its newest weights or those of a step, or of anything `read_pretrained` reads.

    Raises:
        ExchangeError: there are no such weights, or no model that is known here.
        CheckpointError: they are damaged.
    """
    path = place_of(path)
    if is_run(path):
        (found,) = choose_weights(path, step=step, kind=kind)
        return found.open()
    if step is not None:
        raise ExchangeError(f"{path} is not a run folder, and holds one model: leave the step out")
    return read_pretrained(path, size=size)


def is_run(path: Path) -> bool:
    """Return whether a path is a run folder: it has the configuration of a launch."""
    return path.is_dir() and RunFolder(path).config.exists()


def choose_weights(
    root: Path, *, step: int | None = None, best: str | None = None, kind: WeightsKind = "raw", every: bool = False
) -> list[RunWeights]:
    """Return weights of a run: by default the newest.

    Args:
        best: a measure, or a set with one measure: the step at which it was best.
        every: all steps that have weights.

    Raises:
        ExchangeError: there are none.
    """
    folder = RunFolder(root)
    config = load_config(folder.config)
    rows = read_results(folder).rows
    names = [name for name in folder.weight_names() if name.kind == kind]
    if not names:
        others = " (it has averaged weights alone)" if folder.weight_names() else ""
        raise ExchangeError(f"{root} has no {kind} weights yet{others}; a training writes them with each checkpoint")
    if best is not None:
        chosen = [_best(rows, best, root=root)]
    elif step is not None:
        chosen = [WeightsName(step, kind)]
    else:
        chosen = names if every else names[-1:]
    for name in chosen:
        if not folder.weights_of(name.step, name.kind).exists():
            known = ", ".join(str(other.step) for other in names[-5:])
            raise ExchangeError(f"{root} has no weights of {name}; the newest are of the steps {known}")
    return [RunWeights(folder, name, config, [row for row in rows if _is_of(row, name)]) for name in chosen]


def _best(rows: list[Row], wanted: str, *, root: Path) -> WeightsName:
    measures = group_results(rows)
    found = [measure for measure in measures if measure.measure == wanted or measure.measure.startswith(f"{wanted} ")]
    if len(found) != 1:
        names = ", ".join(repr(measure.measure) for measure in found or measures) or "none yet"
        which = "fits several measures" if found else "is no measure"
        raise ExchangeError(f"--best {wanted!r} {which}; {root} has {names}")
    (measure,) = found
    return WeightsName(_best_step(measure), "average" if measure.measure.endswith(AVERAGE) else "raw")


def _best_step(measure: MeasureResults) -> int:
    sign = -1 if measure.quantity == "loss" else 1
    return max(measure.by_step, key=lambda step: (sign * mean(measure.by_step[step]), step))


def _is_of(row: Row, name: WeightsName) -> bool:
    return row["step"] == name.step and (row.get("weights_kind") == "average") == (name.kind == "average")


def _class_names(folder: RunFolder) -> tuple[str, ...] | None:
    if not folder.classes.exists():
        return None
    return tuple(parse_class_names(folder.classes.read_bytes(), source=str(folder.classes)))


def recipe_of(config: RunConfig) -> dict[str, Any]:
    """Return what a model card says of a training, by name."""
    trainer, optimizer = config.trainer, config.optimizer
    return {
        "objective": config.objective.name,
        "optimizer": optimizer.name,
        "learning rate": f"{config.peak_learning_rate:g}",
        "weight decay": f"{optimizer.weight_decay:g}",
        "schedule": f"{config.schedule.decay}, warmup {config.schedule.warmup}",
        "batch": trainer.global_batch_size,
        "duration": str(trainer.duration),
        "dropout": f"{config.model.resolve().dropout:g}",
        "seed": config.seed,
    }

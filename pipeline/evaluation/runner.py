"""The evaluator: finds weights that lack results, claims them, measures, appends. Reads `weights/` and nothing else."""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from pipeline.checkpoint import RunFolder
from pipeline.claims import Claims
from pipeline.config import EvalDataset, EvaluationSection
from pipeline.data.augment import EvalTransform
from pipeline.data.index import ShardIndex, check_shards, load_index, read_class_names
from pipeline.data.remote import RemoteOptions
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.evaluation.features import Features, extract_features
from pipeline.evaluation.few_shot import choose_support, few_shot_accuracy
from pipeline.evaluation.linear import LinearResult, linear_probe
from pipeline.interruption import StopRequest
from pipeline.journal import append_json_line, read_json_lines
from pipeline.precision import EvaluationPrecision, choose_evaluation_precision, measure_bf16_speedup
from pipeline.tracking import EvaluationTracker, RunIdentity
from pipeline.weights import Weights, WeightsHeader, load_weights, read_weights_header

RESIZE_RATIO = 256 / 224  # short side before the centre crop, to the crop's side


@dataclass(frozen=True)
class Task:
    """One number to be measured on one set: a line of evaluations.jsonl."""

    dataset: str
    protocol: str
    shots: int | None
    seed: int | None


def list_tasks(section: EvaluationSection) -> list[Task]:
    """Every number a checkpoint is to have."""
    tasks: list[Task] = []
    for dataset in section.datasets:
        if "few_shot" in section.protocols:
            tasks += [Task(dataset.name, "few_shot", shots, seed) for shots in section.shots for seed in section.seeds]
        if "linear" in section.protocols:
            tasks.append(Task(dataset.name, "linear", None, None))
    return tasks


@dataclass(frozen=True)
class Conditions:
    """What a result depends on beside its task. One measured under others does not stand for it."""

    weights: str  # digest of the weights
    data: str  # fingerprint of the two splits
    short_side: int
    precision: str


def watch_run(evaluator: Evaluator, *, watch: bool, stop: StopRequest, poll_s: float) -> None:
    """Measure every checkpoint that lacks results, oldest first; with `watch`, go on until the run is complete.

    Raises:
        CheckpointError: at the end, naming the checkpoints that could not be evaluated.
    """
    if not watch and not evaluator.has_pending():
        print("[eval] nothing to do: every checkpoint has its results, or there is none", flush=True)
    try:
        while not stop.is_set:
            evaluator.evaluate_pending()
            if evaluator.is_complete() if watch else not evaluator.claims.are_in_doubt():
                break
            time.sleep(poll_s)
    finally:
        evaluator.close()
    if evaluator.failed:
        raise CheckpointError(f"not evaluated: {'; '.join(evaluator.failed.values())}")


class Evaluator:
    """Evaluates one run's weights.

    Args:
        record: what W&B is to keep as the run's configuration.

    Raises:
        ConfigError: no evaluation sets.
        DataError: an evaluation set that is missing or damaged.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        section: EvaluationSection,
        identity: RunIdentity,
        record: dict[str, Any] | None = None,
        remote: RemoteOptions | None = None,
    ) -> None:
        if not section.datasets:
            raise ConfigError(
                f"{folder.config}: evaluation.datasets is empty; name some sets of shards (see configs/demo.yaml)"
            )
        self.folder = folder
        self.section = section
        self.identity = identity
        self.record = record or {}
        self.remote = remote
        self.claims = Claims(folder.root / "claims")
        self.tasks = list_tasks(section)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(section.cpu_threads)
        precision, message = choose_evaluation_precision(
            section.precision, recorded=_recorded_precision(folder), bf16_speedup=measure_bf16_speedup(self.device)
        )
        self.precision: EvaluationPrecision = precision
        print(f"[eval] {message}", flush=True)
        self.failed: dict[int, str] = {}  # step to reason, this process's
        self._tracker: EvaluationTracker | None = None
        self._indices = {dataset.name: _open_dataset(dataset) for dataset in section.datasets}
        self._fingerprints = {  # hashed once: every look at the results compares with them
            name: f"{train.fingerprint[:16]}-{test.fingerprint[:16]}" for name, (train, test) in self._indices.items()
        }
        self._headers: dict[Path, tuple[tuple[int, int], WeightsHeader]] = {}

    def evaluate_pending(self) -> None:
        """One pass over all weights."""
        for step in self._pending_steps():
            with self.claims.take(f"step_{step:08d}.json") as mine:
                if mine:
                    self._try_step(step)

    def has_pending(self) -> bool:
        """Whether any weights lack results."""
        return bool(self._pending_steps())

    def _pending_steps(self) -> list[int]:
        """Steps whose weights are there and whose results are not, without those that failed here."""
        rows = read_json_lines(self.folder.evaluations)
        return [step for step in self.folder.weight_steps() if step not in self.failed and self._missing(step, rows)]

    def _try_step(self, step: int) -> None:
        """A checkpoint that cannot be evaluated must not keep the newer ones from it."""
        try:
            self._evaluate_step(step)
        except (CheckpointError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
            self.failed[step] = str(error)
            print(f"[eval] step {step} cannot be evaluated: {error}", flush=True)

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.close()

    def _track(self, step: int) -> None:
        """Send all that is known of a step, also what was measured before a crash."""
        rows = read_json_lines(self.folder.evaluations)
        if self._tracker is None:  # opened by the first result
            self._tracker = EvaluationTracker(
                self.identity, config=self.record, history=[row for row in rows if row["step"] != step]
            )
        self._tracker.log([row for row in rows if row["step"] == step])

    def is_complete(self) -> bool:
        """Whether the run has ended and all its weights are evaluated."""
        return self.folder.complete.exists() and bool(self.folder.weight_steps()) and not self._pending_steps()

    def _missing(self, step: int, rows: list[dict[str, Any]]) -> list[Task]:
        try:
            header = self._header(step)
        except CheckpointError:
            return self.tasks  # loading it will say what is wrong
        missing = []
        for task in self.tasks:
            wanted = {"step": step, **asdict(task), **asdict(self._conditions(header, task.dataset))}
            if not any(all(row.get(key) == value for key, value in wanted.items()) for row in rows):
                missing.append(task)
        return missing

    def _header(self, step: int) -> WeightsHeader:
        """Of the weights of a step; read again only when the file changes."""
        path = self.folder.weights_of(step)
        stat = path.stat()
        known = self._headers.get(path)
        if known is None or known[0] != (stat.st_mtime_ns, stat.st_size):
            known = self._headers[path] = ((stat.st_mtime_ns, stat.st_size), read_weights_header(path))
        return known[1]

    def _conditions(self, header: WeightsHeader, dataset: str) -> Conditions:
        return Conditions(
            weights=header.digest, data=self._fingerprints[dataset],
            short_side=self.section.short_side or round(header.model.image_size * RESIZE_RATIO), precision=self.precision,
        )  # fmt: skip

    def _evaluate_step(self, step: int) -> None:
        # Again: another evaluator may have finished between the look and the claim.
        missing = self._missing(step, read_json_lines(self.folder.evaluations))
        if not missing:
            return
        start = time.perf_counter()
        weights = load_weights(self.folder.weights_of(step))
        weights.model.to(self.device)
        new_rows: list[dict[str, Any]] = []
        for dataset in self.section.datasets:
            tasks = [task for task in missing if task.dataset == dataset.name]
            if tasks:
                new_rows += self._evaluate_dataset(weights, dataset, tasks)
        self._track(step)
        for row in new_rows:
            if row.get("short_classes"):
                print(f"[eval] {row['dataset']}: {row['short_classes']} classes have fewer than {row['shots']} train images")
            if not row.get("converged", True):
                print(
                    f"[eval] {row['dataset']}: WARNING: the linear probe stopped before its optimum: {row['iterations']} iterations, gradient norm {row['gradient_norm']:.2g}"
                )
        print(f"[eval] step {step}: {_summary(new_rows)} ({time.perf_counter() - start:.1f} s)", flush=True)

    def _evaluate_dataset(self, weights: Weights, dataset: EvalDataset, tasks: list[Task]) -> list[dict[str, Any]]:
        """Features once, then every probe on them; each result is appended as soon as it is known."""
        conditions = self._conditions(weights.header, dataset.name)
        train, test = (
            self._features(weights, index, f"{dataset.name} step {weights.header.step}", conditions.short_side).to(self.device)
            for index in self._indices[dataset.name]
        )
        num_classes = int(torch.cat([train.labels, test.labels]).max()) + 1
        rows = []
        for task in tasks:
            value = _measure(task, train, test, num_classes=num_classes)
            rows.append(_row(weights.header, task, conditions, value, train=train, test=test))
            append_json_line(self.folder.evaluations, rows[-1])
        return rows

    def _features(self, weights: Weights, index: ShardIndex, description: str, short_side: int) -> Features:
        section, image_size = self.section, weights.model.config.image_size
        return extract_features(
            weights.model, index, transform=EvalTransform(image_size=image_size, short_side=short_side), device=self.device,
            precision=self.precision, batch_size=section.batch_size, num_workers=section.num_workers, description=description,
            remote=self.remote,
        )  # fmt: skip


def _recorded_precision(folder: RunFolder) -> EvaluationPrecision | None:
    """Of the run's newest result."""
    recorded = [row.get("precision") for row in read_json_lines(folder.evaluations)]
    return next((value for value in reversed(recorded) if value in get_args(EvaluationPrecision)), None)


def _open_dataset(dataset: EvalDataset) -> tuple[ShardIndex, ShardIndex]:
    """Train and test split, whose class ids must mean the same."""
    try:
        train, test = load_index(dataset.train.path, dataset.train.index), load_index(dataset.test.path, dataset.test.index)
        check_shards(train)
        check_shards(test)
    except DataError as error:
        raise DataError(f"evaluation set {dataset.name!r}: {error}") from error
    names, others = read_class_names(train), read_class_names(test)
    if (names is None or others is None) and dataset.train != dataset.test:
        print(f"[eval] {dataset.name}: no classes.txt beside both splits, so it stays unchecked that they number classes alike")
    if names is not None and others is not None and names != others:
        raise DataError(
            f"evaluation set {dataset.name!r}: the splits number their classes differently (see classes.txt in {train.folder} "
            f"and {test.folder}); make the test split anew with `python -m data_tools make ... --classes {train.folder}/classes.txt`"
        )
    return train, test


@dataclass(frozen=True)
class Measured:
    """A value and what is worth keeping beside it."""

    accuracy: float
    detail: dict[str, Any]


def _measure(task: Task, train: Features, test: Features, *, num_classes: int) -> Measured:
    probe = functools.partial(
        {"few_shot": few_shot_accuracy, "linear": linear_probe}[task.protocol], train_features=train.values,
        train_labels=train.labels, test_features=test.values, test_labels=test.labels, num_classes=num_classes,
    )  # fmt: skip
    if task.protocol == "linear":
        result = probe()
        return Measured(result.accuracy, _describe_linear(result))
    assert task.shots is not None
    assert task.seed is not None
    support = choose_support(train.labels.cpu(), shots=task.shots, seed=task.seed)
    return Measured(probe(support=support), {"short_classes": len(support.short_classes)})


def _describe_linear(result: LinearResult) -> dict[str, Any]:
    """What the solver reached: a classifier that is not at its optimum is not the one that the protocol names."""
    fit = result.convergence
    return {
        "penalty": result.penalty, "held_out_accuracy": result.held_out_accuracy, "converged": fit.converged,
        "iterations": fit.iterations, "gradient_norm": fit.gradient_norm, "not_converged_penalties": list(result.not_converged),
    }  # fmt: skip


def _row(
    header: WeightsHeader, task: Task, conditions: Conditions, value: Measured, *, train: Features, test: Features
) -> dict[str, Any]:
    count = len(test.labels)
    return {
        "step": header.step, "images_seen": header.images_seen, **asdict(task), "accuracy": value.accuracy,
        # 95 % by the normal approximation, over the choice of test images alone.
        "ci95": 1.96 * (value.accuracy * (1 - value.accuracy) / count) ** 0.5,
        "test_images": count, "unreadable": train.num_unreadable + test.num_unreadable, **value.detail,
        **asdict(conditions),
    }  # fmt: skip


def _summary(rows: list[dict[str, Any]]) -> str:
    groups: dict[str, list[float]] = {}
    for row in rows:
        label = f"{row['dataset']} " + (f"{row['shots']}-shot" if row["shots"] else row["protocol"])
        groups.setdefault(label, []).append(100 * row["accuracy"])
    return ", ".join(f"{label} {sum(values) / len(values):.1f} %" for label, values in groups.items())

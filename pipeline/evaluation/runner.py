"""Evaluate: find weights that lack results, claim them, measure, record. This module reads `weights/` and nothing else.

A failure costs only its own measurement: a protocol that a set has too few images for, a set that cannot be opened or read,
weights that are damaged or not finite. Each is recorded with its reason, and everything else is measured.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from pipeline.data.shards.remote import RemoteOptions
from pipeline.distributed.precision import EvaluationPrecision, choose_evaluation_precision, measure_bf16_speedup
from pipeline.errors import CheckpointError, ConfigError, EvaluationError
from pipeline.evaluation.conditions import measured_under, preprocessing_of
from pipeline.evaluation.failures import describe_failures
from pipeline.evaluation.feature_cache import make_cache
from pipeline.evaluation.feature_source import FeatureSource
from pipeline.evaluation.opened import OpenedSets
from pipeline.evaluation.reading import Reading
from pipeline.evaluation.records import ResultFile, Row, failed_row, result_row, summarise, warnings_of
from pipeline.evaluation.section import EvaluationSection
from pipeline.evaluation.tasks import EvaluationTask, Key, MeasuredUnder, Outcome, key_of
from pipeline.evaluation.tracking import StepTracking
from pipeline.evaluation.upstream import Upstream
from pipeline.evaluation.weights_files import Headers, Loaded, Stamp, stamp_of, why_not_finite
from pipeline.evaluation.work import Work, in_order
from pipeline.exchange.pretrained import Preprocessing
from pipeline.monitor.loggers import RunIdentity
from pipeline.run.checkpoint import RunFolder
from pipeline.run.claims import Claims
from pipeline.run.evaluations import GROUPS, value_of
from pipeline.run.folder import WeightsName
from pipeline.run.records import read_json_lines
from pipeline.run.weights import WeightsHeader, load_weights

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_SHOWN_REASONS = 8


@dataclass(frozen=True)
class Damaged:
    """Describes weights that could not be loaded."""

    stamp: Stamp | None
    reason: str


class Evaluator:
    """Evaluates one run's weights.

    Args:
        upstream: what the run is trained to do.
        preprocessing: of images; None: as the section says.
        record: the run's configuration as W&B keeps it.

    Raises:
        ConfigError: no evaluation sets.
        DataError: none of the sets can be opened.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        section: EvaluationSection,
        identity: RunIdentity,
        upstream: Upstream,
        preprocessing: Preprocessing | None = None,
        record: dict[str, Any] | None = None,
        remote: RemoteOptions | None = None,
    ) -> None:
        if not (section.datasets or section.validation or section.segmentation):
            raise ConfigError(
                f"{folder.config}: evaluation.datasets is empty; name some sets of shards (see configs/demo.yaml), or held-out "
                "images of the corpus in evaluation.validation"
            )
        self.folder = folder
        self.section = section
        self.identity = identity
        self.claims = Claims(folder.root / "claims")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(section.cpu_threads)
        self.results = ResultFile(folder.evaluations)
        self.tracking = StepTracking(folder, self.results, identity=identity, record=record or {})
        self.sets = OpenedSets(section, upstream)
        precision, message = choose_evaluation_precision(
            section.precision, recorded=_recorded_precision(folder), bf16_speedup=measure_bf16_speedup(device)
        )
        print(f"[eval] {message}", flush=True)
        reading = Reading(
            device=device,
            precision=precision,
            batch_size=section.batch_size,
            num_workers=section.num_workers,
            remote=remote,
            cpu_threads=section.cpu_threads,
        )
        self.source = FeatureSource(reading, cache=make_cache(section, folder), num_replicas=section.replicas)
        self._loaded: Loaded | None = None
        self._damaged: dict[WeightsName, Damaged] = {}  # of this process
        self._failed: dict[Key, str] = {}  # measurement to reason, of this process
        self._preprocessing = preprocessing or preprocessing_of(section)
        self._headers = Headers()

    def evaluate_pending(self) -> None:
        """Pass once over all weights and sets.

        Raises:
            CheckpointError: results cannot be written, for another reason than a full disk.
        """
        if self.why_lost() is not None:
            return
        self.results.flush()
        passed: set[Work] = set()
        names = self._candidates()
        todo = deque(self._list_work(names))
        while todo and self.why_lost() is None:
            work = todo.popleft()
            passed.add(work)
            with self._claim(work) as mine:
                if mine:
                    self._try(work)
            if names != (names := self._candidates()):  # new weights, or weights that turned out to be damaged
                todo = deque(new for new in self._list_work(names) if new not in passed)
            # Send both kinds of a step's weights at once: W&B's offline file takes steps in rising order alone.
            if not todo or todo[0].name.step != work.name.step:
                self.tracking.send(work.name.step)

    def _list_work(self, names: Sequence[WeightsName]) -> list[Work]:
        """Return what lacks results of some weights, in their order."""
        done = self.results.done()
        return [
            Work(name, dataset)
            for name in names
            for dataset in dict.fromkeys(task.dataset for task in self._missing(name, done))
        ]

    def _candidates(self) -> list[WeightsName]:
        """Return weights in that order, without those that failed to load in this process."""
        return [name for name in in_order(self.folder.weight_names(), self.section.order) if not self._is_damaged(name)]

    @contextmanager
    def _claim(self, work: Work) -> Iterator[bool]:
        """Claim work. With a full disk there is no claim: the worst result of continuing is work done twice."""
        taking = self.claims.take(work.claim)
        try:
            mine = taking.__enter__()
        except CheckpointError as error:
            if not (isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_SPACE):
                if self.why_lost() is None:
                    raise
                yield False
                return
            yield True
            return
        try:
            yield mine
        finally:
            taking.__exit__(None, None, None)

    def why_lost(self) -> str | None:
        """Return why the run is not where it was, if so: nothing may be measured or written there then."""
        if not self.folder.root.is_dir():
            return f"{self.folder.root} no longer exists"
        try:
            found = self.folder.wandb_id.read_text(errors="replace").strip()
        except OSError:
            return None
        if found not in ("", self.identity.run_id):
            return f"{self.folder.root} is another run's folder now (W&B id {found}, not {self.identity.run_id})"
        return None

    def has_pending(self) -> bool:
        """Return whether any weights lack results."""
        return bool(self._list_work(self._candidates()))

    def has_doubtful_claims(self) -> bool:
        """Return whether some weights were left to an evaluator that may be gone."""
        return self.claims.are_in_doubt()

    def is_complete(self) -> bool:
        """Return whether the run has ended and all its weights are evaluated."""
        return self.folder.complete.exists() and bool(self.folder.weight_steps()) and not self.has_pending()

    def _is_damaged(self, name: WeightsName) -> bool:
        """Return whether the weights were found damaged. A file that was replaced since counts as another."""
        known = self._damaged.get(name)
        if known is not None and known.stamp != stamp_of(self._path(name)):
            del self._damaged[name]
            return False
        return known is not None

    def _missing(self, name: WeightsName, done: set[Key]) -> list[EvaluationTask]:
        try:
            header = self._headers.read(self._path(name))
        except CheckpointError:
            return self.sets.tasks  # loading it will report what is wrong
        keys = {task: key_of(name.step, task, self._conditions(header, task.dataset)) for task in self.sets.tasks}
        return [task for task, key in keys.items() if key not in done and key not in self._failed]

    def _path(self, name: WeightsName) -> Path:
        return self.folder.weights_of(name.step, name.kind)

    def _conditions(self, header: WeightsHeader, dataset: str) -> MeasuredUnder:
        return measured_under(
            header,
            self.sets.fingerprint_of(dataset),
            preprocessing=self._preprocessing,
            precision=self.source.reading.precision,
        )

    def _try(self, work: Work) -> None:
        """Try work. Weights that cannot be loaded must not keep others from being evaluated."""
        name = work.name
        stamp = stamp_of(self._path(name))
        try:
            self._evaluate(work)
        except CheckpointError as error:
            if not self._path(name).exists():  # somebody deleted it to free space
                print(f"[eval] {name}: its weights have been removed meanwhile; passed over", flush=True)
                return
            self._damaged[name] = Damaged(stamp, str(error))
            print(f"[eval] {name} cannot be evaluated: {error}", flush=True)

    def _evaluate(self, work: Work) -> None:
        # Check again: another evaluator may have finished between the listing and the claim.
        tasks = [task for task in self._missing(work.name, self.results.done()) if task.dataset == work.dataset]
        if not tasks:
            return
        start, num_computed = time.perf_counter(), self.source.num_computed
        loaded = self._load(work.name)
        header = loaded.weights.header
        failed = loaded.why_not_finite or self.sets.unopened.get(work.dataset)
        outcomes = self._measure(loaded, tasks) if failed is None else (Outcome(task, reason=failed) for task in tasks)
        new_rows = [self._record(header, outcome) for outcome in outcomes]
        self.tracking.measured(work.name.step)
        for warning in warnings_of(new_rows, self.section):
            print(f"[eval] {warning}", flush=True)
        kept = "features" in self.source.clock.seconds and num_computed == self.source.num_computed
        parts = self.source.clock.describe()
        took = f"{time.perf_counter() - start:.1f} s{f': {parts}' if parts else ''}{'; kept features' * kept}"
        print(f"[eval] {work.name}: {summarise(new_rows)} ({took})", flush=True)

    def _load(self, name: WeightsName) -> Loaded:
        """Return weights on the device; those of the last work are still there.

        Raises:
            CheckpointError: they cannot be loaded.
        """
        path = self._path(name)
        stamp = stamp_of(path)
        if self._loaded is None or stamp is None or (self._loaded.weights.path, self._loaded.stamp) != (path, stamp):
            self._loaded = None  # two models may not fit
            weights = load_weights(path)
            self._loaded = Loaded(stamp, weights, why_not_finite(weights))
            weights.model.to(self.source.reading.device)
        return self._loaded

    def _measure(self, loaded: Loaded, tasks: list[EvaluationTask]) -> Iterator[Outcome]:
        transform = self._preprocessing.transform(loaded.weights.header.model)
        return self.sets.measure(loaded.weights, tasks, transform=transform, source=self.source)

    def _record(self, header: WeightsHeader, outcome: Outcome) -> Row:
        """Append a line to the results."""
        task = outcome.task
        conditions = self._conditions(header, task.dataset)
        if outcome.value is not None:
            reference = self.section.references.get(task.measure)
            facts = {**outcome.facts, **self._groups_of(task.dataset)}
            row = result_row(header, task, conditions, outcome.value, facts=facts, reference=reference)
            self.results.add(row)
            return row
        reason = outcome.reason or "unknown"
        self._failed[key_of(header.step, task, conditions)] = reason
        row = failed_row(header, task, conditions, reason)
        if row not in self.results.rows():  # an earlier start may have met the same
            self.results.add(row)
        return row

    def _groups_of(self, dataset: str) -> dict[str, dict[str, int]]:
        """Return the groups of a set and how many sets each has, for its lines."""
        found = {group: len(names) for group, names in self.section.groups.items() if dataset in names}
        return {GROUPS: found} if found else {}

    def plan(self) -> list[str]:
        """Return what `evaluate_pending` would measure, a line for weights and a set."""
        done, lines = self.results.done(), list[str]()
        for name in in_order(self.folder.weight_names(), self.section.order):
            missing = self._missing(name, done)
            for dataset in dict.fromkeys(task.dataset for task in missing):
                settings = [task.setting for task in missing if task.dataset == dataset]
                what = ", ".join(dict.fromkeys(setting.measure for setting in settings))
                lines.append(f"{name}: {dataset}: {len(settings)} values ({what})")
        lines.append(f"{len(lines)} sets to measure" if lines else "nothing to measure: every checkpoint has its results")
        return lines

    def close(self) -> None:
        self.source.close()
        self.claims.release_all()
        self.results.flush()
        self.tracking.close()

    def check(self, *, lost: str | None) -> None:
        """Report at the end what was not measured, or not recorded.

        Args:
            lost: why the run no longer exists there, if so.

        Raises:
            EvaluationError: with the reasons.
        """
        if lost is not None:
            self._damaged.clear()  # weights that are missing, for the same reason
        problems = [lost] if lost is not None else []
        problems += [damaged.reason for damaged in self._damaged.values()] + describe_failures(self._failed)
        if not self._failed:  # no weights that they could have been measured on
            problems += [reason for name, reason in self.sets.unopened.items() if name not in self.sets.left_out]
        if self.results.waiting:
            problems.append(
                f"{len(self.results.waiting)} results are not recorded: {self.results.path} cannot be written "
                f"({self.results.problem}); fix that, "
                f"and run the same command again"
            )
        if problems:
            more = f"; and {len(problems) - _SHOWN_REASONS} more" if len(problems) > _SHOWN_REASONS else ""
            raise EvaluationError(f"not evaluated: {'; '.join(problems[:_SHOWN_REASONS])}{more}")


def _recorded_precision(folder: RunFolder) -> EvaluationPrecision | None:
    """Return the precision of the run's newest result."""
    recorded = [row.get("precision") for row in read_json_lines(folder.evaluations) if value_of(row) is not None]
    return next((value for value in reversed(recorded) if value in get_args(EvaluationPrecision)), None)

"""Measure ways to train in interleaved turns (`benchmark train`), and lay the results out."""

from __future__ import annotations

import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.benchmark.train.entries import PRODUCT, Entry, Group
from pipeline.benchmark.train.layers import LayerTimes
from pipeline.benchmark.train.profile import describe_shares
from pipeline.benchmark.train.work import Work, with_settings
from pipeline.benchmark.turns import PEERS, Contender
from pipeline.config.run import RunConfig
from pipeline.console.progress import progress
from pipeline.errors import TrainingError


@dataclass(frozen=True)
class Plan:
    """Says how much is measured.

    Attributes:
        batch_size: images of a step on each rank.
        steps: timed steps of a turn.
        warmup: steps before them, in each turn.
        rounds: turns of each contender.
        data: folder of indexed shards for the contender with a loader; None where none is measured.
        num_workers: processes of that loader.
    """

    batch_size: int
    steps: int
    warmup: int
    rounds: int
    data: str | None = None
    num_workers: int = 2
    ranks: int = 1


@dataclass
class Result:
    """Holds what one contender took.

    Attributes:
        problem: why there is no figure; None where there is one.
        peak_bytes: most memory of a GPU that its tensors held.
        wait_fraction: part of the time that it waited for its loader.
    """

    name: str
    seconds: list[float] = field(default_factory=list)  # of a step, by turn
    problem: str | None = None
    peak_bytes: int | None = None
    wait_fraction: float = 0.0
    shares: dict[str, float] | None = None

    @property
    def step_s(self) -> float | None:
        """Return the median over turns: one interrupted turn does not count."""
        return statistics.median(self.seconds) if self.seconds and self.problem is None else None


@dataclass(frozen=True)
class GroupResult:
    """Holds a group's results, in the group's order."""

    title: str
    batch_size: int  # on all ranks together
    flops_per_image: float
    results: tuple[Result, ...]
    product_flops: float | None  # rate of the matrix product in the same turns, of all ranks together


class _Running:
    """Holds a contender's processes, one for each rank, and its result."""

    def __init__(self, entry: Entry, work: Work) -> None:
        self.entry = entry
        self.result = Result(entry.name)
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // work.ranks)))
        self._processes = [
            Contender(
                "pipeline.benchmark.train.contender",
                json.dumps(asdict(work)),
                peers=PEERS if work.loop in ("timm", "transformers") else (),
                variables={"OMP_NUM_THREADS": threads, **place},
            )
            for place in _places(work.ranks)
        ]

    def wait_until_ready(self) -> dict[str, Any] | None:
        """Return what the first rank says of itself; None if one has ended."""
        answers = self._answers()
        return answers[0] if answers else None

    def take_turn(self, plan: Plan, *, profile: Path | None) -> None:
        if self.result.problem is not None:
            return
        command = {"steps": plan.steps, "warmup": plan.warmup}
        for rank, process in enumerate(self._processes):
            process.ask(json.dumps(command | ({"profile": str(profile)} if profile is not None and rank == 0 else {})))
        answers = self._answers()
        if not answers:
            return
        if profile is not None:  # profiled steps take longer
            self.result.shares = answers[0]["shares"]
            return
        answer = max(answers, key=lambda each: each["seconds"])
        self.result.seconds.append(answer["seconds"] / answer["steps"])
        self.result.peak_bytes = max(self.result.peak_bytes or 0, answer.get("peak_bytes", 0)) or None
        self.result.wait_fraction = max(self.result.wait_fraction, answer["wait_s"] / answer["seconds"])

    def _answers(self) -> list[dict[str, Any]]:
        """Return each rank's answer; none if one has ended."""
        answers = [process.answer() for process in self._processes]
        if None in answers:
            self.result.problem = self._processes[answers.index(None)].last_words()
            return []
        return [answer for answer in answers if answer is not None]

    def close(self) -> None:
        for process in self._processes:
            process.close()


def _places(ranks: int) -> list[dict[str, str]]:
    """Return a launcher's variables for each rank; none for a single one."""
    if ranks == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    places = [{**common, "RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RUN_ID": "benchmark"} for rank in range(ranks)]
    return [{name: str(value) for name, value in place.items()} for place in places]


def measure_group(
    group: Group, config: RunConfig, plan: Plan, *, flops_per_image: float, profile: Path | None = None
) -> GroupResult:
    """Measure the contenders of a group, one turn each and round after round.

    Args:
        profile: where the second contender's trace goes, in a turn of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        running = []
        try:
            with progress(total=len(group.entries) * (plan.rounds + 1), description=group.title, unit="turn") as bar:
                for number, entry in enumerate(group.entries):
                    running.append(_start(entry, config, plan, folder=f"{folder}/{number}"))
                    running[-1].wait_until_ready()  # alone: starting beside others would share the cores
                    bar.update()
                for _ in range(plan.rounds):
                    for contender in running:
                        contender.take_turn(plan, profile=None)
                        bar.update()
            if profile is not None:
                running[min(1, len(running) - 1)].take_turn(plan, profile=profile)
        finally:
            for contender in running:
                contender.close()
    results = tuple(contender.result for contender in running)
    product = next((result for result in results if result.name == PRODUCT), None)
    rate = None
    if product is not None and product.step_s is not None:
        rate = plan.ranks * _product_operations() / product.step_s
    return GroupResult(group.title, plan.batch_size * plan.ranks, flops_per_image, results, rate)


def find_largest_batch(config: RunConfig) -> int:
    """Return the largest micro-batch of the bare loop on this machine's first GPU, to a sixteenth.

    Raises:
        TrainingError: not even two images fit, or the search ended otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = with_settings(config, folder=folder, data="synthetic.tar", batch_size=1, num_workers=0, compile=False)
        search = _Running(Entry("search", "search"), Work(own.model_dump(mode="json"), "search"))
        try:
            answer = search.wait_until_ready()
        finally:
            search.close()
    if answer is None or answer["largest"] == 0:
        raise TrainingError(f"no micro-batch of {config.model.title} fits: {search.result.problem or 'not even two images'}")
    return answer["largest"]


def measure_float8(config: RunConfig, plan: Plan, *, compiled: bool) -> list[LayerTimes]:
    """Return how long the linear layers of the blocks take in float8, and as they are.

    Raises:
        TrainingError: torchao is not installed, the device has no float8, or the model no such layers.
    """
    with tempfile.TemporaryDirectory() as folder:
        entry = Entry("layers", "layers", {"compile": "blocks" if compiled else False})
        running = _start(entry, config, replace(plan, ranks=1), folder=folder)
        try:
            answer = running.wait_until_ready()
        finally:
            running.close()
    if answer is None or not answer["layers"]:
        problem = running.result.problem or "its blocks have no linear layer whose sizes are multiples of 16"
        raise TrainingError(f"float8 cannot be measured for {config.model.title}: {problem}")
    return [LayerTimes(**each) for each in answer["layers"]]


def _product_operations() -> float:
    from pipeline.benchmark.train.contender import PRODUCT_SIZE
    from pipeline.distributed.world import World, device_of

    return 2.0 * PRODUCT_SIZE[device_of(World.alone()).type] ** 3


def _start(entry: Entry, config: RunConfig, plan: Plan, *, folder: str) -> _Running:
    data = plan.data if entry.real_data and plan.data is not None else "synthetic.tar"
    own = with_settings(
        config,
        folder=folder,
        data=data,
        batch_size=plan.batch_size * plan.ranks,
        num_workers=plan.num_workers if entry.real_data else 0,
        **entry.trainer,
    )
    work = Work(own.model_dump(mode="json"), entry.loop, real_data=entry.real_data, ranks=plan.ranks)
    return _Running(entry, work)


def make_table(group: GroupResult, *, forecasts: Sequence[float | None] | None = None) -> str:
    """Return a row for each contender: its times and what follows from them, or why there is none.

    Args:
        forecasts: bytes that `plan` expects each contender's tensors to hold.
    """
    has_memory = any(result.peak_bytes for result in group.results)
    has_wait = any(result.wait_fraction > 0.001 for result in group.results)
    columns = ["", "ms a step", "images/s", "speed, the first = 1"]
    columns += [] if group.product_flops is None else ["of the matrix product's rate"]
    columns += ["peak GiB (planned)"] if has_memory else []
    columns += ["waits for data"] if has_wait else []
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    first = group.results[0].step_s
    for number, result in enumerate(group.results):
        if result.name == PRODUCT:
            continue
        step_s = result.step_s
        if step_s is None:
            lines.append(f"| {result.name} | {result.problem} |" + " |" * (len(columns) - 2))
            continue
        rate = group.batch_size / step_s
        cells = [result.name, f"{1e3 * step_s:.4g}", f"{rate:.4g}", "" if first is None else f"{first / step_s:.3f}"]
        if group.product_flops is not None:
            cells.append(f"{100 * rate * group.flops_per_image / group.product_flops:.1f} %")
        if has_memory:
            planned = None if forecasts is None else forecasts[number]
            peak = "" if result.peak_bytes is None else f"{result.peak_bytes / 2**30:.1f}"
            cells.append(peak if planned is None else f"{peak} ({planned / 2**30:.1f})")
        if has_wait:
            cells.append(f"{100 * result.wait_fraction:.1f} %")
        lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines)
    if group.product_flops is not None:
        text += f"\n\nmatrix product: {group.product_flops / 1e12:.4g} TFLOP/s in the same turns"
    profiled = next((result for result in group.results if result.shares is not None), None)
    if profiled is not None and profiled.shares is not None:
        text += f"\n\ntime of a profiled step, {profiled.name}: {describe_shares(profiled.shares)}"
    return text


def to_values(model: str, groups: Iterable[GroupResult]) -> dict[str, Any]:
    """Return all figures of a model, for JSON."""
    return {"model": model, "groups": [asdict(group) for group in groups]}


@dataclass
class Budget:
    """Counts down the minutes that may be used; None: as long as it takes."""

    minutes: float | None
    start: float = field(default_factory=time.monotonic)

    def is_left(self) -> bool:
        return self.minutes is None or (time.monotonic() - self.start) / 60 < self.minutes

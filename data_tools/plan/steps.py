"""Compute what each step of preparing a corpus takes, from what it costs an image."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from data_tools.dedup.join import plan_join
from pipeline.errors import DataError

HASH_BYTES = 1405  # kept on disk, an image
INDEX_BYTES = 1024  # read of a tar to index it, an image
TOOL_BYTES = 1 << 28  # of memory, a worker of most tools


@dataclass(frozen=True)
class Costs:
    """Holds milliseconds of one core, an image."""

    make: float = 0.5  # with the bytes kept: read at random, and written
    reencode: float = 7.0  # decoded, made smaller, encoded
    verify: float = 1.7  # decoded
    hashing: float = 9.7  # decoded and hashed
    against: float = 0.3  # for 10,000 test images
    index: float = 0.15

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise DataError(f"the cost of {name} is {value} ms an image, which cannot be")


@dataclass(frozen=True)
class Corpus:
    """Says what is to be prepared.

    Attributes:
        num_images: in the source.
        image_bytes: mean size.
        shard_bytes: size of the shards to be written.
        num_test_images: that must not be in it; 0 for none.
        distance: bits of the search inside the corpus; None for no search.
        is_in_store: whether it is read from and written to an object store.
    """

    num_images: int
    image_bytes: int
    shard_bytes: int
    num_test_images: int = 0
    distance: int | None = None
    is_reencoded: bool = False
    is_in_store: bool = False
    memory_bytes: int = 2 << 30  # of a worker


@dataclass(frozen=True)
class Step:
    """Says what one step takes."""

    name: str
    core_hours: float
    read_bytes: float
    written_bytes: float
    scratch_bytes: float = 0.0  # of a disk that all nodes share, while it works
    worker_bytes: float = TOOL_BYTES
    note: str = ""


def plan_steps(corpus: Corpus, costs: Costs) -> list[Step]:
    """Return the steps of `prepare`, in their order."""
    data = float(corpus.num_images * corpus.image_bytes)

    def hours(milliseconds: float) -> float:
        return corpus.num_images * milliseconds / 3.6e6

    make_ms = costs.make * (2 if corpus.is_in_store else 1) + (costs.reencode if corpus.is_reencoded else 0.0)
    passes = 2 if corpus.is_in_store else 1
    steps = [
        Step(
            name="make",
            core_hours=hours(make_ms),
            read_bytes=passes * data,
            written_bytes=passes * data,
            scratch_bytes=(passes - 1) * data,
            worker_bytes=corpus.memory_bytes if corpus.is_in_store else TOOL_BYTES,
            note="two passes, through scratch" if corpus.is_in_store else "",
        ),
        Step("verify", hours(costs.verify), data, 0.0),
    ]
    if corpus.num_test_images or corpus.distance is not None:
        hashes = float(corpus.num_images * HASH_BYTES)
        steps.append(Step("dedup: hashing", hours(costs.hashing), data, hashes, hashes))
    if corpus.num_test_images:
        milliseconds = costs.against * math.sqrt(corpus.num_test_images / 10_000)
        steps.append(Step("dedup --against", hours(milliseconds), corpus.num_images * HASH_BYTES, 0.0))
    if corpus.distance is not None:
        steps.append(_within(corpus))
    steps.append(Step("index", hours(costs.index), data if corpus.is_in_store else float(corpus.num_images * INDEX_BYTES), 0.0))
    return steps


def _within(corpus: Corpus) -> Step:
    assert corpus.distance is not None
    join = plan_join(corpus.num_images, distance=corpus.distance, memory_bytes=corpus.memory_bytes)
    traffic = float((corpus.distance + 1) * join.scratch_bytes)
    return Step(
        f"dedup --within, {corpus.distance} bits", join.core_s / 3600, traffic, traffic, join.scratch_bytes, join.worker_bytes
    )


@dataclass(frozen=True)
class Machines:
    """Says what works.

    Attributes:
        bandwidth: bytes a second that the shared disk or the store carries for all nodes together; None if it never decides.
    """

    num_nodes: int
    cores_per_node: int
    bandwidth: float | None = None

    @property
    def num_cores(self) -> int:
        return self.num_nodes * self.cores_per_node

    def hours(self, step: Step) -> float:
        """Return how long a step takes: what its cores need, or what its bytes need if that is longer."""
        carried = 0.0 if self.bandwidth is None else (step.read_bytes + step.written_bytes) / self.bandwidth / 3600
        return max(step.core_hours / self.num_cores, carried)

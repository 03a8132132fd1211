"""Write shards in one pass: the samples of each are read wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from data_tools.make.sources.listing import Int64s, Listing
from data_tools.make.write_shard import ShardTask, write_shard
from data_tools.parallel import Workers

MakeTask = Callable[[str, Int64s, Listing], ShardTask]


def write_shards(shards: Sequence[tuple[str, Int64s]], listing: Listing, make_task: MakeTask, *, workers: Workers) -> None:
    """Write shards, given by their names and samples.

    Raises:
        DataError: samples cannot be read, or are not as they were listed.
        OSError: a shard cannot be written.
    """
    done = workers.map(
        write_shard,
        _Tasks(shards, listing, make_task),
        description="write shards",
        unit="shard",
        name_task=lambda task: task.target,
        count_images=lambda task, _: len(task.numbers),
        are_kept=True,
    )
    for _ in done:
        pass


class _Tasks(Sequence[ShardTask]):
    """Makes the tasks of shards to write, each on its turn: all of them would take as much memory as the whole listing."""

    def __init__(self, shards: Sequence[tuple[str, Int64s]], listing: Listing, make_task: MakeTask) -> None:
        self._shards, self._listing, self._make_task = shards, listing, make_task

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, number: Any) -> Any:
        name, samples = self._shards[number]
        return self._make_task(name, samples, self._listing.take(samples))

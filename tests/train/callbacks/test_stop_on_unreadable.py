"""Images that cannot be read, and retried reads, are named, and at last end the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.shards.remote import Retry
from pipeline.data.streams.train import Unreadable
from pipeline.errors import TrainingError
from pipeline.train.callbacks.stops import UNREADABLE_GRACE, StopOnUnreadable
from tests.helpers.one_rank import make_batch
from tests.train.callbacks.test_metrics import Batch, make_batches, make_metrics, rows_of, train

pytestmark = pytest.mark.usefixtures("rank")


def run(batches: list[Batch], folder: Path, *, log_every: int = 1, budget: float = 0.0) -> None:
    metrics = make_metrics(log_every=log_every)
    train(batches, folder, metrics=metrics, after=[StopOnUnreadable(metrics, budget=budget)])


def unreadable(count: int) -> list[Unreadable]:
    return [Unreadable(key=f"image{number}", shard="a.tar", position=number, reason="truncated") for number in range(count)]


@pytest.mark.parametrize(("budget", "allowed"), [(0.0, UNREADABLE_GRACE), (4.0, 24)])
def test_the_budget_of_unreadable_images(budget: float, allowed: int, tmp_path: Path) -> None:
    """The line after three steps, of six images, is judged."""
    for count in (allowed, allowed + 1):
        batches = make_batches(3)
        batches[1]["unreadable"] = unreadable(count)
        if count <= allowed:
            run(batches, tmp_path, log_every=3, budget=budget)
            continue
        with pytest.raises(
            TrainingError, match=rf"{count} of 6 images could not be read.*data\.unreadable_budget={budget}"
        ) as raised:
            run(batches, tmp_path, log_every=3, budget=budget)
        assert raised.value.on_all_ranks
    assert [row["data/unreadable"] for row in rows_of(tmp_path)] == [allowed, allowed + 1]


def test_what_was_replaced_or_read_again_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = [make_batch(0, unreadable=unreadable(1), retries=3 * [Retry("b.tar", "reset")])]
    run(batches, tmp_path)
    said = capsys.readouterr().out
    assert "unreadable image 'image0' in a.tar at position 0 replaced: truncated" in said
    assert said.count("b.tar: a read failed 3 times and was retried: reset") == 1

"""Tars without an index: commands' output and named tars, in approximate order; and what they cannot do, in words."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.data.streams.loader import Batch, BatchLoader
from pipeline.data.streams.mixture import UnindexedShards
from pipeline.data.streams.train import Division
from pipeline.data.streams.unindexed import UnindexedStream
from pipeline.errors import ConfigError, DataError
from tests.conftest import Outcome, run_command, write_tar
from tests.helpers.streams import TRANSFORM, joined, keep


def collect(urls: str, *, steps: int, start_step: int = 0, rank: int = 0, workers: int = 0, classes: int = 4) -> list[Batch]:
    stream = UnindexedStream(
        source=UnindexedShards.parse(urls),
        seed=1,
        transform=TRANSFORM,
        num_classes=classes,
        start_step=start_step,
        division=Division(global_batch_size=21, rank=rank, world_size=2, accumulation_steps=1),
    )
    return [keep(b) for b in islice(BatchLoader(stream, num_workers=workers, prefetch=2, pin_memory=False), steps)]


@pytest.mark.parametrize(
    ("urls", "workers"), [("{folder}/shard-{{000..002}}.tar", 0), ("pipe:cat {folder}/shard-{{000..002}}.tar", 2)]
)
def test_samples_come_whole_and_mixed(corpus: Path, urls: str, workers: int) -> None:
    batches = collect(urls.format(folder=corpus), steps=40, workers=workers)
    ids, labels = joined(batches, "sample_ids"), joined(batches, "labels")
    assert len(set(ids.tolist())) > 75  # of 83
    assert len({(i, label) for i, label in zip(ids.tolist(), labels.tolist(), strict=True)}) == len(set(ids.tolist()))
    assert (labels.diff() != 0).float().mean() > 0.5  # in the shards they count up: 0 1 2 3
    assert joined(batches, "images").float().std() > 10


def test_ranks_and_starts_differ(corpus: Path) -> None:
    urls = f"{corpus}/shard-{{000..002}}.tar"
    orders = [collect(urls, steps=2, rank=rank, start_step=start) for rank, start in ((0, 0), (0, 0), (1, 0), (0, 7))]
    first, again, other_rank, later = (joined(order, "sample_ids") for order in orders)
    assert torch.equal(first, again)
    assert not torch.equal(first, other_rank)
    assert not torch.equal(first, later)


def test_problems_are_words(
    corpus: Path, tmp_path: Path, write_config: Callable[..., Path], call: Callable[..., Outcome]
) -> None:
    with pytest.raises(DataError, match="has class 3, but"):
        collect(f"{corpus}/shard-000.tar", steps=5, classes=3)
    with pytest.raises(DataError, match=r"nothing\.tar"):
        collect(f"pipe:cat {tmp_path}/nothing.tar", steps=1)
    with pytest.raises(DataError, match=r"empty file"):  # what a pipe looks like that fails late
        collect(f"pipe:true {tmp_path}/nothing.tar", steps=1)
    write_tar(tmp_path / "a.tar", [("0.txt", b"x"), ("0.cls", b"1")])
    with pytest.raises(DataError, match=r"sample '.*0' has none of jpg, .* \(it has txt, cls\)"):
        collect(f"{tmp_path}/a.tar", steps=1)
    config = write_config(data={"train": f"pipe:cat {corpus}/shard-000.tar"}, trainer={"duration": "3 epochs"})
    with pytest.raises(ConfigError, match=r"trainer\.duration=3 epochs: only a single indexed corpus has epochs"):
        resolve_run(load_config(config), world_size=1)
    assert "what a step sees is not known" in call("samples", str(config), "trainer.duration=9 steps", "--step", "1").text


def test_tars_that_are_not_there_are_found_before_a_rank_starts(corpus: Path, tmp_path: Path) -> None:
    UnindexedShards.parse(f"{corpus}/shard-{{000..002}}.tar").check_shards()
    UnindexedShards.parse(f"pipe:cat {corpus}/shard-{{000..009}}.tar").check_shards()  # the command may have its own ideas
    with pytest.raises(DataError, match=r"shard-003\.tar and 1 more of 5 tars does not exist"):
        UnindexedShards.parse(f"{corpus}/shard-{{000..004}}.tar").check_shards()
    with pytest.raises(DataError, match=r"\*\.tar does not exist; name the tars as \{000\.\.999\} does, or give their folder"):
        UnindexedShards.parse(f"{tmp_path}/*.tar").check_shards()


def test_the_way_to_an_exact_order_is_said(corpus: Path, tmp_path: Path, write_config: Callable[..., Path]) -> None:
    epochs = {"duration": "3 epochs"}
    with pytest.raises(ConfigError, match=rf"{corpus} has an index: type data\.train={corpus}$"):
        resolve_run(load_config(write_config(data={"train": f"{corpus}/shard-000.tar"}, trainer=epochs)), world_size=1)
    (tmp_path / "a.tar").touch()
    said = UnindexedShards.parse(f"{tmp_path}/a.tar").describe(num_streams=1)
    assert said.endswith(f"`python -m data_tools index {tmp_path}` makes an index, once; then type data.train={tmp_path}")


def test_a_training_says_that_its_order_is_approximate(corpus: Path, write_config: Callable[..., Path]) -> None:
    config = write_config(
        data={"train": f"pipe:cat {corpus}/shard-{{000..002}}.tar"}, trainer={"devices": 1, "duration": "4 steps"}
    )
    done = run_command("train", str(config))
    assert done.returncode == 0, done.stdout
    assert "3 tars without an index" in done.stdout
    assert "Order is approximate" in done.stdout

"""`samples` lists for a step what the run sees there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from PIL import Image

from pipeline.build.streams import make_stream
from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.data.streams.loader import BatchLoader
from pipeline.distributed.world import World
from tests.conftest import REPOSITORY, Outcome, environment


def test_a_step_is_listed_and_drawn(write_config: Callable[..., Path], call: Callable[..., Outcome], tmp_path: Path) -> None:
    config = write_config(trainer={"micro_batch_size": 2})
    listed = call("samples", str(config), "--step", "11", "--steps", "2", "--picture", str(tmp_path / "sheet.png"))
    assert listed.code == 0, listed.text
    rows = [line.split("\t") for line in listed.text.splitlines()]
    assert rows[0] == ["step", "position", "corpus", "shard", "key", "class", "sample_id", "note"]
    run = resolve_run(load_config(config), world_size=2)
    seen = []
    for rank in range(2):
        world = World(rank=rank, size=2, local_rank=rank, local_size=2, node=0, num_nodes=1, launcher="none")
        loader = BatchLoader(make_stream(run, world=world, start_step=10), num_workers=0, prefetch=1, pin_memory=False)
        for batch in islice(loader, 4):
            seen += list(zip(batch["positions"].tolist(), batch["sample_ids"].tolist(), batch["labels"].tolist(), strict=True))
    assert [(int(r[1]), int(r[6]), int(r[5])) for r in rows[1:]] == sorted(seen)
    assert [int(r[0]) for r in rows[1:]] == [11] * 8 + [12] * 8
    assert all(int(key) == int(sample_id) for *_, key, _, sample_id, _ in rows[1:])  # the fixture's keys count up
    assert Image.open(tmp_path / "sheet.png").size == (4 * 16, 4 * 28)


def test_steps_beyond_the_run_are_words(write_config: Callable[..., Path], call: Callable[..., Outcome]) -> None:
    config = write_config()
    for step in ("0", "13"):
        outcome = call("samples", str(config), "--step", step)
        assert (outcome.code, "the run has steps 1 to 12" in outcome.text) == (2, True)


def test_the_picture_is_drawn_though_nobody_reads_the_listing(write_config: Callable[..., Path], tmp_path: Path) -> None:
    command = ["-m", "pipeline", "samples", str(write_config()), "--step", "1", "--steps", "2", "--picture", str(tmp_path)]
    shell = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | head -n 1', "-", sys.executable, *command],
        cwd=REPOSITORY,
        env=environment(),
        text=True,
        capture_output=True,
    )
    assert shell.stdout.startswith("step\tposition")
    assert shell.stderr == ""
    assert Image.open(tmp_path / "tiny-step-1.png").size == (4 * 16, 4 * 28)


def test_a_picture_that_cannot_be_written_is_told_before_anything_is_read(
    write_config: Callable[..., Path], call: Callable[..., Outcome], tmp_path: Path
) -> None:
    config = write_config()
    for name, told in (("sheet.docx", "no picture format is called '.docx'"), ("not_there/sheet.png", "No such file")):
        outcome = call("samples", str(config), "--step", "1", "--picture", str(tmp_path / name))
        assert (outcome.code, told in outcome.text) == (2, True), outcome.text
        assert "sample_id" not in outcome.text

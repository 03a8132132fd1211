"""A training whose shards lie behind S3, with a store that misbehaves, sees what it would have seen on a local disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.records import read_metrics
from tests.conftest import WriteShards, run_command
from tests.helpers.store import FaultProxy, S3Server, s3_environment


@pytest.mark.slow
def test_a_training_on_s3_sees_what_a_local_one_sees(
    write_shards: WriteShards, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "store" / "bucket" / "corpus"
    write_shards(folder, shard_sizes=[137, 125, 121], block_samples=3)
    local = write_config("local", data={"train": str(folder)}, trainer={"duration": "60 steps"})
    assert run_command("train", str(local)).returncode == 0
    server = S3Server(tmp_path / "store")
    proxy = FaultProxy(server)
    try:
        proxy.inject("mixed", probability=0.2)
        remote = write_config(
            "remote",
            trainer={"duration": "60 steps"},
            data={"train": "s3://bucket/corpus", "num_workers": 1, "read_timeout_s": 2.0, "read_patience_s": 120.0},
        )

        def restart() -> None:
            while proxy.counts["reads"] < 60:  # the training is under way
                time.sleep(0.02)
            server.kill()
            time.sleep(5)
            server.start()

        threading.Thread(target=restart, daemon=True).start()
        done = run_command("train", str(remote), **s3_environment(proxy.url))
        assert done.returncode == 0, done.stdout
    finally:
        proxy.close()
        server.kill()
    ours, theirs = (read_metrics(tmp_path / "runs" / name / "metrics.jsonl") for name in ("remote", "local"))
    assert [row["data/digest"] for row in ours] == [row["data/digest"] for row in theirs]
    assert [row["train/loss"] for row in ours] == [row["train/loss"] for row in theirs]
    assert ours[-1]["data/retries"] > 10
    assert "a read failed" in done.stdout
    print(f"{dict(proxy.counts)}, made again: {ours[-1]['data/retries']}")

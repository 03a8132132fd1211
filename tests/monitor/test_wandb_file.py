"""Lines that W&B's own file lacks are counted once it is written."""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path

from wandb.proto import wandb_internal_pb2

from pipeline.monitor.wandb_file import count_rows
from pipeline.monitor.wandb_process import count_lost


def file_of(rows: int) -> bytes:
    """Write a file like W&B's service, except the checksums: a header, then a chunk a record."""
    data = b":W&B" + bytes(3)
    for number in range(rows):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.history.step.num = number + 1
        content = record.SerializeToString()
        data += struct.pack("<IHB", 0, len(content), 1) + content
    return data


def test_a_file_that_is_written_a_moment_later_lacks_nothing(tmp_path: Path) -> None:
    """On a busy machine its service ends after it has reported its end."""
    path, half = tmp_path / "run-x.wandb", file_of(3)

    def write() -> None:
        time.sleep(0.2)
        path.write_bytes(half)
        time.sleep(0.2)
        path.write_bytes(file_of(5))

    writer = threading.Thread(target=write)
    writer.start()
    assert count_lost(path, rows=5, patience_s=30) == 0
    writer.join()
    assert count_rows(path) == 5


def test_what_never_comes_is_lost(tmp_path: Path) -> None:
    (tmp_path / "run-x.wandb").write_bytes(file_of(3)[:-2])  # truncated
    assert count_lost(tmp_path / "run-x.wandb", rows=5, patience_s=0) == 3
    assert count_lost(tmp_path / "none.wandb", rows=5, patience_s=0) == 5

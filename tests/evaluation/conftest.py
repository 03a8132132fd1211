"""Give the run folder that an evaluator works on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.files import write_whole
from pipeline.run.checkpoint import RunFolder


@pytest.fixture
def folder(tmp_path: Path, write_config: Callable[..., Path]) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "tiny")
    folder.root.mkdir(parents=True, exist_ok=True)
    write_whole(folder.config, write_config().read_bytes())
    write_whole(folder.wandb_id, b"abc123")
    return folder

"""A launch makes these checks before it touches a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.build.resume import check_link
from pipeline.errors import CheckpointError


def test_a_link_to_a_disk_that_is_away_is_named(tmp_path: Path) -> None:
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "scratch" / "run")
    with pytest.raises(CheckpointError, match=r"run is a link to .*/scratch/run, which does not exist: mount it or make it"):
        check_link(link)
    (tmp_path / "scratch" / "run").mkdir(parents=True)
    check_link(link)
    check_link(tmp_path / "new")

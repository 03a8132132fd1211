"""Ranks tell one another what holds on some of them, at once or a step later; two real ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.distributed.votes import When
from tests.helpers.trainings import run_ranks


@pytest.mark.parametrize(("when", "lag"), [("at once", 0), ("a step later", 1)])
def test_every_rank_has_the_same_answer(when: When, lag: int, tmp_path: Path) -> None:
    run_ranks("tests.distributed.voting_ranks", when, str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    # Rank 0 says yes to the first fact at step 1, rank 1 to the second at step 2.
    asked = [[False, False], [True, False], [False, True], [False, False]]
    expected = [[facts, step] for step, facts in enumerate(asked)]
    assert first == ([[[False, False], None]] * lag + expected)[: len(asked)]

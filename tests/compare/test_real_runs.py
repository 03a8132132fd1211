"""Runs that were trained are compared as the written ones are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.compare.comparison import compare_folders
from pipeline.compare.verdict import judge
from pipeline.run.checkpoint import RunFolder
from tests.conftest import Outcome
from tests.helpers.trainings import STEPS, folder_of, train


@pytest.mark.slow
def test_another_learning_rate_on_one_rank_is_found(
    reference: RunFolder, write_config: Callable[..., Path], call: Callable[..., Outcome]
) -> None:
    config = write_config("other")
    train(config, "trainer.devices=1", "optimizer.learning_rate=4e-3")
    found = compare_folders(reference.root, folder_of(config).root)
    assert found.samples is not None
    assert (found.samples.compared, found.samples.last, found.samples.at) == (STEPS, STEPS, None)
    assert found.series["train/learning_rate"].beyond == 2  # the warmup begins at zero
    assert (found.origins.initial.sameness, found.origins.data.sameness) == ("the same", "the same")
    reasons = [verdict.reason for verdict in judge(found)]
    assert reasons == ["learning rate", "settings", "masks by rank", "loss"]
    outcome = call("compare", str(reference.root), str(folder_of(config).root))
    assert outcome.code == 0, outcome.text
    assert "optimizer.learning_rate  0.002  0.004" in outcome.text

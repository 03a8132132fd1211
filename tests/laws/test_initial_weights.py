"""A training that begins with weights of another run: two ranks hold them, and a resume needs them no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.run.folder import RunFolder
from pipeline.run.weights import load_weights
from tests.conftest import Outcome
from tests.helpers.trainings import folder_of, train

# Updates that leave the weights as they are.
STILL = ("optimizer.learning_rate=1e-30", "optimizer.weight_decay=0", "schedule.end=0")


@pytest.mark.slow
def test_it_begins_with_them_and_resumes_without(
    reference: RunFolder, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    source = tmp_path / "weights.safetensors"
    shutil.copy(reference.weights_of(reference.weight_steps()[-1]), source)
    config = write_config(init_from=str(source))
    folder = folder_of(config)
    output = train(config, *STILL, "trainer.max_steps=4")
    assert f"initial weights from {source}: " in output
    record = json.loads(folder.initial.read_text())
    assert (record["fresh"], record["left_out"]) == ([], [])
    assert record["digest"] == load_weights(source).header.digest
    begun, given = (load_weights(path).model.state_dict() for path in (folder.weights_of(4), source))
    for name, tensor in given.items():
        torch.testing.assert_close(begun[name], tensor, rtol=1e-6, atol=1e-7)  # bf16 masters are fp32
    source.unlink()
    assert "resuming from" in train(config, *STILL, "trainer.max_steps=8")
    assert json.loads(folder.initial.read_text()) == record


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["init_from=nowhere"], "weights nowhere do not exist"),
        (["model.width=64", "model.mlp_dim=128"], "set model.width="),
        (["init.head=old"], "init.head"),
    ],
)
def test_mistakes_are_answered_before_a_rank_starts(
    reference: RunFolder, write_config: Callable[..., Path], call: Callable[..., Outcome], settings: list[str], message: str
) -> None:
    config = write_config(init_from=str(reference.root))
    result = call("train", str(config), *settings)
    assert result.code == 2
    assert message in result.text
    assert not folder_of(config).config.exists()

"""A run folder of version 0.1.0 (`loss:`, lists of protocols, lines without `measure`) is evaluated, reported and resumed.

`old_run/` is what that version left at step 8 of 12, on shards of BMP files, which are the same bytes everywhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.read import load_config
from pipeline.objectives import Softmax
from pipeline.run.folder import RunFolder
from pipeline.run.records import read_json_lines, read_metrics
from tests.conftest import Outcome, WriteShards, run_command

Call = Callable[..., Outcome]
WENT_ON = {  # what that version saw and lost in the steps after, on one rank in fp32
    9: (3563190330777257, 1.3704326152801514),
    10: (576531552083420, 1.3742982149124146),
    11: (3781738343061750, 1.3698768615722656),
    12: (2899203317610769, 1.3673231601715088),
}


@pytest.fixture
def data(tmp_path: Path, write_shards: WriteShards) -> dict[str, str]:
    """Write the shards that the run was trained and measured on, by the setting that names them."""
    options = {"size": 16, "format": "BMP"}
    write_shards(tmp_path / "corpus", shard_sizes=[23, 17], **options)
    write_shards(tmp_path / "set" / "train", shard_sizes=[16, 8], **options)
    write_shards(tmp_path / "set" / "test", shard_sizes=[12], **options)
    datasets = f"[{{name: bars, train: {tmp_path}/set/train, test: {tmp_path}/set/test}}]"
    return {"data.train": str(tmp_path / "corpus"), "evaluation.datasets": datasets}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "old")
    shutil.copytree(Path(__file__).parent / "old_run", folder.root)
    folder.weights.mkdir()
    os.link(folder.checkpoint_of(8) / "model.safetensors", folder.weights_of(8))
    return folder


def test_its_configuration_is_read_in_todays_words(run: RunFolder) -> None:
    config = load_config(run.config)
    assert config.objective == Softmax()
    assert list(config.evaluation.protocols) == ["few_shot", "linear"]
    assert config.evaluation.protocols["few_shot"].model_dump(exclude={"protocol"}) == {
        "shots": (1, 5),
        "seeds": (0, 1),
        "form": "big_vision",  # what it did before there was a choice
        "l2": 1024.0,
    }


def test_its_results_are_reported_and_count(run: RunFolder, data: dict[str, str], call: Call) -> None:
    before = run.evaluations.read_bytes()
    report = call("report", str(run.root))
    assert report.code == 0
    assert [line.split()[:2] for line in report.text.splitlines() if line.startswith("bars")] == [
        ["bars", "1-shot"], ["bars", "5-shot"], ["bars", "linear"],
    ]  # fmt: skip
    assert "passed over" not in report.text
    again = call("evaluate", str(run.root), f"evaluation.datasets={data['evaluation.datasets']}")
    assert again.code == 0, again.text
    assert "nothing to do" in again.text
    assert run.evaluations.read_bytes() == before
    more = call(
        "evaluate",
        str(run.root),
        f"evaluation.datasets={data['evaluation.datasets']}",
        "evaluation.protocols.few_shot.shots=[1,2]",
    )
    assert more.code == 0, more.text
    added = read_json_lines(run.evaluations)[15:]
    assert [(row["measure"], row["seed"]) for row in added] == [("2-shot", 0), ("2-shot", 1)]


def test_it_goes_on_with_the_samples_and_losses_of_before(run: RunFolder, data: dict[str, str]) -> None:
    settings = [f"{key}={value}" for key, value in data.items()]
    result = run_command("train", str(run.config), f"output_dir={run.root.parent}", "trainer.max_steps=null", *settings)
    assert result.returncode == 0, result.stdout
    assert "resuming from" in result.stdout
    changed = [line.partition(": ")[2] for line in result.stdout.splitlines() if "changed since the last launch" in line]
    assert sorted(line.split()[0] for line in changed) == ["data.train", "output_dir"]
    rows = {row["step"]: (row["data/digest"], row["train/loss"]) for row in read_metrics(run.metrics) if row["step"] > 8}
    assert {step: digest for step, (digest, _) in rows.items()} == {step: digest for step, (digest, _) in WENT_ON.items()}
    for step, (_, loss) in WENT_ON.items():
        assert rows[step][1] == pytest.approx(loss, rel=1e-5)  # another processor rounds sums in another order

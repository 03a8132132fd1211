"""Features are the same bits for any number of processes, and are kept so that nothing is computed twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import ShardIndex, load_index
from pipeline.errors import EvaluationError
from pipeline.evaluation.clock import Clock
from pipeline.evaluation.feature_cache import FeatureCache, key_of_features
from pipeline.evaluation.feature_kinds import REPRESENTATION, FeatureKind
from pipeline.evaluation.features import Features, FeatureShare, extract_features, join
from pipeline.evaluation.reading import Reading
from pipeline.evaluation.replicas import Replicas, deal_blocks
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines
from pipeline.run.weights import Weights, load_weights
from tests.conftest import run_command
from tests.helpers.evaluations import RESULTS_PER_STEP, Call, add_weights

READING = Reading(torch.device("cpu"), "fp32", batch_size=5, num_workers=0)
TRANSFORM = EvalTransform(image_size=16, short_side=18)


@pytest.fixture
def weights(folder: RunFolder) -> Weights:
    add_weights(folder, 4)
    return load_weights(folder.weights_of(4))


@pytest.fixture
def index(tmp_path: Path, write_shards: Callable[..., ShardIndex]) -> ShardIndex:
    write_shards(tmp_path / "set", shard_sizes=[9, 14])
    shard = tmp_path / "set" / "shard-001.tar"
    data = bytearray(shard.read_bytes())
    start = data.index(b"00011.jpeg") + 512  # after the header
    data[start : start + 20] = bytes(20)
    shard.write_bytes(data)
    return load_index(str(tmp_path / "set"))


@pytest.fixture
def three(folder: RunFolder) -> Iterator[Replicas]:
    replicas = Replicas(3, READING, Clock())
    yield replicas
    replicas.close()


def test_blocks_are_dealt_once_each() -> None:
    for num_blocks in (0, 1, 2, 7):
        for number in (1, 2, 3, 9):
            shares = deal_blocks(num_blocks, number)
            assert sorted(block for share in shares for block in share.tolist()) == list(range(num_blocks))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_three_processes_compute_the_bits_of_one(
    folder: RunFolder, weights: Weights, index: ShardIndex, three: Replicas
) -> None:
    alone = extract_features(weights.model, index, transform=TRANSFORM, reading=READING, description="")
    assert (len(alone.labels), alone.num_unreadable) == (22, 1)

    share = FeatureShare(index, TRANSFORM, REPRESENTATION, description="")

    def compute() -> Features:
        return join(three.do(weights, share), num_samples=index.num_samples)

    for _ in range(2):
        found = compute()
        assert torch.equal(found.values, alone.values)
        assert torch.equal(found.labels, alone.labels)
        assert found.num_unreadable == 1
    # One that is killed is said; the next work starts others.
    killed = three._others[1][0]
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    with pytest.raises(
        EvaluationError, match="one of 3 processes of the evaluator was killed by signal 9; where memory is short"
    ):
        compute()
    assert torch.equal(compute().values, alone.values)
    # So is one that fails: it has no weights.
    three.close()
    missing = replace(weights, path=folder.root / "no.safetensors")
    with pytest.raises(EvaluationError, match=r"no\.safetensors does not exist"):
        three.do(missing, share)


@dataclass(frozen=True)
class Failing:
    """Fails in the process that has the first block, where it is told to; else names the blocks, many arrays with them."""

    index: ShardIndex
    fails: bool

    def __call__(self, weights: Weights, *, blocks: Any, reading: Reading, clock: Clock) -> list[Any]:
        if self.fails and 0 in blocks:
            raise EvaluationError("not finite")
        return [blocks.tolist(), self.fails, [np.zeros(3) for _ in range(2000)]]


@pytest.mark.slow
def test_a_failure_of_this_process_leaves_no_answer_for_the_next_set(
    weights: Weights, index: ShardIndex, three: Replicas
) -> None:
    with pytest.raises(EvaluationError, match="not finite"):
        three.do(weights, Failing(index, fails=True))
    found = three.do(weights, Failing(index, fails=False))
    assert [fails for _, fails, _ in found] == [False] * 3
    assert sorted(block for blocks, *_ in found for block in blocks) == list(range(index.num_blocks))


@pytest.mark.slow
def test_results_of_three_processes_are_those_of_one(
    folder: RunFolder, weights: Weights, downstream: dict[str, str], call: Call
) -> None:
    """Of a downstream set, and of held-out images of the corpus, of which the loss is a sum in the index's order."""
    settings = ["evaluation.cache_gib=0", f"evaluation.validation=[{{name: held, shards: {downstream['train']}}}]"]
    assert call("evaluate", str(folder.root), *settings).code == 0
    rows = read_json_lines(folder.evaluations)
    assert {row["measure"] for row in rows if row["dataset"] == "held"} == {"loss", "top-1"}
    assert not folder.features.exists()
    folder.evaluations.unlink()
    # A command of its own: processes of this one would look for libraries where its tests have found some.
    shared = run_command("evaluate", str(folder.root), *settings, "evaluation.replicas=3")
    assert shared.returncode == 0, shared.stdout
    assert read_json_lines(folder.evaluations) == rows


def test_another_protocol_costs_no_forward_pass(
    folder: RunFolder, weights: Weights, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call("evaluate", str(folder.root))
    assert "kept features" not in first.text
    rows = read_json_lines(folder.evaluations)
    assert len(list(folder.features.iterdir())) == 2

    def compute(*_: object, **__: object) -> None:
        raise AssertionError("a forward pass")

    monkeypatch.setattr("pipeline.evaluation.features.compute_partial", compute)
    again = call("evaluate", str(folder.root), "evaluation.protocols.few_shot.shots=[1,5,10]")
    assert again.code == 0, again.text
    assert "kept features" in again.text
    assert [row["shots"] for row in read_json_lines(folder.evaluations)[RESULTS_PER_STEP:]] == [10, 10]
    # The same values come from them.
    folder.evaluations.unlink()
    assert call("evaluate", str(folder.root)).code == 0
    assert read_json_lines(folder.evaluations) == rows
    # Other weights, other pixels are computed.
    assert "a forward pass" in call("evaluate", str(folder.root), "evaluation.short_side=20").text
    add_weights(folder, 4, seed=9)
    assert "a forward pass" in call("evaluate", str(folder.root)).text


def test_features_that_were_not_read_for_longest_are_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Features(torch.arange(40.0).view(10, 4), torch.arange(10), num_unreadable=3)
    FeatureCache(tmp_path / "one", limit_bytes=10**6).keep("a", some)
    cache = FeatureCache(tmp_path / "kept", limit_bytes=3 * (tmp_path / "one" / "a.safetensors").stat().st_size)
    for number, key in enumerate("abc"):
        cache.keep(key, some)
        os.utime(tmp_path / "kept" / f"{key}.safetensors", (number, number))
    assert cache.find("a") is not None  # which makes it the newest
    for name, written in (("left", 0.0), ("fresh", time.time())):
        draft = tmp_path / "kept" / f".{name}.safetensors.part"
        draft.write_bytes(b"half")
        os.utime(draft, (written, written))
    cache.keep("d", some)
    (tmp_path / "kept" / ".fresh.safetensors.part").unlink()  # another evaluator's, which the cache leaves alone
    assert sorted(path.stem for path in (tmp_path / "kept").iterdir()) == ["a", "c", "d"]
    found = cache.find("d")
    assert found is not None
    assert torch.equal(found.values, some.values)
    assert (found.labels.tolist(), found.num_unreadable) == (list(range(10)), 3)
    # What does not fit at all leaves the others where they are.
    cache.keep("large", Features(torch.zeros(200, 4), torch.zeros(200, dtype=torch.int64), num_unreadable=0))
    assert "are not kept: evaluation.cache_gib=" in capsys.readouterr().out
    assert sorted(path.stem for path in (tmp_path / "kept").iterdir()) == ["a", "c", "d"]
    monkeypatch.setattr("pipeline.evaluation.feature_cache.LARGEST_PART", 1e-12)
    cache.keep("e", some)
    assert "is on a disk with little space, which checkpoints need" in capsys.readouterr().out
    monkeypatch.undo()
    # A damaged file is computed again.
    path = tmp_path / "kept" / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert cache.find("a") is None
    assert "cannot be used" in capsys.readouterr().out
    cache.keep("a", some)
    assert cache.find("a") is not None


def test_a_full_disk_costs_the_cache_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    cache = FeatureCache(tmp_path / "kept", limit_bytes=10**6)
    some = Features(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64), num_unreadable=0)
    cache.keep("a", some)
    cache.keep("b", some)
    assert capsys.readouterr().out.count("features cannot be kept in") == 1
    assert cache.find("a") is None


def test_the_key_is_of_all_that_features_depend_on(
    weights: Weights, index: ShardIndex, tmp_path: Path, write_shards: Callable[..., ShardIndex]
) -> None:
    other = write_shards(tmp_path / "other", shard_sizes=[9])
    keys = {
        key_of_features(weights.header, index, transform=TRANSFORM, precision="fp32"),
        key_of_features(weights.header, index, transform=TRANSFORM, precision="bf16"),
        key_of_features(weights.header, other, transform=TRANSFORM, precision="fp32"),
        key_of_features(weights.header, index, transform=EvalTransform(16, 20), precision="fp32"),
        key_of_features(weights.header, index, transform=EvalTransform(16, 18, aspect="stretch"), precision="fp32"),
        key_of_features(weights.header, index, transform=EvalTransform(16, 18, resize="bilinear"), precision="fp32"),
        key_of_features(weights.header, index, transform=TRANSFORM, precision="fp32", kind=FeatureKind(last_blocks=1)),
        key_of_features(weights.header, index, transform=TRANSFORM, precision="fp32", kind=FeatureKind(last_blocks=4)),
    }
    assert len(keys) == 8

"""A rank writes its share of a checkpoint as files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipeline.data.order import ORDER_VERSION
from pipeline.run.checkpoint import FORMAT, CheckpointMeta, RunFolder, collect_versions, read_meta
from pipeline.run.weights import read_weights_header
from pipeline.train.callbacks.snapshots import NotFinite, RunFacts, Snapshot, link_or_copy, prepared_weights, write_share
from tests.helpers.run_folders import TINY

FACTS = RunFacts(model=TINY, global_batch_size=2, zero_stage=0, wandb_id="abc", data_fingerprint="f")
META = CheckpointMeta(
    format=FORMAT, step=6, images_seen=12, num_updates=6, skipped_steps=0, callbacks={}, world_size=2, zero_stage=0,
    wandb_id="abc", data_fingerprint="f", order_version=ORDER_VERSION, versions=collect_versions(),
)  # fmt: skip
MASTERS = {"weight": torch.arange(6.0).view(2, 3)}
MOMENTS = {"exp_avg/weight": torch.ones(2, 3), "exp_avg_sq/weight": torch.full((2, 3), 0.5)}
NAME = "moments-00000-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    return run


def test_the_first_ranks_share_is_whole(folder: RunFolder) -> None:
    entries = write_share(Snapshot(META, MOMENTS, MASTERS), folder=folder, facts=FACTS, name=NAME)
    staging = folder.staging_of(6)
    assert isinstance(entries, dict)
    assert entries.keys() == {"model.safetensors", "meta.json", NAME} == {path.name for path in staging.iterdir()}
    for name, entry in entries.items():
        data = (staging / name).read_bytes()
        assert entry == {"bytes": len(data), "blake2b": hashlib.blake2b(data, digest_size=20).hexdigest()}
    assert read_meta(staging) == META
    assert same(safetensors.torch.load_file(staging / NAME), MOMENTS)
    prepared = prepared_weights(folder, 6)
    assert same(safetensors.torch.load_file(prepared), MASTERS)
    assert read_weights_header(prepared).images_seen == 12
    assert prepared.stat().st_ino == (staging / "model.safetensors").stat().st_ino  # takes no space
    assert folder.weight_steps() == []  # not to be read yet


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_another_ranks_share_is_its_moments_alone(folder: RunFolder) -> None:
    entries = write_share(Snapshot(META, MOMENTS, {}), folder=folder, facts=FACTS, name=NAME)
    assert isinstance(entries, dict)
    assert list(entries) == [NAME]
    assert not folder.weights.exists()
    assert write_share(Snapshot(META, {}, {}), folder=folder, facts=FACTS, name="other") == {}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["weight", "exp_avg_sq/weight"])
def test_nothing_is_written_of_a_share_that_is_not_finite(value: float, name: str, folder: RunFolder) -> None:
    masters, moments = ({key: tensor.clone() for key, tensor in tensors.items()} for tensors in (MASTERS, MOMENTS))
    (masters if name in masters else moments)[name][1, 2] = value
    result = write_share(Snapshot(META, moments, masters), folder=folder, facts=FACTS, name=NAME)
    assert result == NotFinite((name,))
    assert [path for path in folder.root.rglob("*") if path.is_file()] == []


def test_large_values_whose_sum_overflows_are_finite(folder: RunFolder) -> None:
    masters = {"weight": torch.full((2, 3), 3e38)}
    assert isinstance(write_share(Snapshot(META, {}, masters), folder=folder, facts=FACTS, name=NAME), dict)


def test_a_file_gets_a_second_name_in_the_place_of_an_older_one(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "below" / "target"
    for content in (b"one", b"two"):
        source.unlink(missing_ok=True)
        source.write_bytes(content)
        link_or_copy(source, target)
        assert target.read_bytes() == content
        assert target.stat().st_ino == source.stat().st_ino


def test_it_is_copied_where_there_are_no_links(tmp_path: Path) -> None:
    """The folders are on two file systems."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    source = tmp_path / "source"
    source.write_bytes(b"content")
    target = other / f"{tmp_path.parent.name}-{tmp_path.name}" / "target"
    try:
        link_or_copy(source, target)
        assert target.read_bytes() == b"content"
        assert target.stat().st_dev != source.stat().st_dev
    finally:
        target.unlink(missing_ok=True)
        target.parent.rmdir()

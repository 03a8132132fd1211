"""`embed` writes what the evaluator computes: each image once, in files that are the same for every number of ranks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data_tools.index import index_folder
from data_tools.parallel import LocalWorkers
from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import load_index
from pipeline.distributed.precision import EvaluationPrecision
from pipeline.errors import DataError
from pipeline.evaluation.embedding import share_of_rank
from pipeline.evaluation.embedding_files import ShardFeatures, join_features, read_description, read_features
from pipeline.evaluation.features import extract_features
from pipeline.evaluation.reading import Reading
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.run.folder import RunFolder, WeightsName
from pipeline.run.weights import load_weights, save_weights
from tests.conftest import REPOSITORY, WriteShards, encode, environment, make_image, write_tar
from tests.helpers.evaluations import MODEL, Call, add_weights

SIZES = [9, 4, 17, 5, 1]
GAP = replace(MODEL, pooling="gap", representation_size=None)


def write_model(path: Path, *, model: ViTConfig = MODEL, seed: int = 0) -> Path:
    vit = VisionTransformer(model)
    vit.init_weights(torch.Generator().manual_seed(seed))
    save_weights(path, vit.state_dict(), model=model, step=4, images_seen=32)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("weights") / "weights.safetensors")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, write_shards: WriteShards) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, shard_sizes=SIZES)
    return folder


@pytest.fixture
def embed(call: Call, weights: Path, shards: Path, tmp_path: Path) -> Callable[..., str]:
    """Run the command to its end, in this process. It decodes here too."""

    def run(out: str, *options: str, of: Path = weights, images: Path = shards) -> str:
        done = call("embed", str(of), str(images), str(tmp_path / out), "--workers", "0", *options)
        assert done.code == 0, done.text
        return done.text

    return run


def read_all(folder: Path) -> ShardFeatures:
    return join_features([read_features(path) for path in folder.glob("shard-*")])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_are_the_evaluators_bit_for_bit(
    embed: Callable[..., str], weights: Path, shards: Path, tmp_path: Path, precision: EvaluationPrecision
) -> None:
    embed("out", "--precision", precision, "--features", "patches", "features", "pooled")
    found = read_all(tmp_path / "out")
    theirs = extract_features(
        load_weights(weights).model,
        load_index(str(shards)),
        transform=EvalTransform(image_size=16, short_side=18),
        reading=Reading(torch.device("cpu"), precision, batch_size=64, num_workers=0),
        description="",
    )
    assert torch.equal(found.values["features"], theirs.values)
    assert torch.equal(found.labels, theirs.labels)
    assert found.positions.tolist() == list(range(sum(SIZES)))
    assert found.label_ends.tolist() == list(range(1, sum(SIZES) + 1))
    assert found.keys == [f"{number:05d}" for number in range(sum(SIZES))]
    assert found.values["patches"].shape == (sum(SIZES), 4, 32)
    head = load_weights(weights).model.get_submodule("pre_logits")
    if precision == "fp32":  # what was stored of the class token gives the representation: the same layer, other batches
        torch.testing.assert_close(torch.tanh(head(found.values["pooled"])), theirs.values, rtol=1e-5, atol=1e-6)


def test_the_mean_of_patches_is_what_a_model_with_that_pooling_reads(embed: Callable[..., str], tmp_path: Path) -> None:
    embed("out", "--features", "features", "patches", of=write_model(tmp_path / "gap.safetensors", model=GAP))
    values = read_all(tmp_path / "out").values
    torch.testing.assert_close(values["patches"].mean(dim=1), values["features"], rtol=1e-6, atol=1e-6)  # sums of four


def test_any_number_of_ranks_writes_the_same_files(
    embed: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed("alone")
    expected = contents(tmp_path / "alone")
    assert set(expected) == {"embedding.json", *(f"shard-{shard:03d}.safetensors" for shard in range(len(SIZES)))}
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")  # nobody listens there: ranks do not talk
    for size in (2, 3, 7):
        monkeypatch.setenv("WORLD_SIZE", str(size))
        written = []
        for rank in reversed(range(size)):
            monkeypatch.setenv("RANK", str(rank))
            before = set(contents(tmp_path / str(size))) if (tmp_path / str(size)).exists() else set()
            text = embed(str(size))
            assert f"[embed] rank {rank} of {size}: " in text
            written.append(len(set(contents(tmp_path / str(size))) - before - {"embedding.json"}))
        assert contents(tmp_path / str(size)) == expected
        assert sum(written) == len(SIZES)
        assert f"rank 0 of {size}: {tmp_path / str(size)} is complete: 5 files" in text


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=40), num_ranks=st.integers(1, 9))
def test_every_shard_is_one_ranks_and_no_rank_has_much_more_than_another(sizes: list[int], num_ranks: int) -> None:
    shares = [share_of_rank(sizes, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    assert sorted(shard for share in shares for shard in share) == list(range(len(sizes)))
    loads = [sum(sizes[shard] for shard in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)  # Graham 1969: the last shard of the busiest rank was given to the idlest


def test_after_a_kill_the_same_command_goes_on(
    embed: Callable[..., str], weights: Path, write_shards: WriteShards, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    write_shards(images, shard_sizes=[8] * 40)
    command = [sys.executable, "-m", "pipeline", "embed", str(weights), str(images), str(tmp_path / "out"), "--workers", "0"]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "shard-001.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = contents(tmp_path / "out")
    assert 2 <= len(list((tmp_path / "out").glob("shard-*"))) < 40
    (tmp_path / "out" / f".shard-039.safetensors.{'0' * 32}.part").write_bytes(b"half")  # as a kill may leave it
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    text = embed("out", images=images)
    assert f"; {len(stamps)} more are there already" in text
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    embed("undisturbed", images=images)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert contents(tmp_path / "out").items() >= {name: data for name, data in killed.items() if ".part" not in name}.items()
    assert "0 of 40 shards to compute" in embed("out", images=images)


def test_features_of_something_else_are_refused(
    embed: Callable[..., str], call: Call, weights: Path, shards: Path, write_shards: WriteShards, tmp_path: Path
) -> None:
    embed("out", "--precision", "fp32")
    before = contents(tmp_path / "out")
    other_weights = write_model(tmp_path / "other.safetensors", seed=1)
    write_shards(tmp_path / "images", shard_sizes=[9])

    def refused(word: str, *options: str, of: Path = weights, images: Path = shards) -> None:
        done = call("embed", str(of), str(images), str(tmp_path / "out"), "--workers", "0", *options)
        assert done.code == 2, done.text
        assert word in done.text
        assert str(tmp_path / "out") in done.text

    refused("of other weights (", of=other_weights)
    refused("of other shards (", images=tmp_path / "images")
    refused("of another preprocessing (short_side 18, now 20)", "--short-side", "20")
    refused("of another precision (precision fp32, now bf16)", "--precision", "bf16")
    refused("of another storage type (", "--store", "fp16")
    refused("of another choice of --features (", "--features", "pooled")
    refused("of another file format (", "--format", "parquet")
    assert "as in the earlier results (--precision auto)" in embed("out")
    (tmp_path / "out" / "embedding.json").unlink()  # the files say it too
    refused("shard-000.safetensors is of other weights (", "--precision", "fp32", of=other_weights)
    (tmp_path / "out" / "embedding.json").unlink()
    (tmp_path / "out" / "shard-002.safetensors").write_bytes(before["shard-002.safetensors"][:-40])
    refused("shard-002.safetensors is damaged", "--precision", "fp32")


@pytest.fixture(scope="module")
def odd_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images that cannot be read, a whole block of them and a whole shard; several labels, none, and no usable one."""
    folder = tmp_path_factory.mktemp("odd")
    labels = {1: b'{"labels": [3, 1]}', 2: b'{"labels": []}', 3: b"a cat", 6: b"2"}
    broken = {2, 8, 9, 10, 11, 12, 13}
    for shard, numbers in enumerate([range(12), range(12, 14)]):
        members: list[tuple[str, bytes]] = []
        for number in numbers:
            image = encode(make_image(number, num_classes=4, size=24), format="JPEG")
            members.append((f"é{number}.jpg", image[:200] if number in broken else image))
            if number in labels:
                members.append((f"é{number}.json" if number < 3 else f"é{number}.cls", labels[number]))
        write_tar(folder / f"shard-{shard}.tar", members)
    index_folder(str(folder), block_samples=4, workers=LocalWorkers(1))
    return folder


@pytest.mark.parametrize("format", ["safetensors", "parquet"])
def test_unreadable_images_are_counted_and_named_and_labels_are_not_needed(
    embed: Callable[..., str], odd_shards: Path, tmp_path: Path, format: str
) -> None:
    text = embed("out", "--format", format, images=odd_shards)
    assert "[embed] unreadable image 'é8' in shard-0.tar left out: " in text
    assert "2 files written, 7 images" in text
    assert "; 7 unreadable images in all 2 files" in text
    assert "; 7 unreadable images in all 2 files" in embed("out", "--format", format, images=odd_shards)
    whole = read_all(tmp_path / "out")
    assert whole.positions.tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert whole.keys == [f"é{number}" for number in (0, 1, 3, 4, 5, 6, 7)]
    assert whole.labels.tolist() == [3, 1, 2]
    assert whole.label_ends.tolist() == [0, 2, 2, 2, 2, 3, 3]
    empty = read_features(tmp_path / "out" / f"shard-1.{format}")
    assert (len(empty.keys), empty.values["features"].shape) == (0, (0, 32))
    about = read_description(tmp_path / "out" / f"shard-0.{format}")
    assert (about["num_images"], about["num_unreadable"], about["step"], about["shard"]) == (7, 5, 4, "shard-0.tar")
    assert [(lost["key"], lost["position"]) for lost in about["unreadable"]][:2] == [("é2", 2), ("é8", 8)]


@pytest.mark.parametrize("store", ["fp32", "fp16"])
def test_parquet_holds_what_safetensors_holds(embed: Callable[..., str], tmp_path: Path, store: str) -> None:
    from pyarrow import parquet

    for format in ("safetensors", "parquet"):
        embed(format, "--format", format, "--store", store, "--features", "features", "patches")
    ours, theirs = (read_all(tmp_path / format) for format in ("safetensors", "parquet"))
    assert ours.values["features"].dtype == {"fp32": torch.float32, "fp16": torch.float16}[store]
    assert all(torch.equal(ours.values[name], theirs.values[name]) for name in ("features", "patches"))
    assert (ours.keys, ours.labels.tolist(), ours.label_ends.tolist()) == (
        theirs.keys, theirs.labels.tolist(), theirs.label_ends.tolist()
    )  # fmt: skip
    assert {**ours.description, "format": "parquet"} == theirs.description
    table = parquet.read_table(tmp_path / "parquet" / "shard-000.parquet")  # as others read it
    assert table.column("labels").to_pylist() == [[number % 4] for number in range(9)]
    patches = np.array(table.column("patches").to_pylist(), np.float32)
    np.testing.assert_array_equal(patches, ours.values["patches"][:9].float().numpy())


def test_arrays_of_other_images_are_damage_and_parquet_has_no_bf16(
    embed: Callable[..., str], call: Call, weights: Path, shards: Path, tmp_path: Path
) -> None:
    embed("out")
    path = tmp_path / "out" / "shard-000.safetensors"
    whole = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for name in ("positions", "labels", "features", "key_ends"):
        save_file({**whole, name: whole[name][:-1].clone()}, path, metadata=metadata)
        with pytest.raises(DataError, match="its arrays are not of the same images"):
            read_features(path)
    save_file({name: tensor for name, tensor in whole.items() if name != "keys"}, path, metadata=metadata)
    with pytest.raises(DataError, match="damaged"):
        read_features(path)
    done = call("embed", str(weights), str(shards), str(tmp_path / "x"), "--format", "parquet", "--store", "bf16")
    assert done.code == 2
    assert "Parquet has no bf16" in done.text


def test_a_narrow_storage_type_rounds_what_fp32_holds(embed: Callable[..., str], tmp_path: Path) -> None:
    embed("fp32")
    embed("bf16", "--store", "bf16")
    exact, rounded = (read_all(tmp_path / store).values["features"] for store in ("fp32", "bf16"))
    assert torch.equal(rounded, exact.bfloat16())


def test_of_a_run_the_newest_weights_are_taken_or_those_that_are_named(
    embed: Callable[..., str], call: Call, folder: RunFolder, weights: Path, shards: Path, tmp_path: Path
) -> None:
    add_weights(folder, 0)
    add_weights(folder, 4)
    add_weights(folder, 4, seed=1, kind="average")
    choices: dict[str, tuple[str, ...]] = {"newest": (), "named": ("--step", "0"), "average": ("--average",)}
    for name, options in choices.items():
        embed(name, *options, of=folder.root)
    about = {name: json.loads((tmp_path / name / "embedding.json").read_text()) for name in choices}
    names = (WeightsName(4), WeightsName(0), WeightsName(4, "average"))
    assert [about[name]["weights"] for name in choices] == [
        load_weights(folder.weights_of(name.step, name.kind)).header.digest for name in names
    ]
    done = call("embed", str(weights), str(shards), str(tmp_path / "out"), "--step", "4")
    assert done.code == 2
    assert "is not a run folder" in done.text


def test_values_that_overflow_are_refused(embed: Callable[..., str], call: Call, shards: Path, tmp_path: Path) -> None:
    vit = VisionTransformer(GAP)
    vit.init_weights(torch.Generator().manual_seed(0))
    vit.norm.weight.data.fill_(1e6)
    save_weights(tmp_path / "large.safetensors", vit.state_dict(), model=GAP, step=0, images_seen=0)
    embed("fp32", of=tmp_path / "large.safetensors")
    done = call(
        "embed", str(tmp_path / "large.safetensors"), str(shards), str(tmp_path / "out"), "--store", "fp16", "--workers", "0"
    )
    assert done.code == 2
    assert "features of the image '00000' are not finite in fp16" in done.text


def test_the_description_says_what_the_features_depend_on(embed: Callable[..., str], weights: Path, tmp_path: Path) -> None:
    embed("out", "--precision", "fp32")
    about = json.loads((tmp_path / "out" / "embedding.json").read_text())
    header = load_weights(weights).header
    assert about["weights"] == header.digest
    assert about["model"]["family"] == "vit"
    assert (about["short_side"], about["resize"], about["precision"]) == (18, "bilinear_antialias", "fp32")

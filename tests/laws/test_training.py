"""Real training under DeepSpeed leaves the right files, stops when it must, and refuses what it must."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.build.resume import check_order_version, compare_learning_rates
from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.errors import CheckpointError, ConfigError
from pipeline.run.checkpoint import RunFolder
from pipeline.run.checkpoint_search import find_latest
from pipeline.run.records import read_metrics
from pipeline.run.weights import load_weights
from tests.conftest import run_command
from tests.helpers.trainings import STEPS, WriteConfig, folder_of, train

SLOW = pytest.mark.slow
ONE_RANK = "trainer.devices=1"  # where ranks do not matter: a launch takes half the time


def test_a_run_leaves_what_it_promises(reference: RunFolder) -> None:
    assert reference.weight_steps() == [0, 4, 8, 12]
    assert reference.checkpoint_steps() == [8, 12]  # keep_last: 2
    assert reference.complete.exists()
    rows = read_metrics(reference.metrics)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert rows[-1]["images_seen"] == 96
    assert all(0 <= row["speed/data_wait_fraction"] <= 1 for row in rows)
    meta = find_latest(reference).newest
    assert meta is not None
    assert meta.meta.wandb_id == reference.wandb_id.read_text()
    assert list((reference.root / "wandb").glob(f"offline-run-*/run-{meta.meta.wandb_id}.wandb"))
    weights = load_weights(reference.weights_of(STEPS)).model.state_dict()
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in weights.values())  # masters, not rounded copies
    assert not [path for path in reference.root.rglob(".*") if path.name.startswith((".saving", ".deleting"))]


@pytest.mark.slow
def test_a_launch_that_failed_early_does_not_bind_the_next(write_config: WriteConfig) -> None:
    config = write_config()
    diverging = ("optimizer.learning_rate=1e30", "optimizer.clip_norm=null", "trainer.max_skipped_steps=1", "model.width=16")
    failed = run_command("train", str(config), *diverging, ONE_RANK)
    assert failed.returncode == 2
    assert "gradients were not finite" in failed.stdout
    output = train(config, "trainer.max_steps=1", ONE_RANK)
    assert "weights of 1 step that this launch trains again are set aside" in output


@pytest.mark.slow
def test_a_lost_configuration_and_a_forbidden_place_are_answered_in_words(
    reference: RunFolder, write_config: WriteConfig
) -> None:
    folder = RunFolder(Path(shutil.copytree(reference.root, write_config().parent / "runs" / "tiny")))
    folder.config.write_text("")
    lost = run_command("train", str(write_config()), "trainer.duration=20 steps", ONE_RANK)
    assert lost.returncode == 2
    assert "config.yaml cannot be read (it is empty)" in lost.stdout
    path = write_config().parent / "a file"
    path.write_text("")
    forbidden = run_command("train", str(write_config()), f"output_dir={path}", ONE_RANK)
    assert forbidden.returncode == 2
    assert "set output_dir to a folder that can be written" in forbidden.stdout
    assert "Traceback" not in lost.stdout + forbidden.stdout


@pytest.mark.slow
def test_speeds_of_every_launch_are_of_that_launch(write_config: WriteConfig) -> None:
    config = write_config()
    steps_before = 0
    for stop_step in (2, 4):
        start = time.perf_counter()
        train(config, f"trainer.max_steps={stop_step}", ONE_RANK)
        wall_s = time.perf_counter() - start
        rows = [row for row in read_metrics(folder_of(config).metrics) if row["step"] > steps_before]
        assert [row["step"] for row in rows] == list(range(steps_before + 1, stop_step + 1))
        assert 0 < sum(row["speed/step_time_s"] for row in rows) < wall_s
        assert all(0 <= row["speed/data_wait_fraction"] <= 1 for row in rows)
        steps_before = stop_step


def test_a_relaunch_of_a_complete_run_does_nothing(reference: RunFolder) -> None:
    before = reference.metrics.read_bytes()
    reference.complete.unlink()  # as after a kill between the last checkpoint and this file
    result = run_command("train", str(reference.root / "config.yaml"), ONE_RANK)
    assert result.returncode == 0
    assert "nothing to do: step 12 of 12 is reached" in result.stdout
    assert reference.metrics.read_bytes() == before
    assert reference.complete.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("seed=4",), "cannot go on with this configuration: seed (was 3, now 4)"),
        pytest.param(
            ("trainer.global_batch_size=16", ONE_RANK),
            "trainer.global_batch_size (was 8, now 16)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_relaunch_that_would_corrupt_the_run_is_refused(
    reference: RunFolder, overrides: tuple[str, ...], message: str
) -> None:
    result = run_command("train", str(reference.root / "config.yaml"), *overrides)
    assert result.returncode == 2
    errors = [line for line in result.stdout.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stdout
    assert reference.complete.exists()  # a refused launch touches nothing


def test_what_a_longer_run_does_to_the_learning_rate_is_said(write_config: WriteConfig) -> None:
    path = write_config()
    before = load_config(path).model_dump(mode="json")
    longer, same = (
        resolve_run(load_config(path, overrides), world_size=1) for overrides in (["trainer.duration=32 steps"], [])
    )
    assert compare_learning_rates(same, before, step=12) == []
    (line,) = compare_learning_rates(longer, before, step=12)
    assert line == (
        "the learning rate of the next step is 0.00134; by the last launch's schedule, which ended at step 12, it "
        "would be 1e-05"
    )
    assert "is not compared" in compare_learning_rates(longer, {**before, "model": {"name": "another version's"}}, step=12)[0]


def test_an_early_end_after_the_end_is_refused(write_config: WriteConfig) -> None:
    config = load_config(write_config(), ["trainer.max_steps=13"])
    with pytest.raises(ConfigError, match=r"trainer\.max_steps=13 .*the whole run \(trainer\.duration=12 steps\) has 12"):
        resolve_run(config, world_size=1)


def test_shards_that_changed_are_refused(reference: RunFolder, tmp_path: Path, write_shards: Callable[..., object]) -> None:
    write_shards(tmp_path / "other", shard_sizes=[83])
    result = run_command(
        "train", str(reference.root / "config.yaml"), f"data.train={tmp_path / 'other'}", "trainer.duration=20 steps", ONE_RANK
    )
    assert result.returncode == 2
    assert "are not those this run began with" in result.stdout


def test_a_run_of_another_sample_order_is_refused(reference: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = find_latest(reference).newest
    assert newest is not None
    monkeypatch.setattr("pipeline.build.resume.ORDER_VERSION", newest.meta.order_version + 1)
    version = newest.meta.order_version
    with pytest.raises(CheckpointError, match=rf"under version {version} of the sample order, .* has version {version + 1}"):
        check_order_version(newest)


@pytest.mark.parametrize(
    ("stage", "precision"), [(2, "fp32"), pytest.param(0, "fp32", marks=SLOW), pytest.param(2, "bf16", marks=SLOW)]
)
def test_non_finite_gradients_skip_the_step_then_stop_the_run(write_config: WriteConfig, stage: int, precision: str) -> None:
    config = write_config(
        optimizer={"learning_rate": 1e30, "clip_norm": None},
        trainer={"zero_stage": stage, "precision": precision, "max_skipped_steps": 3},
        checkpoint={"every": "1 steps"},
    )
    result = run_command("train", str(config))
    assert result.returncode == 2, result.stdout
    assert "gradients were not finite for 3 steps in a row" in result.stdout
    assert result.stdout.count("non-finite gradients, step skipped (2 in a row)") == 2  # each rank names its samples
    assert "its samples: " in result.stdout
    # The last step that was taken left weights that give no gradient: a checkpoint of it would displace a sound one.
    refused = int(re.findall(r"step (\d+): non-finite gradients, step skipped \(1 in a row\)", result.stdout)[-1])
    steps = folder_of(config).checkpoint_steps()
    assert all(step < refused - 1 for step in steps)
    assert folder_of(config).weight_steps() == [0, *steps]


@pytest.mark.slow
def test_an_error_on_one_rank_is_told_by_that_rank(write_config: WriteConfig, tmp_path: Path) -> None:
    """One label among 83 images has changed since the index was made: the rank that meets it names it."""
    from data_tools.index import index_folder
    from data_tools.parallel import LocalWorkers
    from tests.conftest import encode, make_image, write_tar

    (tmp_path / "bad").mkdir()
    images = [encode(make_image(number, num_classes=4, size=24), format="JPEG") for number in range(83)]
    for label in (b"0", b"9"):
        members: list[tuple[str, bytes]] = []
        for number, image in enumerate(images):
            members += [(f"{number:03d}.jpg", image), (f"{number:03d}.cls", label if number == 40 else b"0")]
        write_tar(tmp_path / "bad" / "a.tar", members)
        if label == b"0":
            index_folder(str(tmp_path / "bad"), block_samples=4, workers=LocalWorkers(1))
    result = run_command("train", str(write_config(data={"train": str(tmp_path / "bad")})))
    assert result.returncode == 2, result.stdout
    lines = [line for line in result.stdout.splitlines() if line.startswith("error (rank ")]
    assert len(lines) == 1
    assert re.search(r"a\.tar bytes \d+-\d+: labels .* index the folder again with", lines[0])


@pytest.mark.slow
def test_too_many_unreadable_images_stop_the_run(write_config: WriteConfig, tmp_path: Path) -> None:
    from data_tools.index import index_folder
    from data_tools.parallel import LocalWorkers
    from tests.conftest import encode, make_image, write_tar

    members: list[tuple[str, bytes]] = []
    for number in range(40):
        image = encode(make_image(number, num_classes=4, size=24), format="JPEG") if number % 4 == 0 else b"\xff\xd8broken"
        members += [(f"{number:03d}.jpg", image), (f"{number:03d}.cls", b"0")]
    (tmp_path / "bad").mkdir()
    write_tar(tmp_path / "bad" / "a.tar", members)
    index_folder(str(tmp_path / "bad"), block_samples=4, workers=LocalWorkers(1))
    result = run_command("train", str(write_config(data={"train": str(tmp_path / "bad")})), ONE_RANK)
    assert result.returncode == 2, result.stdout
    assert "images could not be read, more than data.unreadable_budget=0.0001 allows" in result.stdout
    assert re.search(r"unreadable image '\d+' in a\.tar at position \d+ replaced: ", result.stdout)

"""Real training: two gloo ranks under DeepSpeed, killed, resumed, damaged and refused."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.checkpoint import RunFolder, find_latest, load_weights
from pipeline.config import load_config
from pipeline.errors import CheckpointError
from pipeline.interruption import StopRequest
from pipeline.planning import make_plan
from pipeline.start import check_continuity
from pipeline.tracking import read_json_lines, read_metrics
from tests.conftest import REPOSITORY, environment, run_command

WriteConfig = Callable[..., Path]
STEPS = 12


def folder_of(config: Path) -> RunFolder:
    return RunFolder(config.parent / "runs" / config.stem)


def train(config: Path, *overrides: str) -> str:
    result = run_command("train", str(config), *overrides)
    assert result.returncode == 0, result.stdout
    return result.stdout


@contextmanager
def training(config: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """A training in the background, with its output in a file; every process of it is gone at the end."""
    log = config.with_suffix(".log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", str(config), *overrides], cwd=REPOSITORY, env=environment(), text=True,
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[str], *, poll_s: float = 0.01, timeout_s: float = 200
) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "the training ended early"
        assert time.monotonic() < end, "timed out"
        time.sleep(poll_s)


def reached(folder: RunFolder, step: int) -> bool:
    return any(row["step"] >= step for row in read_json_lines(folder.metrics))


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks, by asking the kernel for the launcher's children."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in children if "pipeline" in Path(f"/proc/{pid}/cmdline").read_text()]


def tree_of(pid: int) -> list[int]:
    """A process and all that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in tree_of(int(child)))]


def assert_same_run(folder: RunFolder, reference: RunFolder) -> None:
    """Every weight bit for bit, every loss, and the digest of everything both runs saw."""
    ours, theirs = (safetensors.torch.load_file(f.weights_of(STEPS)) for f in (folder, reference))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    ours_rows, theirs_rows = read_metrics(folder.metrics), read_metrics(reference.metrics)
    assert [row["step"] for row in ours_rows] == list(range(1, STEPS + 1))
    for key in ("train/loss", "train/gradient_norm", "data/digest", "images_seen"):
        assert [row[key] for row in ours_rows] == [row[key] for row in theirs_rows], key


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_config: dict[str, object]) -> RunFolder:
    """The run that nothing happened to."""
    import yaml

    folder = tmp_path_factory.mktemp("reference")
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump({**tiny_config, "output_dir": str(folder / "runs")}))
    train(config, "tracking.mode=offline")
    return folder_of(config)


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
    assert list((reference.root / "wandb").glob(f"offline-run-*-{meta.meta.wandb_id}/*.wandb"))
    assert not [path for path in reference.root.rglob(".*") if path.name.startswith((".saving", ".deleting"))]


def test_weights_are_the_fp32_masters_of_the_checkpoint(reference: RunFolder) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    theirs = get_fp32_state_dict_from_zero_checkpoint(str(reference.checkpoint_of(STEPS)), tag="checkpoint")
    ours = load_weights(reference.weights_of(STEPS)).model.state_dict()
    assert {f"model.{name}" for name in ours} == set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[f"model.{name}"]), name
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in ours.values())  # masters, not rounded copies


def test_killed_between_checkpoints_it_ends_the_same(reference: RunFolder, write_config: WriteConfig) -> None:
    config = write_config(tracking={"mode": "offline"})
    folder = folder_of(config)
    with training(config) as process:
        wait_until(lambda: reached(folder, 6), process)
        ranks = ranks_of(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(ranks) == 2
    wait_gone(ranks)  # no orphan goes on training
    output = train(config)
    assert "resuming from" in output
    assert "step 4 of 12" in output or "step 8 of 12" in output
    assert_same_run(folder, reference)
    assert len({path.name.split("-")[-1] for path in (folder.root / "wandb").glob("offline-run-*")}) == 1  # one W&B run


def wait_gone(pids: list[int]) -> None:
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "ranks outlived their launcher"
        time.sleep(0.05)


@pytest.mark.parametrize("delay_s", [0.0, 0.03])
def test_killed_inside_a_save_it_ends_the_same(reference: RunFolder, write_config: WriteConfig, delay_s: float) -> None:
    config = write_config()
    folder = folder_of(config)
    with training(config) as process:
        wait_until(lambda: folder.staging_of(8).exists(), process, poll_s=0.0005)
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert folder.checkpoint_steps()[0] == 4
    train(config)
    assert not folder.staging_of(8).exists()
    assert_same_run(folder, reference)


def test_a_broken_newest_checkpoint_is_skipped_aloud(reference: RunFolder, write_config: WriteConfig) -> None:
    config = write_config()
    folder = folder_of(config)
    train(config, "trainer.max_steps=8")
    victim = max(folder.checkpoint_of(8).rglob("*.pt"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1  # one bit
    victim.write_bytes(bytes(data))
    output = train(config)
    assert f"skipped a broken checkpoint: {victim} is damaged: its hash differs from the manifest" in output
    assert "step 4 of 12" in output
    assert_same_run(folder, reference)


@pytest.mark.parametrize(
    ("number", "target"),
    [(signal.SIGUSR1, "rank"), (signal.SIGTERM, "launcher"), (signal.SIGUSR1, "everyone"), (signal.SIGINT, "launcher")],
)
def test_told_to_stop_it_saves_and_goes_on_later(
    reference: RunFolder, write_config: WriteConfig, number: signal.Signals, target: str
) -> None:
    """Whoever is signalled, both ranks save at the same step. `everyone` includes the decoding workers. A terminal's Ctrl-C
    reaches the launcher alone: torchrun gives each rank a session of its own."""
    alone = {"data": {"num_workers": 1}, "tracking": {"mode": "offline"}}  # the processes that `everyone` adds
    config = write_config(**(alone if target == "everyone" else {}))
    folder = folder_of(config)
    with training(config) as process:
        wait_until(lambda: reached(folder, 5), process)
        targets = {"rank": ranks_of(process)[1:], "launcher": [process.pid], "everyone": tree_of(process.pid)}
        for pid in targets[target]:
            os.kill(pid, number)
        assert process.wait(timeout=60) == 75
    step = folder.checkpoint_steps()[-1]
    assert 5 <= step < STEPS
    assert not folder.complete.exists()
    assert f"step {step} of 12" in train(config)
    assert_same_run(folder, reference)


def test_a_second_interrupt_is_not_waited_for() -> None:
    stop = StopRequest()
    stop._note(signal.SIGINT, None)
    assert stop.is_set
    with pytest.raises(KeyboardInterrupt):
        stop._note(signal.SIGINT, None)


def test_a_launch_that_failed_early_does_not_bind_the_next(write_config: WriteConfig) -> None:
    config = write_config()
    failed = run_command("train", str(config), "model.num_classes=3")
    assert failed.returncode == 2
    assert "but model.num_classes=3 (classes count from 0); raise it" in failed.stdout
    train(config, "trainer.max_steps=1")


def test_a_lost_configuration_and_a_forbidden_place_are_answered_in_words(
    reference: RunFolder, write_config: WriteConfig
) -> None:
    folder = RunFolder(Path(shutil.copytree(reference.root, write_config().parent / "runs" / "tiny")))
    folder.config.write_text("")
    lost = run_command("train", str(write_config()), "trainer.duration=20 steps")
    assert lost.returncode == 2
    assert "config.yaml cannot be read (it is empty)" in lost.stdout
    place = write_config().parent / "a file"
    place.write_text("")
    forbidden = run_command("train", str(write_config()), f"output_dir={place}")
    assert forbidden.returncode == 2
    assert "set output_dir to a place that can be written" in forbidden.stdout
    assert "Traceback" not in lost.stdout + forbidden.stdout


def test_weights_that_a_kill_left_out_are_never_missing(reference: RunFolder, write_config: WriteConfig) -> None:
    """A checkpoint that exists has its weights, whenever the run is killed."""
    config = write_config()
    folder = folder_of(config)
    with training(config) as process:
        wait_until(lambda: folder.checkpoint_of(8).exists(), process, poll_s=0.0005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 8 in folder.weight_steps()


def test_speeds_of_every_launch_are_of_that_launch(write_config: WriteConfig) -> None:
    config = write_config()
    steps_before = 0
    for stop_step in (4, 8):
        start = time.perf_counter()
        train(config, f"trainer.max_steps={stop_step}")
        wall_s = time.perf_counter() - start
        rows = [row for row in read_metrics(folder_of(config).metrics) if row["step"] > steps_before]
        assert [row["step"] for row in rows] == list(range(steps_before + 1, stop_step + 1))
        assert 0 < sum(row["speed/step_time_s"] for row in rows) < wall_s
        assert all(0 <= row["speed/data_wait_fraction"] <= 1 for row in rows)
        steps_before = stop_step


def test_a_relaunch_of_a_complete_run_does_nothing(reference: RunFolder) -> None:
    before = reference.metrics.read_bytes()
    result = run_command("train", str(reference.root / "config.yaml"))
    assert result.returncode == 0
    assert "nothing to do: step 12 of 12 is reached" in result.stdout
    assert reference.metrics.read_bytes() == before
    assert reference.complete.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=4", "cannot go on with this configuration: seed (was 3, now 4)"),
        ("trainer.global_batch_size=16", "trainer.global_batch_size (was 8, now 16)"),
        ("trainer.devices=1", "was saved by 2 ranks, this launch has 1"),
    ],
)
def test_a_relaunch_that_would_corrupt_the_run_is_refused(reference: RunFolder, override: str, message: str) -> None:
    result = run_command("train", str(reference.root / "config.yaml"), override)
    assert result.returncode == 2
    errors = [line for line in result.stdout.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stdout
    assert reference.complete.exists()  # a refused launch touches nothing


def test_shards_that_changed_are_refused(reference: RunFolder, tmp_path: Path, write_shards: Callable[..., object]) -> None:
    write_shards(tmp_path / "other", shard_sizes=[83])
    result = run_command(
        "train", str(reference.root / "config.yaml"), f"data.train={tmp_path / 'other'}", "trainer.duration=20 steps"
    )
    assert result.returncode == 2
    assert "are not those this run began with" in result.stdout


def test_a_run_of_another_sample_order_is_refused(reference: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = find_latest(reference).newest
    assert newest is not None
    monkeypatch.setattr("pipeline.start.ORDER_VERSION", newest.meta.order_version + 1)
    plan = make_plan(load_config(reference.config), world_size=2)
    with pytest.raises(CheckpointError, match="was saved under version 2 of the sample order, this software has version 3"):
        check_continuity(plan, newest, world_size=2)


@pytest.mark.parametrize(("stage", "precision"), [(2, "bf16"), (0, "fp32")])
def test_non_finite_gradients_skip_the_step_then_stop_the_run(write_config: WriteConfig, stage: int, precision: str) -> None:
    config = write_config(
        optimizer={"learning_rate": 1e30, "clip_norm": None},
        trainer={"zero_stage": stage, "precision": precision, "max_skipped_steps": 3},
    )
    result = run_command("train", str(config))
    assert result.returncode == 2, result.stdout
    assert "gradients were not finite for 3 steps in a row" in result.stdout
    assert result.stdout.count("non-finite gradients, step skipped (2 in a row)") == 2  # each rank names its samples
    assert "its samples: " in result.stdout


def test_an_error_on_one_rank_is_told_by_that_rank(write_config: WriteConfig, tmp_path: Path) -> None:
    """One wrong label among 83 images: whichever rank meets it names it."""
    from data_tools.index import index_folder
    from tests.conftest import encode, make_image, write_tar

    members: list[tuple[str, bytes]] = []
    for number in range(83):
        image = encode(make_image(number, num_classes=4, size=24), format="JPEG")
        members += [(f"{number:03d}.jpg", image), (f"{number:03d}.cls", b"9" if number == 40 else b"0")]
    (tmp_path / "bad").mkdir()
    write_tar(tmp_path / "bad" / "a.tar", members)
    index_folder(str(tmp_path / "bad"), block_samples=4, num_workers=1)
    result = run_command("train", str(write_config(data={"train": str(tmp_path / "bad")})))
    assert result.returncode == 2, result.stdout
    lines = [line for line in result.stdout.splitlines() if line.startswith("error (rank ")]
    assert len(lines) == 1
    assert "a.tar: sample '040' has class 9, but model.num_classes=4" in lines[0]


def test_too_many_unreadable_images_stop_the_run(write_config: WriteConfig, tmp_path: Path) -> None:
    from data_tools.index import index_folder
    from tests.conftest import encode, make_image, write_tar

    members: list[tuple[str, bytes]] = []
    for number in range(40):
        image = encode(make_image(number, num_classes=4, size=24), format="JPEG") if number % 4 == 0 else b"\xff\xd8broken"
        members += [(f"{number:03d}.jpg", image), (f"{number:03d}.cls", b"0")]
    (tmp_path / "bad").mkdir()
    write_tar(tmp_path / "bad" / "a.tar", members)
    index_folder(str(tmp_path / "bad"), block_samples=4, num_workers=1)
    result = run_command("train", str(write_config(data={"train": str(tmp_path / "bad")})))
    assert result.returncode == 2, result.stdout
    assert "images could not be read, more than data.unreadable_budget=0.0001 allows" in result.stdout
    assert re.search(r"unreadable image '\d+' in a\.tar at position \d+ replaced: ", result.stdout)

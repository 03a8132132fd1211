"""A launch cannot resume from newer, unreadable, damaged or ruined checkpoints, and none of these costs the sound one."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.errors import CheckpointError
from pipeline.run.checkpoint import FORMAT, RunFolder, delete_old
from pipeline.run.checkpoint_search import clear_leftovers, find_latest, is_finite, set_aside
from tests.helpers.run_folders import rewrite_manifest, write_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Make a run with sound checkpoints of steps 8 and 12."""
    folder = RunFolder(tmp_path / "tiny")
    for step in (8, 12):
        write_checkpoint(folder, step)
    return folder


def change_meta(checkpoint: Path, **changes: Any) -> None:
    meta = json.loads((checkpoint / "meta.json").read_text())
    meta = {key: value for key, value in {**meta, **changes}.items() if value is not ...}
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    rewrite_manifest(checkpoint)


def listing(run: RunFolder) -> list[str]:
    return sorted(str(path.relative_to(run.root)) for path in run.root.rglob("*"))


def refuse(run: RunFolder) -> str:
    """Return the search's message. The search must leave everything where it is."""
    before = listing(run)
    with pytest.raises(CheckpointError) as caught:
        find_latest(run)
    assert listing(run) == before
    return str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": FORMAT + 1},
        {"format": FORMAT + 1, "something_new": 1, "num_updates": ...},
        {"format": FORMAT - 1},
        {"num_updates": ...},
    ],
)
def test_another_versions_is_refused(run: RunFolder, changes: dict[str, Any]) -> None:
    change_meta(run.checkpoint_of(12), versions={"pipeline": "9.1"}, **changes)
    told = refuse(run)
    assert "step_00000012 was written by version 9.1 of this software" in told
    assert "it is left as it is; go on with the version that wrote it, or move it out of" in told
    assert "to train again from step 8" in told


def test_another_versions_is_refused_before_its_files_are_judged(run: RunFolder) -> None:
    """A later version may write its manifest otherwise."""
    change_meta(run.checkpoint_of(12), format=FORMAT + 1)
    (run.checkpoint_of(12) / "manifest.json").write_text('["a list"]')
    assert "written by" in refuse(run)


def test_what_a_later_version_adds_to_the_same_format_is_passed_over(run: RunFolder) -> None:
    change_meta(run.checkpoint_of(12), something_new=[1])
    newest = find_latest(run).newest
    assert newest is not None
    assert newest.meta.step == 12


@pytest.mark.parametrize("name", ["meta.json", "manifest.json", "model.safetensors"])
def test_what_cannot_be_read_is_refused(run: RunFolder, name: str) -> None:
    """A link leads to itself: the system refuses that to root too."""
    file = run.checkpoint_of(12) / name
    file.unlink()
    file.symlink_to(name)
    told = refuse(run)
    assert f"{name} cannot be read: Too many levels of symbolic links" in told
    assert "to train again from step 8" in told


def test_a_checkpoint_on_a_disk_that_is_away_is_refused(run: RunFolder) -> None:
    shutil.move(run.checkpoint_of(12), run.root / "elsewhere")
    run.checkpoint_of(12).symlink_to(run.root / "not mounted")
    assert "is a link to" in refuse(run)
    run.checkpoint_of(12).unlink()
    run.checkpoint_of(12).symlink_to(run.root / "elsewhere")
    assert find_latest(run).newest is not None


def damage(checkpoint: Path, how: str) -> None:
    manifest, meta, model = (checkpoint / name for name in ("manifest.json", "meta.json", "model.safetensors"))
    data = bytearray(model.read_bytes())
    match how:
        case "a bit":
            data[len(data) // 2] ^= 1
            model.write_bytes(data)
        case "truncated":
            model.write_bytes(data[: len(data) // 2])
        case "no model":
            model.unlink()
        case "no manifest":
            manifest.unlink()
        case "torn manifest":
            manifest.write_bytes(manifest.read_bytes()[:50])
        case "null manifest":
            manifest.write_text("null")
        case "empty manifest":
            manifest.write_text("{}")
        case "zeros":
            meta.write_bytes(b"\0" * meta.stat().st_size)
        case "empty":
            shutil.rmtree(checkpoint)
            checkpoint.mkdir()


HOWS = ["a bit", "truncated", "no model", "no manifest", "torn manifest", "null manifest", "empty manifest", "zeros", "empty"]


@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_one_is_passed_over(run: RunFolder, how: str) -> None:
    model = run.checkpoint_of(12) / "model.safetensors"
    shutil.copy(model, run.root / "copy")  # the weights file is another name of it: damage the checkpoint alone
    model.unlink()
    shutil.move(run.root / "copy", model)
    damage(run.checkpoint_of(12), how)
    found = find_latest(run)
    assert found.newest is not None
    assert found.newest.meta.step == 8
    assert [(item.step, item.condition) for item in found.rejected] == [(12, "broken")]
    assert set_aside(run, 12, "broken").name == "broken-step_00000012"
    assert run.checkpoint_steps() == [8]


def test_where_all_are_damaged_nothing_is_begun_again(run: RunFolder) -> None:
    for step in (8, 12):
        (run.checkpoint_of(step) / "meta.json").unlink()
    assert "no checkpoint of" in refuse(run)


def ruin(checkpoint: Path, file: str, value: float) -> None:
    path = next(checkpoint.glob(file))
    tensors = safetensors.torch.load_file(path)
    name = min(tensors)
    tensors[name].view(-1)[-1] = value
    with safetensors.safe_open(path, framework="pt") as opened:
        header = opened.metadata()
    safetensors.torch.save_file(tensors, path, metadata=header)
    rewrite_manifest(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("file", ["model.safetensors", "moments-*.safetensors"])
def test_a_ruined_one_is_passed_over(run: RunFolder, file: str, value: float) -> None:
    ruin(run.checkpoint_of(12), file, value)
    found = find_latest(run)
    assert found.newest is not None
    assert found.newest.meta.step == 8
    assert [(item.step, item.condition) for item in found.rejected] == [(12, "ruined")]
    assert "is not finite" in found.rejected[0].reason
    ruin(run.checkpoint_of(8), file, value)
    found = find_latest(run)
    assert found.newest is None  # nothing of this run is worth resuming from: it begins again
    assert {item.condition for item in found.rejected} == {"ruined"}


def test_large_values_are_finite() -> None:
    assert is_finite(torch.full((8,), 3e38))
    assert not is_finite(torch.tensor([3e38, 3e38, float("inf"), -float("inf")]))
    assert is_finite(torch.tensor([2**62, 2**62]))


def test_a_copy_under_a_name_of_the_runs_own_is_passed_over(run: RunFolder) -> None:
    shutil.copytree(run.checkpoint_of(8), run.checkpoint_of(20))
    found = find_latest(run)
    assert found.newest is not None
    assert found.newest.meta.step == 12
    assert "step_00000020 holds step 8, not 20" in found.rejected[0].reason


def test_only_the_runs_own_leftovers_are_removed(run: RunFolder) -> None:
    ours = [".saving-step_00000016", ".deleting-step_00000004"]
    theirs = [".snapshot", ".nfs0001", ".DS_Store", ".mine.part"]
    for name in [*ours, *theirs]:
        (run.checkpoints / name).mkdir()
    (run.weights / ".step_00000016.safetensors.part").write_text("")
    (run.root / ".heartbeat.json.0123.part").write_text("")
    clear_leftovers(run)
    assert sorted(path.name for path in run.checkpoints.glob(".*")) == sorted(theirs)
    assert not list(run.weights.glob(".*"))
    assert not list(run.root.glob(".*"))


def test_retention_keeps_the_last_sound_one_and_the_first_of_every_interval(run: RunFolder) -> None:
    for step in (16, 22, 24):
        write_checkpoint(run, step)
    assert delete_old(run, newest=24, keep_last=1, keep_every_steps=10, sound=16) == [8]
    assert run.checkpoint_steps() == [12, 16, 22, 24]  # 12 and 22: the first from 10 and from 20 on
    assert delete_old(run, newest=22, keep_last=1, keep_every_steps=None, sound=None) == [12, 16]
    assert run.checkpoint_steps() == [22, 24]  # what is newer than the step just saved is not touched


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_files_of_tensors_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int, mode: int) -> None:
    """A group that may read the run folder can evaluate its weights and resume from its checkpoints."""
    before = os.umask(umask)
    try:
        run = RunFolder(tmp_path / "shared")
        files = [run.weights_of(8), *write_checkpoint(run, 8).glob("*.safetensors")]
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}

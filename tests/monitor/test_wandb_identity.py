"""A run folder that is moved, renamed or restored is the same W&B run; a copy is another."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.monitor.wandb_identity import forked_from, settle_destination, settle_run
from pipeline.monitor.wandb_settings import Said, read_wandb_environment


def settle(folder: Path, *, wanted: str | None = None, checkpoint_id: str | None = None) -> str:
    said = None if wanted is None else Said(wanted, "WANDB_RUN_ID")
    return settle_run(folder, wanted=said, checkpoint_id=checkpoint_id, step=4).run_id


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    settle(folder)
    (folder / "wandb_sent_train.jsonl").write_text('{"step": 1}\n')
    return folder


@pytest.mark.parametrize("command", [["cp", "-r"], ["cp", "-a"], ["cp", "-al"]])
def test_a_copy_is_a_run_of_its_own(run: Path, command: list[str]) -> None:
    first = settle(run)
    copy = run.with_name("b")
    subprocess.run([*command, str(run), str(copy)], check=True)
    outcome = settle_run(copy, wanted=None, checkpoint_id=None, step=4)
    assert outcome.run_id != first
    assert f"is a copy of {run}" in outcome.messages[0]
    assert forked_from(copy) == {"run_id": first, "folder": str(run), "step": 4}
    assert not (copy / "wandb_sent_train.jsonl").exists()  # the new run was given nothing yet
    again = settle_run(copy, wanted=None, checkpoint_id=None, step=8)
    assert (again.run_id, again.messages) == (outcome.run_id, [])
    assert (settle(run), forked_from(run)) == (first, None)
    of_copy = run.with_name("c")
    shutil.copytree(copy, of_copy)
    assert settle(of_copy) not in (first, outcome.run_id)


def test_what_is_moved_renamed_or_restored_is_the_same_run(run: Path, tmp_path: Path) -> None:
    first = settle(run)
    renamed = run.rename(run.with_name("z"))
    assert settle(renamed) == first
    across = tmp_path / "other" / "z"  # a move to another file system copies and deletes
    shutil.copytree(renamed, across)
    shutil.rmtree(renamed)
    assert settle(across) == first
    backup = tmp_path / "backup"
    shutil.copytree(across, backup)
    shutil.rmtree(across)
    shutil.copytree(backup, across)
    assert settle(across) == first
    (tmp_path / "link").symlink_to(across)
    assert settle(tmp_path / "link") == first
    assert (across / "wandb_sent_train.jsonl").exists()


def test_a_copy_in_the_place_of_the_renamed_original_is_noticed(run: Path) -> None:
    first = settle(run)
    original = run.rename(run.with_name("a-old"))
    shutil.copytree(original, run)
    assert settle(run) != first
    assert settle(original) == first


def test_training_and_evaluator_that_notice_a_copy_at_once_agree(run: Path) -> None:
    copy = run.with_name("b")
    shutil.copytree(run, copy)
    before = {name: (copy / name).read_bytes() for name in ("wandb_id", "wandb_run.json")}
    one = settle(copy)
    for name, data in before.items():
        (copy / name).write_bytes(data)
    assert settle(copy) == one


def test_a_lost_id_is_found_again(run: Path) -> None:
    first = settle(run)
    (run / "wandb_id").unlink()
    assert settle(run) == first
    (run / "wandb_id").unlink()
    (run / "wandb_run.json").write_text('{"run_id": "to')  # torn
    assert settle(run, checkpoint_id="of-the-meta") == "of-the-meta"


def test_an_id_of_the_environment_is_taken_once(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    assert settle(folders[0], wanted="mine") == "mine"
    outcome = settle_run(folders[0], wanted=Said("another", "WANDB_RUN_ID"), checkpoint_id=None, step=0)
    assert (outcome.run_id, outcome.messages) == (
        "mine",
        ["WANDB_RUN_ID=another is ignored: this run folder's W&B run is mine"],
    )
    left_over = settle_run(folders[1], wanted=Said("mine", "WANDB_RUN_ID"), checkpoint_id=None, step=0)
    assert left_over.run_id != "mine"
    assert left_over.messages == [f"WANDB_RUN_ID=mine is ignored: it is the W&B run of {folders[0]}"]


def test_the_project_of_the_first_launch_stays(run: Path, tmp_path: Path) -> None:
    def where(variable: str | None, *, project: str | None = None) -> tuple[str, list[str]]:
        environment = read_wandb_environment({"WANDB_PROJECT": variable} if variable else {}, folder=tmp_path)
        found = settle_destination(run, environment, project=project, entity=None)
        return found.project, list(found.ignored)

    assert where("one") == ("one", [])
    assert where(None) == ("one", [])  # an evaluator in a job of its own
    assert where("two") == ("one", ["WANDB_PROJECT"])
    assert (run / "wandb_sent_train.jsonl").exists()
    assert where("two", project="three") == ("three", ["WANDB_PROJECT"])
    assert not (run / "wandb_sent_train.jsonl").exists()

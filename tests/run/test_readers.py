"""Every reader of a run folder accepts whatever its files hold: null, torn, missing, foreign and superseded entries."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.launch.processes import Process
from pipeline.monitor import status
from pipeline.monitor.status import read_status, watch_claims
from pipeline.monitor.status_text import BLOCKS, Style, describe, tabulate, to_json
from pipeline.run.checkpoint import RunFolder
from pipeline.run.claims import Owner, Sightings
from pipeline.run.evaluations import read_digest, read_results, superseded_weights
from pipeline.run.records import append_json_line
from pipeline.run.state import Signs, read_state, watch_for_life
from tests.conftest import Outcome

PLAIN = Style(colours=False, blocks=BLOCKS)
WRONG: tuple[Any, ...] = (None, "x", [], {}, -1, True, 10**400, [[None]], {"bytes": None})
STATES = ("heartbeat.json", "stragglers.json", "complete.json", "lock.json", "claims/step_00000004.json")


@pytest.fixture(scope="module")
def evaluated(reference: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy a real run, with results and with every file that a run may have."""
    run = Path(shutil.copytree(reference.root, tmp_path_factory.mktemp("evaluated") / "tiny", symlinks=True))
    folder = RunFolder(run)
    for step in (0, 4, 8, 12):
        for seed in (0, 1):
            append_json_line(folder.evaluations, result(folder, step, seed=seed))
    (run / "claims").mkdir(exist_ok=True)
    owner = {
        "host": "elsewhere",
        "machine": "another",
        "pid": 1,
        "process_start": "1",
        "slurm_job_id": "7",
        "slurm_restart": "0",
        "since": 0.0,
        "token": "t",
    }
    for name in ("claims/step_00000004.json", "lock.json"):
        (run / name).write_text(json.dumps(owner))
    return run


def result(folder: RunFolder, step: int, **changes: Any) -> dict[str, Any]:
    """Make a line as the evaluator writes it."""
    digest = read_digest(folder.weights_of(step))
    return {
        "step": step,
        "images_seen": 8 * step,
        "dataset": "bars",
        "protocol": "few_shot",
        "shots": 5,
        "seed": 0,
        "accuracy": 0.5,
        "ci95": 0.1,
        "test_images": 22,
        "unreadable": 0,
        "weights": digest,
        **changes,
    }


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "tiny", symlinks=True))


def look(run: Path) -> str:
    """Return all that the readers say of a run, except ages, which grow from look to look. None of the readers may raise."""
    found = read_status(run)
    to_json([found])
    read_state(run)
    text = "\n".join([*describe([found], style=PLAIN), *tabulate([found, found], style=PLAIN)])
    return re.sub(r"[\d.,]+ (d|h|min|s|ms)( \d+ (h|min|s))? ago", "AGE ago", text)


def locations(values: Any) -> Iterator[list[Any]]:
    """Yield where in nested values something can be replaced."""
    for key in values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        yield [key]
        yield from ([key, *rest] for rest in locations(values[key]))


def changed(values: Any, location: list[Any], new: Any) -> Any:
    copy = json.loads(json.dumps(values))
    inside = copy
    for key in location[:-1]:
        inside = inside[key]
    inside[location[-1]] = new
    return copy


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_the_wrong_kind_costs_itself_alone(run: Path, name: str) -> None:
    values = json.loads((run / name).read_text())
    for location in locations(values):
        for wrong in WRONG:
            (run / name).write_text(json.dumps(changed(values, location, wrong)))
            assert "bars 5-shot  50.0 % (step 12)" in look(run), (location, wrong)
    for text in ("", "{", "null", "[]", "\0" * 50, '"x"', "\udcff", "[" * 5000):
        (run / name).write_bytes(text.encode(errors="surrogateescape"))
        assert "bars 5-shot  50.0 % (step 12)" in look(run), text
    (run / name).unlink()
    (run / name).mkdir()
    assert "bars 5-shot  50.0 % (step 12)" in look(run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl", "manifest.json"])
def test_a_line_of_the_wrong_kind_costs_itself_alone(run: Path, name: str) -> None:
    path = run / "checkpoints" / "step_00000012" / name if name == "manifest.json" else run / name
    text = path.read_text()
    last = json.loads(text if name == "manifest.json" else text.splitlines()[-1])
    for location in locations(last):
        for wrong in WRONG:
            line = json.dumps(changed(last, location, wrong))
            path.write_text(line if name == "manifest.json" else text + line + "\n")
            assert "step 8" in look(run) or "step 12" in look(run), (location, wrong)
    for torn in ("\0" * 50, '{"step": 13', '"x"', "[" * 5000, "nul", "\u2028"):
        path.write_text(torn if name == "manifest.json" else text + torn)
        assert "12 of 12" in look(run)


NAMES = (
    "lost+found",
    "step_00000012.bak",
    "step_00000012_good",
    "step_best",
    "step_",
    "step_12",
    "step_000000012",
    "broken-step_00000099",
)


def test_names_of_the_users_own_are_passed_over(run: Path) -> None:
    folder = RunFolder(run)
    before = look(run)
    for name in NAMES:
        shutil.copytree(folder.checkpoint_of(12), folder.checkpoints / name)
        shutil.copy(folder.weights_of(12), folder.weights / f"{name}.safetensors")
        shutil.copy(run / "claims" / "step_00000004.json", run / "claims" / f"{name}.json")
    (folder.checkpoints / "step_00000099").write_text("a file where a folder belongs")
    (folder.weights / "step_00000099.safetensors").mkdir()
    (run / "checkpoints" / "notes.txt").write_text("mine")
    assert folder.checkpoint_steps() == [8, 12]
    assert folder.weight_steps() == [0, 4, 8, 12]
    assert look(run) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl", "checkpoints", "weights"])
def test_what_cannot_be_read_is_named(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read through a link that leads to itself: the system refuses that to root too."""
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    (run / name).symlink_to(name)
    assert f"{name} cannot be read: Too many levels of symbolic links" in look(run)


def test_results_of_weights_that_were_replaced_are_superseded(run: Path) -> None:
    folder = RunFolder(run)
    other = result(folder, 4, accuracy=0.9, weights="of another history")
    append_json_line(folder.evaluations, other)
    folder.weights_of(8).rename(superseded_weights(folder, 8))  # a launch has gone back to step 4
    folder.weights_of(12).unlink()  # somebody deleted it to free space: its results are still the run's
    found = read_results(folder)
    assert {row["step"] for row in found.rows} == {0, 4, 12}
    assert other not in found.rows
    assert found.passed_over == ["3 lines of evaluations.jsonl passed over: of weights that were replaced since"]
    assert "! 3 lines of evaluations.jsonl passed over" in look(run)


def test_a_copy_of_a_running_run_is_not_taken_for_it(run: Path, tmp_path: Path) -> None:
    (run / "complete.json").unlink()
    (run / "lock.json").unlink()
    heartbeat = json.loads((run / "heartbeat.json").read_text())
    heartbeat |= {
        "phase": "computing",
        "time": os.stat(run).st_mtime,
        "folder_inode": run.stat().st_ino,
        "host": "elsewhere",
        "machine": "another",
    }
    (run / "heartbeat.json").write_text(json.dumps(heartbeat))
    copy = Path(shutil.copytree(run, tmp_path / "copy", symlinks=True))
    assert read_state(run).state == "running"
    assert (read_state(copy).state, read_state(copy).outlook) == ("copied", "may go on")


def test_a_training_whose_clock_is_behind_is_seen_to_live(run: Path) -> None:
    for name in ("complete.json", "lock.json"):
        (run / name).unlink()
    heartbeat = json.loads((run / "heartbeat.json").read_text())
    late = {
        **heartbeat,
        "phase": "computing",
        "host": "elsewhere",
        "machine": "another",
        "folder_inode": run.stat().st_ino,
        "time": os.stat(run).st_mtime - 600,
    }
    (run / "heartbeat.json").write_text(json.dumps(late))
    (run / "metrics.jsonl").unlink()
    assert read_state(run).state == "silent"

    writer = threading.Timer(0.2, lambda: (run / "heartbeat.json").write_text(json.dumps(late)))
    writer.start()
    (signs,) = watch_for_life([Signs.read(run)], watch_s=0.6)
    writer.join()
    assert read_status(run, signs=signs).state == "running"
    (signs,) = watch_for_life([Signs.read(run)], watch_s=0.1)
    assert read_status(run, signs=signs).state == "silent"


def test_a_dead_evaluator_is_told_as_such(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is observed, not read from a clock: the machine that wrote the claim may be years behind."""
    monkeypatch.setattr(status, "CLAIM_WATCH_S", 0.3)
    claim = run / "claims" / "step_00000004.json"

    def watch() -> str:
        sightings = Sightings()
        watch_claims([run], sightings)
        return "\n".join(describe([read_status(run, sightings=sightings)], style=PLAIN)) + "\n"

    os.utime(claim, (0, 0))
    assert "step 4 on elsewhere (not touched while watched for 0 s: it may be gone; the next evaluator finds out" in watch()
    toucher = threading.Timer(0.1, lambda: os.utime(claim, (10, 10)))
    toucher.start()
    assert "step 4 on elsewhere\n" in watch()
    toucher.join()
    os.utime(claim)
    assert "step 4 on elsewhere\n" in watch()  # nothing speaks against it
    owner = json.loads(claim.read_text())
    claim.write_text(json.dumps({**owner, **asdict(Process.myself()), "pid": 2**22 - 1}))
    assert "(its process is gone; the next evaluator takes it over)" in watch()


def test_a_launch_that_has_the_lock_and_no_heartbeat_yet_is_starting(run: Path) -> None:
    (run / "complete.json").unlink()
    heartbeat = json.loads((run / "heartbeat.json").read_text())
    (run / "heartbeat.json").write_text(json.dumps({**heartbeat, "phase": "failed", "by": "TrainingError: x"}))
    (run / "lock.json").unlink()
    assert (read_state(run).state, read_state(run).outlook) == ("failed", "over")
    (run / "lock.json").write_text(Owner.myself().to_json())
    assert (read_state(run).state, read_state(run).outlook) == ("starting", "going")
    # The machine's clock is behind that of the machine on which the last launch failed.
    behind = {**json.loads(Owner.myself().to_json()), "machine": "another", "since": heartbeat["time"] - 600}
    (run / "lock.json").write_text(json.dumps(behind))
    assert (read_state(run).state, read_state(run).outlook) == ("starting", "going")
    (run / "lock.json").write_text(json.dumps({**behind, "since": 1.0}))
    assert (read_state(run).state, read_state(run).outlook) == ("silent", "may go on")  # in doubt the evaluator waits
    (run / "complete.json").write_text('{"step": 12}')
    assert (read_state(run).state, read_state(run).outlook) == ("finished", "over")
    (run / "complete.json").unlink()
    # The launch that failed has left a lock behind.
    (run / "lock.json").write_text(json.dumps({**behind, **asdict(Process.described_by(heartbeat)), "machine": "a third"}))
    (run / "heartbeat.json").write_text(
        json.dumps({**heartbeat, "phase": "failed", "by": "TrainingError: x", "machine": "a third"})
    )
    assert (read_state(run).state, read_state(run).outlook) == ("failed", "over")


def test_what_was_tried_in_vain_is_named_with_what_to_type(run: Path, call: Callable[..., Outcome]) -> None:
    folder = RunFolder(run)
    reason = "data folder '/nowhere' does not exist"
    for measure in ({"protocol": "linear", "shots": None, "seed": None}, {"seed": 0}, {"seed": 1}):
        failed = result(folder, 12, dataset="away", accuracy=None, error=reason, **measure)
        append_json_line(folder.evaluations, failed)
    append_json_line(folder.evaluations, result(folder, 12, seed=0, accuracy=None, error="none can be read", precision="bf16"))
    append_json_line(folder.evaluations, result(folder, 4, dataset="late", accuracy=None, error="once"))
    append_json_line(folder.evaluations, result(folder, 8, dataset="late"))
    told = [
        "! bars 5-shot failed again at step 12: none can be read",
        f"! away linear, 5-shot have no result at step 12: {reason}",
        f"! `python -m pipeline evaluate {run}` retries what failed",
    ]
    report = call("report", str(run))
    assert [line for line in report.text.splitlines() if line.startswith("! ")] == told
    assert "bars 5-shot    50.0    50.0    50.0     50.0" in report.text  # a failure takes no value away
    seen = call("status", str(run))
    assert [line.strip() for line in seen.text.splitlines() if line.startswith("  ! ")] == told
    assert "bars 5-shot  50.0 % (step 12)" in seen.text
    assert (report.code, seen.code) == (0, 0)


def test_a_checkpoint_of_which_everything_failed_has_no_result(run: Path) -> None:
    folder = RunFolder(run)
    folder.evaluations.unlink()
    append_json_line(folder.evaluations, result(folder, 12, accuracy=None, error="none can be read"))
    assert "4 checkpoints without any result" in look(run)


def test_of_equal_maxima_the_first_checkpoint_is_named(run: Path) -> None:
    folder = RunFolder(run)
    folder.evaluations.unlink()
    for step, accuracy in ((8, 0.5), (4, 0.5), (12, 0.25)):  # as of several evaluators
        append_json_line(folder.evaluations, result(folder, step, accuracy=accuracy))
    assert "max over 3 checkpoints, on the test split: 50.0 % (step 4)" in look(run)

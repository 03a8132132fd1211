"""`status` reads a run from its files: states, numbers, and output for terminals, pipes and programs."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.launch.processes import Process
from pipeline.monitor.status import find_runs, read_status
from pipeline.monitor.status_text import ASCII_BLOCKS, BLOCKS, Style, describe, duration, sparkline
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import append_json_line, newest_history, read_json, replace_json
from tests.conftest import REPOSITORY, Outcome

PLAIN = Style(colours=False, blocks=BLOCKS)


@pytest.fixture
def run(reference: RunFolder, tmp_path: Path) -> Path:
    """Copy a real, finished run that a test may change."""
    return Path(shutil.copytree(reference.root, tmp_path / "tiny", symlinks=True))


def beat(folder: Path, *, age_s: float = 0.0, **changes: Any) -> None:
    """Change the run's heartbeat as a training's next one would, some time ago."""
    before = read_json(folder / "heartbeat.json")
    assert before is not None
    who = {**asdict(Process.myself()), "folder_inode": folder.stat().st_ino}
    replace_json(folder / "heartbeat.json", {**before, "time": time.time() - age_s, **who, **changes})


def test_it_imports_nothing_heavy(reference: RunFolder) -> None:
    code = (
        "import sys; from pipeline.__main__ import main; main(['status', sys.argv[1]]); "
        "print(sorted({'torch', 'numpy', 'deepspeed', 'lightning', 'wandb', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(reference.root)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_finished_run(reference: RunFolder) -> None:
    status = read_status(reference.root)
    assert (status.state, status.step, status.total_steps, status.images_seen, status.eta_s) == ("finished", 12, 12, 96, None)
    assert status.checkpoint is not None
    files = [path for path in reference.checkpoint_of(12).rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert (status.checkpoint.step, status.checkpoint.bytes) == (12, sum(path.stat().st_size for path in files))
    assert status.not_evaluated == 4
    text = "\n".join(describe([status], style=PLAIN))
    for part in ("finished", "12 of 12", "100.0 %", "96", "images/s", "gradient norm", "step 12", "2 ranks on 1 node"):
        assert part in text


STATES = [
    ({"phase": "computing"}, "running"),
    ({"phase": "starting"}, "starting"),
    ({"phase": "computing", "age_s": 300, "staging": ".saving-step_00000008"}, "saving"),
    ({"phase": "waiting for data", "age_s": 30}, "waiting for data"),
    ({"phase": "computing", "age_s": 3600}, "silent"),
    ({"phase": "computing", "age_s": 3600, "machine": "another boot", "pid": 1}, "silent"),
    ({"phase": "stopped", "by": "SIGUSR1"}, "stopped by signal"),
    ({"phase": "failed", "by": "TrainingError: x"}, "failed"),
]


@pytest.mark.parametrize(("change", "state"), STATES, ids=[f"{state} {i}" for i, (_, state) in enumerate(STATES)])
def test_states(run: Path, change: dict[str, Any], state: str) -> None:
    (run / "complete.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()[:6]
    (run / "metrics.jsonl").write_text(  # of an hour ago, by ranks that hardly waited
        "".join(json.dumps({**json.loads(x), "time": 0, "speed/data_wait_fraction": 0.1}) + "\n" for x in lines)
    )
    if staging := change.get("staging"):
        (run / "checkpoints" / staging).mkdir()
    beat(run, **{"step": 6, **change})
    status = read_status(run)
    assert status.state == state
    assert status.step == 6
    assert (status.eta_s is not None) == (state in ("running", "starting", "saving", "waiting for data"))


def test_a_process_that_is_gone_is_told_from_one_that_hangs(run: Path) -> None:
    (run / "complete.json").unlink()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    beat(run, phase="computing", pid=gone.pid)
    assert read_status(run).state == "died"
    beat(run, phase="computing", process_start="1")  # another process has the number by now
    assert read_status(run).state == "died"
    for elsewhere in ({"machine": "another boot"}, {"pid_namespace": "pid:[1]"}):  # who knows
        beat(run, phase="computing", pid=gone.pid, **elsewhere)
        assert read_status(run).state != "died"


def test_a_run_that_never_started(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: run")
    assert "never started" in "\n".join(describe([read_status(tmp_path / "run")], style=PLAIN))


def test_lines_that_a_resume_went_back_over_do_not_count() -> None:
    rows = [{"step": step, "launch": launch} for launch, steps in ((1, (5, 10, 15, 20)), (2, (10, 15))) for step in steps]
    assert [(row["step"], row["launch"]) for row in newest_history(rows)] == [(5, 1), (10, 2), (15, 2)]


def test_the_time_left_is_that_of_the_recent_steps(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "complete.json").unlink()
    for step in range(10, 1010, 10):  # slow at first
        append_json_line(
            run / "metrics.jsonl",
            {"time": time.time(), "step": step, "speed/step_time_s": 9.0 if step < 300 else 2.0, "speed/images_per_s": 4.0},
        )
    beat(run, phase="computing", step=1000, total_steps=2000)
    assert read_status(run).eta_s == pytest.approx(2000)


def test_evaluations_are_means_over_seeds_and_a_maximum_is_named_as_one(run: Path) -> None:
    for step, accuracies in ((4, (0.2, 0.4)), (8, (0.6, 0.8)), (12, (0.5, 0.5))):
        for seed, accuracy in enumerate(accuracies):
            row = {"step": step, "dataset": "bars", "protocol": "few_shot", "shots": 5, "seed": seed, "accuracy": accuracy}
            append_json_line(run / "evaluations.jsonl", row)
    status = read_status(run)
    assert [(e.measure, e.best_step, e.newest_step, e.num_checkpoints) for e in status.evaluations] == [
        ("bars 5-shot", 8, 12, 3)
    ]
    assert (status.evaluations[0].best, status.evaluations[0].newest) == (pytest.approx(0.7), pytest.approx(0.5))
    assert status.not_evaluated == 1  # step 0
    assert "50.0 % (step 12); max over 3 checkpoints, on the test split: 70.0 % (step 8)" in "\n".join(
        describe([status], style=PLAIN)
    )


def test_warnings_are_shown_while_it_runs(run: Path) -> None:
    (run / "complete.json").unlink()
    beat(run, phase="computing", alerts=["steps take 2 s, usually 1 s"])
    assert "  ! steps take 2 s, usually 1 s" in "\n".join(describe([read_status(run)], style=PLAIN))


def test_a_folder_of_runs_is_a_line_each(run: Path, call: Callable[..., Outcome]) -> None:
    shutil.copytree(run, run.with_name("other"), symlinks=True)
    assert find_runs([str(run.parent)]) == [run.with_name("other"), run]
    outcome = call("status", str(run.parent))
    lines = outcome.text.splitlines()
    assert [line.split()[:2] for line in lines] == [["run", "state"], ["other", "finished"], ["tiny", "finished"]]
    assert "\033" not in outcome.text  # a pipe gets no colours


def test_programs_get_json(run: Path, call: Callable[..., Outcome]) -> None:
    values = json.loads(call("status", str(run), "--json").text)
    assert (values["state"], values["step"], values["line"]["step"]) == ("finished", 12, 12)
    shutil.copytree(run, run.with_name("other"), symlinks=True)
    assert [item["state"] for item in json.loads(call("status", str(run.parent), "--json").text)] == ["finished"] * 2


def test_watching_ends_with_the_run(run: Path, call: Callable[..., Outcome]) -> None:
    assert call("status", str(run), "--watch").code == 0


def test_a_place_without_runs_is_answered_in_words(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    assert "is not a run folder and holds none" in call("status", str(tmp_path)).text
    assert "is not a folder" in call("status", str(tmp_path / "nothing")).text


def test_damaged_files_are_passed_over(run: Path) -> None:
    for name in ("heartbeat.json", "stragglers.json", "complete.json"):
        (run / name).write_text('{"step": ')
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:-30])
    (run / "checkpoints" / "step_00000012" / "manifest.json").write_text("")
    status = read_status(run)
    assert status.step == 11
    assert status.checkpoint is not None
    assert status.checkpoint.step == 8
    assert list(describe([status], style=PLAIN))


def test_a_dumb_output_gets_ascii() -> None:
    dumb = Style.of(io.TextIOWrapper(io.BytesIO(), encoding="ascii"), term="dumb", no_color=None)
    assert dumb == Style(colours=False, blocks=ASCII_BLOCKS)
    assert sparkline([8.0, 1.0, None, 4.0], style=dumb) == "@_="


def test_durations_have_two_units() -> None:
    assert [duration(s) for s in (0, 59.6, 61, 3600, 90_061)] == ["0 s", "1 min", "1 min 1 s", "1 h", "1 d 1 h"]

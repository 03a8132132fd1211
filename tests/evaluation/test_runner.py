"""The evaluator works on a real run folder: it repeats no existing result and loses none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.build.evaluator import make_evaluator
from pipeline.config.read import load_config
from pipeline.errors import EvaluationError
from pipeline.evaluation import records
from pipeline.evaluation.records import ResultFile
from pipeline.evaluation.watch import watch_run
from pipeline.files import write_whole
from pipeline.launch.signals import Interrupted, StopRequest
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.run.checkpoint import RunFolder
from pipeline.run.evaluations import read_results, set_weights_aside
from pipeline.run.folder import WeightsKind, WeightsName
from pipeline.run.records import read_json_lines
from pipeline.run.weights import save_weights
from tests.conftest import REPOSITORY, Outcome, environment
from tests.monitor.test_loggers import stored_history

Call = Callable[..., Outcome]

MODEL = ViTConfig(
    image_size=16, patch_size=8, width=32, depth=1, mlp_dim=64, num_heads=2, num_classes=4, representation_size=32, dropout=0.1
)
RESULTS_PER_STEP = 2 * 2 + 1  # shots x seeds, and the linear probe


def add_weights(folder: RunFolder, step: int, *, seed: int = 0, kind: WeightsKind = "raw") -> None:
    model = VisionTransformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(step + seed))
    save_weights(folder.weights_of(step, kind), model.state_dict(), model=MODEL, step=step, images_seen=8 * step, kind=kind)


@pytest.fixture
def folder(tmp_path: Path, write_config: Callable[..., Path]) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "tiny")
    folder.root.mkdir(parents=True, exist_ok=True)
    write_whole(folder.config, write_config().read_bytes())
    write_whole(folder.wandb_id, b"abc123")
    return folder


def test_every_checkpoint_is_evaluated_once(folder: RunFolder, call: Call) -> None:
    add_weights(folder, 0)
    add_weights(folder, 4)
    first = call("evaluate", str(folder.root), "tracking.mode=offline")
    assert first.code == 0, first.text
    rows = read_json_lines(folder.evaluations)
    assert [row["step"] for row in rows] == [0] * RESULTS_PER_STEP + [4] * RESULTS_PER_STEP
    assert {(r["protocol"], r["measure"], r["seed"]) for r in rows} == {
        ("few_shot", f"{s}-shot", k) for s in (1, 5) for k in (0, 1)
    } | {("linear", "linear", None)}
    assert all(row["test_images"] == 22 and row["images_seen"] == 8 * row["step"] for row in rows)
    again = call("evaluate", str(folder.root))
    assert "nothing to do" in again.text
    assert "[eval] step" not in again.text
    assert read_json_lines(folder.evaluations) == rows
    # A new setting adds what is missing and nothing else.
    call("evaluate", str(folder.root), "evaluation.protocols.few_shot.shots=[1,5,10]")
    added = read_json_lines(folder.evaluations)[len(rows) :]
    assert [(row["step"], row["shots"]) for row in added] == [(0, 10), (0, 10), (4, 10), (4, 10)]
    assert sorted((folder.root / "wandb").glob("offline-run-*-abc123-eval/*.wandb"))


def test_averaged_weights_are_measured_next_to_the_raw_ones(folder: RunFolder, call: Call) -> None:
    """Though their tensors are the same here: rows, status, report and W&B tell them apart."""
    for step in (0, 4):
        add_weights(folder, step)
    add_weights(folder, 4, kind="average")
    first = call("evaluate", str(folder.root), "tracking.mode=offline")
    assert first.code == 0, first.text
    assert "[eval] step 4 (average): " in first.text
    rows = read_json_lines(folder.evaluations)
    kinds = [row.get("weights_kind") for row in rows]
    assert kinds == [None] * 2 * RESULTS_PER_STEP + ["average"] * RESULTS_PER_STEP
    raw, average = rows[RESULTS_PER_STEP : 2 * RESULTS_PER_STEP], rows[2 * RESULTS_PER_STEP :]
    assert [row["accuracy"] for row in raw] == [row["accuracy"] for row in average]
    assert "nothing to do" in call("evaluate", str(folder.root)).text
    status = json.loads(call("status", str(folder.root), "--json").text)
    assert status["not_evaluated"] == 0
    steps = {found["measure"]: found["num_checkpoints"] for found in status["evaluations"]}
    assert (steps["bars 1-shot"], steps["bars 1-shot (average)"], steps["bars linear (average)"]) == (2, 1, 1)
    assert "bars 5-shot (average)" in call("report", str(folder.root)).text
    (row,) = [row for row in stored_history(folder.root, "abc123-eval") if row["_step"] == 4]
    assert row["eval/bars/linear_average"] == row["eval/bars/linear"]
    # Weights that are trained again are set aside, both kinds, and their results with them.
    set_weights_aside(folder, after=0)
    assert folder.weight_names() == [WeightsName(0)]
    assert {row["step"] for row in read_results(folder).rows} == {0}


def test_a_result_stands_only_for_what_it_was_measured_on(
    folder: RunFolder, downstream: dict[str, str], tmp_path: Path, write_shards: Callable[..., object], call: Call
) -> None:
    """Other weights of the same step, other images under the same name, or another preprocessing are measured again."""
    add_weights(folder, 4)
    call("evaluate", str(folder.root), "evaluation.precision=fp32")
    first = read_json_lines(folder.evaluations)
    add_weights(folder, 4, seed=99)
    call("evaluate", str(folder.root))  # auto: as before
    rows = read_json_lines(folder.evaluations)
    assert len(rows) == 2 * len(first)
    assert {row["weights"] for row in first}.isdisjoint(row["weights"] for row in rows[len(first) :])
    write_shards(tmp_path / "other", shard_sizes=[30])
    other = f"evaluation.datasets=[{{name: bars, train: {downstream['train']}, test: {tmp_path / 'other'}}}]"
    for count, override in enumerate((other, "evaluation.short_side=20", "evaluation.precision=bf16"), start=3):
        for _ in range(2):
            assert call("evaluate", str(folder.root), override).code == 0
            assert len(read_json_lines(folder.evaluations)) == count * len(first)


def test_results_do_not_depend_on_batching_or_on_who_decodes(
    folder: RunFolder, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TMPDIR may be long: a worker that could not open its socket there reported nothing, and the evaluator waited for ever."""
    scratch = tmp_path / ("a-scratch-folder-of-a-job" * 4)
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    add_weights(folder, 4)
    call("evaluate", str(folder.root), "evaluation.precision=fp32")
    rows = read_json_lines(folder.evaluations)
    folder.evaluations.unlink()
    call("evaluate", str(folder.root), "evaluation.precision=fp32", "evaluation.batch_size=5", "evaluation.num_workers=2")
    assert read_json_lines(folder.evaluations) == rows


def test_a_line_cut_by_a_crash_is_measured_again(folder: RunFolder, call: Call) -> None:
    add_weights(folder, 4)
    call("evaluate", str(folder.root))
    rows = read_json_lines(folder.evaluations)
    folder.evaluations.write_bytes(folder.evaluations.read_bytes()[:-40])  # the last line loses its end
    assert len(read_json_lines(folder.evaluations)) == len(rows) - 1
    call("evaluate", str(folder.root))
    assert read_json_lines(folder.evaluations) == rows


def test_lines_that_are_no_results_and_results_of_replaced_weights_reach_nobody(folder: RunFolder, call: Call) -> None:
    add_weights(folder, 4)
    strange = [
        {"step": 4, "accuracy": 0.5},
        {"step": 4, "dataset": "bars", "protocol": "linear", "accuracy": 1.0, "weights": "others"},
    ]
    folder.evaluations.write_text("".join(json.dumps(row) + "\n" for row in strange))
    result = call("evaluate", str(folder.root), "tracking.mode=offline")
    assert result.code == 0, result.text
    rows = read_json_lines(folder.evaluations)
    assert rows[:2] == strange
    (row,) = stored_history(folder.root, "abc123-eval")
    (linear,) = (row["accuracy"] for row in rows[2:] if row["protocol"] == "linear")
    assert row["eval/bars/linear"] == linear


def test_wandb_has_what_several_evaluators_have_measured(folder: RunFolder, call: Call) -> None:
    """Offline each writes a file of its own under one id, and of several `wandb sync` lets the last count."""
    add_weights(folder, 0)
    one = make_evaluator(folder, load_config(folder.config, ["tracking.mode=offline"]))
    one.evaluate_pending()
    add_weights(folder, 4)
    assert call("evaluate", str(folder.root), "tracking.mode=offline").code == 0
    one.close()
    assert [row["_step"] for row in stored_history(folder.root, "abc123-eval")] == [0, 4]  # of the only file


@contextmanager
def watching(folder: RunFolder, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """Run an evaluator that watches a run, in a process of its own. It is gone at the end."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "pipeline",
        "evaluate",
        str(folder.root),
        "--watch",
        "--poll-seconds",
        "0.2",
        *overrides,
    ]
    with (folder.root / "watcher.log").open("a") as log:
        watcher = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), text=True, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield watcher
        finally:
            watcher.kill()
            watcher.wait()


def test_a_watcher_waits_survives_a_kill_and_ends_with_the_run(folder: RunFolder) -> None:
    add_weights(folder, 0)
    with watching(folder) as watcher:
        wait_for(lambda: len(read_json_lines(folder.evaluations)) >= 1, watcher)
        watcher.kill()  # most likely in the middle of step 0
    with watching(folder) as watcher:
        add_weights(folder, 4)
        wait_for(lambda: any(row["step"] == 4 for row in read_json_lines(folder.evaluations)), watcher)
        assert watcher.poll() is None  # the run is not complete
        write_whole(folder.complete, json.dumps({"step": 4}).encode())
        assert watcher.wait(timeout=240) == 0
    rows = read_json_lines(folder.evaluations)
    assert sorted(row["step"] for row in rows) == [0] * RESULTS_PER_STEP + [4] * RESULTS_PER_STEP


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return decoding processes: they were spawned, and import torch for a second or two."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], text=True, capture_output=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.slow
def test_a_preempted_evaluation_is_no_failed_one(folder: RunFolder) -> None:
    """A scheduler signals every process of a job, in any order: the decoding ones before the one that knows what to do."""
    add_weights(folder, 4)
    with watching(folder, "evaluation.num_workers=1") as watcher:
        wait_for(lambda: workers_of(watcher) != [], watcher)
        for pid in workers_of(watcher):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(timeout=60) == 75
    text = (folder.root / "watcher.log").read_text()
    assert "[evaluate] stopped by SIGTERM; the same command resumes from here" in text
    assert "cannot be measured" not in text
    assert read_json_lines(folder.evaluations) == []  # else it would be recorded there as tried and failed
    assert list((folder.root / "claims").iterdir()) == []


@pytest.mark.parametrize("after", ["renamed", "another run in its place"])
def test_a_folder_that_was_renamed_is_neither_made_again_nor_mixed_up(
    folder: RunFolder, after: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_weights(folder, 0)
    evaluator = make_evaluator(folder, load_config(folder.config, ["tracking.mode=disabled"]))
    renamed = folder.root.with_name("renamed")

    class Renamed:
        """Evaluates in a folder that is renamed after its first look."""

        def __getattr__(self, name: str) -> Any:
            return getattr(evaluator, name)

        def evaluate_pending(self) -> None:
            evaluator.evaluate_pending()
            if renamed.exists():
                return
            folder.root.rename(renamed)
            if after != "renamed":
                folder.root.mkdir()
                write_whole(folder.wandb_id, b"another")
                add_weights(folder, 8)

    with pytest.raises(EvaluationError, match="not evaluated: ") as raised:
        watch_run(Renamed(), folder, watch=True, stop=StopRequest(), poll_s=0.01)
    why = (
        f"{folder.root} no longer exists"
        if after == "renamed"
        else f"{folder.root} is another run's folder now (W&B id another, not abc123)"
    )
    assert str(raised.value) == f"not evaluated: {why}; if it was moved, type `python -m pipeline evaluate` with its new path"
    assert f"[eval] {why}. This ends shortly unless it comes back" in capsys.readouterr().out
    assert len(read_json_lines(renamed / "evaluations.jsonl")) == RESULTS_PER_STEP
    assert not folder.evaluations.exists()
    assert not folder.claims.exists()


def test_results_of_a_step_whose_folder_goes_are_counted_as_not_recorded(folder: RunFolder) -> None:
    add_weights(folder, 0)
    evaluator = make_evaluator(folder, load_config(folder.config, ["tracking.mode=disabled"]))
    with evaluator.claims.take("step_00000000.json"):
        folder.root.rename(folder.root.with_name("renamed"))
        evaluator.results.add({"step": 0, "accuracy": 0.5})
    evaluator.evaluate_pending()
    assert not folder.root.exists()
    with pytest.raises(
        EvaluationError, match=r"1 results are not recorded: .* cannot be written .No such file or directory.; fix that"
    ):
        evaluator.check(lost=evaluator.why_lost())


def wait_for(condition: object, process: subprocess.Popen[str], timeout_s: float = 240) -> None:
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "the evaluator ended early"
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.datasets=[]", "evaluation.datasets is empty"),
        (
            "evaluation.datasets=[{name: x, train: /nowhere, test: /nowhere}]",
            "evaluation set 'x': data folder '/nowhere' does not exist",
        ),
        ("evaluation.protocol=[1]", "unknown key evaluation.protocol; did you mean evaluation.protocols?"),
    ],
)
def test_bad_settings_are_answered_in_words(folder: RunFolder, override: str, message: str, call: Call) -> None:
    result = call("evaluate", str(folder.root), override)
    assert result.code == 2
    assert message in result.text
    assert "Traceback" not in result.text


def test_without_a_folder_for_temporary_files_a_command_says_what_to_type(
    folder: RunFolder, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container's root is read-only."""
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
        result = call("evaluate", str(folder.root))
    assert result.code == 2
    assert "error: no folder for temporary files can be written (tried: ['/proc/nowhere']), or its disk is full" in result.text
    assert "type `export TMPDIR=FOLDER`" in result.text


def test_in_a_folder_that_is_gone_a_command_says_so(folder: RunFolder, tmp_path: Path) -> None:
    """This happens after the removal of a worktree. oneMKL would end the process at its first matrix product."""
    gone = tmp_path / "gone"
    gone.mkdir()
    ended = subprocess.run(
        ["bash", "-c", 'rmdir "$PWD"; exec "$@"', "-", sys.executable, "-m", "pipeline", "evaluate", str(folder.root)], cwd=gone,
        env=environment(PYTHONPATH=str(REPOSITORY)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "error: the folder in which this command was started has been removed or renamed; `cd` into one" in ended.stdout
    assert "Traceback" not in ended.stdout


def test_weights_that_are_removed_before_their_turn_are_passed_over(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clean-up while a watcher runs causes no failure, and nothing to retry."""
    add_weights(folder, 0)
    add_weights(folder, 4)
    evaluator = make_evaluator(folder, load_config(folder.config, ["tracking.mode=disabled"]))
    pending = evaluator._pending
    monkeypatch.setattr(evaluator, "_pending", lambda: (pending(), folder.weights_of(4).unlink())[0])
    evaluator.evaluate_pending()
    evaluator.check(lost=None)
    assert "[eval] step 4: its weights have been removed meanwhile; passed over" in capsys.readouterr().out
    assert {row["step"] for row in read_json_lines(folder.evaluations)} == {0}


def test_splits_that_number_their_classes_differently_are_refused(
    folder: RunFolder, downstream: dict[str, str], tmp_path: Path, call: Call
) -> None:
    train, test = (Path(shutil.copytree(downstream[split], tmp_path / split)) for split in ("train", "test"))
    (train / "classes.txt").write_text("a cat\na dog\nbird\nfish\n")
    sets = f"evaluation.datasets=[{{name: x, train: {train}, test: {test}}}]"
    assert call("evaluate", str(folder.root), sets).code == 0  # only one says
    (test / "classes.txt").write_text("a dog\na cat\nbird\nfish\n")
    result = call("evaluate", str(folder.root), sets)
    assert result.code == 2
    assert "evaluation set 'x': the splits number their classes differently" in result.text
    (test / "classes.txt").write_text("a cat\na dog\nbird\nfish\n")
    assert call("evaluate", str(folder.root), sets).code == 0


def test_a_damaged_weights_file_is_named_and_does_not_hold_up_the_others(folder: RunFolder, call: Call) -> None:
    add_weights(folder, 4)
    add_weights(folder, 8)
    path = folder.weights_of(4)
    path.write_bytes(path.read_bytes()[:1000])
    result = call("evaluate", str(folder.root))
    assert result.code == 2
    assert f"error: not evaluated: {path} is not a weights file of this software, or is damaged" in result.text
    assert [row["step"] for row in read_json_lines(folder.evaluations)] == [8] * RESULTS_PER_STEP


def rows_by_dataset(folder: RunFolder) -> dict[str, list[dict[str, object]]]:
    rows = read_json_lines(folder.evaluations)
    return {name: [row for row in rows if row["dataset"] == name] for name in {row["dataset"] for row in rows}}


def test_what_one_set_or_protocol_lacks_is_recorded_and_the_rest_is_measured(
    folder: RunFolder, downstream: dict[str, str], tmp_path: Path, write_shards: Callable[..., object], call: Call
) -> None:
    add_weights(folder, 4)
    write_shards(tmp_path / "one", shard_sizes=[4])  # an image a class
    write_shards(tmp_path / "broken", shard_sizes=[6], format="PNG")
    shard = tmp_path / "broken" / "shard-000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"\x89PNG", b"\x89GNP"))
    train, test = downstream["train"], downstream["test"]
    sets = (
        f"evaluation.datasets=[{{name: one, train: {tmp_path}/one, test: {test}}},{{name: away, train: /nowhere, test: "
        f"{test}}},"
        f"{{name: broken, train: {train}, test: {tmp_path}/broken}},{{name: fine, train: {train}, test: {test}}}]"
    )
    result = call("evaluate", str(folder.root), sets)
    assert result.code == 2
    assert "Traceback" not in result.text
    rows = rows_by_dataset(folder)
    assert all(row["accuracy"] is not None for row in rows["fine"])
    assert len(rows["fine"]) == RESULTS_PER_STEP
    assert {row["protocol"]: row["accuracy"] is None for row in rows["one"]} == {"few_shot": False, "linear": True}
    reasons = {name: {row.get("error") for row in rows[name] if row["accuracy"] is None} for name in rows}
    assert reasons["one"] == {
        "no class has two images in its train split (4 images of 4 classes), so none can be held out to choose the penalty "
        "of the "
        "linear probe; few_shot can be measured"
    }
    assert reasons["broken"] == {"none of the 6 images of its test split can be read"}
    assert next(str(reason) for reason in reasons["away"]).startswith("evaluation set 'away': data folder '/nowhere' does not")
    assert "error: not evaluated: one linear at step 4: no class has two images" in result.text
    # The next start retries what failed, and records the same failure once.
    before = folder.evaluations.read_bytes()
    assert call("evaluate", str(folder.root), sets).code == 2
    assert folder.evaluations.read_bytes() == before
    assert call("report", str(folder.root)).code == 0
    assert call("status", str(folder.root)).code == 0


def test_weights_that_are_not_finite_have_no_accuracy(folder: RunFolder, call: Call) -> None:
    model = VisionTransformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(4))
    state = model.state_dict()
    name = next(name for name in state if name.endswith("weight"))
    state[name].view(-1)[3] = float("nan")
    save_weights(folder.weights_of(4), state, model=MODEL, step=4, images_seen=32)
    add_weights(folder, 8)
    result = call("evaluate", str(folder.root))
    assert result.code == 2
    assert (
        f"the weights of step 4 are not finite (NaN or infinity in 1 tensors, {name} first): training has diverged"
        in result.text
    )
    rows = read_json_lines(folder.evaluations)
    assert {(row["step"], row["accuracy"] is None) for row in rows} == {(4, True), (8, False)}


def test_results_wait_while_they_cannot_be_written(tmp_path: Path) -> None:
    results = ResultFile(tmp_path / "away" / "evaluations.jsonl")
    first, second, third = ({"step": step, "accuracy": 0.5} for step in (1, 2, 3))
    results.add(first)
    results.add(second)
    assert results.rows() == [first, second]
    results.path.parent.mkdir()
    # A write that failed half-way has left a whole line, and a part of one.
    results.path.write_text(json.dumps(first) + "\n" + json.dumps(second)[:9])
    results.add(third)
    assert read_json_lines(results.path) == [first, second, third]
    assert not results.waiting


def test_a_write_that_a_signal_breaks_off_is_not_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler raises when the call returns. Otherwise what is written by then is written again at the evaluator's end."""
    results = ResultFile(tmp_path / "evaluations.jsonl")
    results.add({"step": 1})
    write = records.append_json_lines

    def write_and_be_told(path: Path, rows: list[records.Row]) -> None:
        write(path, rows)
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(records, "append_json_lines", write_and_be_told)
    with pytest.raises(Interrupted):
        results.add({"step": 2})
    monkeypatch.setattr(records, "append_json_lines", write)
    results.flush()
    assert read_json_lines(results.path) == [{"step": 1}, {"step": 2}]
    assert results.waiting == []


def test_a_file_that_cannot_grow_keeps_nothing_from_being_measured(folder: RunFolder) -> None:
    """The limit on a file's size acts like a full disk, and needs no disk of its own."""
    add_weights(folder, 4)
    add_weights(folder, 8)
    folder.evaluations.write_text("".join(json.dumps({"somebody": "else's"}) + "\n" for _ in range(1000)))
    size = folder.evaluations.stat().st_size
    before = folder.evaluations.read_bytes()
    command = ["prlimit", f"--fsize={size}", sys.executable, "-m", "pipeline", "evaluate", str(folder.root)]
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240
    )
    assert ended.returncode == 2, ended.stdout
    assert "Traceback" not in ended.stdout
    assert ended.stdout.count("results wait in memory") == 1
    assert all(f"[eval] step {step}: bars 1-shot" in ended.stdout for step in (4, 8))
    assert f"{2 * RESULTS_PER_STEP} results are not recorded" in ended.stdout
    assert folder.evaluations.read_bytes() == before

"""What cannot be measured or written costs itself alone, and is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.build.evaluator import make_evaluator
from pipeline.config.read import load_config
from pipeline.evaluation import records
from pipeline.evaluation.records import ResultFile
from pipeline.evaluation.work import Work
from pipeline.launch.signals import Interrupted
from pipeline.models.vit.model import VisionTransformer
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines
from pipeline.run.weights import save_weights
from tests.conftest import REPOSITORY, environment
from tests.helpers.evaluations import MODEL, RESULTS_PER_STEP, Call, add_weights


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
        ["bash", "-c", 'rmdir "$PWD"; exec "$@"', "-", sys.executable, "-m", "pipeline", "evaluate", str(folder.root)],
        cwd=gone, env=environment(PYTHONPATH=str(REPOSITORY)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
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
    evaluate = evaluator._evaluate

    def remove_then_evaluate(work: Work) -> None:
        if work.name.step == 4:
            folder.weights_of(4).unlink()
        evaluate(work)

    monkeypatch.setattr(evaluator, "_evaluate", remove_then_evaluate)
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


@pytest.mark.slow
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

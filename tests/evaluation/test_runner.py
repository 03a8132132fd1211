"""The evaluator works on a real run folder: it repeats no existing result and loses none."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.build.evaluator import make_evaluator
from pipeline.config.read import load_config
from pipeline.evaluation.work import Work
from pipeline.run.checkpoint import RunFolder
from pipeline.run.claims import Claims
from pipeline.run.evaluations import read_results, set_weights_aside
from pipeline.run.folder import WeightsName, name_of_claim
from pipeline.run.records import read_json_lines
from tests.helpers.evaluations import RESULTS_PER_STEP, Call, add_weights
from tests.helpers.wandb_files import stored_history


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
    assert sorted((folder.root / "wandb").glob("offline-run-*/run-abc123-eval.wandb"))


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
    more = ("evaluation.batch_size=5", "evaluation.num_workers=2", "evaluation.cache_gib=0")
    call("evaluate", str(folder.root), "evaluation.precision=fp32", *more)
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
    """Offline each writes a file under one id, of which `wandb sync` lets the last count: the one that ends last stays."""
    add_weights(folder, 0)
    one = make_evaluator(folder, load_config(folder.config, ["tracking.mode=offline"]))
    one.evaluate_pending()
    add_weights(folder, 4)
    assert call("evaluate", str(folder.root), "tracking.mode=offline").code == 0
    one.close()
    assert [row["_step"] for row in stored_history(folder.root, "abc123-eval")] == [0, 4]  # of the only file


def test_evaluators_share_checkpoints_and_sets(folder: RunFolder, downstream: dict[str, str], call: Call) -> None:
    """One leaves alone what another works on, does all the rest, and the newest weights first if it is asked to."""
    for step in (0, 4, 8):
        add_weights(folder, step)
    sets = json.dumps([{**downstream, "name": name} for name in ("bars", "lines.v2")])
    settings = (f"evaluation.datasets={sets}", "evaluation.order=newest", "tracking.mode=offline")
    with Claims(folder.claims).take(name_of_claim(WeightsName(8), "bars")):
        assert "evaluating   bars at step 8 on " in call("status", str(folder.root)).text
        assert call("evaluate", str(folder.root), *settings).code == 0
    rows = read_json_lines(folder.evaluations)
    done = list(dict.fromkeys((row["step"], row["dataset"]) for row in rows))
    assert done == [(8, "lines.v2"), (4, "bars"), (4, "lines.v2"), (0, "bars"), (0, "lines.v2")]
    assert [row["_step"] for row in stored_history(folder.root, "abc123-eval")] == [0, 4, 8]
    assert call("evaluate", str(folder.root), *settings).code == 0
    more = read_json_lines(folder.evaluations)[len(rows) :]
    assert {(row["step"], row["dataset"]) for row in more} == {(8, "bars")}
    assert len(more) == RESULTS_PER_STEP


def test_new_weights_are_seen_before_older_ones(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (0, 4):
        add_weights(folder, step)
    config = load_config(folder.config, ["tracking.mode=disabled", "evaluation.order=newest"])
    evaluator = make_evaluator(folder, config)
    evaluate = evaluator._evaluate

    def evaluate_then_train(work: Work) -> None:
        evaluate(work)
        if work.name.step == 4:
            add_weights(folder, 8)

    monkeypatch.setattr(evaluator, "_evaluate", evaluate_then_train)
    evaluator.evaluate_pending()
    evaluator.close()
    assert list(dict.fromkeys(row["step"] for row in read_json_lines(folder.evaluations))) == [4, 8, 0]

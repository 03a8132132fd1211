"""Two runs are compared by their folders: each reason is given where it holds, and not where it does not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.compare.comparison import Comparison, compare_folders
from pipeline.compare.settings import influence_of
from pipeline.compare.verdict import judge
from pipeline.errors import ConfigError
from tests.compare.folders import Row, Written, data_record, line, result
from tests.conftest import Outcome

Compare = Callable[[Written, Written], Comparison]
Change = Callable[[Written], Written]
LATE = (30, 40, 50)


@pytest.fixture
def base(tiny_config: dict[str, Any]) -> Written:
    config = {**tiny_config, "trainer": {**tiny_config["trainer"], "precision": "fp32"}}
    return Written({**config, "model": {**config["model"], "dropout": 0.0}})


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    def run(a: Written, b: Written) -> Comparison:
        return compare_folders(a.write(tmp_path / "a"), b.write(tmp_path / "b"))

    return run


def reasons(found: Comparison) -> list[str]:
    return [verdict.reason for verdict in judge(found)]


def sentence(found: Comparison, reason: str) -> str:
    (text,) = [verdict.text for verdict in judge(found) if verdict.reason == reason]
    return text


def losses(written: Written, **relative: float) -> Written:
    """Return a run whose losses differ at `s30=1e-7` by so much."""
    rows = []
    for row in written.lines:
        rows.append({**row, "train/loss": row["train/loss"] * (1 + relative.get(f"s{row['step']}", 0.0))})
    return replace(written, lines=rows)


CASES: dict[str, tuple[Change, list[str]]] = {
    "nothing": (lambda run: run, ["chance"]),
    "another name and place": (lambda run: run.setting(name="b", output_dir="x", tracking__log_every=7), ["chance"]),
    "learning rate": (lambda run: run.changing(LATE, train__learning_rate=0.002), ["learning rate", "chance"]),
    "another schedule with the same end": (
        lambda run: run.changing((20, 30), train__learning_rate=0.002),
        ["learning rate", "chance"],
    ),
    "a learning rate's last digit": (lambda run: run.changing(LATE, train__learning_rate=0.001 * (1 + 1e-15)), ["chance"]),
    "settings": (lambda run: run.setting(optimizer__weight_decay=0.1), ["settings", "chance"]),
    "first weights": (lambda run: replace(run, initial={"source": "x", "digest": "2"}), ["first weights", "chance"]),
    "data": (
        lambda run: replace(run, data=data_record("g", **{"shard-1": [101, 10, "cc", "dd"]})),
        ["data", "chance"],
    ),
    "the same shards at another place": (lambda run: run.setting(data__train="/elsewhere"), ["chance"]),
    "samples": (lambda run: run.changing(LATE, data__digest=7), ["samples", "chance"]),
    "skipped steps": (lambda run: run.changing((50,), train__skipped_steps=3), ["skipped steps", "chance"]),
    "ranks without masks": (lambda run: replace(run, ranks=1), ["chance"]),
    "rounding": (lambda run: losses(run, s20=1e-7, s30=2e-7, s50=3e-6), ["rounding", "chance"]),
    "rounding that grew": (lambda run: losses(run, s20=1e-7, s30=2e-6, s40=3e-5, s50=4e-4), ["rounding", "chance"]),
    "loss": (lambda run: losses(run, s40=0.01, s50=0.01), ["loss", "chance"]),
    "a line after a resume": (lambda run: losses(run, s20=0.01), ["chance"]),
    "more than chance": (lambda run: replace(run, results=[result("linear", 0.75)]), ["more than chance"]),
    "not tested": (lambda run: replace(run, results=[]), ["nothing"]),
    "measured differently": (
        lambda run: replace(run, results=[result("linear", 0.8, data="other")]),
        ["measured differently", "chance"],
    ),
    "length": (
        lambda run: replace(run, lines=run.lines[:4], results=[result("linear", 0.8, step=40)]),
        ["length", "chance"],
    ),
    "another length, evaluated at a common step": (lambda run: replace(run, lines=run.lines[:4]), ["chance"]),
}


@pytest.mark.parametrize("name", CASES)
def test_each_reason_is_given_where_it_holds_alone(name: str, base: Written, compare: Compare) -> None:
    change, expected = CASES[name]
    assert reasons(compare(base, change(base))) == expected


def test_causes_come_before_effects_and_the_learning_rate_first(base: Written, compare: Compare) -> None:
    other = base.setting(optimizer__learning_rate=4e-3, seed=4).changing(
        LATE, train__learning_rate=0.002, data__digest=7, train__loss=3.0
    )
    found = compare(base, replace(other, results=[result("linear", 0.7)]))
    assert reasons(found) == ["learning rate", "settings", "samples", "loss", "more than chance"]
    assert sentence(found, "learning rate").startswith("the learning rate differs from step 30 on (0.001 and 0.002)")
    assert "the samples differ between step 20 and step 30" in sentence(found, "samples")
    assert "seed" in sentence(found, "settings")
    assert "-10.00 points" in sentence(found, "more than chance")


def test_ranks_with_dropout_draw_other_masks(base: Written, compare: Compare) -> None:
    noisy = base.setting(model__dropout=0.1)
    assert reasons(compare(noisy, replace(noisy, ranks=4))) == ["masks by rank", "chance"]


def test_what_rounds_is_named_where_losses_differ(base: Written, compare: Compare) -> None:
    found = compare(base, losses(replace(base, ranks=4, versions={"pipeline": "1", "torch": "2.1"}), s20=1e-7))
    assert "of the number of ranks (2 and 4) and versions of software (torch 2.0 and 2.1)" in sentence(found, "rounding")
    (only,) = [verdict for verdict in judge(found) if verdict.reason == "rounding"]
    assert "rounding alone" in only.text


def test_a_sudden_difference_without_a_record_says_so(base: Written, compare: Compare) -> None:
    assert "nothing that is recorded explains it" in sentence(compare(base, losses(base, s50=0.01)), "loss")


def test_bf16_may_differ_by_two_percent(base: Written, compare: Compare) -> None:
    coarse = base.setting(trainer__precision="bf16")
    found = compare(base, losses(coarse, s10=0.01, s20=0.01, s30=0.01, s40=0.01, s50=0.01))
    assert found.series["train/loss"].pattern == "within rounding"
    assert "trainer.precision" in sentence(found, "rounding")


def test_digests_say_between_which_lines_and_whether_it_lasts(base: Written, compare: Compare) -> None:
    """The digest is a sum since the start, so that an interval is the difference of two lines."""
    shifted = [{**row, "data/digest": row["data/digest"] + (5 if row["step"] > 20 else 0)} for row in base.lines]
    sparse = [row for row in shifted if row["step"] in (20, 40, 50)]
    samples = compare(base, replace(base, lines=sparse)).samples
    assert samples is not None
    assert (samples.after, samples.at, samples.compared) == (20, 40, 3)
    assert (samples.differing, samples.intervals) == (1, 3)


def test_losses_of_sparser_lines_are_means_over_the_same_steps(base: Written, compare: Compare) -> None:
    rows = list(base.lines)
    values = [row["train/loss"] for row in rows]
    pooled = [line(20, train__loss=sum(values[:2]) / 2), line(50, train__loss=sum(values[2:]) / 3)]
    found = compare(base, replace(base, lines=pooled))
    assert found.series["train/loss"].largest < 1e-12


def test_runs_of_other_batches_are_compared_at_the_same_images(base: Written, compare: Compare) -> None:
    double = base.setting(trainer__global_batch_size=16)
    found = compare(base, replace(double, lines=[line(step, batch=16, train__loss=0.1) for step in (5, 10, 15, 20, 25)]))
    assert found.key == "images_seen"
    assert found.samples is not None
    assert (found.samples.last, found.samples.at) == (400, None)
    assert reasons(found)[0] == "settings"


def few_shot(*accuracies: float, first_seed: int = 0) -> list[Row]:
    return [result("5-shot", value, seed=first_seed + number, shots=5) for number, value in enumerate(accuracies)]


def test_the_same_seeds_are_paired_and_the_larger_p_counts(base: Written, compare: Compare) -> None:
    a, b = few_shot(0.60, 0.62, 0.64), few_shot(0.50, 0.53, 0.53)
    (score,) = compare(replace(base, results=a), replace(base, results=b)).scores
    assert (score.seeds, score.by, score.judgement) == ([0, 1, 2], "seeds", "more than chance")
    assert score.p == score.p_seeds
    assert score.p_images is not None
    assert score.p_seeds is not None
    assert score.p_images < score.p_seeds < 0.05


def test_seeds_whose_differences_vary_are_no_difference(base: Written, compare: Compare) -> None:
    a, b = few_shot(0.60, 0.62, 0.64), few_shot(0.50, 0.62, 0.61)
    (score,) = compare(replace(base, results=a), replace(base, results=b)).scores
    assert score.judgement == "not more than chance"


def test_seeds_that_differ_are_no_pairs(base: Written, compare: Compare) -> None:
    a, b = few_shot(0.6, 0.7), few_shot(0.6, 0.7, first_seed=5)
    (score,) = compare(replace(base, results=a), replace(base, results=b)).scores
    assert (score.seeds, score.by, score.p_seeds) == ([], "test images", None)


def test_many_measures_are_corrected_for_their_number(base: Written, compare: Compare) -> None:
    """One p of 0.02 among eight is no finding."""
    names = [f"measure-{number}" for number in range(8)]
    a = [result(name, 0.5) for name in names]
    b = [result(name, 0.552 if name == "measure-0" else 0.5) for name in names]
    scores = compare(replace(base, results=a), replace(base, results=b)).scores
    assert scores[0].p is not None
    assert 0.015 < scores[0].p < 0.025
    assert scores[0].p_corrected == pytest.approx(8 * scores[0].p)
    assert {score.judgement for score in scores} == {"not more than chance"}


def test_losses_are_shown_and_not_tested(base: Written, compare: Compare) -> None:
    rows = [
        {"step": 50, "dataset": "val", "protocol": "upstream", "measure": "loss", "seed": None, "loss": loss}
        for loss in (1.5, 1.25)
    ]
    (score,) = compare(replace(base, results=rows[:1]), replace(base, results=rows[1:])).scores
    assert (score.difference, score.p, score.judgement) == (-0.25, None, "not tested")


def test_losses_that_are_not_finite_differ(base: Written, compare: Compare) -> None:
    series = compare(base, base.changing((40, 50), train__loss=None)).series["train/loss"]
    assert (series.beyond, series.b, series.pattern) == (40, None, "sudden")
    assert math.isfinite(series.largest)


def test_an_evaluated_models_folder_is_compared_by_its_results(
    base: Written, tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    run, model = base.write(tmp_path / "run"), tmp_path / "model"
    (model / "weights").mkdir(parents=True)
    (model / "evaluations.jsonl").write_text(json.dumps(result("linear", 0.5, step=0)) + "\n")
    outcome = call("compare", str(run), str(model))
    assert outcome.code == 0, outcome.text
    assert "not compared: a folder without config.yaml is among them" in outcome.text
    assert "bars linear  50/0  80.00 %  50.00 %  -30.00 points" in outcome.text


def test_the_text_and_the_file_have_the_same_reasons(base: Written, tmp_path: Path, call: Callable[..., Outcome]) -> None:
    a, b = base.write(tmp_path / "a"), losses(base.setting(seed=9), s20=0.1, s30=0.1, s40=0.1, s50=0.1).write(tmp_path / "b")
    outcome = call("compare", str(a), str(b), "--json", str(tmp_path / "all.json"))
    assert outcome.code == 0, outcome.text
    values = json.loads((tmp_path / "all.json").read_text())
    assert [each["reason"] for each in values["verdict"]] == ["settings", "loss", "chance"]
    assert "likely reasons, in order\n  1. 1 setting that can change numbers differs: seed" in outcome.text
    assert values["samples"]["compared"] == 5
    outcome = call("compare", str(a), str(b), "--json", str(tmp_path / "nowhere" / "all.json"))
    assert (outcome.code, "cannot be written" in outcome.text) == (2, True)


def test_a_configuration_of_another_version_is_compared_as_it_stands(base: Written, compare: Compare) -> None:
    found = compare(base, base.setting(data__new_setting=3))
    assert found.settings is not None
    assert found.settings.note is not None
    assert [each.key for each in found.settings.settings if each.influence == "numbers"] == ["data.new_setting"]


def test_what_cannot_be_compared_is_said(base: Written, tmp_path: Path) -> None:
    run = base.write(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(run)
    for other, told in {"empty": "is not a run folder", "none": "is not a folder", "link": "are the same folder"}.items():
        with pytest.raises(ConfigError, match=told):
            compare_folders(run, tmp_path / other)
    for name, step in (("x", 10), ("y", 15)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line(step)) + "\n")
    with pytest.raises(ConfigError, match="have nothing in common"):
        compare_folders(tmp_path / "x", tmp_path / "y")


def test_settings_that_cannot_change_numbers_are_told_from_those_that_can() -> None:
    none = ["name", "output_dir", "tracking.project", "evaluation.datasets", "checkpoint.every", "data.num_workers"]
    assert {influence_of(key) for key in none} == {"none"}
    assert {influence_of(key) for key in ("trainer.devices", "trainer.zero_stage")} == {"rounding"}
    numbers = [
        "seed",
        "model.depth",
        "data.train",
        "data.flip",
        "optimizer.learning_rate",
        "schedule.warmup",
        "trainer.duration",
    ]
    assert {influence_of(key) for key in numbers} == {"numbers"}

"""The study of choices: what each variant is, the statistics against scipy's, and a small study from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.benchmark.choices.results import RunResult, compare, draw, make_table, measures_of, pooled_deviation
from pipeline.benchmark.choices.variants import DEFAULT, UNTRAINED, VARIANTS, choose_variants, configure
from pipeline.build.sub_runs import MeasuredSteps
from pipeline.commands.benchmark import CHOICES_CONFIG
from pipeline.config.read import load_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, ExitCode
from pipeline.run.checkpoint import RunFolder
from tests.conftest import REPOSITORY, environment, run_command
from tests.helpers.run_folders import write_weights
from tests.helpers.trainings import reached, wait_until


def make_base(*overrides: str) -> RunConfig:
    return load_config(CHOICES_CONFIG, ["data.train=/data", "evaluation.validation=/data/val", *overrides])


def variant(name: str, base: RunConfig | None = None) -> RunConfig:
    return configure(base or make_base(), VARIANTS[name], name=name, seed=1, output_dir="out")


def differences(one: Any, other: Any, path: str = "") -> set[str]:
    """Return the dotted keys whose values differ, or which one of two mappings lacks."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return set() if one == other else {path}
    keys = [(key, f"{path}.{key}".strip(".")) for key in one.keys() | other.keys()]
    return {found for key, name in keys for found in differences(one.get(key), other.get(key), name)}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != DEFAULT])
def test_a_variant_is_the_default_but_for_what_it_names(name: str) -> None:
    found = differences(variant(name).model_dump(), variant(DEFAULT).model_dump()) - {"name"}
    named = {f"{section}.{key}" for section, settings in VARIANTS[name].items() for key in settings}
    assert named <= found
    of_other_members = {key for key in found - named if key.partition(".")[0] in VARIANTS[name]}
    assert found == named | of_other_members
    assert not of_other_members or {"model.family", "objective.name"} & named


def test_the_default_is_the_papers() -> None:
    model = make_base().model.model_dump()
    assert (model["pooling"], model["position"], model["position_at"]) == ("class_token", "learned_1d", "stem")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_makes_a_model_of_as_many_tokens(name: str) -> None:
    patches = [variant(n).model.resolve().patches for n in (name, DEFAULT)]
    assert patches[0] == patches[1] or name == "bit"
    assert variant(name).seed == 1
    assert variant(name).run_dir == Path("out") / name


def test_another_family_keeps_the_settings_that_it_has_too() -> None:
    base = make_base("model.width=96", "model.layer_scale=0.1", "model.num_classes=7")
    hybrid = variant("hybrid", base).model.model_dump()
    assert (hybrid["width"], hybrid["layer_scale"], hybrid["num_classes"]) == (96, 0.1, 7)
    bit = variant("bit", base).model.model_dump()
    assert bit["num_classes"] == 7
    assert "width" not in bit


def test_variants_are_chosen_by_parts_of_their_names() -> None:
    assert list(choose_variants([])) == list(VARIANTS)
    assert list(choose_variants(["gap", "hybrid"])) == [DEFAULT, "pooling_gap", "hybrid"]
    with pytest.raises(ConfigError, match="gapp: no variant has it in its name; they are default, position_none"):
        choose_variants(["gapp"])
    assert set(UNTRAINED.values()) <= set(VARIANTS)
    assert not set(UNTRAINED) & set(VARIANTS)


def result(name: str, seed: int, **measures: float) -> RunResult:
    return RunResult(
        name, seed, 1000, 2_000_000, None if seed else 50.0, {f"{key} %": value for key, value in measures.items()}
    )


def test_the_standard_error_of_two_variants_is_that_of_students_t_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    ours, default = generator.normal(0.3, 0.02, 3).tolist(), generator.normal(0.25, 0.02, 5).tolist()
    rows = [result(DEFAULT, i, linear=value) for i, value in enumerate(default)]
    rows += [result("other", i, linear=value) for i, value in enumerate(ours)]
    found = compare(rows, measure="linear %")["other"]
    assert found.difference is not None
    assert found.error is not None
    assert found.difference / found.error == pytest.approx(stats.ttest_ind(ours, default).statistic, rel=1e-12)
    assert found.deviation == pytest.approx(np.std(ours, ddof=1), rel=1e-12)


def test_the_pooled_deviation_is_that_of_an_analysis_of_variance() -> None:
    """The mean square inside groups, by scipy: F is the mean square between groups over it."""
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(1)
    groups = [generator.normal(mean, 1.0, count).tolist() for mean, count in ((0, 3), (1, 3), (4, 2))]
    grand = np.concatenate(groups).mean()
    between = sum(len(group) * (np.mean(group) - grand) ** 2 for group in groups) / 2
    pooled = pooled_deviation(groups)
    assert pooled is not None
    assert between / pooled**2 == pytest.approx(stats.f_oneway(*groups).statistic, rel=1e-12)
    assert pooled_deviation([[1.0], [2.0]]) is None


def test_the_table_has_means_deviations_and_differences(tmp_path: Path) -> None:
    rows = [result(DEFAULT, 0, linear=10, shots=20), result(DEFAULT, 1, linear=12, shots=20)]
    rows += [result("b", 0, linear=20), result("b", 1, linear=20)]
    assert measures_of(rows) == ["linear %", "shots %"]
    assert make_table(rows).splitlines()[2:] == [
        "| default | 2 | 1,000 | 2.0 | 50 | 11.0 ± 1.4 | 20.0 ± 0.0 |",
        "| b | 2 | 1,000 | 2.0 | 50 | 20.0 ± 0.0 (+9.0 ± 1.0) |  |",
    ]
    assert "| b | 1 | 1,000 | 2.0 | 50 | 20.0 (+9.0" in make_table(rows[:3])
    draw(tmp_path / "picture.png", rows)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"--plot .*picture.doc: cannot be written"):
        draw(tmp_path / "picture.doc", rows)


def test_the_evaluator_sees_the_chosen_steps_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (0, 5, 10):
        write_weights(folder, step, seed=0)
    assert MeasuredSteps(tmp_path, frozenset({0, 10})).weight_steps() == [0, 10]
    assert MeasuredSteps(tmp_path, frozenset({10})).weight_steps() == [10]


SMALLER = [
    "model.name=Ti/8", "model.image_size=16", "model.width=32", "model.depth=1", "model.num_heads=2",
    "trainer.duration=12 steps", "schedule.warmup=2 steps", "checkpoint.every=4 steps", "trainer.global_batch_size=8",
    "evaluation.protocols.few_shot.shots=[5]", "evaluation.short_side=16", "tracking.log_every=1",
]  # fmt: skip


def study_line(out: Path, corpus: Path, downstream: dict[str, str]) -> list[str]:
    data = ["--train", str(corpus), "--probe", downstream["train"], "--test", downstream["test"]]
    return ["benchmark", "choices", str(out), *SMALLER, *data, "--seeds", "1"]


@pytest.mark.long
def test_a_small_study(tmp_path: Path, corpus: Path, downstream: dict[str, str]) -> None:
    out = tmp_path / "study"
    line = study_line(out, corpus, downstream)

    def study(*arguments: str) -> tuple[int, str]:
        done = run_command(*line, *arguments)
        return done.returncode, done.stdout

    files = ("--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png"))
    code, text = study("--only", "masked", *files)
    assert code == 0, text
    found = json.loads((tmp_path / "r.json").read_text())
    runs = {run["variant"]: run for run in found["runs"]}
    assert list(runs) == [DEFAULT, "masked_patches_step_0", "masked_patches"]
    assert set(runs[DEFAULT]["measures"]) == {"5-shot %", "linear %", "test top-1 %", "test loss", "train top-1 %"}
    assert set(runs["masked_patches"]["measures"]) == {"5-shot %", "linear %"}
    assert found["settings"]["model"]["num_classes"] == 4
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")] == ["variant", *runs]
    assert (tmp_path / "r.png").exists()

    # A run that was interrupted resumes, one that is complete is not trained again.
    folder = RunFolder(out / "default-s0")
    folder.complete.unlink()
    for path in sorted(folder.checkpoint_of(12).rglob("*"), reverse=True):
        path.unlink()
    before = {name: (out / f"{name}-s0.log").read_text().count("[run] pipeline") for name in (DEFAULT, "masked_patches")}
    code, again = study("--only", "masked")
    assert code == 0, again
    after = {name: (out / f"{name}-s0.log").read_text() for name in before}
    assert after[DEFAULT].count("[run] pipeline") == before[DEFAULT] + 1
    assert "resuming from" in after[DEFAULT]
    assert after["masked_patches"].count("[run] pipeline") == before["masked_patches"]
    table = [[line for line in output.splitlines() if line.startswith("| masked")] for output in (text, again)]
    assert table[0] == table[1]

    # A run that cannot go on is named, with the reason, after the others' results.
    code, refused = study("model.depth=2", "--only", DEFAULT)
    assert code == 2
    assert "default-s0: its training ended with exit code 2" in refused
    assert "model.depth" in refused


@pytest.mark.slow
def test_a_stop_saves_the_training_at_work(tmp_path: Path, corpus: Path, downstream: dict[str, str]) -> None:
    line = [*study_line(tmp_path / "study", corpus, downstream), "trainer.duration=20000 steps", "--only", DEFAULT]
    folder = RunFolder(tmp_path / "study" / "default-s0")
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *line], cwd=REPOSITORY, env=environment(), text=True)
    try:
        wait_until(lambda: reached(folder, 2), process, poll_s=0.1)
        process.terminate()
        assert process.wait(timeout=120) == ExitCode.STOPPED
    finally:
        process.kill()  # its training dies with it
        process.wait()
    assert 2 <= max(folder.checkpoint_steps()) < 20000
    assert "the same command resumes from here" in (tmp_path / "study" / "default-s0.log").read_text()

"""Alerts come when they should and only then; heartbeats and stragglers of real ranks."""

from __future__ import annotations

import math
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.monitor.alerts import RULES, Alert, Rule, Series, Watched, observe_line, observe_value
from pipeline.run.checkpoint import RunFolder
from pipeline.run.live_files import StateFiles
from pipeline.run.records import read_json, read_json_lines, read_metrics
from pipeline.train.callbacks.stragglers import find_slowest, tabulate_nodes
from tests.conftest import REPOSITORY, environment
from tests.helpers.trainings import WriteConfig, folder_of, run_ranks

RULE: dict[str, Rule] = {rule.kind: rule for rule in RULES}


def changes(kind: str, values: Iterable[float]) -> list[tuple[int, bool]]:
    """At which values an alert was raised (True) or cleared."""
    series, found = Series(), []
    for number, value in enumerate(values):
        before, series = series, observe_value(series, float(value), RULE[kind])
        if before.raised != series.raised:
            found.append((number, series.raised))
    return found


def noisy(level: float, *, count: int, sigma: float, seed: int) -> np.ndarray:
    return level * np.random.default_rng(seed).lognormal(0.0, sigma, count)


def with_saves(values: np.ndarray, *, every: int, times: float) -> np.ndarray:
    """Intervals with a checkpoint in them take longer."""
    values = values.copy()
    values[::every] *= times
    return values


def loss_curve(count: int, *, seed: int) -> np.ndarray:
    """A sigmoid loss's fall from hundreds, then slowly on, with noise of rather heavy tails."""
    steps = np.arange(count)
    noise = np.random.default_rng(seed).standard_t(8, count)
    return (300 * np.exp(-steps / 20) + 8 * (1 + steps / 1000) ** -0.3) * (1 + 0.01 * noise)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("step_time", noisy(0.4, count=100_000, sigma=0.2, seed=1)),
        ("step_time", with_saves(noisy(0.4, count=20_000, sigma=0.1, seed=2), every=10, times=5.0)),
        ("data_wait", noisy(0.02, count=100_000, sigma=0.7, seed=3).clip(0, 1)),
        ("data_wait", noisy(0.3, count=20_000, sigma=0.15, seed=4).clip(0, 1)),
        ("loss", 2.0 + 0.05 * np.random.default_rng(5).standard_normal(100_000)),
        ("loss", loss_curve(20_000, seed=6)),
        ("straggler", noisy(0.03, count=100_000, sigma=0.5, seed=7)),
    ],
    ids=["steps", "steps with saves", "no waiting", "steady waiting", "flat loss", "real loss", "ordinary ranks"],
)
def test_ordinary_noise_raises_nothing(kind: str, values: np.ndarray) -> None:
    assert changes(kind, values) == []


@pytest.mark.parametrize(("kind", "level"), [("step_time", 0.4), ("data_wait", 0.2)])
@pytest.mark.parametrize("seed", range(20))
def test_a_doubling_is_told_within_ten_lines_once_and_cleared(kind: str, level: float, seed: int) -> None:
    before, during, after = (
        noisy(height, count=60, sigma=0.1, seed=3 * seed + part) for part, height in enumerate((level, 2 * level, level))
    )
    found = changes(kind, np.concatenate([before, during, after]))
    assert [raised for _, raised in found] == [True, False]
    assert 60 <= found[0][0] < 70
    assert 140 <= found[1][0] < 150  # calm for 20 lines


@pytest.mark.parametrize("rise", [1.0, 1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 2.0, 3.0])
@pytest.mark.parametrize("sigma", [0.05, 0.2])
@pytest.mark.parametrize("kind", ["step_time", "data_wait"])
def test_a_level_near_a_threshold_does_not_flap(kind: str, sigma: float, rise: float) -> None:
    before, after = noisy(0.25, count=200, sigma=sigma, seed=1), noisy(0.25 * rise, count=1200, sigma=sigma, seed=2)
    found = changes(kind, np.concatenate([before, after]))
    assert len(found) <= 2  # told, and later the new ordinary
    assert rise < 2 or found


@pytest.mark.parametrize("level", [0.0, 0.02, 0.05, 0.07, 0.09, 0.11, 0.13, 0.15, 0.17, 0.2, 0.4])
@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5])
def test_a_straggler_near_the_threshold_does_not_flap(level: float, sigma: float) -> None:
    found = changes("straggler", noisy(level, count=2500, sigma=sigma, seed=3))
    assert len(found) <= 2500 / 500
    if level >= 0.2:
        assert [raised for _, raised in found[:1]] == [True]
    if sigma < 0.3:
        assert len(found) <= 1  # a straggler that stays is never the ordinary one


@pytest.mark.parametrize("excess", [0.5, 1.0, 5.0])
def test_a_loss_that_spikes_at_every_other_line_is_one_alert(excess: float) -> None:
    values = 2.0 + 0.02 * np.random.default_rng(9).standard_normal(400)
    values[200:280:2] *= 1 + excess
    assert changes("loss", values) == [(200, True), (288, False)]


def test_another_slowest_rank_at_each_line_is_noise() -> None:
    """With many ranks the largest of their times is always above the others' median."""
    draw = np.random.default_rng(4)
    series = Series()
    for _ in range(2000):
        series = observe_value(series, float(draw.uniform(0.1, 0.4)), RULE["straggler"], int(draw.integers(64)))
        assert not series.raised
    for _ in range(10):
        series = observe_value(series, 0.3, RULE["straggler"], 17)
    assert series.raised


@pytest.mark.parametrize("num_ranks", [2, 3, 8, 64])
@pytest.mark.parametrize("overhead", [0.0, 0.5, 1.0])
def test_an_image_more_or_less_is_no_straggler(num_ranks: int, overhead: float) -> None:
    """Whether a rank's time grows with its images, half or not at all."""
    for extra in range(num_ranks):
        images = [3 if rank < extra else 2 for rank in range(num_ranks)]
        weights = [count * num_ranks / sum(images) for count in images]
        times = [overhead * 0.1 + (1 - overhead) * 0.05 * count for count in images]
        slowest = find_slowest(times, weights=weights, step_time_s=0.3)
        assert slowest.cost == pytest.approx(0, abs=1e-9)
        assert slowest.ratio == pytest.approx(1)
        times[-1] += 0.2
        slowest = find_slowest(times, weights=weights, step_time_s=0.5)
        assert slowest.rank == num_ranks - 1
        assert slowest.cost > 0.25


def test_a_level_that_stays_becomes_the_ordinary_one() -> None:
    found = changes("step_time", [0.4] * 50 + [1.0] * 1000 + [2.2] * 20)
    assert [raised for _, raised in found] == [True, False, True]
    assert 1050 <= found[2][0] < 1060


def test_a_loss_spike_is_told_at_once_and_cleared_when_it_is_over() -> None:
    values = loss_curve(1000, seed=8)
    values[700:705] *= 1.6
    assert changes("loss", values) == [(700, True), (714, False)]


def test_a_loss_that_is_not_a_number_is_a_spike() -> None:
    watched, alerts = Watched(), []
    for step in range(70):
        watched, new = observe_line(watched, {"step": step, "train/loss": math.nan if step == 50 else 2.0 + 0.01 * (step % 3)})
        alerts += new
    assert [(alert.step, alert.change) for alert in alerts] == [(50, "raised"), (60, "cleared")]


def test_an_alert_says_what_to_do() -> None:
    watched, alerts = Watched(), list[Alert]()
    for step in range(1, 80):
        line = {"step": step, "speed/slowest_rank_cost": 0.02 if step < 40 else 0.4, "speed/slowest_rank": 5}
        watched, new = observe_line(watched, line)
        alerts += new
    assert [alert.text for alert in alerts] == [
        "the others wait 40% of each step for rank 5: stragglers.json has a table by node"
    ]


def test_the_slowest_rank_is_compared_with_the_others() -> None:
    slowest = find_slowest([0.2, 0.5, 0.2, 0.3], weights=[1.0] * 4, step_time_s=1.0)
    assert (slowest.rank, slowest.ratio, slowest.cost) == (1, pytest.approx(2.5), pytest.approx(0.3))
    pair = find_slowest([0.1, 0.3], weights=[1.0, 1.0], step_time_s=1.0)
    assert (pair.rank, pair.ratio) == (1, pytest.approx(3.0))  # of two, the other is the rule


def test_nodes_are_listed_the_slowest_first() -> None:
    nodes = tabulate_nodes(["a", "a", "b", "b"], [0.0, 0.0, 0.0, 0.3], [0.2, 0.2, 0.2, 0.5])
    assert [(node.host, node.ranks, node.slowest_rank) for node in nodes] == [("b", [2, 3], 3), ("a", [0, 1], 0)]
    assert nodes[0].slowest_data_wait_s == pytest.approx(0.3)


def test_a_disk_that_cannot_be_written_costs_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = StateFiles(RunFolder(tmp_path / "gone"), every_s=0.01)
    for number in range(20):
        files.put(files.folder.heartbeat, {"step": number})
    files.close()
    assert capsys.readouterr().out.count("cannot be written") == 1


def test_a_finished_run_says_so(reference: RunFolder) -> None:
    beat = read_json(reference.root / "heartbeat.json")
    assert beat is not None
    assert (beat["phase"], beat["step"], beat["total_steps"], beat["world_size"]) == ("finished", 12, 12, 2)
    rows = read_metrics(reference.metrics)
    assert all(row["speed/slowest_rank"] in (0, 1) and row["speed/slowest_rank_ratio"] >= 1 for row in rows)


SLEEP_S = 0.15


@pytest.fixture(scope="module")
def slow_rank(tmp_path_factory: pytest.TempPathFactory, tiny_config: dict[str, Any]) -> RunFolder:
    """A training on two gloo ranks of which the second sleeps in every step."""
    import yaml

    folder = tmp_path_factory.mktemp("slow_rank")
    config = folder / "slow.yaml"
    config.write_text(yaml.safe_dump({**tiny_config, "name": "slow", "output_dir": str(folder / "runs")}))
    (folder / "log").write_text(run_ranks("tests.helpers.slow_rank", str(config), str(SLEEP_S), timeout_s=200))
    return folder_of(config)


def test_a_rank_that_sleeps_is_named(slow_rank: RunFolder) -> None:
    rows = read_metrics(slow_rank.metrics)[2:]  # the first steps warm up
    assert [row["speed/slowest_rank"] for row in rows] == [1] * len(rows)
    for row in rows:
        cost_s = row["speed/slowest_rank_cost"] * row["speed/step_time_s"]
        assert 0.6 * SLEEP_S < cost_s < 1.6 * SLEEP_S
    table = read_json(slow_rank.root / "stragglers.json")
    assert table is not None
    assert (table["rank"], table["measured"], table["nodes"][0]["ranks"]) == (1, ["data wait", "forward"], [0, 1])


def test_a_rank_that_sleeps_is_told_once(slow_rank: RunFolder) -> None:
    alerts = [row for row in read_json_lines(slow_rank.root / "alerts.jsonl") if row["kind"] == "straggler"]
    assert [(row["change"], "for rank 1" in row["text"]) for row in alerts] == [("raised", True)]
    assert (slow_rank.root.parent.parent / "log").read_text().count("of each step for rank 1: stragglers.json") == 1


def test_a_run_that_fails_says_why_and_leaves_nothing_that_everybody_may_write(write_config: WriteConfig) -> None:
    config = write_config(
        optimizer={"learning_rate": 1e30, "clip_norm": None}, checkpoint={"every": "1 steps"},
        trainer={"devices": 1, "max_skipped_steps": 3}, tracking={"mode": "offline"},
    )  # fmt: skip
    command = f"umask 0; exec {sys.executable} -m pipeline train {config}"
    assert subprocess.run(command, shell=True, cwd=REPOSITORY, env=environment(), timeout=200).returncode == 2
    folder = folder_of(config)
    beat = read_json(folder.root / "heartbeat.json")
    assert beat is not None
    assert beat["phase"] == "failed"
    assert "gradients were not finite for 3 steps in a row" in beat["by"]
    paths = list(folder.root.rglob("*"))
    assert {"config.yaml", "wandb", "metrics.jsonl", "meta.json", "heartbeat.json"} <= {path.name for path in paths}
    assert not [path for path in paths if not path.is_symlink() and path.stat().st_mode & stat.S_IWOTH]

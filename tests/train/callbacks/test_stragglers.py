"""The rank that the others wait for is found: by numbers, and among real ranks of which one sleeps."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json, read_json_lines, read_metrics
from pipeline.train.callbacks.stragglers import find_slowest, tabulate_nodes
from tests.helpers.trainings import folder_of, run_ranks


@pytest.mark.parametrize("num_ranks", [2, 3, 8, 64])
@pytest.mark.parametrize("overhead", [0.0, 0.5, 1.0])
def test_an_image_more_or_less_is_no_straggler(num_ranks: int, overhead: float) -> None:
    """A rank's time grows with its images, half or not at all."""
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


def test_the_slowest_rank_is_compared_with_the_others() -> None:
    slowest = find_slowest([0.2, 0.5, 0.2, 0.3], weights=[1.0] * 4, step_time_s=1.0)
    assert (slowest.rank, slowest.ratio, slowest.cost) == (1, pytest.approx(2.5), pytest.approx(0.3))
    pair = find_slowest([0.1, 0.3], weights=[1.0, 1.0], step_time_s=1.0)
    assert (pair.rank, pair.ratio) == (1, pytest.approx(3.0))  # of two, the other is the rule


def test_nodes_are_listed_the_slowest_first() -> None:
    nodes = tabulate_nodes(["a", "a", "b", "b"], [0.0, 0.0, 0.0, 0.3], [0.2, 0.2, 0.2, 0.5])
    assert [(node.host, node.ranks, node.slowest_rank) for node in nodes] == [("b", [2, 3], 3), ("a", [0, 1], 0)]
    assert nodes[0].slowest_data_wait_s == pytest.approx(0.3)


def test_every_line_of_a_run_names_its_slowest_rank(reference: RunFolder) -> None:
    rows = read_metrics(reference.metrics)
    assert all(row["speed/slowest_rank"] in (0, 1) and row["speed/slowest_rank_ratio"] >= 1 for row in rows)


SLEEP_S = 0.15


@pytest.fixture(scope="module")
def slow_rank(tmp_path_factory: pytest.TempPathFactory, tiny_config: dict[str, Any]) -> RunFolder:
    """Train on two gloo ranks of which the second sleeps in every step."""
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

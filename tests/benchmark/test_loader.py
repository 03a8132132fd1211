"""The table of loaders is checked by numbers and by real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.benchmark.contenders import ALONE, CONTENDERS
from pipeline.benchmark.loader import BASELINE, WORK_OF, Cost, compare_loaders, cost_of, make_table, resume_line
from pipeline.benchmark.transforms import Settings
from pipeline.errors import DataError


def cells(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: rest for name, *rest in rows}


def test_a_cost_is_the_median_round() -> None:
    """One round was disturbed."""
    rounds = [
        {"images": 100.0, "wall_s": wall_s, "cpu_s": cpu_s, "mib": mib}
        for wall_s, cpu_s, mib in [(1.0, 0.5, 40.0), (50.0, 30.0, 41.0), (2.0, 0.7, 39.0)]
    ]
    assert cost_of(rounds) == Cost(images_per_s=50.0, cpu_ms_per_image=pytest.approx(7.0), worker_mib=41.0)


def test_the_table_compares_each_with_pillow_and_with_its_own_work() -> None:
    table = make_table({
        BASELINE: Cost(900, 4.0, 50),
        "region decoder, decode + crop": Cost(900, 2.0, 50),
        "ours, region decoder": Cost(812.4, 2.2, 60.2),
        "litdata": "not run: ModuleNotFoundError: No module named 'litdata'",
        "timm reader (wds)": Cost(100, 8.0, 300),
    })  # fmt: skip
    rows = cells(table)
    assert rows[BASELINE] == ["", "250", "4.00", "1.00", "", ""]  # work alone has no loader's speed or memory
    assert rows["ours, region decoder"] == ["812", "455", "2.20", "1.82", "+10 %", "60"]
    assert rows["litdata"] == ["not run: ModuleNotFoundError: No module named 'litdata'", "", "", "", "", ""]
    assert rows["timm reader (wds)"] == ["100", "125", "8.00", "0.50", "", "300"]  # its own work was not measured


def test_every_loader_is_compared_with_work_that_is_measured() -> None:
    assert WORK_OF.keys() == CONTENDERS.keys() - set(ALONE)
    assert set(WORK_OF.values()) <= set(ALONE)
    assert BASELINE in ALONE


def test_fewer_shards_than_workers_are_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"holds 3 shards.* at least 4"):
        compare_loaders(str(corpus), num_workers=4, batch_size=2, image_size=16, num_batches=1, num_rounds=1, only=[])


@pytest.mark.parametrize("position", [0, 10**9])
def test_a_far_position_is_reached_at_once(corpus: Path, tmp_path: Path, position: int) -> None:
    line = resume_line(Settings(str(corpus), str(tmp_path), 0, 4, 16), position)
    assert float(line.split("first batch after ")[1].split(" s")[0]) < 30  # played from the start it would take hours


@pytest.mark.slow
def test_real_processes_side_by_side(corpus: Path) -> None:
    text = compare_loaders(
        str(corpus), num_workers=1, batch_size=4, image_size=16, num_batches=200, num_rounds=2,
        only=["decode alone", "ours, libraries", "litdata"]
    )  # fmt: skip
    rows = cells(text.split("\n\n")[1])
    assert list(rows) == [
        "Pillow, decode alone",
        "entropy decode alone",
        "ours, libraries alone",
        "litdata",
        "litdata, our transform",
    ]
    assert float(rows["ours, libraries alone"][0]) > 0
    assert rows[BASELINE][3] == "1.00"

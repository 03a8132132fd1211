"""`plan` computes what preparing a corpus takes, from measured costs of an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.__main__ import main
from data_tools.plan.steps import Corpus, Costs, Machines, plan_steps
from pipeline.errors import DataError
from tests.conftest import encode, make_image, write_tar

GB = 10**9


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_corpus_takes_the_hours_of_its_images(capsys: pytest.CaptureFixture[str]) -> None:
    """ImageNet-21k at 9.7 ms an image to hash: 38 core-hours."""
    values = planned(capsys, "14197122", "--within", "--against", "10000", "--core-hour-price", "0.04")
    hours = {step["name"]: step["core_hours"] for step in values["steps"]}
    assert list(hours) == ["make", "verify", "dedup: hashing", "dedup --against", "dedup --within, 20 bits", "index"]
    assert hours["dedup: hashing"] == pytest.approx(14197122 * 9.7e-3 / 3600)
    assert values["price"] == pytest.approx(0.04 * sum(hours.values()))
    assert [step["read_bytes"] for step in values["steps"][:2]] == [14197122 * 110_000] * 2


def test_a_store_costs_two_passes_and_a_disk_may_decide() -> None:
    local, store = (
        plan_steps(Corpus(num_images=10**6, image_bytes=10**5, shard_bytes=GB, is_in_store=is_in_store), Costs())
        for is_in_store in (False, True)
    )
    assert store[0].read_bytes == 2 * local[0].read_bytes == 2 * 10**11
    assert store[0].scratch_bytes == 10**11
    fast, slow = (Machines(num_nodes=2, cores_per_node=10, bandwidth=bandwidth) for bandwidth in (None, 1e8))
    assert fast.hours(local[0]) == pytest.approx(local[0].core_hours / 20)
    assert slow.hours(local[0]) == pytest.approx(2 * 10**11 / 1e8 / 3600)


def test_costs_are_measured_on_ones_own_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [encode(make_image(number, num_classes=3, size=64), format="JPEG") for number in range(5)]
    write_tar(tmp_path / "a.tar", [(f"{number}.jpg", data) for number, data in enumerate([*images, b"no image"])])
    values = planned(capsys, "1e6", "--measure", str(tmp_path))
    assert values["corpus"]["image_bytes"] == round(sum(map(len, images)) / 5)
    assert 0 < values["costs_ms"]["verify"] < values["costs_ms"]["hashing"] < 1000
    write_tar(tmp_path / "a.tar", [("0.jpg", b"no image")])
    assert main(["plan", "1e6", "--measure", str(tmp_path)]) == 2
    assert "none of its first 1 images can be decoded" in capsys.readouterr().err


def test_the_table_says_what_decides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "300e6", "--within", "--distance", "8", "--store", "--bandwidth", "1", "--nodes", "64"]) == 0
    table = capsys.readouterr().out
    assert "300,000,000 images of 110 kB, on 64 nodes of 16 cores" in table
    assert "(disk)" in table
    assert "the disks or the store carry up to 1 GB/s, 15.6 MB/s a node" in table
    assert "requests: 20.2 M GET" in table
    assert main(["plan", "100", "--nodes", "2", "--cores", "8"]) == 0
    assert "15 of them have nothing to do; make shards smaller" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["12.5"], ["0"], ["many"], ["1e15"]])
def test_numbers_that_cannot_be_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", *words])
    with pytest.raises(DataError, match="the cost of verify is -1 ms"):
        Costs(verify=-1)

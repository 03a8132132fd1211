"""The benchmark of augmentations measures every law, and writes what it was given."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.benchmark.augment import DECODING, OURS, make_table, measure, our_laws
from tests.data.images.augment.pictures import picture


def test_every_law_changes_most_images_and_leaves_its_input() -> None:
    images = [picture(number) for number in range(8)]
    laws = our_laws(images)
    assert {"randaugment_tf", "randaugment_torchvision", "randaugment_timm", "three_augment", "random_erasing"} == set(laws)
    for row in laws.values():
        for number in range(8):
            row[OURS](number)
    assert all((image == picture(number)).all() for number, image in enumerate(images))


def test_rounds_are_measured(corpus: Path) -> None:
    found = measure(folder=str(corpus), image_size=16, num_rounds=2)
    assert {DECODING, "randaugment_tf", "three_augment"} <= set(found)
    for row in found.values():
        for rounds in row.values():
            assert len(rounds) == 2
            assert all(math.isfinite(seconds) and seconds > 0 for seconds in rounds)


def test_the_table_has_medians_and_the_fastest() -> None:
    table = make_table({"a": {"ours": [3e-6, 1e-6, 9e-6]}, "b": {"ours": [2e-6], "theirs": [4e-6]}})
    assert table.splitlines() == ["| | ours | theirs |", "|---|---|---|", "| a | 3 (1) |  |", "| b | 2 (2) | 4 (4) |"]

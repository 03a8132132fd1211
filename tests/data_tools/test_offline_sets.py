"""The sets that need no download are whole, and their fonts are divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.__main__ import main
from data_tools.offline_sets import FONTS, PLACES, write_letters
from pipeline.config.read import read_values
from pipeline.data.shards.index import load_index
from tests.conftest import REPOSITORY


def test_letters_of_other_fonts_are_for_testing(tmp_path: Path) -> None:
    write_letters(tmp_path)
    fonts = {
        split: {path.stem.rpartition("-")[0] for path in (tmp_path / split).glob("*/*.png")} for split in ("train", "test")
    }
    assert fonts["train"] | fonts["test"] == set(FONTS)
    assert not fonts["train"] & fonts["test"]
    folders = {split: sorted(path.name for path in (tmp_path / split).iterdir()) for split in fonts}
    assert folders["train"] == folders["test"]
    assert len({name.casefold() for name in folders["train"]}) == 52
    pictures = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "test" / "Q_capital").glob("*.png"))]
    assert len(pictures) == len(fonts["test"]) * PLACES
    # Each shows something, and none is cut off: its border is paper.
    for picture in pictures:
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert border.min() == border.max() > picture.min()


@pytest.mark.slow
def test_the_suite_finds_them(tmp_path: Path) -> None:
    assert main(["offline-sets", str(tmp_path), "--workers", "2"]) == 0
    for dataset in read_values(REPOSITORY / "configs" / "suites" / "offline.yaml")["evaluation"]["datasets"]:
        train, test = (load_index(str(tmp_path / str(dataset[split]))) for split in ("train", "test"))
        assert train.class_counts is not None
        assert test.class_counts is not None
        assert train.class_counts.ids.tolist() == test.class_counts.ids.tolist()
        assert train.num_samples >= test.num_samples > 1000

"""In class lists with one name for two classes, the written list can be read again, and both splits agree."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.make.classes import Numbering, read_class_list
from data_tools.make.pack import make_shards
from data_tools.make.plan import MakeOptions
from data_tools.make.sources.labels import tell_apart
from data_tools.parallel import LocalWorkers
from pipeline.data.shards.class_names import parse_class_names
from pipeline.evaluation.datasets import open_dataset
from pipeline.evaluation.section import EvalDataset
from tests.data_tools.make.test_labels import JPEG, list_source, write_samples

NAMES = ["crane", "dog", "crane", "maillot", "tank suit"]

APART = {
    "all different": (["a", "b"], ("a", "b")),
    "one twice": (["crane", "dog", "crane"], ("crane (0)", "dog", "crane (2)")),
    "a name that is one of those made": (["crane", "crane", "crane (1)"], ("crane (0)", "crane (1)'", "crane (1)")),
    "accents written in two ways": (["caf\u00e9", "cafe\u0301"], ("caf\u00e9 (0)", "cafe\u0301 (1)")),
}


@pytest.mark.parametrize("case", APART)
def test_names_of_two_classes_get_their_ids(case: str) -> None:
    names, expected = APART[case]
    assert tell_apart(names) == expected
    assert tell_apart(tell_apart(names)) == expected


def write_hub_table(path: Path, labels: list[int]) -> Path:
    """Write a table as the hub stores a ClassLabel."""
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}}}
    images = [{"bytes": JPEG + path.name.encode() + bytes([i]), "path": f"{i}.jpg"} for i in range(len(labels))]
    table = pa.table({"image": images, "label": labels}).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path)
    return path


def test_a_table_with_such_a_list_is_packed_and_its_test_split_after_it(tmp_path: Path) -> None:
    train, test = (
        write_hub_table(tmp_path / f"{name}.parquet", labels) for name, labels in (("a", [0, 1, 2, 0, 1, 2]), ("b", [2, 0]))
    )
    make_shards(str(train), str(tmp_path / "one"), options=MakeOptions(), workers=LocalWorkers(1))
    names = read_class_list(str(tmp_path / "one" / "classes.txt"))
    assert names == ("crane (0)", "dog", "crane (2)", "maillot", "tank suit")
    options = MakeOptions(numbering=Numbering(names=names), order="as listed")
    make_shards(str(test), str(tmp_path / "two"), options=options, workers=LocalWorkers(1))
    opened = open_dataset(
        EvalDataset.model_validate({"name": "x", "train": str(tmp_path / "one"), "test": str(tmp_path / "two")})
    )
    counts = opened.test.class_counts
    assert counts is not None
    assert counts.ids.tolist() == [0, 2]
    assert opened.notes == ()


def test_shards_beside_such_a_list_keep_their_ids(tmp_path: Path) -> None:
    write_samples(tmp_path / "x" / "x.tar", [b"2", b"0"], kind="cls")
    (tmp_path / "x" / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    listing = list_source(tmp_path / "x" / "x.tar", tmp_path / "scratch")
    assert [listing.sample(i).labels for i in range(2)] == [[2], [0]]
    assert listing.classes == tell_apart(parse_class_names((tmp_path / "x" / "classes.txt").read_bytes(), source="x"))

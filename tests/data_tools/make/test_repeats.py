"""One image with two labels is refused where it is named, and counted where only its content is the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.__main__ import main
from data_tools.make.classes import Numbering
from data_tools.make.sources.repeats import Repeats, find_repeats
from pipeline.errors import DataError
from tests.conftest import encode, make_image
from tests.data_tools.make.test_labels import JPEG, list_source, write_images


def write_list(folder: Path, text: str, name: str = "x.csv") -> Path:
    write_images(folder, 4)
    (folder / name).write_text(text)
    return folder / name


def write_table(path: Path, rows: list[tuple[str | None, bytes, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    images = [{"bytes": JPEG + content, "path": name} for name, content, _ in rows]
    pq.write_table(pa.table({"image": images, "label": [label for _, _, label in rows]}), path)
    return path


CONTRADICTIONS = {
    "numbers": (
        "0.jpg,3\n1.jpg,1\n0.jpg,4\n",
        r"1 image is named .*: 0\.jpg \(.*x\.csv line 1: 3, line 3: 4\)\. .* 3;7 in a CSV",
    ),
    "names": ("path,label\n0.jpg,cat\n\n0.jpg,dog\n", r"0\.jpg \(.*x\.csv line 2: cat, line 4: dog\)"),
    "a path written in two ways": ("0.jpg,3\n./0.jpg,4\n", r"0\.jpg \(.*line 1: 3, line 2: 4\)"),
    "a whole path": ("0.jpg,3\n{folder}/0.jpg,4\n", r"0\.jpg \(.*line 1: 3, line 2: 4\)"),
    "an id, as lists without endings have them": ("0.jpg,3\n0,4\n", r"0\.jpg \(.*line 1: 3, line 2: 4\)"),
    "a label more": ("0.jpg,3\n0.jpg,3;4\n", r"line 1: 3, line 2: 3;4"),
    "the third time": ("0.jpg,3\n0.jpg,3\n0.jpg,4\n", r"line 1: 3, line 3: 4"),
    "many": ("".join(f"{i % 4}.jpg,{i}\n" for i in range(8)), r"4 images are named .*: 0\.jpg .*; 1\.jpg "),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_list_that_contradicts_itself_is_refused_with_both_lines(tmp_path: Path, case: str) -> None:
    text, message = CONTRADICTIONS[case]
    path = write_list(tmp_path / "x", text.replace("{folder}", str(tmp_path / "x")))
    with pytest.raises(DataError, match=message):
        find_repeats(list_source(path, tmp_path))


def test_only_some_of_many_are_shown(tmp_path: Path) -> None:
    write_images(tmp_path / "x", 9)
    path = tmp_path / "x" / "x.csv"
    path.write_text("".join(f"{i % 9}.jpg,{i}\n" for i in range(18)))
    with pytest.raises(DataError, match=r"9 images are .*; 4\.jpg \([^;]*\); and 4 more\. "):
        find_repeats(list_source(path, tmp_path))


ALIKE = {
    "the same line": ("0.jpg,3\n1.jpg,4\n0.jpg,3\n0.jpg,3\n", 2),
    "one number written in two ways": ("0.jpg,3\n0.jpg,3.0\n0.jpg,03\n", 2),
    "labels in another order": ("0.jpg,3;4\n0.jpg,4;3\n", 1),
    "different images": ("0.jpg,3\n1.jpg,4\n", 0),
}


@pytest.mark.parametrize("case", ALIKE)
def test_an_image_that_is_named_again_with_its_label_is_counted(tmp_path: Path, case: str) -> None:
    text, count = ALIKE[case]
    assert find_repeats(list_source(write_list(tmp_path / "x", text), tmp_path)) == Repeats(alike=count)


def test_labels_that_a_class_map_makes_one_do_not_contradict(tmp_path: Path) -> None:
    path = write_list(tmp_path / "x", "0.jpg,poodle\n0.jpg,dog\n1.jpg,cat\n")
    with pytest.raises(DataError, match="poodle, line 2: dog"):
        find_repeats(list_source(path, tmp_path))
    numbering = Numbering(targets={"poodle": "dog", "dog": "dog", "cat": "cat"})
    assert find_repeats(list_source(path, tmp_path, numbering)) == Repeats(alike=1)


def test_a_row_of_another_split_is_none_of_this_one(tmp_path: Path) -> None:
    path = write_list(tmp_path / "x", "path,label,split\n0.jpg,3,train\n0.jpg,4,old-train\n1.jpg,4,train\n")
    assert find_repeats(list_source(path, tmp_path, split="train")) == Repeats()


def test_tables_that_name_their_images(tmp_path: Path) -> None:
    rows = [("a.jpg", b"0", 3), ("b.jpg", b"1", 4), ("a.jpg", b"0", 4)]
    with pytest.raises(DataError, match=r"a-\w{16} \(.*x\.parquet row 0: 3, row 2: 4\)"):
        find_repeats(list_source(write_table(tmp_path / "x" / "x.parquet", rows), tmp_path / "s"))
    folder = tmp_path / "parts"
    write_table(folder / "0.parquet", rows[:2])
    write_table(folder / "1.parquet", [("c.jpg", b"2", 1), *rows[2:]])
    with pytest.raises(DataError, match=r"0\.parquet row 0: 3, .*/1\.parquet row 1: 4\)"):
        find_repeats(list_source(folder, tmp_path / "s"))
    with pytest.raises(DataError, match=r"0\.parquet row 0: 3, .*/1\.parquet row 1: 4\)"):  # what was copied out is read again
        find_repeats(list_source(folder, tmp_path / "s"))


def test_the_same_name_of_another_image_is_another_image(tmp_path: Path) -> None:
    rows = [("image.jpg", b"0", 3), ("image.jpg", b"1", 4)]
    assert find_repeats(list_source(write_table(tmp_path / "x" / "x.parquet", rows), tmp_path / "s")) == Repeats()


def test_unnamed_images_of_one_content_are_counted(tmp_path: Path) -> None:
    """Public sets hold copies with other labels; whoever packs them cannot correct them."""
    rows = [(None, b"0", 3), (None, b"1", 4), (None, b"0", 4), (None, b"1", 4)]
    found = find_repeats(list_source(write_table(tmp_path / "x" / "x.parquet", rows), tmp_path / "s"))
    assert (found.alike, found.contradicting) == (1, 2)
    assert found.first is not None
    assert found.first.endswith("x.parquet row 0: 3, row 2: 4)")


def test_make_refuses_before_it_writes_and_says_what_it_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "x"
    source.mkdir()
    for number in range(2):
        (source / f"{number}.png").write_bytes(encode(make_image(number, num_classes=2, size=8), format="PNG"))
    (source / "x.csv").write_text("0.png,1\n1.png,0\n1.png,1\n")
    assert main(["make", str(source / "x.csv"), str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "1.png (" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar"))
    shutil.rmtree(tmp_path / "out")
    (source / "x.csv").write_text("0.png,1\n1.png,0\n1.png,0\n")
    assert main(["make", str(source / "x.csv"), str(tmp_path / "out"), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 samples in 1 shards" in said
    assert "1 images are named more than once with the same label, and are as many samples" in said

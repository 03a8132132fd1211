"""Images and lists next to class folders, or in a folder without any, are reported or asked about, never ignored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.make.sources import find_source
from data_tools.make.sources.options import SourceOptions
from data_tools.parallel import LocalWorkers
from pipeline.errors import DataError
from tests.data_tools.make.test_labels import list_source, write_images


def remarks(path: Path) -> tuple[str, ...]:
    return find_source(str(path), options=SourceOptions(), label_use="keep").remarks


def test_images_beside_class_folders_are_in_no_class_and_said(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 2)
    assert remarks(tmp_path) == ()
    write_images(tmp_path, 3)
    assert remarks(tmp_path) == ("left out: 3 images next to the class folders, in no class (0.jpg first)",)
    assert len(list_source(tmp_path, tmp_path / "scratch")) == 4


def test_images_beside_a_single_folder_make_it_no_class(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 2)
    write_images(tmp_path, 3)
    with pytest.raises(DataError, match=r"a single folder, data/, and 3 images next to it, so folders are no classes here"):
        list_source(tmp_path, tmp_path / "scratch")
    found = find_source(
        str(tmp_path), options=SourceOptions(), label_use="read", known={"data"}
    )  # the user says that it is one
    assert len(found.list(tmp_path / "scratch", LocalWorkers(1))) == 2


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_list_beside_class_folders_is_not_read_and_said(tmp_path: Path, name: str) -> None:
    for folder in ("cat", "dog"):
        write_images(tmp_path / folder, 2)
    (tmp_path / name).write_text("")
    (remark,) = remarks(tmp_path)
    assert remark == f"not read: {name}; labels are the folders' names. To take its labels give {tmp_path / name} itself"


def test_a_folder_of_images_with_a_list_names_the_list(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match=r"holds no class folders; give .*/metadata\.jsonl itself if it lists the images"):
        list_source(tmp_path, tmp_path / "scratch")


def write_lines(folder: Path, lines: list[object]) -> Path:
    write_images(folder, 4)
    (folder / "metadata.jsonl").write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )
    return folder / "metadata.jsonl"


LINES: dict[str, tuple[list[object], list[list[int]], tuple[str, ...] | None]] = {
    "names": ([{"file_name": "0.jpg", "label": "dog"}, {"file_name": "1.jpg", "label": "cat"}], [[1], [0]], ("cat", "dog")),
    "numbers": ([{"file_name": "0.jpg", "label": 7}, {"file_name": "1.jpg", "label": 3.0}], [[7], [3]], None),
    "several": ([{"file_name": "0.jpg", "labels": [7, 3]}, {"file_name": "1.jpg", "labels": ["3"]}], [[7, 3], [3]], None),
    "other keys and another order": (
        [{"id": 9, "label": 1, "file_name": "0.jpg", "box": {"x": 1}}, "", {"file_name": "1.jpg", "label": 0, "more": None}],
        [[1], [0]], None,
    ),
    "a name with a line end in it": ([{"file_name": "0.jpg", "text": "a\nb", "label": 1}], [[1]], None),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_json_lines_are_a_list(tmp_path: Path, case: str) -> None:
    lines, labels, classes = LINES[case]
    listing = list_source(write_lines(tmp_path / "x", lines), tmp_path / "scratch")
    assert [listing.sample(i).labels for i in range(len(listing))] == labels
    assert listing.classes == classes


def test_json_lines_know_splits_and_contradictions(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.jpg", "label": i, "split": "test" if i else "train"} for i in range(3)]
    path = write_lines(tmp_path / "x", list(rows))
    with pytest.raises(
        DataError, match=r"column 'split' of .*metadata\.jsonl holds the splits train \(1 row\), test \(2 rows\)"
    ):
        list_source(path, tmp_path / "scratch")
    assert len(list_source(path, tmp_path / "scratch", split="test")) == 2
    path = write_lines(tmp_path / "y", [{"file_name": "0.jpg", "label": 1}, {"file_name": "0.jpg", "label": 2}])
    assert main(["make", str(path), str(tmp_path / "out"), "--workers", "1"]) == 2


BAD: dict[str, tuple[list[object], str]] = {
    "no JSON": ([{"file_name": "0.jpg", "label": 1}, "{"], r"metadata\.jsonl line 2: no JSON"),
    "no object": (["[1]"], r"line 1: not an object"),
    "no label": ([{"file_name": "0.jpg", "label": 1}, {"file_name": "1.jpg"}], r"line 2: no label"),
    "no such image": ([{"file_name": "9.jpg", "label": 1}], r"line 1: .*9\.jpg: No such file"),
    "no such key": ([{"picture": "0.jpg", "what": 1, "more": 2}], r"no column path or .* among picture, what, more"),
}


@pytest.mark.parametrize("case", BAD)
def test_json_lines_that_are_no_list_are_refused_with_their_line(tmp_path: Path, case: str) -> None:
    lines, message = BAD[case]
    with pytest.raises(DataError, match=message):
        list_source(write_lines(tmp_path / "x", lines), tmp_path / "scratch")


def test_the_classes_of_a_source_are_shown_where_a_map_names_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "x", [{"file_name": f"{i}.jpg", "label": 100 * i} for i in range(3)])
    (tmp_path / "map.tsv").write_text("n00000001\t0\n")
    words = ["--class-map", str(tmp_path / "map.tsv"), "--unmapped", "drop", "--workers", "1"]
    assert main(["make", str(path), str(tmp_path / "out"), *words]) == 2
    assert "none of its samples has a class that the class map names; its classes are 0, 100, 200" in capsys.readouterr().err


LISTS = {
    "CUB": (["images.txt", "train_test_split.txt"], ["train_test_split.txt"]),
    "Food-101": (["meta/classes.txt", "meta/test.txt", "meta/train.json"], ["meta/test.txt", "meta/train.json"]),
    "none": (["classes.txt", "readme.txt", "other/train.txt", "train.zip"], []),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_of_splits_next_to_a_folder_of_all_images_are_said(tmp_path: Path, case: str) -> None:
    """Otherwise train and test would be one set without a message."""
    for name in ("images/cat", "images/dog"):
        write_images(tmp_path / name, 2)
    files, said = LISTS[case]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = remarks(tmp_path / "images")
    assert len(found) == (len(said) > 0)
    if said:
        assert found[0].startswith(f"not read: {', '.join(str(tmp_path / name) for name in said)}, which by the name says")
    (tmp_path / "images").rename(tmp_path / "birds")  # not a folder of all images by its name
    assert remarks(tmp_path / "birds") == ()

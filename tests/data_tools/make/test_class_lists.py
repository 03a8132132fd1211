"""Lists and maps of classes are read alike by every reader, in whatever form people have them, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.make.classes import read_class_list, read_class_map
from pipeline.data.shards.class_names import class_names_of, parse_class_names
from pipeline.data.shards.index import load_index
from pipeline.errors import DataError
from tests.data_tools.make.test_odd_sources import make, write

LISTS: dict[str, tuple[bytes, tuple[str, ...] | str]] = {  # a class list, and its names or what is wrong with it
    "plain": (b"cat\ndog\n", ("cat", "dog")),
    "without a last line end": (b"cat\ndog", ("cat", "dog")),
    "two byte-order marks": (b"\xef\xbb\xbf\xef\xbb\xbfcat\ndog\n", ("cat", "dog")),
    "byte-order mark and CRLF": (b"\xef\xbb\xbfcat\r\ndog\r\n", ("cat", "dog")),
    "UTF-16": ("cat\ndog\n".encode("utf-16"), ("cat", "dog")),
    "blank lines at the end": (b"cat\ndog\n\n \n", ("cat", "dog")),
    "a line separator in a name": ("cat\u2028s\ndog\n".encode(), ("cat\u2028s", "dog")),
    "old Mac line ends": (b"cat\rdog\r", ("cat", "dog")),
    "a name twice": (b"cat\ncrane\ndog\ncrane\n", r"line 4: 'crane' is in line 2 too"),
    "a name twice, spelt in two ways": ("caf\u00e9\ncafe\u0301\n".encode(), r"line 2: .* is in line 1 too"),
    "a blank line between": (b"cat\n\ndog\n", r"line 2 is empty, so what class has the id 1 is not said"),
    "cp1252": (b"cat\ncaf\xe9\n", r"line 2: bytes that are not utf-8; say which encoding it is with --encoding"),
    "nothing": (b"\n", r"is empty"),
}


@pytest.mark.parametrize("case", LISTS)
def test_class_lists_are_read_right_or_refused(tmp_path: Path, case: str) -> None:
    data, expected = LISTS[case]
    (tmp_path / "list.txt").write_bytes(data)
    if isinstance(expected, tuple):
        assert read_class_list(str(tmp_path / "list.txt")) == expected
        if case != "UTF-16":  # a folder's classes.txt is UTF-8
            assert tuple(parse_class_names(data, source="classes.txt")) == expected
        return
    with pytest.raises(DataError, match=expected):
        read_class_list(str(tmp_path / "list.txt"))
    if case == "cp1252":
        assert read_class_list(str(tmp_path / "list.txt"), encoding="cp1252") == ("cat", "caf\u00e9")


def test_a_class_map_is_read_like_a_list(tmp_path: Path) -> None:
    (tmp_path / "map.tsv").write_bytes("\ufeffcat\tmammal\r\nfly\u2028x\tinsect\r\n\r\n".encode())
    assert read_class_map(str(tmp_path / "map.tsv")) == {"cat": "mammal", "fly\u2028x": "insect"}


def test_every_reader_of_classes_txt_agrees_on_its_lines(tmp_path: Path) -> None:
    """A name with a line separator is one name, to `make`, to `verify` and to a training."""
    for name in ("a\u2028b", "c"):
        write(tmp_path / "source" / name / "0.jpg")
    assert make(tmp_path / "source", tmp_path / "made") == 0
    assert class_names_of(*load_index(str(tmp_path / "made")).folders) == ["a\u2028b", "c"]
    assert main(["verify", str(tmp_path / "made"), "--workers", "1"]) == 0
    (tmp_path / "made" / "classes.txt").write_bytes("\ufeffx\r\ny\r\n\r\n".encode())  # edited on Windows
    assert class_names_of(*load_index(str(tmp_path / "made")).folders) == ["x", "y"]
    write(tmp_path / "other" / "d\ne" / "0.jpg")
    write(tmp_path / "other" / "f" / "0.jpg")
    assert make(tmp_path / "other", tmp_path / "more") == 2
    assert not list((tmp_path / "more").glob("*.tar"))

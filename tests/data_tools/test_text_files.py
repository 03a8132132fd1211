"""Text in any encoding is read with its marks and line ends, and bytes that are no text are refused with their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.text_files import check_encoding, is_text, printable, read_text, same_name
from pipeline.errors import DataError

TEXT = "caf\u00e9,\u03b1\nna\u00efve,\u4e2d\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_an_encoding_with_a_mark_is_found_whatever_is_given(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(str(path), encoding=None) == TEXT
    if encoding != "utf-8":  # which has no mark
        assert read_text(str(path), encoding="cp1252") == TEXT


def test_an_encoding_without_a_mark_is_the_given_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("caf\u00e9\n".encode("cp1252"))
    assert read_text(str(path), encoding="cp1252") == "caf\u00e9\n"
    with pytest.raises(DataError, match=r"a\.csv line 1: bytes that are not utf-8; .*--encoding"):
        read_text(str(path), encoding=None)


def test_what_is_no_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a\nb\n\xff\n")
    with pytest.raises(DataError, match="line 3: bytes that are not utf-8"):
        read_text(str(path), encoding=None)
    path.write_bytes("cat\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="UTF-16 without a byte-order mark"):
        read_text(str(path), encoding=None)
    with pytest.raises(DataError, match=r"gone\.csv: No such file"):
        read_text(str(tmp_path / "gone.csv"), encoding=None)


@pytest.mark.parametrize("name", ["utf-8", "CP1252", "latin-1", "utf-16"])
def test_encodings_of_text_are_known(name: str) -> None:
    check_encoding(name)


@pytest.mark.parametrize("name", ["utf-9", "", "base64", "a\0b"])
def test_others_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="no such text encoding"):
        check_encoding(name)


def test_names_are_shown_safely_and_compared_as_they_look() -> None:
    assert printable("caf\u00e9") == "caf\u00e9"
    assert printable("a\x1b[31m\n") == "a\\x1b[31m\\n"
    assert is_text("caf\u00e9")
    assert not is_text(b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert same_name("cafe\u0301") == same_name("caf\u00e9") != same_name("cafe")

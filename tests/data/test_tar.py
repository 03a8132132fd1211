"""The header scanner against tarfile itself, on tars of every dialect; and what is no tar."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from pipeline.data.tar import scan_samples, split_name
from pipeline.errors import DataError

NAMES = st.one_of(
    st.from_regex(r"[a-z0-9_]{1,12}(/[a-z0-9_][a-z0-9_.]{0,19}){0,3}\.(jpg|JPEG|cls|seg\.png)", fullmatch=True),
    st.from_regex(r"(long/){20,60}[a-z]{1,120}\.(jpg|json)", fullmatch=True),
    st.sampled_from(["ü/ä.jpg", "no-dot", "a.b/c.jpg", ".hidden", "x" * 150 + ".cls"]),
)
KINDS = (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def write(members: list[tuple[str, int, bytes, float]], *, format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, size, kind, mtime in members:
            info = tarfile.TarInfo(name)
            if kind == tarfile.AREGTYPE and len(name) >= 100:  # tarfile itself takes some of these for folders
                kind = tarfile.REGTYPE
            info.type, info.mtime = kind, mtime  # type: ignore[assignment]
            info.size = size if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
            try:
                tar.addfile(info, io.BytesIO(bytes(info.size)))
            except ValueError:  # a name that this dialect cannot hold
                continue
    return buffer.getvalue()


@settings(max_examples=300, deadline=None)
@given(
    members=st.lists(
        st.tuples(NAMES, st.integers(0, 3000), st.sampled_from(KINDS), st.sampled_from([0, 1.5, 1e9])), max_size=12
    ),
    format=st.sampled_from(FORMATS),
    end=st.sampled_from(["whole", "bare"]),
)
def test_it_finds_what_tarfile_finds(members: list[tuple[str, int, bytes, float]], format: int, end: str) -> None:
    data = write(members, format=format)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = list(tar)
        last = tar.offset
    expected = [
        (base_plus_ext(i.name)[0], (base_plus_ext(i.name)[1] or "").lower(), i.offset, i.offset_data, i.size)
        for i in infos
        if i.isreg() and base_plus_ext(i.name)[0] is not None
    ]
    samples = list(scan_samples(io.BytesIO(data[:last] if end == "bare" else data), name="x.tar"))
    found = [(s.key, m.extension, m.start, m.length) for s in samples for m in s.members]
    assert found == [(key, extension, start, size) for key, extension, _, start, size in expected]
    firsts = [e for i, e in enumerate(expected) if i == 0 or expected[i - 1][0] != e[0]]
    assert [(s.key, s.start) for s in samples] == [(key, offset) for key, _, offset, _, _ in firsts]


TWO = [("0.jpg", 1000, tarfile.REGTYPE, 0), ("1.jpg", 1000, tarfile.REGTYPE, 0)]
WHOLE = write(TWO, format=tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("data", "words"),
    [(gzip.compress(WHOLE), r"\(compressed\)"), (WHOLE[:2500], r"cut short: member '1\.jpg' needs 3072 bytes"), (WHOLE[:1700], r"are part of a header"), (WHOLE + WHOLE, "tars were joined"), (WHOLE[:1536] + b"\x07" + WHOLE[1537:], "no header at byte 1536"), (b"<html>" * 200, "no header at byte 0")],
)  # fmt: skip
def test_what_is_no_whole_tar_is_named(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=r"x\.tar: not a whole, uncompressed tar .*" + words):
        list(scan_samples(io.BytesIO(data), name="x.tar"))


@settings(max_examples=300, deadline=None)
@given(name=st.text(alphabet="ab./ü", max_size=12))
def test_names_are_split_as_webdataset_splits_them(name: str) -> None:
    key, extension = base_plus_ext(name)
    if name.rpartition("/")[2].startswith("."):  # hidden
        key = None
    assert split_name(name) == ((key, extension) if key is not None else ("", ""))

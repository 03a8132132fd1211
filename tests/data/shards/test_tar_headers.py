"""Headers of every dialect are read as tarfile reads them, and impossible ones are refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from pipeline.data.shards.tar import scan_samples
from pipeline.errors import DataError
from tests.helpers.tars import WHOLE, as_tarfile_reads, as_we_read, write


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"X"])
def test_an_extended_header_of_gigabytes_is_refused_before_it_is_read(kind: bytes, tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 6 << 30
    data = header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (tmp_path / "x.tar").write_bytes(data)
    asked: list[int] = []

    class Watched(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            asked.append(size)
            return super().read(size)

    with (
        Watched(str(tmp_path / "x.tar")) as file,
        pytest.raises(DataError, match=r"x\.tar: .*extended header of 6442450944 bytes"),
    ):
        list(scan_samples(cast("BinaryIO", file), name="x.tar"))
    assert max(asked) <= 1 << 20


SIZE_FORMS = {"base 256": lambda size: b"\x80" + size.to_bytes(11, "big"), "12 octal digits": lambda size: b"%012o" % size}


@pytest.mark.parametrize("form", [*SIZE_FORMS, "PAX record"])
@pytest.mark.parametrize("size", [700, 9 << 30])  # eleven octal digits end at 8 GiB
def test_sizes_are_read_in_every_form(form: str, size: int, tmp_path: Path) -> None:
    info = tarfile.TarInfo("0.jpg")
    info.size, info.pax_headers = size, {"size": str(size)}
    header = info.tobuf(tarfile.PAX_FORMAT)
    if form in SIZE_FORMS:
        header = info.tobuf(tarfile.GNU_FORMAT)
        header = with_checksum(header[:124] + SIZE_FORMS[form](size) + header[136:])
    with (tmp_path / "x.tar").open("wb+") as file:
        file.write(header)
        file.seek(-(-size // 512) * 512, io.SEEK_CUR)  # a hole: takes no space
        file.write(write([("1.jpg", 3, tarfile.REGTYPE, 0)], format=tarfile.USTAR_FORMAT))
        with tarfile.open(tmp_path / "x.tar") as tar:
            expected = [(info.offset_data, info.size) for info in tar]
        file.seek(0)
        found = [(m.start, m.length) for s in scan_samples(file, name="x.tar") for m in s.members]
    assert found == expected
    assert found[0] == (len(header), size)


def with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\x80\0\0\0\x7f" + b"\xff" * 7, b"\xff" * 4 + b"\0" * 8]
)
def test_a_negative_or_impossible_size_ends_in_words(size: bytes) -> None:
    header = with_checksum(WHOLE[:124] + size + WHOLE[136:512])
    with pytest.raises(DataError, match=r"x\.tar"):
        as_we_read(header + WHOLE[512:])


def test_global_pax_headers_may_say_anything_but_where_members_lie() -> None:
    for headers, is_read in (({"comment": "of all"}, True), ({"size": "3"}, False), ({"path": "0.jpg"}, False)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
            for name in ("0.jpg", "1.jpg"):
                info = tarfile.TarInfo(name)
                info.size = 5
                tar.addfile(info, io.BytesIO(b"bytes"))
        if is_read:
            assert (
                as_we_read(buffer.getvalue()) == {"0.jpg": b"bytes", "1.jpg": b"bytes"} == as_tarfile_reads(buffer.getvalue())
            )
        else:
            with pytest.raises(DataError, match=r"a global PAX header at byte 0 sets (size|path) for all members"):
                as_we_read(buffer.getvalue())


def test_a_member_of_an_unknown_type_is_refused_by_name() -> None:
    data = with_checksum(WHOLE[:156] + b"Z" + WHOLE[157:512]) + WHOLE[512:]
    with pytest.raises(DataError, match=r"x\.tar: member '0\.jpg' is of the unknown type b'Z'"):
        as_we_read(data)


@pytest.mark.parametrize("num_bytes", [1024, 10240])
def test_a_tar_without_members_is_no_damage_but_no_bytes_are(num_bytes: int) -> None:
    assert as_we_read(bytes(num_bytes)) == {}
    with pytest.raises(DataError, match=r"x\.tar has 0 bytes"):
        as_we_read(b"")
    with pytest.raises(DataError, match="bytes of zeros: space that a download or a copy set aside"):
        as_we_read(bytes(2 << 20))

"""The header scanner against tarfile itself, on tars of every dialect; and what is no tar."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from pipeline.data.shards.member_names import split_name
from pipeline.data.shards.tar import TarMember, find_defect, scan_samples
from pipeline.errors import DataError
from tests.helpers.tars import WHOLE, as_tarfile_reads, as_we_read, write

NAMES = st.one_of(
    st.from_regex(r"[a-z0-9_]{1,12}(/[a-z0-9_][a-z0-9_.]{0,19}){0,3}\.(jpg|JPEG|cls|seg\.png)", fullmatch=True),
    st.builds(
        lambda folders, stem, end: "long/" * folders + f"{stem}.{end}",
        st.integers(20, 60),
        st.text("abc", min_size=1, max_size=120),
        st.sampled_from(["jpg", "json"]),
    ),
    st.sampled_from(["ü/ä.jpg", "no-dot", "a.b/c.jpg", ".hidden", "x" * 150 + ".cls"]),
)
KINDS = (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


TARS = {
    "members": st.lists(
        st.tuples(NAMES, st.integers(0, 3000), st.sampled_from(KINDS), st.sampled_from([0, 1.5, 1e9])), max_size=12
    ),
    "format": st.sampled_from(FORMATS),
    "end": st.sampled_from(["whole", "bare"]),
}


def compare_with_tarfile(members: list[tuple[str, int, bytes, float]], format: int, end: str) -> None:
    data = write(members, format=format)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = list(tar)
        last = tar.offset
    expected = [
        (base_plus_ext(i.name)[0], (base_plus_ext(i.name)[1] or "").lower(), i.offset, i.offset_data, i.size)
        for i in infos
        if i.isreg() and base_plus_ext(i.name)[0] is not None
    ]
    samples = list(scan_samples(io.BytesIO(data[:last] if end == "bare" and infos else data), name="x.tar"))
    found = [(s.key, m.extension, m.start, m.length) for s in samples for m in s.members]
    assert found == [(key, extension, start, size) for key, extension, _, start, size in expected]
    firsts = [e for i, e in enumerate(expected) if i == 0 or expected[i - 1][0] != e[0]]
    assert [(s.key, s.start) for s in samples] == [(key, offset) for key, _, offset, _, _ in firsts]


@settings(max_examples=40, deadline=None)
@given(**TARS)
def test_it_finds_what_tarfile_finds(members: list[tuple[str, int, bytes, float]], format: int, end: str) -> None:
    compare_with_tarfile(members, format, end)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(**TARS)
def test_it_finds_what_tarfile_finds_in_many_tars(members: list[tuple[str, int, bytes, float]], format: int, end: str) -> None:
    compare_with_tarfile(members, format, end)


@pytest.mark.parametrize(
    ("data", "words"),
    [(gzip.compress(WHOLE), r"\(compressed\)"), (WHOLE[:2500], r"truncated: member '1\.jpg' needs 3072 bytes"),
     (WHOLE[:1700], r"are part of a header"), (WHOLE + WHOLE, "tars were joined"),
     (WHOLE[:1536] + b"\x07" + WHOLE[1537:], "no header at byte 1536"), (b"letter" * 200, "no header at byte 0")],
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


def pack(folder: Path, *options: str) -> bytes:
    """Return what the system's tar makes of a folder's files, in the order of their names."""
    names = sorted(path.name for path in folder.iterdir())
    subprocess.run(
        ["tar", "-cf", folder.parent / "packed.tar", "-C", folder, *options, *names], check=True, capture_output=True
    )
    return (folder.parent / "packed.tar").read_bytes()


def write_holes(path: Path, *, num_pieces: int, size: int) -> None:
    with path.open("wb") as file:
        for piece in range(num_pieces):
            file.seek(piece * (size // num_pieces))
            file.write(bytes([piece % 255 + 1]) * 100)
        file.truncate(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made


SPARSE = [
    ("--format=gnu",),
    ("--format=posix", "--sparse-version=0.0"),
    ("--format=posix", "--sparse-version=0.1"),
    ("--format=posix", "--sparse-version=1.0"),
]


@pytest.mark.parametrize("options", SPARSE, ids=" ".join)
@pytest.mark.parametrize("num_pieces", [0, 1, 3, 40])  # GNU's own header holds four pieces, the others follow in blocks of 21
def test_sparse_members_are_read_as_they_were_before_they_were_packed(
    options: tuple[str, ...], num_pieces: int, folder: Path
) -> None:
    write_holes(folder / "0.bmp", num_pieces=num_pieces, size=4_000_123)
    (folder / "0.cls").write_text("7")
    write_holes(folder / "1.bmp", num_pieces=1, size=65536)
    (folder / "1.cls").write_text("8")
    data = pack(folder, "--sparse", *options)
    assert len(data) < 1_000_000  # the holes are not in it
    assert as_we_read(data) == {path.name: path.read_bytes() for path in folder.iterdir()} == as_tarfile_reads(data)
    sample = next(scan_samples(io.BytesIO(data), name="x.tar"))
    assert (
        sample.members[0].read(lambda start, length: data[start : start + length], 150) == (folder / "0.bmp").read_bytes()[:150]
    )


def test_a_hole_is_not_filled_beyond_a_bound() -> None:
    member = TarMember("bmp", 512, 1 << 40, pieces=())
    with pytest.raises(DataError, match="more than 256 MiB"):
        member.read(lambda _start, _length: b"")


def test_a_sparse_map_that_does_not_fit_is_refused(folder: Path) -> None:
    with (folder / "a.bmp").open("wb") as file:
        file.write(b"first")
        file.truncate(1 << 20)
        file.seek(0, 2)
        file.write(b"last")
    data = bytearray(pack(folder, "--sparse", "--format=gnu"))
    first, second = 386, 386 + 24  # places of the pieces in the old format's header
    data[first : first + 12], data[second : second + 12] = data[second : second + 12], data[first : first + 12]
    at = 148
    data[at : at + 8] = b"%06o\0 " % (sum(data[:512]) - sum(data[at : at + 8]) + 8 * 32)
    with pytest.raises(DataError, match=r"x\.tar: .*the map of sparse member 'a\.bmp' is damaged"):
        list(scan_samples(io.BytesIO(data), name="x.tar"))


def test_links_are_the_earlier_members_they_lead_to(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(b"picture")
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    (folder / "c.jpg").symlink_to("a.jpg")
    (folder / "d.jpg").symlink_to("./b.jpg")
    (folder / "e.jpg").write_bytes(b"another")
    data = pack(folder)
    expected = {"a.jpg": b"picture", "b.jpg": b"picture", "c.jpg": b"picture", "d.jpg": b"picture", "e.jpg": b"another"}
    assert as_we_read(data) == expected == as_tarfile_reads(data)
    defects = {s.key: find_defect(s) for s in scan_samples(io.BytesIO(data), name="x.tar")}
    assert {key: defect and defect.kind for key, defect in defects.items()} == {
        "a": None, "b": "linked_member", "c": "linked_member", "d": "linked_member", "e": None
    }  # fmt: skip
    # Where links are not followed, as in part of a tar, they are marked all the same.
    behind = data[1024:]
    parts = {s.key: find_defect(s) for s in scan_samples(io.BytesIO(behind), name="x.tar", links="mark")}
    assert parts == {key: defect for key, defect in defects.items() if key != "a"}


def test_hard_links_whose_writer_repeats_the_bytes(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(b"picture" * 300)
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    (folder / "c.jpg").write_bytes(b"another")
    data = repeat_linked_bytes(pack(folder), b"picture" * 300)
    assert as_we_read(data) == {"a.jpg": b"picture" * 300, "b.jpg": b"picture" * 300, "c.jpg": b"another"}


def repeat_linked_bytes(data: bytes, content: bytes) -> bytes:
    """As `pax -x ustar` and `bsdcpio` write a hard link: with its size, and its bytes behind it."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = {info.name: info for info in tar}
    link = infos["b.jpg"]
    start, end = link.offset, link.offset + 512
    link.size = len(content)
    filled = content + bytes(-len(content) % 512)
    return data[:start] + link.tobuf(tarfile.USTAR_FORMAT) + filled + data[end:]


@pytest.mark.parametrize("target", ["/etc/hostname", "../x.jpg", "gone.jpg", "b.jpg"])
def test_a_link_to_anything_else_is_refused_by_name(target: str, folder: Path) -> None:
    (folder / "a.jpg").symlink_to(target)
    (folder / "b.jpg").write_bytes(b"later")
    with pytest.raises(DataError, match=r"x\.tar: member 'a\.jpg' is a link to .*, which is not an earlier file of this tar"):
        as_we_read(pack(folder))


def test_incremental_backups_hold_their_samples(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "0.jpg").write_bytes(b"picture")
    (folder / "sub" / "0.cls").write_text("7")
    (folder / "sub" / "1.cls").hardlink_to(folder / "sub" / "0.cls")
    data = pack(folder, f"--listed-incremental={folder.parent / 'state'}")
    assert b"D" in {data[at + 156 : at + 157] for at in range(0, len(data), 512)}
    assert as_we_read(data) == {
        "sub/0.jpg": b"picture",
        "sub/0.cls": b"7",
        "sub/1.cls": b"7",
    }  # tarfile takes times for folders


def test_a_later_volume_is_refused_by_name(folder: Path) -> None:
    (folder / "0.jpg").write_bytes(bytes(30_000))
    first, second = folder.parent / "1.tar", folder.parent / "2.tar"
    subprocess.run(["tar", "-cM", "-L", "20", "-f", first, "-f", second, "-C", folder, "0.jpg"], check=True)
    with pytest.raises(DataError, match=r"x\.tar: begins inside member '0\.jpg'"):
        as_we_read(second.read_bytes())
    with pytest.raises(DataError, match=r"truncated: member '0\.jpg'"):
        as_we_read(first.read_bytes())


@pytest.mark.parametrize(
    ("names", "key"),
    [(["a.jpg", "a.cls", "a.jpg", "a.cls"], "a"), (["p.JPG", "p.cls", "p.jpg"], "p"), (["d/a.jpg", "d/a.jpg"], "d/a"),
     (["a.seg.png", "a.SEG.png"], "a")],
)  # fmt: skip
def test_an_extension_twice_in_a_sample_is_a_defect(names: list[str], key: str) -> None:
    data = write([(name, 1, tarfile.REGTYPE, 0) for name in names], format=tarfile.USTAR_FORMAT)
    (sample,) = scan_samples(io.BytesIO(data), name="x.tar")
    defect = find_defect(sample)
    assert sample.key == key
    assert defect is not None
    assert defect.kind == "repeated_member"

"""Tars by others are indexed, with their long names and labels; bad folders are refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.__main__ import main
from pipeline.data.shards.index import load_index
from pipeline.data.shards.reader import BlockReader
from tests.conftest import encode, make_image, write_tar


@pytest.mark.parametrize(
    "names",
    [
        ["0.jpg", "0.cls", "1.jpg", "1.cls"],
        ["0.cls", "0.jpg", "1.cls", "1.jpg"],
        ["a/b.c/0.jpg", "a/b.c/0.cls", "a/b.c/1.jpg", "a/b.c/1.cls"],
    ],
)
def test_tars_by_others_are_indexed(tmp_path: Path, names: list[str]) -> None:
    image = encode(make_image(0, num_classes=3, size=24), format="JPEG")
    write_tar(tmp_path / "x.tar", [(name, image if name.endswith("jpg") else b"2") for name in names])
    assert main(["index", str(tmp_path)]) == 0
    assert [s.label for s in BlockReader(load_index(str(tmp_path)), capacity=1).read(0)] == [2, 2]


def test_long_names_travel_with_their_block(tmp_path: Path) -> None:
    """Names beyond a tar header's hundred bytes are stored in a member of their own, before the file."""
    image = encode(make_image(0, num_classes=3, size=24), format="JPEG")
    members = [
        (f"{'folder/' * 30}{number}.{kind}", data) for number in range(5) for kind, data in (("jpg", image), ("cls", b"1"))
    ]
    write_tar(tmp_path / "x.tar", members)
    assert main(["index", str(tmp_path), "--block-samples", "2"]) == 0
    index = load_index(str(tmp_path))
    reader = BlockReader(index, capacity=1)
    keys = [sample.key for block in range(index.num_blocks) for sample in reader.read(block)]
    assert keys == [f"{'folder/' * 30}{number}" for number in range(5)]


def test_json_labels_are_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("0.jpg", b"x"), ("0.json", b'{"label": 7, "text": "hi"}')])
    main(["index", str(tmp_path)])
    assert BlockReader(load_index(str(tmp_path)), capacity=1).read(0)[0].label == 7


def write_damaged(folder: Path) -> None:
    """Damage a header in the middle: what follows must not be taken for missing."""
    write_tar(folder / "x.tar", [(f"{i}.jpg", bytes(512)) for i in range(4)])
    data = bytearray((folder / "x.tar").read_bytes())
    data[2 * 1024 + 7] ^= 1
    (folder / "x.tar").write_bytes(data)


def write_truncated(folder: Path) -> None:
    write_tar(folder / "x.tar", [(f"{i}.jpg", bytes(3000)) for i in range(4)])
    (folder / "x.tar").write_bytes((folder / "x.tar").read_bytes()[:6000])


BAD_FOLDERS = {
    "does not exist or holds no .tar files": lambda folder: folder.rmdir(),
    "holds no .tar files": lambda folder: None,
    "x.tar.gz is compressed; range reads need plain tars": lambda folder: (folder / "x.tar.gz").write_bytes(b""),
    "x.tar: not a whole, uncompressed tar": lambda folder: (folder / "x.tar").write_bytes(b"hello" * 500),
    "no header at byte 2048": write_damaged,
    "x.tar: truncated|x.tar: not a whole": write_truncated,
    "x.tar: no samples": lambda folder: write_tar(folder / "x.tar", [("readme", b"hello")]),
    "no samples in its shards": lambda folder: write_tar(folder / "x.tar", []),
    "x.tar has 0 bytes": lambda folder: (folder / "x.tar").write_bytes(b""),
    "x.tar: sample 'a' has two members .jpg": lambda folder: write_tar(folder / "x.tar", [("a.jpg", b"x"), ("a.jpg", b"y")]),
    "or their names differ in case alone": lambda folder: write_tar(
        folder / "x.tar", [("a.JPG", b"x"), ("a.cls", b"1"), ("a.jpg", b"y")]
    ),
}


@pytest.mark.parametrize("message", BAD_FOLDERS)
def test_bad_folders_are_answered_in_words(tmp_path: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    BAD_FOLDERS[message](folder)
    assert main(["index", str(folder)]) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|")), error
    assert "Traceback" not in error

"""Names in a folder of shards are read: unfinished downloads are never ignored, and gaps are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.shard_names import check_finished, find_gaps, find_unfinished
from pipeline.errors import DataError
from tests.conftest import encode, make_image, write_tar

UNFINISHED = [
    "0.tar.part", "0.tar.7e0CabeA", ".0.tar.Ab12Cd", "0.tar.incomplete", "0.tar.crdownload", "0.tar.tmp", "0.tar.aria2",
    "0.tar_tmp", "0.tar~tmp", "0.tar.part (1)",
]  # fmt: skip
OTHERS = [
    "0.tar", "0.tar.gz", "0.tar.md5", "0.tar.sha256", "0.tar.idx", "0.tar.json", "0.tar.done", "classes.txt",
    "index.safetensors", "0.target", "0.tar.txt", "0.tars", "a.tarball",
]  # fmt: skip


@pytest.mark.parametrize("name", UNFINISHED)
def test_names_of_downloads_that_did_not_end(name: str) -> None:
    assert find_unfinished(["a.tar", name]) == [name]


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_other_files(name: str) -> None:
    assert find_unfinished([name]) == []


GAPS: dict[str, tuple[list[str], list[str]]] = {
    "none": (["00000.tar", "00001.tar", "00002.tar"], []),
    "one": (["00000.tar", "00002.tar"], ["00001.tar"]),
    "from another number on": (["007.tar", "008.tar"], []),
    "without zeros in front": (["x-9.tar", "x-11.tar"], ["x-10.tar"]),
    "of two splits": (["train-0.tar", "train-2.tar", "val-0.tar"], ["train-1.tar"]),
    "of many, the last": (["x-00000-of-00003.tar", "x-00001-of-00003.tar"], ["x-00002-of-00003.tar"]),
    "of many, counted from one": (["x-1-of-3.tar", "x-3-of-3.tar"], ["x-2-of-3.tar"]),
    "with words behind": (["x-000-224.tar", "x-002-224.tar"], []),
    "numbers that are names": (["n01440764.tar", "n01443537.tar", "n01484850.tar"], []),
    "one alone": (["5.tar"], []),
    "no numbers": (["cat.tar", "dog.tar"], []),
}


@pytest.mark.parametrize("case", GAPS)
def test_gaps_in_the_numbering(case: str) -> None:
    names, missing = GAPS[case]
    assert find_gaps(names) == missing


def test_a_tar_that_a_download_has_not_filled_is_refused() -> None:
    """It has its full size from the start: missing parts read as the end of the tar."""
    check_finished(["0.tar", "1.tar.aria2"], source="x")
    with pytest.raises(DataError, match=r"x: 0\.tar\.aria2 says that the download of 0\.tar has not ended"):
        check_finished(["0.tar", "0.tar.aria2"], source="x")


@pytest.mark.parametrize("command", ["index", "verify", "make"])
def test_commands_say_it(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    picture = encode(make_image(0, num_classes=2, size=40), format="PNG")
    for number in (0, 1, 3):
        write_tar(folder / f"{number:05d}.tar", [(f"{number}.png", picture), (f"{number}.cls", b"1")])
    (folder / "00004.tar.part").write_bytes(b"x")
    folders = [str(folder), *([str(tmp_path / "made")] if command == "make" else [])]
    assert main([command, *folders, "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "passed over: 00004.tar.part, by the name a tar that did not come whole; fetch it again" in said
    assert "missing in the numbering: 00002.tar; fetch them if they are part of the set" in said
    (folder / "00003.tar.aria2").write_bytes(b"x")
    assert main([command, str(folder), *([str(tmp_path / "other")] if command == "make" else []), "--workers", "1"]) == 2
    assert "the download of 00003.tar has not ended" in capsys.readouterr().err

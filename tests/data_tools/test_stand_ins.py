"""Files that were not downloaded are refused: pointers of git-lfs, dangling links of git-annex and others, pages of servers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.index import index_folder
from data_tools.make.classes import read_class_list, read_class_map
from data_tools.parallel import LocalWorkers
from pipeline.data.shards.class_names import class_names_of
from pipeline.data.shards.index import load_index
from pipeline.errors import DataError
from tests.conftest import encode, make_image, write_tar
from tests.data_tools.make.test_labels import list_source, write_images

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'7c' * 32}\nsize 9504839680\n"
PAGE = "<!DOCTYPE html><html><body>log in</body></html>"
SAID = {POINTER: r" is a git-lfs pointer; `git lfs pull` brings the file", PAGE: r" is HTML"}
PICTURE = encode(make_image(0, num_classes=2, size=40), format="PNG")


def write_shards(folder: Path) -> Path:
    folder.mkdir()
    for number in range(2):
        write_tar(folder / f"{number}.tar", [(f"{number}.png", PICTURE), (f"{number}.cls", b"1")])
    return folder


@pytest.mark.parametrize("content", SAID, ids=["pointer", "page"])
@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.csv", "x.tsv", "x.jsonl"])
def test_a_source_that_has_not_come_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}{SAID[content]}"):
        list_source(tmp_path / name, tmp_path / "scratch")


@pytest.mark.parametrize("content", SAID, ids=["pointer", "page"])
def test_a_list_of_classes_that_has_not_come_is_no_list_of_classes(tmp_path: Path, content: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(content)
    for read in (read_class_list, read_class_map):
        with pytest.raises(DataError, match=rf"classes\.txt{SAID[content]}"):
            read(str(path))
    folder = write_shards(tmp_path / "x")
    index_folder(str(folder), block_samples=4, workers=LocalWorkers(0))
    shutil.copy(path, folder)
    with pytest.raises(DataError, match=rf"classes\.txt{SAID[content]}"):
        class_names_of(*load_index(str(folder)).folders)


def test_images_of_a_clone_without_lfs_are_refused_before_they_are_packed(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 2)
    (tmp_path / "b" / "0.jpg").write_text(POINTER)
    with pytest.raises(DataError, match=rf"b/0\.jpg{SAID[POINTER]}"):
        list_source(tmp_path, tmp_path / "scratch")
    (tmp_path / "b" / "0.jpg").write_bytes(b"\xff\xd8\xff" + bytes(150))  # a small picture
    assert len(list_source(tmp_path, tmp_path / "scratch")) == 4


@pytest.mark.parametrize("command", ["index", "verify"])
def test_a_shard_that_has_not_come_is_named(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_shards(tmp_path / "x")
    (folder / "1.tar").write_text(POINTER)
    assert main([command, str(folder), "--workers", "1"]) != 0
    assert "1.tar is a git-lfs pointer" in "".join(capsys.readouterr())
    (folder / "1.tar").unlink()
    (folder / "1.tar").symlink_to(tmp_path / "annex" / "1.tar")
    assert main([command, str(folder), "--workers", "1"]) != 0
    said = "".join(capsys.readouterr())
    assert "1.tar: it is in the listing, but not there" in said
    assert "git annex get" in said

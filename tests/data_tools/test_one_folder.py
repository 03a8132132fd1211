"""Commands share a folder: one writes at a time, and none destroys another's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.folder_lock import lock_folder
from data_tools.make.output import WORK_NAME
from data_tools.make.record import RECORD_NAME
from pipeline.data.shards.skips import Skip, read_skips, write_skips
from pipeline.errors import DataError
from tests.conftest import encode, make_image, write_tar


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number in range(12):
        folder = root / ("ant", "bee")[number % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.png").write_bytes(encode(make_image(number, num_classes=2, size=16), format="PNG"))
    return root


def make(images: Path, folder: Path) -> int:
    return main(["make", str(images), str(folder), "--samples-per-shard", "5", "--workers", "1"])


def contents(folder: Path) -> dict[str, bytes]:
    return {tar.name: tar.read_bytes() for tar in folder.glob("*.tar")}


def write_shard(path: Path, *, num_samples: int = 3, with_damage: bool = False) -> None:
    members = [(f"{path.stem}{n}.png", encode(make_image(n, num_classes=3, size=48), format="PNG")) for n in range(num_samples)]
    members = [(name, data[:40] if with_damage and number == 1 else data) for number, (name, data) in enumerate(members)]
    write_tar(path, [pair for name, data in members for pair in ((name, data), (f"{Path(name).stem}.cls", b"1"))])


def test_a_second_command_on_a_folder_is_refused_and_names_the_first(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shards"
    write_shard(tmp_path / "set.tar")
    with lock_folder(folder, advice=""):
        assert make(images, folder) == 2
        assert f"{folder} is being written by another command, of host " in capsys.readouterr().err
        assert main(["index", str(folder), "--workers", "1"]) == 2
        assert "is being written by another command" in capsys.readouterr().err
    for name, command in ((".verify.json.lock", "verify"), (".stats.html.lock", "stats"), (".dedup.json.lock", "dedup")):
        with lock_folder(tmp_path, advice="", name=name):
            assert main([command, str(tmp_path), "--workers", "1", *(["--within"] if command == "dedup" else [])]) == 2
            assert "is being written by another command" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*.lock"))


def test_shards_are_checked_against_their_notes(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    assert make(images, folder) == 0
    whole, first = contents(folder), folder / "shard-000000.tar"
    # A file that was made longer or shorter since is written again, though everything was done.
    first.write_bytes(whole[first.name][:-512])
    assert make(images, folder) == 0
    assert contents(folder) == whole
    # After an interrupted call, the bytes of its shards are compared too. Drafts of dead processes are removed.
    record = json.loads((folder / RECORD_NAME).read_text())
    (folder / WORK_NAME).mkdir()
    for name, note in record.pop("shards").items():
        (folder / WORK_NAME / f"{name}.json").write_text(json.dumps(note))
    del record["report"]
    (folder / RECORD_NAME).write_text(json.dumps(record))
    first.write_bytes(whole[first.name][:3000] + b"\xff" * 8 + whole[first.name][3008:])
    (folder / ".shard-000001.tar.0123.part").write_bytes(b"half")
    assert make(images, folder) == 0
    assert contents(folder) == whole
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz"])
def test_findings_on_one_tar_replace_none_on_its_folder(name: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", with_damage=True)
    write_shard(tmp_path / "b.tar")
    for command in ("verify", "stats"):
        main([command, str(tmp_path), "--workers", "1"])
    files = ("skip.tsv", "verify.json", "stats.json", "stats.html")
    before = {file: (tmp_path / file).read_bytes() for file in files}
    assert len(read_skips(tmp_path / "skip.tsv")) == 1
    if name != "b.tar":
        (tmp_path / name).write_bytes(b"\x1f\x8b" + bytes(20))
    for command in ("verify", "stats"):
        main([command, str(tmp_path / name), "--workers", "1"])
    assert {file: (tmp_path / file).read_bytes() for file in files} == before
    assert all((tmp_path / f"{name.removesuffix('.tar')}.{file}").exists() for file in files)


def test_a_narrower_search_for_copies_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, test = tmp_path / "corpus", tmp_path / "test"
    for folder in (corpus, test):
        folder.mkdir()
        write_shard(folder / "x.tar")
    dedup = ["dedup", str(corpus), "--workers", "1"]
    assert main([*dedup, "--against", str(test)]) == 0
    found = read_skips(corpus / "copies.tsv")
    assert len(found) == 3
    assert main([*dedup, "--within"]) == 2
    assert f"found with --against {test}, which this one would lose" in capsys.readouterr().err
    assert read_skips(corpus / "copies.tsv") == found
    assert main([*dedup, "--within", "--out", str(tmp_path / "found")]) == 0
    assert main([*dedup[:1], f"{corpus}/x.tar", "--within"]) == 0
    assert read_skips(corpus / "copies.tsv") == found
    assert (corpus / "x.copies.tsv").exists()
    assert main(["dedup", str(test), "--against", str(corpus), "--out", str(tmp_path / "found")]) == 2
    assert f"exists already and is about {corpus}" in capsys.readouterr().err


def test_lists_and_reports_of_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "x.tar")
    monkeypatch.chdir(tmp_path)
    for command in ("verify", "stats"):  # findings of URLs go into the current folder
        assert main([command, f"file://{tmp_path}/one", "--workers", "1"]) == 0
        assert main([command, f"file://{tmp_path}/two", "--workers", "1"]) == 2
        assert f"exists already and is about file://{tmp_path}/one; name" in capsys.readouterr().err
    by_hand = tmp_path / "two" / "skip.tsv"
    write_skips(by_hand, [Skip("x.tar", "x1", "looks odd")])
    assert main(["verify", str(tmp_path / "two"), "--workers", "1"]) == 2
    assert f"--skip {by_hand} takes its samples into the new list" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "two"), "--workers", "1", "--skip", str(by_hand)]) == 0
    assert read_skips(by_hand) == [Skip("x.tar", "x1", "looks odd")]


def test_a_place_that_cannot_be_written_is_said_with_the_option_that_names_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"nothing can be written there .*; choose"),
        lock_folder(tmp_path / "file", advice="choose"),
    ):
        pass
    write_shard(tmp_path / "x.tar")
    assert main(["stats", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    assert "nothing can be written there" in (shown := capsys.readouterr().err)
    assert "name another folder with --out" in shown

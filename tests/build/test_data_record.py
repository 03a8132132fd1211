"""A resume on other data is refused with the difference in words, or accepted by its fingerprint and recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.build.data_record import check_data, write_record
from pipeline.data.shards.index import ShardIndex
from pipeline.data.streams.mixture import Corpus, Mixture, UnindexedShards
from pipeline.errors import CheckpointError
from pipeline.run.folder import RunFolder
from tests.conftest import write_tar
from tests.data.shards.test_index import index, members

LABELS = ["0", "1", "2", "0", "1", "2"]


def mixture(*indexes: ShardIndex, weight: float = 1.0) -> Mixture:
    return Mixture(tuple(Corpus(made, weight) for made in indexes))


def two_shards(folder: Path, first: list[str], second: list[str]) -> Mixture:
    folder.mkdir(exist_ok=True)
    write_tar(folder / "001.tar", members(second))
    return mixture(index(folder, members(first)))


def refusal(run: Path, now: Mixture | UnindexedShards, before: Mixture | UnindexedShards, accept: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_data(run, now, before=before.fingerprint, step=40, accept=accept)
    return str(caught.value)


def test_the_difference_is_told_shard_by_shard(tmp_path: Path) -> None:
    before = two_shards(tmp_path / "set", LABELS, LABELS)
    write_record(tmp_path, before)
    assert check_data(tmp_path, before, before=before.fingerprint, step=40, accept=None).messages == []
    said = refusal(tmp_path, two_shards(tmp_path / "set", LABELS, [*LABELS[1:], "0"]), before)
    assert f"{tmp_path / 'set'}: other labels in 1 of 2 shards (001.tar)" in said
    said = refusal(tmp_path, two_shards(tmp_path / "set", LABELS[:5], LABELS), before)
    assert "other numbers of samples in 1 of 2 shards (000.tar)" in said
    renamed = mixture(index(tmp_path / "set", members(LABELS, key="abcdef".__getitem__)))
    assert "other keys in 1 of 2 shards (000.tar)" in refusal(tmp_path, renamed, before)
    (tmp_path / "set" / "001.tar").rename(tmp_path / "set" / "002.tar")
    said = refusal(tmp_path, two_shards(tmp_path / "set", LABELS, LABELS), before)
    assert "1 of 2 shards (002.tar) added" in said
    (tmp_path / "set" / "001.tar").unlink()
    said = refusal(tmp_path, mixture(index(tmp_path / "set")), before)
    assert "1 of 2 shards (001.tar) missing" in said


def test_a_mixture_that_differs_is_told(tmp_path: Path) -> None:
    made = index(tmp_path / "set", members(LABELS))
    before = mixture(made, made, weight=2.0)
    write_record(tmp_path, before)
    assert "weight was 2, now 3" in refusal(tmp_path, mixture(made, made, weight=3.0), before)
    assert "2 corpora were mixed, now 1" in refusal(tmp_path, mixture(made), before)
    assert "now 1 tars without an index" in refusal(tmp_path, UnindexedShards(("pipe:x",)), before)


@pytest.mark.parametrize("record", [None, "", "{", "[]", '{"fingerprint": "%s"}', '{"fingerprint": "%s", "corpora": [3]}'])
def test_without_a_usable_record_it_is_refused_all_the_same(record: str | None, tmp_path: Path) -> None:
    before, now = mixture(index(tmp_path / "a", members(LABELS))), mixture(index(tmp_path / "b", members(LABELS[:4])))
    if record is not None:
        (RunFolder(tmp_path).data).write_text(record.replace("%s", before.fingerprint))
    assert "their index, or the mixture, differs" in refusal(tmp_path, now, before)


def test_it_is_accepted_by_its_fingerprint_and_recorded(tmp_path: Path) -> None:
    before = two_shards(tmp_path / "set", LABELS, LABELS)
    write_record(tmp_path, before)
    now = two_shards(tmp_path / "set", LABELS[::-1], LABELS)
    assert f"data.accept={now.fingerprint}" in refusal(tmp_path, now, before)
    assert "(data.accept=yes names others)" in refusal(tmp_path, now, before, accept="yes")
    assert "names others" in refusal(tmp_path, now, before, accept=before.fingerprint)
    found = check_data(tmp_path, now, before=before.fingerprint, step=40, accept=now.fingerprint)
    assert "as data.accept says: " in found.messages[0]
    write_record(tmp_path, now, found.accepted)
    stored = json.loads((RunFolder(tmp_path).data).read_text())
    assert stored["fingerprint"] == now.fingerprint
    assert [(entry["step"], entry["from"], entry["to"]) for entry in stored["accepted"]] == [
        (40, before.fingerprint, now.fingerprint)
    ]
    assert "other labels in 1 of 2 shards (000.tar)" in stored["accepted"][0]["changed"]
    # The launch ended before its next checkpoint. The same launch resumes without the option.
    again = check_data(tmp_path, now, before=before.fingerprint, step=40, accept=None)
    assert "as was accepted at step 40" in again.messages[0]
    assert again.accepted is None
    third = two_shards(tmp_path / "set", LABELS, LABELS[::-1])
    assert f"data.accept={third.fingerprint}" in refusal(tmp_path, third, now)


def test_a_run_from_before_indexes_knew_labels_goes_on_with_a_word(tmp_path: Path) -> None:
    now = two_shards(tmp_path / "set", LABELS, LABELS)
    found = check_data(tmp_path, now, before=now.order_fingerprint, step=40, accept=None)
    assert "began before indexes knew keys and labels" in found.messages[0]
    other = Mixture(tuple(replace(corpus, first_class=2) for corpus in now.corpora))
    assert "differs" in refusal(tmp_path, other, UnindexedShards(("x",)))

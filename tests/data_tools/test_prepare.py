"""`prepare` does what its four commands do one after the other, resumes, and leaves copies of held-out images out of train."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.__main__ import main
from pipeline.data.shards.index import load_index
from pipeline.data.shards.skips import read_skips
from tests.conftest import encode, make_image
from tests.helpers.store import S3Server, bad_network

pytestmark = pytest.mark.slow


def write_photos(folder: Path, *, copies: int = 0) -> Path:
    """Write sixty pictures, one of them damaged, and copies of the first of them under other names."""
    for number in range(60 + copies):
        place = folder / f"class{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        data = encode(make_image(number % 60, num_classes=3, size=48), format="JPEG")
        (place / f"{number:03d}.jpg").write_bytes(data[:200] if number == 59 else data)
    return folder


def test_it_makes_what_its_steps_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, test_set = write_photos(tmp_path / "photos"), tmp_path / "test"
    (tmp_path / "others" / "x").mkdir(parents=True)
    (tmp_path / "others" / "x" / "1.jpg").write_bytes((photos / "class0" / "003.jpg").read_bytes())
    assert main(["make", str(tmp_path / "others"), str(test_set), "--workers", "1"]) == 0
    size, one = ["--samples-per-shard", "10"], ["--workers", "1"]
    together, apart = tmp_path / "together", tmp_path / "apart"
    assert main(["prepare", str(photos), str(together), *size, "--against", str(test_set), "--within", *one]) == 0
    assert f"prepared: data.train={together}\n" in capsys.readouterr().out
    assert main(["make", str(photos), str(apart), *size, *one]) == 0
    assert main(["verify", str(apart), *one]) == 0
    assert main(["dedup", str(apart), "--against", str(test_set), "--within", *one]) == 0
    lists = [apart / "skip.tsv", apart / "copies.tsv"]
    assert main(["index", str(apart), *(word for path in lists for word in ("--skip", str(path))), *one]) == 0
    assert load_index(str(together)).fingerprint == load_index(str(apart)).fingerprint
    assert [len(read_skips(path)) for path in lists] == [1, 1]
    assert load_index(str(together)).num_samples == 58
    capsys.readouterr()
    assert main(["prepare", str(photos), str(together), *size, "--against", str(test_set), "--within", *one]) == 0
    again = capsys.readouterr().out
    assert "(0 written now" in again
    assert "nothing to do: all known from before" in again
    assert load_index(str(together)).fingerprint == load_index(str(apart)).fingerprint


def test_copies_of_held_out_images_are_left_out_of_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = write_photos(tmp_path / "photos", copies=30), tmp_path / "out"
    assert main(["prepare", str(photos), str(out), "--split", "0.3", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert f"prepared: data.train={out / 'train'} evaluation.validation={out / 'val'}\n" in said
    left_out = [skip.key.split("-")[1] for skip in read_skips(out / "train" / "copies.tsv")]
    held_out = {path.split("-")[1] for path in keys_of(out / "val")}
    assert left_out
    for name in left_out:
        number = int(name)
        twin = number - 60 if number >= 60 else number + 60
        assert f"{twin:03d}" in held_out
    assert load_index(str(out / "train")).num_samples + len(left_out) + 1 >= len(keys_of(out / "train"))


def test_what_is_prepared_in_a_store_is_what_is_prepared_on_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos", copies=30)
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    options = ["--split", "0.3", "--within", "--samples-per-shard", "20", "--workers", "1"]
    assert main(["prepare", str(photos), str(tmp_path / "here"), *options]) == 0
    server = S3Server(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    try:
        with bad_network(server, monkeypatch):
            store = [str(photos), "s3://bucket/there", *options]
            assert main(["prepare", *store]) == 0
            assert "data.train=s3://bucket/there/train evaluation.validation=s3://bucket/there/val\n" in capsys.readouterr().out
            for part in ("train", "val"):
                here, there = (load_index(f"{folder}/{part}") for folder in (tmp_path / "here", "s3://bucket/there"))
                assert here.fingerprint == there.fingerprint
            assert main(["prepare", *store]) == 0
            assert "(0 written now" in capsys.readouterr().out
    finally:
        server.kill()
    findings = tmp_path / "there-findings"
    lists = ("train/skip.tsv", "train/copies.tsv", "val/skip.tsv")
    here, there = ([(folder / name).read_text() for name in lists] for folder in (tmp_path / "here", findings))
    assert here == [text.replace("s3://bucket/there", str(tmp_path / "here")) for text in there]
    assert read_skips(findings / "train" / "copies.tsv")
    stored = {path.name for path in (tmp_path / "store" / "bucket" / "there" / "train").iterdir()}
    assert not stored & {"skip.tsv", "copies.tsv", "verify.json", "dedup.json"}


def keys_of(folder: Path) -> list[str]:
    import tarfile

    return [
        name.partition(".")[0]
        for path in sorted(folder.glob("*.tar"))
        for name in tarfile.open(path).getnames()
        if name.endswith(".jpg")
    ]


def test_what_cannot_be_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    assert main(["prepare", str(photos), str(out), "--share", "0/2"]) == 2
    assert "prepare has no shares" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "nothing"), str(out), "--workers", "1"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert main(["prepare", str(photos), str(out), "--findings", "s3://bucket/findings"]) == 2
    assert "--findings s3://bucket/findings is a URL" in capsys.readouterr().err
    assert main(["prepare", str(photos), str(out), "--findings", str(photos / "class0" / "003.jpg")]) == 2
    assert "003.jpg is a file; name a folder for the findings" in capsys.readouterr().err

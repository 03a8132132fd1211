"""The command `dedup` finds planted copies end to end, keeps and counts the right images, and survives a kill."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.__main__ import main
from data_tools.dedup.hash_sets import hash_shard
from data_tools.dedup.measure import main as measure_main
from pipeline.data.shards.index import load_index
from pipeline.data.shards.skips import Skip, read_skips, write_skips
from tests.conftest import REPOSITORY, write_tar


def make_picture(seed: int, *, width: int = 120, height: int = 90) -> Image.Image:
    """Make a picture like no other: coloured blots of all sizes."""
    generator = np.random.default_rng(seed)
    levels = np.zeros((height, width, 3))
    for side in (2, 4, 8, 16, 32):
        blots = Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))
        levels += np.asarray(blots.resize((width, height), Image.Resampling.BICUBIC), float) / side**0.6
    levels = (levels - levels.min()) / (levels.max() - levels.min()) * 255
    return Image.fromarray(levels.astype(np.uint8))


def encode(image: Image.Image, *, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_set(folder: Path, shards: dict[str, dict[str, bytes]]) -> Path:
    """Write tars of images by key."""
    folder.mkdir(parents=True)
    for name, images in shards.items():
        write_tar(
            folder / name,
            [(f"{key}.{kind}", data) for key, image in images.items() for kind, data in (("jpg", image), ("cls", b"0"))],
        )
    return folder


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    """Make eight pictures."""
    return write_set(tmp_path / "birds" / "test", {"t.tar": {f"t{seed}": encode(make_picture(seed)) for seed in range(8)}})


def make_corpus(folder: Path) -> Path:
    """Write pictures of its own, copies of the test set's pictures 0 to 3, and images that cannot be compared."""
    mirrored = make_picture(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    first = {
        "smaller": encode(make_picture(0).resize((60, 45), Image.Resampling.BICUBIC)),
        "own-0": encode(make_picture(100)),
        "mirrored": encode(mirrored, quality=40),
        "broken": encode(make_picture(101))[:300],
        "flat": encode(Image.new("RGB", (64, 64), (200, 10, 10))),
    }
    wide = Image.fromarray(np.concatenate([np.asarray(make_picture(side, height=90)) for side in (102, 3, 103)], axis=1))
    second = {
        "own-1": encode(make_picture(104)),
        "cropped": encode(make_picture(2).crop((8, 5, 8 + 110, 5 + 82))),
        "holds-it": encode(wide.crop((112, 0, 248, 90))),  # the test image and a little around it
        "own-2": encode(make_picture(105)),
    }
    write_set(folder, {"a.tar": first, "b.tar": second})
    write_tar(folder / "c.tar", [("words.txt", b"no image"), ("own-3.jpg", encode(make_picture(106))), ("own-3.cls", b"0")])
    return folder


def run(*arguments: object) -> int:
    return main(["dedup", *map(str, arguments), "--workers", "1"])


def test_planted_copies_are_listed_counted_and_left_out(
    tmp_path: Path, test_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    write_skips(corpus / "skip.tsv", [Skip("c.tar", "words", "no image")])  # written by `verify`: samples that no index takes
    other = write_set(tmp_path / "other", {"u.tar": {"u0": encode(make_picture(300)), "u1": encode(make_picture(105))}})
    assert run(corpus, "--against", other, "--against", test_set) == 0
    skips = read_skips(corpus / "copies.tsv")
    assert [(skip.shard, skip.key) for skip in skips] == [
        ("a.tar", "mirrored"), ("a.tar", "smaller"), ("b.tar", "cropped"), ("b.tar", "holds-it"), ("b.tar", "own-2"),
    ]  # fmt: skip
    assert skips[1].reason.startswith(f"copy of {test_set}:t.tar/t0 distance ")
    assert skips[4].reason == f"copy of {other}:u.tar/u1 distance 0"
    assert [skip.reason.partition("(")[2] for skip in skips] == ["mirrored)", "", "cropped)", "cropped)", ""]
    report = json.loads((corpus / "dedup.json").read_text())
    assert {key: report["corpus"][key] for key in ("images_hashed", "undecodable", "featureless", "samples_without_image")} == {
        "images_hashed": 9, "undecodable": 1, "featureless": 1, "samples_without_image": 1,
    }  # fmt: skip
    assert report["corpus"]["undecodable_first"][0].startswith("a.tar/broken: ")
    assert [(found["test_images_with_a_copy"], found["copies_of_them"]) for found in report["test_sets"]] == [(1, 1), (4, 4)]
    assert all(pair["distance"] <= report["distance"] for pair in report["pairs"]["against"])
    with Image.open(corpus / "dedup-against.jpg") as sheet:
        assert sheet.width == 4 * 330
    shown = capsys.readouterr().out
    assert "5 of 9 images (55.56%): 5 copies of test images" in shown
    # The printed command works, and still leaves out what `verify` listed.
    following = shown.split("next:")[1].split("data_tools ")[1].split()
    assert main([*following, "--workers", "1"]) == 0
    assert load_index(str(corpus)).num_samples == 10 - 5


def test_inside_a_corpus_the_largest_copy_stays_then_the_first(tmp_path: Path, test_set: Path) -> None:
    small, large, twice = make_picture(0, width=60, height=45), make_picture(200, width=160, height=120), make_picture(201)
    images = {
        "a": encode(large.resize((80, 60))),
        "b": encode(large),
        "c": encode(large.resize((120, 90)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "d": encode(twice),
        "e": encode(twice),
        "f": encode(twice, quality=60),
        "of-test-0": encode(small),
        "of-test-1": encode(small),
    }
    corpus = write_set(tmp_path / "corpus", {"x.tar": images})
    assert run(corpus, "--against", test_set, "--within", "--out", tmp_path / "found") == 0
    skips = {skip.key: skip.reason for skip in read_skips(tmp_path / "found" / "copies.tsv")}
    assert {key: reason.split()[2] for key, reason in skips.items()} == {
        "a": "x.tar/b", "c": "x.tar/b", "e": "x.tar/d", "f": "x.tar/d",
        "of-test-0": f"{test_set}:t.tar/t0", "of-test-1": f"{test_set}:t.tar/t0",
    }  # fmt: skip
    assert skips["e"] == "copy of x.tar/d distance 0"
    assert skips["c"].endswith("(mirrored)")


def test_images_are_hashed_once_and_again_only_where_a_shard_changed(tmp_path: Path, test_set: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    assert run(corpus, "--against", test_set) == 0

    def times() -> dict[str, int]:
        kept = [*(corpus / ".dedup").iterdir(), *(test_set / ".dedup").iterdir()]
        return {path.name: path.stat().st_mtime_ns for path in kept}

    before, found = times(), read_skips(corpus / "copies.tsv")
    write_tar(corpus / "b.tar", [("new.jpg", encode(make_picture(5))), ("new.cls", b"0")])
    assert run(corpus, "--against", test_set) == 0
    changed = {name for name, changed_at in times().items() if changed_at != before[name]}
    assert changed == {
        "b.tar.safetensors",
        "b.tar.against.json",
        "c.tar.against.json",
    }  # c's images have other numbers now
    now = read_skips(corpus / "copies.tsv")
    assert [skip for skip in now if skip.shard == "a.tar"] == [skip for skip in found if skip.shard == "a.tar"]
    assert [skip.key for skip in now if skip.shard == "b.tar"] == ["new"]


@pytest.mark.slow
def test_killed_it_goes_on_where_it_stopped(tmp_path: Path, test_set: Path) -> None:
    shards = {
        f"{number}.tar": {
            f"{number}-{seed}": encode(make_picture(50 * number + seed, width=400, height=300)) for seed in range(20)
        }
        for number in range(4)
    }
    corpus = write_set(tmp_path / "corpus", shards)
    reference = Path(shutil.copytree(corpus, tmp_path / "reference"))
    command = [
        sys.executable,
        "-m",
        "data_tools",
        "dedup",
        str(corpus),
        "--against",
        str(test_set),
        "--within",
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list((corpus / ".dedup").glob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in (corpus / ".dedup").glob("*.safetensors")}
    assert 0 < len(kept) < 4
    assert not (corpus / "copies.tsv").exists()
    assert subprocess.run(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert all((corpus / ".dedup" / name).stat().st_mtime_ns == changed_at for name, changed_at in kept.items())
    assert run(reference, "--against", test_set) == 0
    assert read_skips(corpus / "copies.tsv") == read_skips(reference / "copies.tsv")
    assert len(read_skips(corpus / "copies.tsv")) == 8  # pictures 0 to 7 are in the test set too


def test_a_damaged_file_of_hashes_is_made_anew(tmp_path: Path, test_set: Path) -> None:
    task = (str(test_set), "t.tar", str(tmp_path / "work"))
    hash_shard(task)
    path = tmp_path / "work" / "t.tar.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-10], b"\xff" * 200):
        path.write_bytes(damaged)
        hash_shard(task)
        assert path.read_bytes() == whole


def test_sets_behind_urls_and_single_tars_are_compared_too(tmp_path: Path, test_set: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    assert run(corpus, "--against", test_set) == 0
    options = ("--work", tmp_path / "work", "--out", tmp_path / "found")
    assert run(f"file://{corpus}", "--against", f"{test_set}/t.tar", *options) == 0
    assert sorted(path.name.rpartition("-")[0] for path in (tmp_path / "work").iterdir()) == ["corpus", "test"]
    assert read_skips(tmp_path / "found" / "copies.tsv") == read_skips(corpus / "copies.tsv")


def test_nothing_to_find_is_no_error(tmp_path: Path, test_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {"x": encode(make_picture(0))[:200]}
    corpus = write_set(tmp_path / "corpus", {"x.tar": broken})
    assert run(corpus, "--against", test_set, "--within") == 0
    assert read_skips(corpus / "copies.tsv") == []
    assert "nothing to leave out" in capsys.readouterr().out
    assert not list(corpus.glob("*.jpg"))


def test_wrong_calls_are_answered_in_words(tmp_path: Path, test_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "x.tar").write_bytes((test_set / "t.tar").read_bytes()[:3000])
    for arguments, words in (
        ([test_set], "nothing to look for"),
        ([test_set, "--against", f"{test_set}/"], "is the corpus itself; --within"),
        ([test_set, "--against", test_set / "t.tar"], "is the corpus itself; --within"),
        ([test_set, "--against", tmp_path / "none"], "does not exist or holds no .tar files"),
        ([test_set / "u.tar", "--within"], "u.tar' does not exist"),
        ([test_set, "--within", "--work", tmp_path / "file"], "name one with --work"),
        ([test_set, "--within", "--out", tmp_path / "file"], "name a folder with --out"),
        ([tmp_path / "torn", "--within"], "not a whole, uncompressed tar"),
    ):
        assert run(*arguments) == 2, arguments
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(test_set, "--within", "--distance", 60)
    assert run(test_set, "--within", "--memory", "500MB") == 2
    assert "too little for --within: at least 1GiB" in capsys.readouterr().err
    assert measure_main(["plant", str(tmp_path / "empty")]) == 2


def test_recall_can_be_measured_on_ones_own_images(test_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure_main(["plant", str(test_set), "--images", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("5 images")
    assert lines[1].split("half the size")[1].split() == ["100.0%"] * 6

"""Shards made from folders and tars have the same bytes every time, are whole or absent, and suit webdataset itself."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image, ImageOps

from data_tools.__main__ import main
from data_tools.make.pack import MakeReport, make_shards
from data_tools.make.plan import MakeOptions, ShardSize, choose_val
from data_tools.make.reencode import Encoding, reencode
from data_tools.make.sources.image_folder import list_image_folder
from data_tools.parallel import LocalWorkers
from pipeline.data.shards.index import load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.errors import DataError
from tests.conftest import REPOSITORY, encode, make_image, write_tar


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Write three classes; one name with dots, one file that is not an image, one nested folder."""
    for number in range(30):
        path = tmp_path / "images" / ("cat", "dog", "owl")[number % 3] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(make_image(number, num_classes=3, size=24), format="JPEG"))
    (tmp_path / "images" / "cat" / "a.b.c.png").write_bytes(encode(make_image(99, num_classes=3, size=24), format="PNG"))
    (tmp_path / "images" / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "images" / "owl" / "deep").mkdir()
    (tmp_path / "images" / "owl" / "deep" / "x.JPEG").write_bytes(encode(make_image(98, num_classes=3, size=24), format="JPEG"))
    return tmp_path / "images"


def make(source: Path, folder: Path, *, per_shard: int = 8, workers: int = 1, seed: int | None = 0) -> MakeReport:
    options = MakeOptions(
        shard_size=ShardSize(per_shard), block_samples=4, order="as listed" if seed is None else "shuffled", seed=seed or 0
    )
    return make_shards(str(source), str(folder), options=options, workers=LocalWorkers(workers))


def contents(folder: Path) -> list[tuple[int, bytes]]:
    """Return (class, image bytes) of every sample, through webdataset's own reader."""
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    samples = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)  # type: ignore[attr-defined]
    return [(int(s["cls"]), next(v for k, v in s.items() if k in ("jpg", "jpeg", "png"))) for s in samples]


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def test_every_image_arrives_unchanged_with_its_class(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "shards")
    classes = (tmp_path / "shards" / "classes.txt").read_text().split()
    assert classes == ["cat", "dog", "owl"]
    paths = [p for p in image_folder.rglob("*") if p.suffix.lower() in (".jpg", ".png", ".jpeg")]
    expected = {(classes.index(path.relative_to(image_folder).parts[0]), path.read_bytes()) for path in paths}
    got = contents(tmp_path / "shards")
    assert len(got) == len(expected) == 32
    assert set(got) == expected


def test_our_reader_sees_what_webdataset_sees(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "shards")
    index = load_index(str(tmp_path / "shards"))
    reader = BlockReader(index, capacity=1)
    ours = [(sample.label, sample.image) for block in range(index.num_blocks) for sample in reader.read(block)]
    assert ours == contents(tmp_path / "shards")


def test_the_same_input_gives_the_same_bytes(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "a")
    time.sleep(1.1)  # tars carry whole seconds
    make(image_folder, tmp_path / "b", workers=2)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    make(image_folder, tmp_path / "c", seed=1)
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_samples_are_shuffled_unless_asked_not_to(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "kept", seed=None)
    labels = [label for label, _ in contents(tmp_path / "kept")]
    assert labels == sorted(labels)
    make(image_folder, tmp_path / "shuffled")
    labels = [label for label, _ in contents(tmp_path / "shuffled")]
    assert np.abs(np.diff(labels)).astype(bool).sum() > 12


def test_tars_are_repacked_with_all_their_members(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "a")
    make(tmp_path / "a", tmp_path / "b", per_shard=5, seed=7)
    assert sorted(contents(tmp_path / "a")) == sorted(contents(tmp_path / "b"))
    assert len(digest(tmp_path / "b")) == 7


def test_tars_whose_keys_repeat_keep_all_their_samples(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for tar in range(4):
        members = [(f"{n:04d}.{kind}", data) for n in range(6) for kind, data in (("jpg", bytes([tar, n])), ("cls", b"0"))]
        write_tar(tmp_path / "source" / f"{tar}.tar", members)
    make(tmp_path / "source", tmp_path / "shards", per_shard=24)
    assert sorted(data for _, data in contents(tmp_path / "shards")) == [bytes([tar, n]) for tar in range(4) for n in range(6)]


def test_class_ids_can_be_given_and_hidden_folders_do_not_count(image_folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(image_folder / "cat")
    (image_folder / ".ipynb_checkpoints").mkdir()
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    command = [
        "make",
        str(image_folder),
        str(tmp_path / "shards"),
        "--classes",
        str(tmp_path / "classes.txt"),
        "--workers",
        "1",
    ]
    assert main(command) == 0
    assert {label for label, _ in contents(tmp_path / "shards")} == {1, 2}
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert main([*command[:2], str(tmp_path / "other"), *command[3:]]) == 2


def test_killed_it_leaves_no_half_shard_and_goes_on(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "reference", per_shard=1)
    target = tmp_path / "shards"
    command = [
        sys.executable,
        "-m",
        "data_tools",
        "make",
        str(image_folder),
        str(target),
        "--samples-per-shard",
        "1",
        "--block-samples",
        "4",
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(target.glob("*.tar")):
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    written = digest(target)
    assert written.items() <= digest(tmp_path / "reference").items()
    assert subprocess.run(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert digest(target) == digest(tmp_path / "reference")
    assert load_index(str(target)).num_samples == 32


def test_a_folder_of_something_else_is_refused(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "shards")
    with pytest.raises(DataError, match="from another source or with other options"):
        make(image_folder, tmp_path / "shards", per_shard=9)
    write_tar(tmp_path / "foreign" / "x.tar" if (tmp_path / "foreign").mkdir() is None else tmp_path, [("0.jpg", b"x")])
    with pytest.raises(DataError, match="tars that were not made by this command"):
        make(image_folder, tmp_path / "foreign")


def test_an_image_that_changed_between_two_calls_is_noticed(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "shards")
    victim = next((image_folder / "cat").iterdir())
    victim.write_bytes(victim.read_bytes() + b"more")
    with pytest.raises(DataError, match="from another source or with other options"):
        make(image_folder, tmp_path / "shards")


def test_samples_of_a_tar_without_an_image_are_passed_over_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(
        tmp_path / "mixed.tar", [("0.jpg", b"x"), ("0.cls", b"0"), ("expect.csv", b"y"), ("1.png", b"z"), ("1.cls", b"1")]
    )
    assert main(["make", str(tmp_path / "mixed.tar"), str(tmp_path / "shards"), "--workers", "1"]) == 0
    assert "2 samples in 1 shards (1 written now, 1 files passed over without an image)" in capsys.readouterr().out


def test_a_table_is_copied_out_once_and_a_killed_command_goes_on(image_folder: Path, tmp_path: Path) -> None:
    """The command is killed while it writes shards: nothing is half-written, the final bytes are the same, no copies stay."""
    paths = sorted((image_folder / "cat").iterdir())
    source, target = tmp_path / "tables", tmp_path / "shards"
    source.mkdir()
    for number in range(3):
        part = paths[number::3]
        table = pa.table({"image": [path.read_bytes() for path in part], "label": [number] * len(part)})
        pq.write_table(table, source / f"{number}.parquet")
    command = [sys.executable, "-m", "data_tools", "make", str(source), str(target), "--samples-per-shard", "1"]
    command += ["--block-samples", "4", "--workers", "1"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(target.glob("*.tar")):
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    written = digest(target)
    assert len(written) < len(paths)
    assert len(list((target / ".make").glob("*.listing"))) == 3
    make(source, target, per_shard=1)
    assert written.items() <= digest(target).items()
    assert not (target / ".make").exists()
    expected = [(number, path.read_bytes()) for number in range(3) for path in paths[number::3]]
    assert sorted(contents(target)) == sorted(expected)
    for path in source.iterdir():  # all is there, so not a file of the source is read again
        before = path.stat()
        path.write_bytes(bytes(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    report = make(source, target, per_shard=1)
    assert (report.num_samples, report.num_shards, report.num_written) == (11, 11, 0)


def test_val_and_train_share_nothing_and_an_image_stays_on_its_side(image_folder: Path) -> None:
    def sides(seed: int = 0) -> dict[bytes, bool]:
        listing = list_image_folder(str(image_folder), workers=LocalWorkers(1))
        is_val = choose_val(listing, fraction=0.3, seed=seed)
        return {listing.name(i): bool(is_val[i]) for i in range(len(listing))}

    before = sides()
    for number in range(400):
        (image_folder / "ant").mkdir(exist_ok=True)
        (image_folder / "ant" / f"{number}.jpg").write_bytes(b"x")
    after = sides()
    assert before.items() <= after.items()
    assert 0.22 < np.mean(list(after.values())) < 0.38
    assert sides(seed=1) != after


def test_split_and_smaller_images_by_command(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Large images are made smaller, small ones and their bytes stay, an undecodable one is left out and named."""
    large = list((image_folder / "owl").glob("*.jpg"))
    for path in large:
        path.write_bytes(encode(make_image(7, num_classes=3, size=48)[:40], format="JPEG"))
    (image_folder / "dog" / "bad.jpg").write_bytes(b"\xff\xd8 no image")
    target = tmp_path / "shards"
    command = ["make", str(image_folder), str(target), "--split", "0.3", "--short-side", "24", "--workers", "1"]
    assert main([*command, "--bytes-per-shard", "8KB"]) == 0
    assert "1 images left out that cannot be decoded, dog/bad.jpg first" in capsys.readouterr().out
    report = json.loads((target / "make.json").read_text())["report"]
    assert [row["sample"] for row in report["left_out"]] == ["dog/bad.jpg"]
    assert report["num_reencoded"] == len(large)
    assert report["samples_of"] == {side: load_index(str(target / side)).num_samples for side in ("train", "val")}
    got = [*contents(target / "train"), *contents(target / "val")]
    assert len(got) == report["num_samples"] == 32
    sizes = [Image.open(io.BytesIO(data)).size for _, data in got]
    assert sorted(sizes) == [(24, 24)] * (32 - len(large)) + [(29, 24)] * len(large)
    kept = {path.read_bytes() for path in image_folder.rglob("*") if path.is_file()}
    assert sum(data in kept for _, data in got) == 32 - len(large)
    tars = [tar for side in ("train", "val") for tar in (target / side).glob("*.tar")]
    assert len(tars) == report["num_shards"] > 3
    assert all(tar.stat().st_size <= 8_000 + tarfile.RECORDSIZE for tar in tars)  # with the tar's end
    assert (target / "val" / "classes.txt").read_text() == (target / "train" / "classes.txt").read_text()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(make_image(1, num_classes=3, size=32)[:20]).save(buffer, format="PNG", exif=exif)
    with Image.open(buffer) as image:
        upright = ImageOps.exif_transpose(image)
    expected = io.BytesIO()
    upright.convert("RGB").save(expected, format="JPEG", quality=90)
    applied = reencode(buffer.getvalue(), Encoding(exif="apply", quality=90))
    assert applied == (None if orientation == 1 else expected.getvalue())
    assert reencode(buffer.getvalue(), Encoding(short_side=20)) is None
    smaller = reencode(buffer.getvalue(), Encoding(short_side=10))
    assert smaller is not None
    with Image.open(io.BytesIO(smaller)) as image:  # kept: the tag still says how to turn it
        assert (image.size, image.getexif().get(0x0112, 1)) == ((16, 10), orientation)

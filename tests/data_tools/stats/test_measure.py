"""The figures agree with full decodes and numpy, the page is self-contained, and the drawn samples do not depend on workers."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import webdataset
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import entropy  # type: ignore[import-not-found]

from data_tools.__main__ import main
from data_tools.index import index_folder
from data_tools.parallel import LocalWorkers
from data_tools.shards import Shard, list_shards
from data_tools.stats.histogram import PERCENTILES, bin_value, effective_number, log_bin, percentiles
from data_tools.stats.measure import measure_folder
from data_tools.stats.plots import draw_classes
from data_tools.stats.shard_counts import SHEET_IMAGES, measure_shard
from pipeline.data.shards.kept import kept_in_shard
from pipeline.data.shards.skips import Skip, write_skips
from tests.conftest import REPOSITORY, encode, write_tar


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=300))
def test_percentiles_are_numpys(values: list[int]) -> None:
    expected = np.percentile(values, PERCENTILES, method="inverted_cdf")
    assert list(percentiles(Counter(values)).values()) == expected.tolist()
    binned = percentiles({bin_value(number): count for number, count in Counter(map(log_bin, values)).items()})
    np.testing.assert_allclose(list(binned.values()), expected, rtol=0.0026)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50).filter(any))
def test_the_effective_number_is_exp_of_the_entropy(counts: list[int]) -> None:
    assert effective_number(dict(enumerate(counts))) == pytest.approx(np.exp(entropy(counts)))
    assert effective_number(dict.fromkeys(range(7), 31)) == pytest.approx(7)


CLASSES = ["cat", "<script>alert(1)</script>", "鸟", "never seen"]


def write_corpus(folder: Path, *, num_shards: int = 3) -> list[tuple[Image.Image, int, int]]:
    """Write images of many sizes, formats and modes, unevenly spread over classes, and return each with its bytes and class."""
    folder.mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    draw = np.random.default_rng(3)
    stored = []
    for shard in range(num_shards):
        members = []
        for number in range(40):
            height, width = (int(side) for side in draw.integers(20, 200, 2))
            format = ("JPEG", "PNG", "WEBP", "TIFF")[int(draw.integers(4))]
            image = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
            image = image.convert("L") if number % 5 == 0 and format != "WEBP" else image
            buffer = io.BytesIO()
            options = {"icc_profile": bytes(60_000)} if format == "JPEG" and number % 2 else {}  # the header is then a long one
            image.save(buffer, format, **options)
            label = int(min(2, draw.geometric(0.6) - 1))
            members += [(f"{number:03d}.{format.lower()}", buffer.getvalue()), (f"{number:03d}.cls", str(label).encode())]
            stored.append((Image.open(io.BytesIO(buffer.getvalue())), len(buffer.getvalue()), label))
        write_tar(folder / f"{shard}.tar", members)
    return stored


def test_figures_are_those_of_decoding_everything(tmp_path: Path) -> None:
    stored = write_corpus(tmp_path / "shards")
    assert main(["stats", str(tmp_path / "shards"), "--workers", "1"]) == 0
    report = json.loads((tmp_path / "shards" / "stats.json").read_text())
    for image, _, _ in stored:
        image.load()
    sizes = np.array([image.size for image, _, _ in stored])
    assert report["samples"] == report["images"] == len(stored) == 120
    assert report["shard_bytes"] == sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar"))
    assert report["total_image_bytes"] == sum(number for _, number, _ in stored)
    assert report["formats"] == Counter(image.format for image, _, _ in stored)
    assert report["modes"] == Counter(image.mode for image, _, _ in stored)
    labels = Counter(label for _, _, label in stored)
    assert [entry["samples"] for entry in report["classes"]["counts"]] == [labels[label] for label in range(4)]
    assert report["classes"]["without_samples"] == ["never seen"]
    exact = {"width": sizes[:, 0], "height": sizes[:, 1], "short_side": sizes.min(axis=1)}
    for name, values in exact.items():
        assert list(report[name].values()) == np.percentile(values, PERCENTILES, method="inverted_cdf").tolist()
    binned = {
        "pixels": sizes.prod(axis=1),
        "aspect_ratio": sizes[:, 0] / sizes[:, 1],
        "bytes_per_image": [n for _, n, _ in stored],
    }
    for name, values in binned.items():
        found = [value for key, value in report[name].items() if key != "mean"]
        np.testing.assert_allclose(found, np.percentile(values, PERCENTILES, method="inverted_cdf"), rtol=0.0026)


def test_the_page_holds_all_it_shows(tmp_path: Path) -> None:
    write_corpus(tmp_path / "shards")
    assert main(["stats", str(tmp_path / "shards"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert not list((tmp_path / "shards").glob("stats*"))
    page = (tmp_path / "out" / "stats.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "鸟" in page
    sources = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')>]+)", page)
    assert len(sources) == SHEET_IMAGES + 3
    pictures = [Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))) for source in sources]
    assert all(source.startswith("data:image/") for source in sources)
    for plot in pictures[SHEET_IMAGES:]:
        assert plot.width == 1600
        assert len(np.unique(np.asarray(plot.convert("L")))) > 50


def test_the_sheet_is_a_random_sample_that_depends_on_the_seed_alone(tmp_path: Path) -> None:
    write_corpus(tmp_path / "shards")
    shards = list_shards(str(tmp_path / "shards"))
    one = measure_folder(shards, work=tmp_path / "one", workers=LocalWorkers(1))
    two = measure_folder(shards, work=tmp_path / "two", workers=LocalWorkers(2))
    assert one == two
    ranks = sorted(
        (xxhash.xxh3_64_intdigest(f"0|{s}.tar|{k:03d}".encode()), f"{s}.tar", f"{k:03d}") for s in range(3) for k in range(40)
    )
    assert [(drawn.rank, drawn.shard, drawn.key) for drawn in one.drawn] == ranks[:SHEET_IMAGES]
    assert measure_shard(shards.folder, "0.tar", seed=1)["drawn"] != measure_shard(shards.folder, "0.tar", seed=0)["drawn"]


@pytest.mark.slow
def test_killed_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    write_corpus(tmp_path / "shards", num_shards=20)
    command = [sys.executable, "-m", "data_tools", "stats", str(tmp_path / "shards"), "--workers", "1", "--out"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "out")], cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True
    )
    state = tmp_path / "out" / ".stats"
    while not list(state.glob("*.tar.json")):
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    known = {path: path.stat().st_mtime_ns for path in state.glob("*.tar.json")}
    assert 0 < len(known) < 20
    assert not (tmp_path / "out" / "stats.html").exists()
    assert main([*command[3:], str(tmp_path / "out")]) == 0
    assert {path: path.stat().st_mtime_ns for path in known} == known
    assert main([*command[3:], str(tmp_path / "again")]) == 0
    for name in ("stats.html", "stats.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_what_is_amiss_is_counted_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = encode(np.zeros((30, 30, 3), np.uint8), format="PNG")
    write_tar(tmp_path / "a.tar", [("a.png", image), ("b.txt", b"x"), ("c.png", b"<html>"), ("c.cls", b"cat"), ("d.png", b"")])
    write_tar(tmp_path / "b.tar", [("a.png", image), ("a.cls", b"9"), ("b.png", image), ("b.cls", b"9")])
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: whole.index(b"b.png") + 600])
    (tmp_path / "c.tar.gz").write_bytes(b"")
    assert main(["stats", str(tmp_path), "--workers", "1"]) == 0
    shown, page = capsys.readouterr().out, (tmp_path / "stats.html").read_text()
    report = json.loads((tmp_path / "stats.json").read_text())
    assert {name: report[name] for name in ("without_image", "without_label", "unreadable_headers")} == {
        "without_image": 1, "without_label": 4, "unreadable_headers": 2,
    }  # fmt: skip
    assert sorted(report["broken_shards"]) == ["b.tar", "c.tar.gz"]
    assert report["classes"]["counts"] == [{"class": 9, "name": "class 9", "samples": 1}]
    for text in (shown, page):
        assert "b.tar: not a whole, uncompressed tar" in text
        assert "c.tar.gz is compressed" in text
    assert page.count("cannot be decoded") == 2
    assert main(["stats", str(tmp_path / "c.tar.gz"), "--workers", "1"]) == 0  # nothing to count, and no error
    seen = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False)  # type: ignore[attr-defined]
    assert report["samples"] == len(list(seen)) + 1


def test_what_the_index_leaves_out_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "shards")
    folder = str(tmp_path / "shards")
    # The first and last of a shard, the ends of blocks, a whole block, single ones, and a whole shard.
    numbers = [0, 3, 8, 9, 10, 11, 17, 18, 39]
    left_out = [Skip("0.tar", f"{number:03d}", "") for number in numbers] + [Skip("2.tar", f"{n:03d}", "") for n in range(40)]
    write_skips(tmp_path / "skip.tsv", left_out)
    index = index_folder(folder, block_samples=4, workers=LocalWorkers(1), skip_lists=[str(tmp_path / "skip.tsv")]).index
    assert main(["stats", folder, "--workers", "1"]) == 0
    report = json.loads((tmp_path / "shards" / "stats.json").read_text())
    assert report["samples"] == index.num_samples == 120 - len(left_out)
    assert report["left_out_by_index"] == len(left_out)
    assert "not counted: 49 samples that the index leaves out" in capsys.readouterr().out
    kept = kept_in_shard(index, "0.tar")
    with Shard(folder, "0.tar") as shard:
        assert [int(sample.key) for sample, is_kept in kept.mark(shard.samples()) if not is_kept] == numbers
    index_folder(folder, block_samples=4, workers=LocalWorkers(1))
    assert main(["stats", folder, "--workers", "1"]) == 0
    assert json.loads((tmp_path / "shards" / "stats.json").read_text())["samples"] == 120
    with (tmp_path / "shards" / "1.tar").open("ab") as file:
        file.write(bytes(10240))
    assert main(["stats", folder, "--workers", "1"]) == 0
    assert "40 of them lie in shards that have changed since they were indexed: run `index` again" in capsys.readouterr().out


def test_class_names_are_drawn_as_they_are_whatever_matplotlibrc_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    names = ["$\\nonsense$", "from $5_ to $10_", "t\udce9", "実験", "a"]
    with Image.open(io.BytesIO(draw_classes([(name, 3) for name in names]))) as image:
        assert image.width > 1000

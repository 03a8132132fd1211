"""The whole command joins by bands in processes, survives kills, and finds what it finds by an index."""

from __future__ import annotations

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

from data_tools.__main__ import main
from data_tools.dedup.measure_join import main as measure_main
from tests.conftest import REPOSITORY
from tests.data_tools.dedup.test_find import encode, make_picture, write_set


def make_corpus(folder: Path) -> Path:
    """Write pictures, each in one to four qualities and sizes, over three shards."""
    generator = np.random.default_rng(0)
    images = {
        f"{seed}-{copy}": encode(make_picture(seed, width=120 - 8 * copy, height=90 - 6 * copy), quality=90 - 5 * copy)
        for seed in range(40)
        for copy in range(generator.integers(1, 5))
    }
    names = generator.permutation(sorted(images)).tolist()
    return write_set(folder, {f"{shard}.tar": {name: images[name] for name in names[shard::3]} for shard in range(3)})


@pytest.mark.slow
def test_killed_twice_it_joins_on_and_finds_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    out = {method: tmp_path / method for method in ("index", "bands")}
    options = [str(corpus), "--within", "--distance", "3", "--workers", "2"]
    assert main(["dedup", *options, "--out", str(out["index"]), "--method", "index"]) == 0
    assert "search by an index" in capsys.readouterr().out
    command = [sys.executable, "-m", "data_tools", "dedup", *options, "--out", str(out["bands"]), "--method", "bands"]
    for awaited in ("band-00-*.safetensors", "band-01.json"):
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while not list(corpus.glob(f".dedup/join-within-*/{awaited}")):
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (scratch,) = corpus.glob(".dedup/join-within-*")
    kept = {path.name: path.stat().st_mtime_ns for path in scratch.glob("band-0*.json")}
    copy = Path(shutil.copytree(scratch, tmp_path / "kept"))
    finished = subprocess.run(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
    assert "join by bands: 4 passes" in finished.stdout
    assert {"band-00.json", "band-01.json"} <= kept.keys()
    assert not scratch.exists()
    assert list(copy.glob("pairs-00-*"))
    assert (out["bands"] / "copies.tsv").read_bytes() == (out["index"] / "copies.tsv").read_bytes()
    reports = [json.loads((folder / "dedup.json").read_text()) for folder in out.values()]
    assert reports[0] == reports[1]
    assert reports[0]["left_out"]["copies_inside"] > 30


@pytest.mark.slow
def test_a_measured_partition_holds_what_was_planted(capsys: pytest.CaptureFixture[str]) -> None:
    assert measure_main(["3e4", "--distance", "2", "--memory", "1"]) == 0
    _, line = capsys.readouterr().out.splitlines()
    (planted,) = [cell for cell in line.split() if "/" in cell]
    found, of = (int(number.replace(",", "")) for number in planted.split("/"))
    assert found == of > 1000


@pytest.mark.slow
def test_a_whole_search_of_made_hashes_finds_what_was_planted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["4e4", "--distance", "1", "--memory", "1"]
    assert measure_main([*sizes, "--whole", "--workers", "1", "--work", str(tmp_path)]) == 0
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[0] == "40,000"
    assert line[-2:] == ["200/200", "200"]
    assert not list(tmp_path.iterdir())

"""Every kind of broken and odd image is distinguished, nothing crashes or hangs, and the rest is a corpus that trains."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from data_tools.__main__ import main
from data_tools.failures import WorkerKilledError
from data_tools.parallel import LocalWorkers
from data_tools.shards import list_shards
from data_tools.verify.check import VerifyOutputs, verify_shards
from data_tools.verify.findings import KINDS
from pipeline.data.images.decode import decode_image
from pipeline.data.shards.index import load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.data.shards.skips import Skip, read_skips, write_skips
from tests.conftest import REPOSITORY, encode, make_image, write_tar
from tests.data_tools.odd_images import JPEG, ODD, PNG, png_of_one_colour, save
from tests.helpers.store import FaultProxy, S3Server, bad_network
from tests.helpers.streams import RangeHandler


def write_odd_shard(path: Path) -> None:
    """Write all odd images, one good one, and samples that lack something."""
    members = [(f"{n:03d}.{extension}", data) for n, (extension, data, _) in enumerate(ODD.values())]
    labelled = [member for name, data in members for member in ((name, data), (f"{name[:3]}.cls", b"1"))]
    lacking = [
        ("a.txt", b"a text"), ("a.cls", b"1"), ("b.jpg", JPEG), ("c.jpg", JPEG), ("c.cls", b"cat"), ("d.jpg", JPEG),
        ("d.cls", b"4"), ("e.jpg", JPEG), ("e.cls", b"-1"), ("f.jpg", JPEG), ("f.json", b'{"label": Infinity}'),
        ("g.jpg", JPEG), ("g.png", PNG), ("g.cls", b"0"), (os.fsdecode(b"caf\xe9.jpg"), b""),
        (os.fsdecode(b"caf\xe9.cls"), b"0"),
    ]  # fmt: skip
    write_tar(path, labelled + lacking)
    (path.parent / "classes.txt").write_text("cat\ndog\nowl\nbat\n")


def write_broken_shards(folder: Path) -> None:
    good = folder / "good.tar"
    write_tar(good, [(f"{n}.{kind}", data) for n in range(9) for kind, data in (("jpg", JPEG), ("cls", b"0"))])
    data = good.read_bytes()
    (folder / "cut.tar").write_bytes(data[:15_000])
    (folder / "hole.tar").write_bytes(data[:30_000] + bytes(20_480) + data[50_480:])
    (folder / "joined.tar").write_bytes(data + data)
    (folder / "zipped.tar").write_bytes(gzip.compress(data))
    (folder / "zipped.tar.gz").write_bytes(gzip.compress(data))
    (folder / "page.tar").write_text("<html>not found</html>")
    (folder / "nothing.tar").write_bytes(b"")
    (folder / "gone.tar").symlink_to(folder / "nowhere")
    write_tar(folder / "empty.tar", [])
    write_tar(folder / "twice.tar", [("a.jpg", JPEG), ("b.jpg", JPEG), ("a.cls", b"0")])


def test_what_is_listed_makes_a_corpus_that_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_odd_shard(tmp_path / "odd.tar")
    write_broken_shards(tmp_path)
    assert main(["verify", str(tmp_path), "--workers", "1"]) == 1
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "verify.json").read_text())
    broken = ["cut", "gone", "hole", "joined", "nothing", "page", "twice", "zipped"]
    assert sorted(report["broken_shards"]) == [*(f"{name}.tar" for name in broken), "zipped.tar.gz"]
    assert all(name in shown for name in report["broken_shards"])
    assert report["shards_without_members"] == 1
    assert "(1 of them without any member)" in shown
    # Three of twice.tar's samples are among them: a broken shard is checked as far as possible.
    lacking = {"no_image": 2, "no_label": 3, "bad_label": 2, "label_outside": 2, "several_images": 1, "empty": 1}
    kinds = [kind for *_, kinds in ODD.values() for kind in kinds]
    assert report["counts"] == {k: n for k in KINDS if (n := kinds.count(k) + lacking.get(k, 0))}
    for shard in report["broken_shards"]:
        (tmp_path / shard).unlink()
    skips = read_skips(tmp_path / "skip.tsv")
    assert {skip.key for skip in skips} >= {"a", "b", "c", "d", "e", "f", os.fsdecode(b"caf\xe9")}

    command = shown.rstrip().rpartition("broken shards, then python -m data_tools ")[2].split()
    assert command == ["index", str(tmp_path), "--skip", str(tmp_path / "skip.tsv")]
    assert main(command) == 0
    index = load_index(str(tmp_path))
    reader = BlockReader(index, capacity=1)
    samples = [sample for block in range(index.num_blocks) for sample in reader.read(block)]
    assert len(samples) == 9 + len(ODD) + 8 - len(skips) > 30
    assert all(decode_image(sample.image).ndim == 3 and 0 <= sample.label < 4 for sample in samples)

    assert main(["verify", str(tmp_path), "--skip", str(tmp_path / "skip.tsv"), "--workers", "1"]) == 0
    assert read_skips(tmp_path / "skip.tsv") == skips


def write_many_shards(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(6):
        images = [encode(make_image(number * 50 + n, num_classes=3, size=120), format="PNG") for n in range(50)]
        images[number] = images[number][:1000]
        write_tar(
            folder / f"{number}.tar",
            [(f"{n}.{kind}", data) for n, image in enumerate(images) for kind, data in (("png", image), ("cls", b"0"))],
        )


def test_killed_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    write_many_shards(tmp_path / "shards")
    command = [sys.executable, "-m", "data_tools", "verify", str(tmp_path / "shards"), "--workers", "1"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)
    state = tmp_path / "shards" / ".verify"
    while not list(state.glob("*.tar.json")):
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "shards" / "skip.tsv").exists()
    known = {path: path.stat().st_mtime_ns for path in state.glob("*.tar.json")}
    assert 0 < len(known) < 6
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in known} == known
    assert [(skip.shard, skip.key) for skip in read_skips(tmp_path / "shards" / "skip.tsv")] == [
        (f"{number}.tar", str(number)) for number in range(6)
    ]
    changed = tmp_path / "shards" / "3.tar"  # of the same size, as a tar's padding makes likely
    changed.write_bytes((tmp_path / "shards" / "4.tar").read_bytes().ljust(changed.stat().st_size, b"\0"))
    assert main(["verify", str(tmp_path / "shards"), "--workers", "1"]) == 0
    assert ("3.tar", "4") in [(skip.shard, skip.key) for skip in read_skips(tmp_path / "shards" / "skip.tsv")]


def test_a_killed_worker_is_named_with_its_sample(tmp_path: Path) -> None:
    """The system does this to a process that takes too much memory."""
    slow = save(Image.effect_noise((3000, 3000), 50), "PNG")
    write_tar(
        tmp_path / "slow.tar", [(f"{n}.{kind}", data) for n in range(30) for kind, data in (("png", slow), ("cls", b"0"))]
    )
    command = [sys.executable, "-m", "data_tools", "verify", str(tmp_path), "--workers", "1"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    mark = tmp_path / ".verify" / "slow.tar.at"
    killed: set[int] = set()
    before = 0
    for _ in range(2):  # another worker tries the shard once more
        while not (workers := set(spawned_by(process.pid)) - killed) or written_at(mark) <= before:
            assert process.poll() is None
            time.sleep(0.001)
        killed |= workers
        before = written_at(mark)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "killed (SIGKILL) while at work on slow.tar, most likely for lack of memory" in error
    assert "It was at sample slow.tar '" in error
    assert "Traceback" not in error


def written_at(mark: Path) -> int:
    """Return when a worker last noted its sample, in ns; 0 if it has noted none."""
    return mark.stat().st_mtime_ns if mark.exists() and mark.read_bytes() else 0


def spawned_by(pid: int) -> list[int]:
    """Return worker processes, without multiprocessing's own resource tracker."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            children += [int(child) for child in (task / "children").read_text().split()]
    found: list[int] = []
    for child in children:
        with suppress(FileNotFoundError):
            found += [child] if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes() else []
    return found


def crash_at_b(task: str) -> str:
    if task == "b":
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(0.05)
    return task


@pytest.mark.slow
def test_a_crash_in_a_library_names_the_task() -> None:
    tasks = [*"cdefgb", *"hijk"]
    with pytest.raises(WorkerKilledError, match=r"killed \(SIGSEGV\) while at work on b, a library crashed") as caught:
        list(LocalWorkers(2).map(crash_at_b, tasks, description="look", unit="shard"))
    assert caught.value.tasks == ["b"]


class ListingHandler(RangeHandler):
    """Serves listings of folders, and counts what it sends."""

    sent = 0

    def do_GET(self) -> None:  # noqa: N802  (the name http.server looks for)
        if Path(self.translate_path(self.path)).is_dir():
            http.server.SimpleHTTPRequestHandler.do_GET(self)
        else:
            super().do_GET()

    def send_header(self, keyword: str, value: str) -> None:
        if keyword == "Content-Length":
            ListingHandler.sent += int(value) * (self.command == "GET")
        super().send_header(keyword, value)


def test_a_url_is_read_once_and_findings_go_into_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    noise = [save(Image.effect_noise((400, 400), 90), "PNG") for _ in range(9)]  # 15 MB, more than is read ahead
    images = [(f"{n:04d}.{kind}", data) for n in range(150) for kind, data in (("png", noise[n % 9]), ("cls", b"7"))]
    write_tar(shards / "big.tar", [*images, ("z.jpg", JPEG[:50]), ("z.cls", b"1")])
    size = (shards / "big.tar").stat().st_size
    assert size > 12 << 20
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(ListingHandler, directory=str(shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    try:
        ListingHandler.sent = 0
        assert main(["verify", f"http://127.0.0.1:{server.server_port}", "--workers", "1"]) == 0
        assert size <= ListingHandler.sent < 1.1 * size
    finally:
        server.shutdown()
    assert [skip.key for skip in read_skips("skip.tsv")] == ["z"]
    assert json.loads(Path("verify.json").read_text())["readable_images"] == 150
    assert [path.name for path in shards.iterdir()] == ["big.tar"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Run a real S3 server over tmp_path/bucket, behind a network that can be made bad."""
    (tmp_path / "bucket").mkdir()
    server = S3Server(tmp_path)
    with bad_network(server, monkeypatch) as proxy:
        yield proxy
    server.kill()


def test_what_a_bad_network_does_is_not_taken_for_damage(store: FaultProxy, tmp_path: Path) -> None:
    write_odd_shard(tmp_path / "bucket" / "odd.tar")
    write_many_shards(tmp_path / "bucket")
    store.inject("mixed", probability=0.5)
    found = {}
    for folder in (str(tmp_path / "bucket"), "s3://bucket"):
        out = tmp_path / folder.partition(":")[0].strip("/").replace("/", "-")
        outputs = VerifyOutputs(skip_list=out / "skip.tsv", report=out / "verify.json", work=out)
        found[folder] = verify_shards(list_shards(folder), outputs=outputs, workers=LocalWorkers(1))
    local, remote = found.values()
    assert sum(store.counts[fault] for fault in FaultProxy.FAULTS) > 2
    assert local.num_samples == 300 + len(ODD) + 8
    for name in ("num_samples", "num_readable", "counts", "examples", "broken_shards", "skips"):
        assert getattr(remote, name) == getattr(local, name)


def test_one_tar_has_findings_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_odd_shard(tmp_path / "odd.tar")
    write_broken_shards(tmp_path)
    assert main(["verify", str(tmp_path / "good.tar"), "--workers", "1"]) == 0
    assert json.loads((tmp_path / "good.verify.json").read_text())["samples"] == 9
    assert main(["verify", str(tmp_path / "none.tar")]) == 2
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert main(["verify", str(tmp_path / "good.tar"), "--workers", "1", "--work", "/proc/no"]) == 2
    errors = capsys.readouterr().err
    assert "none.tar' does not exist" in errors
    assert "holds no .tar files" in errors
    assert "/proc/no/about.json cannot be written" in errors


def test_hidden_files_are_passed_over_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_tar(corpus / "a.tar", [(f"{n}.{kind}", data) for n in range(3) for kind, data in (("jpg", JPEG), ("cls", b"0"))])
    (corpus / "._a.tar").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(60))  # AppleDouble
    (corpus / ".b.tar.gz").write_bytes(b"")
    for command in ("index", "verify", "stats"):
        assert main([command, str(corpus), "--workers", "1"]) == 0
        assert "passed over: 2 hidden files, ._a.tar first" in capsys.readouterr().out
    assert main(["make", str(corpus), str(tmp_path / "made"), "--workers", "1"]) == 0
    assert "passed over: 2 hidden files, ._a.tar first" in capsys.readouterr().out
    assert load_index(str(corpus)).num_samples == load_index(str(tmp_path / "made")).num_samples == 3


@pytest.mark.parametrize(
    "change", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n"), lambda text: text + "\n\n"]
)
def test_a_skip_list_that_an_editor_has_touched_is_read(change: Callable[[str], str], tmp_path: Path) -> None:
    skips = [Skip("a.tar", "ü", "one"), Skip("b.tar", "1", 'two "quoted"')]
    write_skips(tmp_path / "skip.tsv", skips)
    (tmp_path / "skip.tsv").write_bytes(change((tmp_path / "skip.tsv").read_text("utf-8")).encode("utf-8"))
    assert read_skips(tmp_path / "skip.tsv") == skips


def test_want_of_memory_says_nothing_of_an_image(tmp_path: Path) -> None:
    """Under a limit on memory a good image must not be listed as damaged."""
    write_tar(tmp_path / "x.tar", [("a.png", png_of_one_colour(9_000, 9_000)), ("a.cls", b"0")])
    code = (
        "import resource, sys; from pathlib import Path; from data_tools.verify.check import check_shard\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)\n"
        f"print(check_shard({str(tmp_path)!r}, 'x.tar', num_classes=None, mark=Path({str(tmp_path / 'mark')!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "not enough memory to decode sample 'a'" in done.stderr
    assert done.stdout == ""


def test_names_of_any_bytes_come_back_from_a_skip_list(tmp_path: Path) -> None:
    skips = [Skip("a.tar", os.fsdecode(b"caf\xe9"), "bad"), Skip("a.tar", "tab\there\nline", "bad"), Skip("b.tar", "鸟", "x")]
    write_skips(tmp_path / "skip.tsv", skips)
    assert read_skips(tmp_path / "skip.tsv") == skips

"""Every kind of broken and odd image is told apart, nothing crashes or hangs, and what is listed makes a corpus that trains."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from data_tools.__main__ import main
from data_tools.findings import KINDS
from data_tools.images import inspect_image
from data_tools.parallel import WorkerKilledError, map_in_processes
from data_tools.shards import list_shards
from data_tools.verify import Places, verify_shards
from pipeline.data.decode import UnreadableImage, decode_image
from pipeline.data.index import load_index
from pipeline.data.reader import BlockReader
from pipeline.data.skips import Skip, read_skips, write_skips
from tests.conftest import REPOSITORY, encode, make_image, write_tar
from tests.data.test_stream import RangeHandler
from tests.store import FaultProxy, S3Server, s3_environment


def picture(mode: str = "RGB", *, width: int = 80, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_of_one_colour(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel, written without holding its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + -(-width // 8))
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(JPEG)
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(picture(), "JPEG", exif=exif)


def sixteen_bit() -> bytes:
    return save(Image.fromarray(np.random.default_rng(0).integers(256, 2**16, (60, 80)).astype(np.uint16)), "PNG")


JPEG = save(picture(), "JPEG", quality=90)
PNG = save(picture(), "PNG")
SCAN = JPEG.index(b"\xff\xda")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FRAMES = [picture("P"), picture("P").rotate(90), picture("P").rotate(180)]

ODD: dict[str, tuple[str, bytes, set[str]]] = {
    "plain.jpg": ("jpg", JPEG, set()),
    "plain.png": ("png", PNG, set()),
    "grey.jpg": ("jpg", save(picture("L"), "JPEG"), set()),
    "progressive.jpg": ("jpeg", save(picture(), "JPEG", progressive=True), set()),
    "restarts.jpg": ("jpg", save(picture(), "JPEG", restart_marker_blocks=1), set()),
    "a JPEG inside a JPEG": ("jpg", save(picture(), "JPEG", comment=JPEG), set()),
    "bilevel.png": ("png", save(picture("1"), "PNG"), set()),
    "upright.jpg": ("jpg", rotated(1), set()),
    "no bytes": ("jpg", b"", {"empty"}),
    "zeros": ("jpg", bytes(4096), {"not_an_image"}),
    "a web page": ("jpg", b"\n<!DOCTYPE html><html><body>404</body></html>", {"not_an_image"}),
    "a store's error": ("png", b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', {"not_an_image"}),
    "git-lfs": ("jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", {"not_an_image"}),
    "JSON": ("jpg", b'{"error": "gone"}', {"not_an_image"}),
    "noise": ("jpg", np.random.default_rng(1).bytes(999), {"unknown_format"}),
    "bytes in front": ("jpg", b"\r\n" + JPEG, {"unknown_format"}),
    "half a JPEG": ("jpg", JPEG[: len(JPEG) // 2], {"truncated"}),
    "no end marker": ("jpg", JPEG[:-2], {"truncated"}),
    "part of a JPEG's header": ("jpg", JPEG[:100], {"truncated"}),
    "half a PNG": ("png", PNG[: len(PNG) // 2], {"truncated"}),
    "part of a PNG's header": ("png", PNG[:20], {"truncated"}),
    "half a WebP": ("webp", save(picture(), "WEBP")[:500], {"truncated"}),
    "half a BMP": ("bmp", save(picture(), "BMP")[:500], {"truncated"}),
    "PNG with damaged pixels": ("png", PNG[:200] + bytes(50) + PNG[250:], {"damaged"}),
    "PNG with noise for a header": ("png", PNG[:8] + np.random.default_rng(1).bytes(99), {"damaged"}),
    "bomb, refused by Pillow": ("png", png_of_one_colour(20_000, 20_000), {"bomb"}),
    "bomb, Pillow only warns": ("png", png_of_one_colour(11_000, 10_000), {"bomb"}),
    "bomb by its header": ("jpg", jpeg_claiming(60_000, 60_000), {"bomb"}),
    "CMYK": ("jpg", save(picture("CMYK"), "JPEG"), {"cmyk"}),
    "16 bits": ("png", sixteen_bit(), {"sixteen_bit"}),
    "floating point": ("tiff", save(picture("F"), "TIFF"), {"unknown_format"}),
    "RGBA": ("png", save(picture("RGBA"), "PNG"), {"alpha"}),
    "LA": ("png", save(picture("LA"), "PNG"), {"alpha"}),
    "palette": ("png", save(picture("P"), "PNG"), {"palette"}),
    "palette with a clear colour": ("png", save(picture("P"), "PNG", transparency=3), {"palette", "alpha"}),
    "animated": ("gif", save(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), {"multi_frame", "palette"}),
    "upside down": ("jpg", rotated(3), {"exif_orientation"}),
    "orientation 0": ("jpg", rotated(0), {"exif_orientation"}),
    "profile": ("jpg", save(picture(), "JPEG", icc_profile=SRGB), {"icc_profile"}),
    "no profile at all": ("jpg", save(picture(), "JPEG", icc_profile=b"nonsense" * 40), {"icc_profile"}),
    "PNG named .jpg": ("jpg", PNG, {"other_format"}),
    "WebP named .jpeg": ("jpeg", save(picture(), "WEBP"), {"other_format"}),
    "bytes behind": ("jpg", JPEG + b"more", {"trailing_bytes"}),
    "end marker lost": ("jpg", JPEG[:-2] + bytes(400), {"no_end_marker", "irregular_jpeg"}),
    "junk between markers": ("jpg", JPEG[:SCAN] + b"junk" + JPEG[SCAN:], {"irregular_jpeg"}),
    "thin": ("png", save(picture(width=900, height=40), "PNG"), {"extreme_aspect_ratio"}),
    "small": ("png", save(picture(width=30, height=40), "PNG"), {"tiny"}),
    "one pixel": ("png", save(picture(width=1, height=1), "PNG"), {"tiny", "one_colour"}),
    "blank": ("png", save(Image.new("RGB", (64, 64), (9, 8, 7)), "PNG"), {"one_colour"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_every_kind_is_told_apart(name: str) -> None:
    extension, data, expected = ODD[name]
    found = inspect_image(data, extension=extension)
    assert {finding.kind for finding in found} == expected, found


@settings(max_examples=600, deadline=None)
@given(name=st.sampled_from([n for n in ODD if "bomb" not in n]), data=st.data())
def test_an_image_is_left_out_exactly_when_training_cannot_decode_it(name: str, data: st.DataObject) -> None:
    extension, image, _ = ODD[name]
    damaged = bytearray(image)
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged
    found = inspect_image(bytes(damaged), extension=extension)
    effects = [KINDS[finding.kind].effect for finding in found]
    try:
        decode_image(bytes(damaged))
    except UnreadableImage:
        assert effects == ["replaced"]
    else:
        assert set(effects) <= {"kept"}


def write_odd_shard(path: Path) -> None:
    """All odd images, one good one, and samples that lack something."""
    members = [(f"{n:03d}.{extension}", data) for n, (extension, data, _) in enumerate(ODD.values())]
    labelled = [member for name, data in members for member in ((name, data), (f"{name[:3]}.cls", b"1"))]
    lacking = [
        ("a.txt", b"a text"), ("a.cls", b"1"), ("b.jpg", JPEG), ("c.jpg", JPEG), ("c.cls", b"cat"), ("d.jpg", JPEG),
        ("d.cls", b"4"), ("e.jpg", JPEG), ("e.cls", b"-1"), ("f.jpg", JPEG), ("f.json", b'{"label": Infinity}'),
        ("g.jpg", JPEG), ("g.png", PNG), ("g.cls", b"0"), (os.fsdecode(b"caf\xe9.jpg"), b""), (os.fsdecode(b"caf\xe9.cls"), b"0"),
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
    broken = ["cut", "empty", "gone", "hole", "joined", "nothing", "page", "twice", "zipped"]
    assert sorted(report["broken_shards"]) == [*(f"{name}.tar" for name in broken), "zipped.tar.gz"]
    assert all(name in shown for name in report["broken_shards"])
    # Three of twice.tar's samples among them: a broken shard is looked at as far as it goes.
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
    """What the system does to a process that takes too much memory."""
    slow = save(Image.effect_noise((3000, 3000), 50), "PNG")
    write_tar(
        tmp_path / "slow.tar", [(f"{n}.{kind}", data) for n in range(30) for kind, data in (("png", slow), ("cls", b"0"))]
    )
    command = [sys.executable, "-m", "data_tools", "verify", str(tmp_path), "--workers", "1"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    mark = tmp_path / ".verify" / "slow.tar.at"
    while not mark.exists() or not mark.read_bytes():
        assert process.poll() is None
        time.sleep(0.001)
    for worker in spawned_by(process.pid):
        os.kill(worker, signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "killed (SIGKILL) while at work on slow.tar, most likely for want of memory" in error
    assert "It was at sample slow.tar '" in error
    assert "Traceback" not in error


def spawned_by(pid: int) -> list[int]:
    """Worker processes, without multiprocessing's own resource tracker."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def crash_at_b(task: str) -> str:
    if task == "b":
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(0.05)
    return task


def test_a_crash_in_a_library_names_the_task() -> None:
    tasks = [*"cdefgb", *"hijk"]
    with pytest.raises(WorkerKilledError, match=r"killed \(SIGSEGV\) while at work on b, a library crashed") as caught:
        list(map_in_processes(crash_at_b, tasks, num_workers=2, description="look", unit="shard"))
    assert caught.value.tasks == ["b"]


class ListingHandler(RangeHandler):
    """A web server that lists folders; it counts what it sends."""

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
    """A real S3 server over tmp_path/bucket, behind a network that can be made bad."""
    (tmp_path / "bucket").mkdir()
    server = S3Server(tmp_path)
    proxy = FaultProxy(server)
    for name, value in s3_environment(proxy.url).items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield proxy
    proxy.close()
    server.kill()


def test_what_a_bad_network_does_is_not_taken_for_damage(store: FaultProxy, tmp_path: Path) -> None:
    write_odd_shard(tmp_path / "bucket" / "odd.tar")
    write_many_shards(tmp_path / "bucket")
    store.inject("mixed", probability=0.5)
    found = {}
    for folder in (str(tmp_path / "bucket"), "s3://bucket"):
        out = tmp_path / folder.partition(":")[0].strip("/").replace("/", "-")
        places = Places(skip_list=out / "skip.tsv", report=out / "verify.json", work=out)
        found[folder] = verify_shards(list_shards(folder), places=places, num_workers=1)
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


def test_want_of_memory_says_nothing_of_an_image(tmp_path: Path) -> None:
    """Under a limit on memory a good image must not be listed as damaged."""
    write_tar(tmp_path / "x.tar", [("a.png", png_of_one_colour(9_000, 9_000)), ("a.cls", b"0")])
    code = (
        "import resource, sys; from pathlib import Path; from data_tools.verify import check_shard\n"
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

"""A claim has one holder at a time, and stale claims are removed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import CheckpointError
from pipeline.files import STALE_LOOKS
from pipeline.launch.processes import Process
from pipeline.launch.slurm_job import SlurmJob
from pipeline.run import claims
from pipeline.run.claims import Claims, Owner, Sightings, create, read_owner, release, remove_stale, touch
from tests.helpers.interrupts import interrupt_after

NAME = "step_00000001.json"
SILENT_S = 0.3


@pytest.fixture(params=["links", "no links"], autouse=True)
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test on a file system with hard links, and on one that answers link(2) as FAT does."""

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source), None, str(target))

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)


@pytest.fixture(params=["vfat", "fuse", "fuse without random writes"])
def no_links(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Mount a file system without hard links: FAT, or what cloud stores are mounted with."""
    image, mount, source = tmp_path / "fat.img", tmp_path / "mount", tmp_path / "source"
    mount.mkdir()
    source.mkdir()
    with image.open("wb") as file:
        file.truncate(8 * 2**20)
    mode = "off" if "without" in request.param else "writes"
    rclone = [
        Path(sys.executable).parent / "rclone",
        "mount",
        f"--vfs-cache-mode={mode}",
        f"--cache-dir={tmp_path}",
        "--daemon",
    ]
    commands = {
        "vfat": (["mkfs.vfat", image], ["mount", "-o", "loop", image, mount]),
        "fuse": ([*rclone, f":local:{source}", mount],),
    }[request.param.partition(" ")[0]]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no {request.param} can be mounted here: {error}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def elsewhere(**slurm: object) -> Owner:
    """Describe an owner on another machine."""
    process = Process(host="elsewhere", pid=1, machine="another boot", pid_namespace="pid:[1]", process_start="1")
    return Owner(process=process, slurm=SlurmJob(**slurm) if slurm else None, since=0.0)  # type: ignore[arg-type]


def test_a_claim_is_exclusive_and_given_up_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    with Claims(folder).take(NAME) as first, Claims(folder).take(NAME) as second:
        assert first
        assert not second
    with Claims(folder).take(NAME) as third:
        assert third
    assert list(folder.iterdir()) == []  # nothing is left lying about


def test_a_claim_is_given_up_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="work failed"), Claims(tmp_path).take(NAME):
        raise RuntimeError("work failed")
    with Claims(tmp_path).take(NAME) as again:
        assert again


def test_a_signal_at_any_line_leaves_no_claim(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A signal's exception may be raised between any two lines, also while the claim is made or released."""
    mine = Claims(tmp_path / "claims")

    def work() -> None:
        with mine.take(NAME):
            pass

    before, interrupted = 0, True
    while interrupted:
        try:
            interrupt_after(before, work, file=str(claims.__file__))
            interrupted = False
        except KeyboardInterrupt:
            before += 1
        mine.release_all()
        left = list(mine.folder.glob("*")) if mine.folder.exists() else []
        # Without hard links an empty claim may be left, which goes stale: it cannot be told from one that is being written.
        empty = [path for path in left if path.stat().st_size == 0]
        assert left == empty, f"interrupted after {before} lines"
        assert not empty or request.node.callspec.params["links"] == "no links"
        for path in empty:
            path.unlink()
    assert before > 30


def test_a_mounted_file_system_without_links_will_do(no_links: Path) -> None:
    folder = no_links / "claims"
    with Claims(folder).take(NAME) as first, Claims(folder).take(NAME) as second:
        assert first
        assert not second
        owner = read_owner(folder / NAME)
        assert owner is not None
        silent = Sightings()
        silent.silent_s(folder / NAME)
        time.sleep(2.1)  # FAT counts in steps of two seconds
        assert silent.silent_s(folder / NAME) > 2
        assert touch(folder / NAME, owner) == "kept"
        assert silent.silent_s(folder / NAME) == 0.0
        assert touch(folder / NAME, elsewhere()) == "lost"
    assert list(folder.iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from pipeline.run.claims import Claims
with Claims(Path(sys.argv[1])).take(sys.argv[2]) as mine:
    print("held" if mine else "refused", flush=True)
    time.sleep(60)
"""


def test_a_killed_evaluators_claim_is_taken_over(tmp_path: Path) -> None:
    ours = Claims(tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path), NAME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with ours.take(NAME) as while_alive:
            assert not while_alive
        assert not ours.are_in_doubt()  # it is known to live
        holder.kill()
        holder.wait()
        with ours.take(NAME) as after_death:
            assert after_death


@pytest.mark.parametrize("clock_s", [0, -600, 600, -1e9])
def test_a_silent_claim_goes_stale_and_a_touched_one_does_not_whatever_its_clock(tmp_path: Path, clock_s: float) -> None:
    """The owner's clock, or the file server's, may be wrong by minutes or decades."""
    path, owner, ours = tmp_path / NAME, elsewhere(), Claims(tmp_path, silent_after_s=SILENT_S)
    path.write_text(owner.to_json())
    begin = time.monotonic()
    for beat in range(8):
        stamp = time.time() + clock_s + beat
        os.utime(path, (stamp, stamp))
        with ours.take(NAME) as taken:
            assert not taken
        time.sleep(SILENT_S / 4)
    assert time.monotonic() - begin > 1.5 * SILENT_S
    assert not ours.are_in_doubt()
    time.sleep(1.2 * SILENT_S)
    with ours.take(NAME) as stale:
        assert stale


def test_doubt_lasts_until_the_claim_changes_or_has_been_silent(tmp_path: Path) -> None:
    path, ours = tmp_path / NAME, Claims(tmp_path, silent_after_s=SILENT_S)
    path.write_text(elsewhere().to_json())
    with ours.take(NAME) as first:
        assert not first
    assert ours.are_in_doubt()
    time.sleep(1.2 * SILENT_S)
    with ours.take(NAME) as second:
        assert second
    assert not ours.are_in_doubt()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"host": 5, "pid": "x", "token": null}', "\0" * 40, '{"host": "old"}']
)
def test_a_claim_that_names_nobody_is_watched_and_goes_stale(tmp_path: Path, content: str) -> None:
    ours = Claims(tmp_path, silent_after_s=SILENT_S)
    (tmp_path / NAME).write_text(content)
    with ours.take(NAME) as fresh:
        assert not fresh
    time.sleep(1.2 * SILENT_S)
    with ours.take(NAME) as stale:
        assert stale


def test_the_claim_of_a_job_before_it_was_requeued_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for job, cluster, restart, before, expected in (
        ("8", None, "1", 0, False),
        ("7", None, "1", 1, False),
        ("7", None, "1", 2, False),  # a node that Slurm has lost still runs: it must not take the claim of its successor
        ("7", None, None, 0, False),
        ("7", None, None, 2, False),  # started by hand in the job: srun does not say how often it was requeued
        ("7", None, "1", 0, True),
        ("7", None, "10", 9, True),
        ("7", "theirs", "10", 9, True),
        ("7", "ours", "10", 9, False),  # another cluster's job of that number
    ):
        (tmp_path / NAME).write_text(elsewhere(id="7", restart=before, cluster="theirs").to_json())
        with monkeypatch.context() as context:
            context.setenv("SLURM_JOB_ID", job)
            for name, value in (("SLURM_RESTART_COUNT", restart), ("SLURM_CLUSTER_NAME", cluster)):
                context.delenv(name, raising=False)
                if value is not None:
                    context.setenv(name, value)
            with Claims(tmp_path).take(NAME) as mine:
                assert mine == expected, (job, cluster, restart, before)


TRIERS = 6


def try_claim(folder: str, start: float, links: str, number: int) -> bool:
    if links == "no links":
        os.link = lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "not supported"))  # type: ignore[assignment]
    time.sleep(max(0.0, start - time.time()))
    with Claims(Path(folder)).take(NAME) as mine:
        (Path(folder) / f"tried-{number}").touch()
        deadline = time.monotonic() + 60
        # Held until everybody has tried: a process that a busy machine starts late would rightly take a released claim.
        while len(list(Path(folder).glob("tried-*"))) < TRIERS and time.monotonic() < deadline:
            time.sleep(0.01)
        return mine


def test_of_many_that_see_a_dead_claim_one_takes_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    links = request.node.callspec.params["links"]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner = replace(Owner.myself(), process=replace(Process.myself(), pid=dead.pid))
    with multiprocessing.get_context("spawn").Pool(TRIERS) as pool:
        for _ in range(5):
            (tmp_path / NAME).write_text(owner.to_json())
            start = time.time() + 0.3
            taken = pool.starmap(try_claim, [(str(tmp_path), start, links, number) for number in range(TRIERS)], chunksize=1)
            assert sum(taken) == 1
            for mark in tmp_path.glob("tried-*"):
                mark.unlink()


def test_a_claim_that_is_not_the_one_judged_is_put_back(tmp_path: Path) -> None:
    path, living = tmp_path / NAME, elsewhere()
    create(path, living)
    remove_stale(path, elsewhere())
    assert read_owner(path) == living
    release(path, elsewhere())
    assert read_owner(path) == living
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("answers", [1, 2, 99])
def test_a_stale_handle_of_nfs_is_no_error(answers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine has replaced the file, or removed it. On a second request, its client looks the name up."""
    path, living, left = tmp_path / NAME, elsewhere(), [answers]
    create(path, living)
    read = Path.read_bytes

    def answer(self: Path) -> bytes:
        left[0] -= not self.name.startswith(".")  # its own drafts are nobody else's
        if left[0] >= 0 and not self.name.startswith("."):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", answer)
    assert read_owner(path) == (living if answers < STALE_LOOKS else None)
    left[0] = answers
    if answers < STALE_LOOKS:
        assert touch(path, living) == "kept"
    left[0] = answers
    with Claims(tmp_path).take("other.json") as mine:
        assert mine


@pytest.mark.parametrize("number", sorted(claims.NO_LINKS))
def test_every_answer_of_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    assert create(tmp_path / NAME, Owner.myself())
    assert not create(tmp_path / NAME, Owner.myself())


def test_a_folder_that_cannot_be_written_is_answered_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as context:
        context.setattr(Path, "write_text", read_only)
        with (
            pytest.raises(CheckpointError, match=r"no claim can be written \(Read-only file system\)"),
            Claims(tmp_path).take(NAME),
        ):
            pass


def test_a_touch_changes_the_file_and_finds_a_loss(tmp_path: Path) -> None:
    path, mine = tmp_path / NAME, Owner.myself()
    create(path, mine)
    marks: list[object] = []
    look: Callable[[], None] = lambda: marks.append((path.stat().st_mtime_ns, path.read_text()))  # noqa: E731
    look()
    time.sleep(0.02)
    assert touch(path, mine) == "kept"
    look()
    assert marks[0][0] < marks[1][0]  # type: ignore[index]
    assert marks[0][1] == marks[1][1]  # type: ignore[index]
    path.write_text(elsewhere().to_json())
    assert touch(path, mine) == "lost"

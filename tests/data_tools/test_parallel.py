"""A task that fails, or kills its worker, is named; the others go on, until too many have failed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.failures import WorkerKilledError
from data_tools.parallel import LocalWorkers
from pipeline.errors import DataError
from tests.conftest import encode, make_image


def fail_at_odd(number: int) -> int:
    if number % 2:
        raise DataError(f"{number} is odd" if number < 9 else "it is large")
    return number


def test_failed_tasks_are_named_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[int] = []
    with pytest.raises(DataError, match=r"look: 6 of 12 shards failed; the others are finished") as caught:
        found.extend(task for task, _ in LocalWorkers(2).map(fail_at_odd, range(12), description="look", unit="shard"))
    assert sorted(found) == [0, 2, 4, 6, 8, 10]
    assert "it is large (2 times); " in str(caught.value)
    assert str(caught.value).endswith("is odd")
    errors = capsys.readouterr().err
    assert "look: 3 failed: 3 is odd" in errors


def test_the_work_stops_when_more_have_failed_than_are_allowed() -> None:
    found: list[int] = []
    workers = LocalWorkers(1, max_failures=2)
    with pytest.raises(DataError, match=r"look: 3 of 100 shards failed; that is more than --max-failures"):
        found.extend(task for task, _ in workers.map(fail_at_odd, range(100), description="look", unit="shard"))
    assert max(found) <= 8


def test_the_error_of_a_single_task_is_its_own() -> None:
    with pytest.raises(DataError, match=r"^3 is odd$"):
        list(LocalWorkers(2).map(fail_at_odd, [2, 3, 4], description="look", unit="shard"))


def die_at(task: tuple[int, str]) -> int:
    """Kill the worker: always for number 5, the first time for number 2."""
    number, folder = task
    mark = Path(folder, "died")
    if number == 5 or (number == 2 and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return number


@pytest.mark.slow
def test_tasks_go_on_where_a_worker_is_killed(tmp_path: Path) -> None:
    tasks = [(number, str(tmp_path)) for number in range(12)]
    found: list[int] = []
    done = LocalWorkers(2).map(die_at, tasks, description="look", unit="shard", name_task=lambda task: f"no. {task[0]}")
    with pytest.raises(WorkerKilledError, match=r"killed \(SIGKILL\) while at work on no. 5, most likely for lack") as caught:
        found.extend(result for _, result in done)
    assert caught.value.tasks == [tasks[5]]
    assert sorted(found) == [*range(5), *range(6, 12)]  # each once


def end_at_once(_: int) -> int:  # pyright: ignore[reportReturnType]
    os._exit(0)


@pytest.mark.slow
def test_a_worker_that_ends_without_being_killed_is_no_endless_loop() -> None:
    with pytest.raises(WorkerKilledError, match="unknown cause"):
        list(LocalWorkers(2).map(end_at_once, range(3), description="look", unit="shard"))


@pytest.mark.slow
def test_shares_and_what_follows_make_what_one_command_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One share is never done: the command without shares does its work too."""
    for number in range(30):
        folder = tmp_path / "photos" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(encode(make_image(number % 20, num_classes=3, size=32), format="JPEG"))
    made = tmp_path / "corpus"
    commands = [["make", str(tmp_path / "photos"), str(made), "--samples-per-shard", "4"], ["verify", str(made)]]
    commands += [["stats", str(made)], ["dedup", str(made), "--within"]]
    for command in commands:
        assert main([*command, "--workers", "1"]) == 0
    expected = contents(made)
    made.rename(tmp_path / "reference")
    for command in commands:
        for number in (2, 0):
            assert main([*command, "--workers", "1", "--share", f"{number}/3"]) == 0
            assert "this share's" in capsys.readouterr().out
        assert main([*command, "--workers", "1"]) == 0
    found = contents(made)
    assert expected.keys() == found.keys()
    assert {name for name in expected if expected[name] != found[name]} <= {"index.safetensors"}
    assert main(["verify", str(made), "--workers", "1", "--share", "0/3", "--cluster", "nowhere"]) == 2
    assert "--share has no meaning with --cluster" in capsys.readouterr().err


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a command leaves for people."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}

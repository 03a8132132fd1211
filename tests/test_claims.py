"""Claims: one holder at a time, and the dead let go."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.claims import Owner, claim


def test_a_claim_is_exclusive_and_given_up_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "claims" / "step.json"
    with claim(path) as first, claim(path) as second:
        assert first
        assert not second
    assert not path.exists()
    with claim(path) as third:
        assert third
    assert list(path.parent.iterdir()) == []  # nothing is left lying about


def test_a_claim_is_given_up_when_the_work_fails(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    try:
        with claim(path):
            raise RuntimeError("work failed")
    except RuntimeError:
        pass
    with claim(path) as again:
        assert again


def test_a_killed_evaluators_claim_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    code = f"import time; from pathlib import Path; from pipeline.claims import claim\nwith claim(Path({str(path)!r})): time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code])
    while not path.exists():
        assert holder.poll() is None
        time.sleep(0.02)
    with claim(path) as while_alive:
        assert not while_alive
    holder.kill()
    holder.wait()
    with claim(path) as after_death:
        assert after_death


def test_a_silent_claim_from_another_machine_goes_stale(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    owner = Owner(host="elsewhere", pid=1, process_start=None, slurm_job_id=None, slurm_restart=None, since=0.0)
    path.write_text(json.dumps(asdict(owner)))
    with claim(path, stale_after_s=60) as fresh:
        assert not fresh
    os.utime(path, (time.time() - 61, time.time() - 61))
    with claim(path, stale_after_s=60) as stale:
        assert stale


def test_the_claim_of_a_job_before_it_was_requeued_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step.json"
    owner = Owner(host="elsewhere", pid=1, process_start=None, slurm_job_id="7", slurm_restart=None, since=time.time())
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    for job, restart, before, expected in (
        ("8", "1", None, False),
        ("7", "1", "1", False),
        ("7", "1", "2", False),  # what a node that Slurm has lost still runs must not take the claim of its successor
        ("7", None, None, False),
        ("7", None, "2", False),  # started by hand in the job: srun does not say how often it was requeued
        ("7", "1", None, True),
        ("7", "10", "9", True),
    ):
        path.write_text(json.dumps(asdict(replace(owner, slurm_restart=before))))
        with monkeypatch.context() as context:
            context.setenv("SLURM_JOB_ID", job)
            if restart is not None:
                context.setenv("SLURM_RESTART_COUNT", restart)
            with claim(path) as mine:
                assert mine == expected, (job, restart, before)


def test_an_empty_claim_left_by_a_power_cut_goes_stale(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    path.touch()
    with claim(path) as fresh:
        assert not fresh
    os.utime(path, (0, 0))
    with claim(path) as stale:
        assert stale


def try_claim(path: str, start: float) -> bool:
    time.sleep(max(0.0, start - time.time()))
    with claim(Path(path)) as mine:
        time.sleep(0.5)
        return mine


def test_of_many_that_see_a_dead_claim_one_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with multiprocessing.get_context("spawn").Pool(6) as pool:
        for _ in range(5):
            path.write_text(json.dumps(asdict(replace(Owner.myself(), pid=dead.pid))))
            taken = pool.starmap(try_claim, [(str(path), time.time() + 0.3)] * 6, chunksize=1)
            assert sum(taken) == 1

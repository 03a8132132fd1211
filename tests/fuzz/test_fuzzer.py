"""The fuzzer itself is tested, and a short form of it runs; `make fuzz` runs the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, encode, make_image
from tests.fuzz import jpeg_files
from tests.fuzz.campaign import KEPT_INPUTS, campaign
from tests.fuzz.fuzzer import random_of
from tests.fuzz.sanitizers import NoSanitizerError, ensure_tools
from tests.fuzz.targets import PLANTED, TARGETS
from tests.fuzz.worker import build

SHORT_SHARES = {"sanitized": 0.004, "plain": 0.02}  # of the long form's executions
FAULTS = {
    "wrong": "wrong: two and two are five",
    "foreign": "foreign error: KeyError at no line of the project",
    "memory": "memory: MemoryError at no line of the project",
    "crash": "crash (SIGSEGV): ",
    "hang": "hang: ",
}


def bad_inputs(seed: int) -> list[int]:
    return [number for number in range(PLANTED["sound"].executions) if random_of(seed, number).randbytes(8)[0] < 13]


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found_kept_and_outlived(kind: str, tmp_path: Path) -> None:
    """Every input that meets it is counted, and no other; the inputs behind it are tried."""
    seed, executions = 11, 40
    bad = bad_inputs(seed)
    assert 2 <= len(bad) <= 6
    planted = campaign(kind, seed=seed, executions=executions, folder=tmp_path / "scratch", out=tmp_path / "out")
    result = planted.run()
    assert result.executions == executions
    assert dict(result.faults) == {FAULTS[kind]: len(bad)}
    assert [path.name for path in result.kept] == [f"{kind}-seed{seed}-{number}" for number in bad[:KEPT_INPUTS]]
    for path, number in zip(result.kept, bad, strict=False):
        assert path.read_bytes() == random_of(seed, number).randbytes(8)  # the input that did it, for a try by hand


def test_a_sound_reader_has_no_findings(tmp_path: Path) -> None:
    result = campaign("sound", seed=11, executions=40, folder=tmp_path / "scratch", out=tmp_path / "out").run()
    assert (result.executions, result.taken + result.refused) == (40, 40)
    assert not result.faults
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.sanitized is None])
def test_an_input_does_not_depend_on_those_made_before(name: str, tmp_path: Path) -> None:
    fuzzer = build(TARGETS[name], tmp_path)
    first = [fuzzer.make(random_of(0, number)) for number in range(200)]
    assert [fuzzer.make(random_of(0, number)) for number in range(200)] == first


def test_mutations_of_a_jpeg_leave_the_seeds_as_they_are() -> None:
    seeds = [jpeg_files.parse(encode(make_image(number, num_classes=3, size=24), format="JPEG")) for number in range(4)]
    before = [jpeg_files.encode(seed) for seed in seeds]
    for number in range(3000):
        jpeg_files.mutate(seeds, random_of(0, number))
    assert [jpeg_files.encode(seed) for seed in seeds] == before


def fuzz(names: list[str], *, share: float, out: Path) -> str:
    command = [sys.executable, "-m", "tests.fuzz", *names, "--share", str(share), "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sanitized", "plain"])
def test_mutated_inputs_are_read_right_or_refused(kind: str, tmp_path: Path) -> None:
    names = [name for name, target in TARGETS.items() if (target.sanitized is not None) == (kind == "sanitized")]
    if kind == "sanitized":
        try:
            ensure_tools()
        except NoSanitizerError as error:
            pytest.skip(str(error))
    table = fuzz(names, share=SHORT_SHARES[kind], out=tmp_path / "findings")
    for name in names:
        assert f"\n{name} " in table

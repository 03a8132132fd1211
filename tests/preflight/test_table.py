"""Machines are compared, and the odd one is named with what sets it apart."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.preflight.examine import by_machine
from pipeline.preflight.machine import ask_smi, read_smi
from pipeline.preflight.measure import Machine, Measure, wanted
from pipeline.preflight.table import describe_findings, find_odd, make_table, to_values


def machine(name: str, *, rate: float = 100.0, torch: str = "2.11", delay: float = 1.0) -> Machine:
    return Machine(
        name,
        (0,),
        (
            Measure("product", rate, "TFLOP/s", rule="none less"),
            Measure("torch", torch, rule="same"),
            Measure("flush", delay, "ms", rule="none more"),
            Measure("load", 0.5),
        ),
    )


def test_equal_machines_have_no_findings() -> None:
    machines = [machine(f"n{number}") for number in range(4)]
    assert find_odd(machines) == []
    assert describe_findings([], num_machines=4) == ["nothing is wrong, and no machine of 4 differs"]
    table = make_table(machines)
    assert "machine" not in table
    assert table.splitlines()[0].split() == ["product", "100", "TFLOP/s"]


def test_the_odd_machine_is_named() -> None:
    machines = [machine("n1"), machine("n2", rate=60, torch="2.10", delay=5), machine("n3"), machine("n4")]
    texts = describe_findings(find_odd(machines), num_machines=4)
    assert texts == [
        "WARNING  n2: product: 60 TFLOP/s, 40 % below the others' 100",
        "WARNING  n2: torch: 2.10, where the others have 2.11",
        "WARNING  n2: flush: 5 ms, 5.0 times the others' 1",
    ]
    rows = [line.split() for line in make_table(machines).splitlines()]
    assert ["n2", "60", "TFLOP/s", "2.10", "5", "ms"] in rows
    assert ["load", "0.5"] in rows


def test_with_two_machines_both_are_told() -> None:
    texts = describe_findings(find_odd([machine("n1"), machine("n2", torch="2.10")]), num_machines=2)
    assert texts == [
        "WARNING  n1: torch: 2.11, where the others have 2.10",
        "WARNING  n2: torch: 2.10, where the others have 2.11",
    ]


def test_advice_is_given_once_for_all_machines_and_problems_come_first() -> None:
    full = Measure("/dev/shm", 0.06, "GiB", advice="docker --shm-size=64g")
    broken = Measure("operations", "none", advice="use another", severity="problem")
    machines = [replace(machine(name), measures=(full, broken) if name == "n2" else (full,)) for name in ("n1", "n2", "n3")]
    texts = describe_findings(find_odd(machines), num_machines=3)
    assert texts == [
        "PROBLEM  n2: operations: none; use another",
        "WARNING  all machines: /dev/shm: 0.06 GiB; docker --shm-size=64g",
    ]
    assert to_values(machines, find_odd(machines))["findings"][0]["machines"] == ("n2",)


@given(st.lists(st.floats(min_value=90, max_value=110), min_size=2, max_size=20))
def test_spread_of_a_tenth_is_nothing(rates: list[float]) -> None:
    assert find_odd([machine(f"n{number}", rate=rate) for number, rate in enumerate(rates)]) == []


def test_a_host_has_the_worst_of_its_ranks() -> None:
    slow, fast = (Measure("product", rate, rule="none less") for rate in (50.0, 100.0))
    late, early = (Measure("block", delay, rule="none more") for delay in (9.0, 1.0))
    bad = wanted("copies", 3, "GB/s", at_least=8, advice="slow link", rule="none less")
    (one,) = by_machine([("a", "boot", 0, [fast, early]), ("a", "boot", 1, [slow, late, bad])])
    assert one.ranks == (0, 1)
    assert [measure.value for measure in one.measures] == [50.0, 9.0, 3]
    assert one.measures[2].advice == "slow link"


def test_two_machines_of_one_name_are_two() -> None:
    """Containers may all be called localhost."""
    machines = by_machine([("localhost", "1", 0, []), ("localhost", "2", 1, []), ("other", "2", 2, [])])
    assert [(each.name, each.ranks) for each in machines] == [
        ("localhost (rank 0)", (0,)),
        ("localhost (rank 1)", (1,)),
        ("other", (2,)),
    ]


SMI = """#!/bin/bash
case "$1" in
*clocks_event_reasons*) echo 'Field "clocks_event_reasons.active" is not a valid field to query.'; exit 2;;
*ecc.errors*) echo 'Field "ecc.errors.uncorrected.volatile.total" is not a valid field to query.'; exit 2;;
esac
echo "470.57.02, 1410, 1410, 33, 0x0000000000000000"
"""


def test_an_old_driver_is_asked_by_the_old_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """candle 733, zabbix-nvidia-smi-multi-gpu 17: one unknown field, and nvidia-smi says nothing of the others."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = {measure.name: measure for measure in read_smi(ask_smi())}
    assert found["driver"].value == "470.57.02"
    assert found["largest GPU clock"].value == 1410
    assert found["GPU slowed down by"].value == "nothing"
    assert "uncorrected memory errors" not in found


def test_a_container_that_has_lost_its_gpus_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-docker 1671."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/bash\necho 'Failed to initialize NVML: Unknown Error'\nexit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (only,) = read_smi(ask_smi())
    assert only.value == "Failed to initialize NVML: Unknown Error"
    assert only.advice is not None
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert list(read_smi(ask_smi())) == []


def test_what_nvidia_smi_says_is_read() -> None:
    """Two lines of a machine, of which one GPU is held back, and one has lost a row of memory."""
    text = "570.86.15, 1980, 1980, 41, 0, 0x0000000000000000\n570.86.15, 345, 1755, 88, 2, 0x0000000000000048\n"
    found = {measure.name: measure for measure in read_smi(text)}
    assert found["driver"].value == "570.86.15"
    assert found["largest GPU clock"].value == 1755
    assert found["GPU temperature"].advice is not None
    assert found["uncorrected memory errors"].severity == "problem"
    assert found["GPU slowed down by"].value == "hardware slowdown, temperature"
    assert list(read_smi("")) == []
    healthy = {m.name: m for m in read_smi("570.86.15, 1980, 1980, 41, [N/A], 0x0000000000000000\n")}
    assert all(measure.advice is None for measure in healthy.values())
    assert "uncorrected memory errors" not in healthy

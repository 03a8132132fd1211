"""A network that `preflight` has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.plan.measured import Network, read_network
from pipeline.preflight.measure import Machine, Measure
from pipeline.preflight.table import to_values
from tests.conftest import REPOSITORY, run_command


def write(path: Path, *machines: list[Measure]) -> Path:
    found = [Machine(f"n{number}", (number,), tuple(measures)) for number, measures in enumerate(machines)]
    path.write_text(json.dumps(to_values(found, [])))
    return path


def test_it_is_the_all_reduces_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "found.json", [Measure("load", 0.1), Measure("all-reduce", 43.25, "GB/s")], [Measure("load", 0.2)])
    assert read_network(path) == Network(43.25, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", r"is no file of `preflight --json` \(JSONDecodeError"),
        ("[1]", r"is no file of `preflight --json` \(TypeError"),
        ('{"models": []}', r"is no file of `preflight --json` \(KeyError: 'machines'\)"),
        ({"machines": [{"measures": [{"name": "all-reduce", "value": "no"}]}] * 2}, r"\(ValueError"),
        ({"machines": [{"measures": []}]}, "1 machine and no rate between machines; run preflight on the nodes of a job"),
        ({"machines": [{"measures": [{"name": "all-reduce", "value": 3}]}]}, "1 machine and no rate"),
        ({"machines": [{"measures": []}] * 3}, "3 machines and no rate"),
        ({"machines": [{"measures": [{"name": "all-reduce", "value": 0}]}] * 2}, "2 machines and no rate"),
    ],
)
def test_other_files_are_told(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_network(path)


def test_the_plan_takes_it_or_the_option(tmp_path: Path) -> None:
    path = write(tmp_path / "found.json", *[[Measure("all-reduce", 12.5, "GB/s")]] * 4)
    recipe = str(REPOSITORY / "configs/l16_in21k.yaml")
    plan = ["plan", recipe, "--nodes", "4", "--samples", "14197122", "--measured", str(path)]
    assert " at 12.5 GB/s (measured on 4 machines): " in run_command(*plan).stdout
    both = run_command(*plan, "--network-gb", "100")
    assert (both.returncode, "both say what the network does: give one" in both.stdout) == (2, True)

"""The pages name existing files, commands and functions, and the picture agrees with the imports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.commands import COMMANDS
from pipeline.run.folder import RunFolder
from pipeline.run.records import append_json_lines
from tests.conftest import REPOSITORY
from tests.helpers import compare_runs
from tests.helpers.import_graph import PICTURE, ROOTS, count_long, draw, read_arrows
from tests.helpers.run_folders import write_weights

PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]
    if path.name != "adding.md"  # it names files that its reader makes; tests/laws/test_adding.py follows it
)
SOURCES = {path.relative_to(REPOSITORY).as_posix() for root in (*ROOTS, "tests") for path in (REPOSITORY / root).rglob("*.py")}
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:pipeline|data_tools|tests|docs|configs|slurm)/[\w./-]*")
CONFIG = re.compile(r"configs/[\w/-]+\.yaml")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")
# `package/module.py`: `function()`, `Class.method()`, `Class`
NAMED = re.compile(r"`((?:pipeline|data_tools|slurm)/[\w/]+\.(?:py|sh))`: (`[\w.]+(?:\(\))?`(?:, `[\w.]+\(\)`)*)")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    named = {word.rstrip(".") for code in CODE.findall(text) for word in FILE.findall(code) if f" {word}" in f" {code}"}
    linked = {(REPOSITORY / page).parent / target for target in LINK.findall(text)}
    missing = [name for name in sorted(named) if not (REPOSITORY / name).exists()]
    assert missing + [str(path) for path in sorted(linked) if not path.exists()] == []


def test_every_configuration_that_a_page_a_help_text_or_a_script_names_is_there() -> None:
    scripts = [path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "slurm").glob("*.sh")]
    places = [*PAGES, *scripts, *(name for name in SOURCES if not name.startswith("tests/"))]
    named = {(place, name) for place in places for name in CONFIG.findall((REPOSITORY / place).read_text())}
    assert len(named) > 20
    assert [(place, name) for place, name in sorted(named) if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_names_is_there(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    modules = {
        name.rstrip(".").replace(".", "/") for name in re.findall(r"python -m ((?:pipeline|data_tools|tests)\b[\w.]*)", text)
    }
    missing = [name for name in sorted(modules) if not {f"{name}.py", f"{name}/__main__.py"} & SOURCES]
    missing += sorted(set(re.findall(r"python -m pipeline\s+([a-z][\w-]*)", text)) - COMMANDS.keys())
    targets = set(re.findall(r"(?m)^([\w-]+):", (REPOSITORY / "Makefile").read_text()))
    named = set(re.findall(r"`make ([a-z][\w-]*)", text)) | set(re.findall(r"(?m)^make ([a-z][\w-]*)", text))
    assert missing + sorted(named - targets) == []


def test_the_floor_plan_names_every_package() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    packages = [
        path.parent.relative_to(REPOSITORY).as_posix() + "/"
        for root in ROOTS
        for path in sorted((REPOSITORY / root).rglob("__init__.py"))
    ]
    modules = [f"{root}/{path.name}" for root in ROOTS for path in (REPOSITORY / root).glob("[!_]*.py")]
    assert len(packages) > 25
    assert [name for name in packages + modules if f"`{name}`" not in text] == []


def test_the_functions_on_each_way_are_in_their_files() -> None:
    found = NAMED.findall((REPOSITORY / "docs" / "architecture.md").read_text())
    assert len(found) > 60
    missing = [
        f"{file}: {part}"
        for file, names in found
        for part in re.findall(r"\w+", names)
        if not re.search(rf"(?m)^\s*(?:def|class) {part}\b|^{part}\(\) {{", (REPOSITORY / file).read_text())
    ]
    assert missing == []


def test_the_picture_is_that_of_the_imports() -> None:
    assert PICTURE.read_text() == draw(read_arrows()), "type `make architecture`"


def test_no_module_and_no_function_is_longer_than_the_house_style_allows() -> None:
    counts = count_long()
    long = {what: number for what, number in counts.items() if what != "fmt: skip" and number}
    assert not long, long


def test_the_index_names_every_page() -> None:
    text = (REPOSITORY / "docs" / "README.md").read_text()
    pages = [path.name for path in sorted((REPOSITORY / "docs").glob("*.md")) if path.name != "README.md"]
    assert [name for name in pages if f"({name})" not in text] == []


def test_two_runs_are_compared_to_the_last_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"step": 10, "data/digest": 7, "train/loss": 0.5, "train/gradient_norm": 1.5}
    for name, loss, seed in (("one", 0.5, 0), ("same", 0.5, 0), ("other", 0.5 + 1e-15, 0), ("weights", 0.5, 1)):
        folder = RunFolder(tmp_path / name)
        write_weights(folder, 20, seed=seed)
        append_json_lines(folder.metrics, [line | {"train/loss": loss}])
    (tmp_path / "empty").mkdir()

    def compare(name: str) -> tuple[int, str]:
        return compare_runs.main([str(tmp_path / "one"), str(tmp_path / name)]), capsys.readouterr().out

    assert compare("same") == (0, "equal at steps 10, 20: data/digest, train/loss, train/gradient_norm, weights\n")
    assert compare("other") == (1, "differences: 1; first at step 10: train/loss 0.5 and 0.500000000000001\n")
    assert compare("weights")[0] == 1
    assert compare("empty")[0] == 2

"""A command without its arguments is answered in a sentence, with a line that the command accepts."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.__main__ import make_parser as make_tools_parser
from pipeline.__main__ import make_parser
from pipeline.console.command_line import Parser
from tests.conftest import REPOSITORY, encode, make_image

LACKING = [
    ("pipeline", "train", "CONFIG"),
    ("pipeline", "evaluate", "RUN_OR_WEIGHTS"),
    ("pipeline", "report", "RUN_DIR"),
    ("pipeline", "status", "RUN_DIR"),
    ("pipeline", "samples", "RUN and --step"),
    ("pipeline", "samples runs/x", "--step"),
    ("pipeline", "show-config", "CONFIG"),
    ("pipeline", "plan", "CONFIG and --nodes"),
    ("pipeline", "benchmark", "train|loader|scale|augment|eval|choices"),
    ("data_tools", "make", "SOURCE and FOLDER"),
    ("data_tools", "make x", "FOLDER"),
    ("data_tools", "index", "FOLDER"),
    ("data_tools", "verify", "FOLDER"),
    ("data_tools", "stats", "FOLDER"),
    ("data_tools", "dedup", "CORPUS"),
]


def parser_of(program: str, command: str) -> Parser:
    parser = make_parser(command) if program == "pipeline" else make_tools_parser(command)
    assert isinstance(parser, Parser)
    return parser


@pytest.mark.parametrize(("program", "words", "lacks"), LACKING)
def test_it_names_what_is_missing_and_a_line_to_type(
    program: str, words: str, lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(program, words.partition(" ")[0])
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words.split())
    assert ended.value.code == 2
    first, example, last = capsys.readouterr().err.splitlines()
    command = words.partition(" ")[0]
    assert first == f"error: python -m {program} {command} needs {lacks}; type, for example"
    assert last == f"`python -m {program} {command} --help` explains more"
    assert example.startswith(f"  python -m {program} {command} ")
    parser_of(program, command).parse_args(shlex.split(example, comments=True)[3:])


@pytest.mark.parametrize(
    ("program", "some"), [("pipeline", "train, evaluate, finetune"), ("data_tools", "make, index, verify")]
)
def test_without_a_command_it_lists_them(program: str, some: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser_of(program, "").parse_args([])
    assert f"error: python -m {program} needs COMMAND ({some}, " in capsys.readouterr().err


def test_what_is_wrong_otherwise_is_answered_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser_of("pipeline", "trian").parse_args(["trian"])
    assert "invalid choice: 'trian'" in capsys.readouterr().err


def test_names_are_utf_8_whatever_the_locale_says(tmp_path: Path) -> None:
    """The machine's locale is ASCII. Python itself would make it UTF-8 without this setting."""
    picture = encode(make_image(0, num_classes=2, size=40), format="PNG")
    for name in ("caf\u00e9", "bee"):
        (tmp_path / "\u00fcber" / name).mkdir(parents=True)
        (tmp_path / "\u00fcber" / name / "\u00e9.png").write_bytes(picture)
    (tmp_path / "\u00fcber" / "caf\u00e9" / "b\u00fcg.png").write_bytes(b"no image \xff")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(program: str, *words: str) -> str:
        command = [sys.executable, "-m", program, *words]
        done = subprocess.run(command, env=environment, capture_output=True, check=False, cwd=REPOSITORY)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    said = run("data_tools", "make", str(tmp_path / "\u00fcber"), str(tmp_path / "made"), "--workers", "1")
    assert "3 samples in 1 shards" in said
    assert (tmp_path / "made" / "classes.txt").read_text(encoding="utf-8") == "bee\ncaf\u00e9\n"
    assert "name: caf" in run("pipeline", "show-config", "configs/demo.yaml", "name=cafe")

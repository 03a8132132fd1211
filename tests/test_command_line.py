"""A command without its words is answered in a sentence, with a line that the command takes."""

from __future__ import annotations

import shlex

import pytest

from data_tools.__main__ import make_parser as make_tools_parser
from pipeline.__main__ import make_parser
from pipeline.command_line import Parser

LACKING = [
    ("pipeline", "train", "CONFIG"),
    ("pipeline", "evaluate", "RUN_DIR"),
    ("pipeline", "report", "RUN_DIR"),
    ("pipeline", "status", "RUN_DIR"),
    ("pipeline", "samples", "RUN and --step"),
    ("pipeline", "samples runs/x", "--step"),
    ("pipeline", "show-config", "CONFIG"),
    ("pipeline", "plan", "CONFIG and --nodes"),
    ("pipeline", "benchmark", "loader|scale"),
    ("data_tools", "make", "SOURCE and FOLDER"),
    ("data_tools", "make x", "FOLDER"),
    ("data_tools", "index", "FOLDER"),
    ("data_tools", "verify", "FOLDER"),
    ("data_tools", "stats", "FOLDER"),
    ("data_tools", "dedup", "CORPUS"),
]


def parser_of(program: str) -> Parser:
    parser = make_parser() if program == "pipeline" else make_tools_parser()
    assert isinstance(parser, Parser)
    return parser


@pytest.mark.parametrize(("program", "words", "lacks"), LACKING)
def test_it_names_what_is_missing_and_a_line_to_type(
    program: str, words: str, lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(program)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words.split())
    assert ended.value.code == 2
    first, example, last = capsys.readouterr().err.splitlines()
    command = words.partition(" ")[0]
    assert first == f"error: python -m {program} {command} needs {lacks}; type, for example"
    assert last == f"`python -m {program} {command} --help` explains more"
    assert example.startswith(f"  python -m {program} {command} ")
    parser_of(program).parse_args(shlex.split(example, comments=True)[3:])


@pytest.mark.parametrize(("program", "some"), [("pipeline", "train, evaluate, report"), ("data_tools", "make, index, verify")])
def test_without_a_command_it_lists_them(program: str, some: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser_of(program).parse_args([])
    assert f"error: python -m {program} needs COMMAND ({some}, " in capsys.readouterr().err


def test_what_is_wrong_otherwise_is_answered_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser_of("pipeline").parse_args(["trian"])
    assert "invalid choice: 'trian'" in capsys.readouterr().err

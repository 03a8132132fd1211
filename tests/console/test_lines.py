"""Lines are printed next to a progress bar, and listings end when their reader leaves."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Literal

import pytest
from tqdm import tqdm

from pipeline.console.lines import log_line, print_lines


def test_a_line_does_not_mix_with_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=3, file=sys.stdout, ncols=40) as bar:
        bar.update()
        log_line("something happened")
    shown = [line.rpartition("\r")[2] for line in capsys.readouterr().out.split("\n")]
    assert shown[0] == "something happened"
    assert "1/3" in shown[1]  # drawn again


@pytest.mark.parametrize(("when_unread", "taken"), [("stop", 1), ("go on", 5)])
def test_without_a_reader_the_rest_is_taken_or_not(
    when_unread: Literal["stop", "go on"], taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    lines = iter(["a", "b", "c", "d", "e"])
    with pytest.raises(BrokenPipeError):
        print_lines(lines, when_unread=when_unread)
    assert 5 - len(list(lines)) == taken
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_lines_come_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader sees each line before the next one is made."""
    reader, writer = os.pipe()
    seen: list[bytes] = []

    def lines() -> Iterator[str]:
        yield "one"
        seen.append(os.read(reader, 100))
        yield "two"
        seen.append(os.read(reader, 100))

    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        os.set_blocking(reader, False)
        print_lines(lines(), when_unread="stop")
    os.close(reader)
    assert seen == [b"one\n", b"two\n"]

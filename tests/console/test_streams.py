"""Output has no reader, is blocked or is lost: the program continues, and its output goes to a file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from pipeline.console.streams import Outlet
from tests.conftest import REPOSITORY

LOG = "output.log"
START = (
    "import os, sys, time\nfrom pathlib import Path\nfrom pipeline.console.streams import keep_output_in, open_outlets\n"
    "from pipeline.console.lines import log_line\nopen_outlets()\n"
)


def start(program: str, *, stdout: int, stderr: int | None = None, shell: str = 'exec "$@"') -> subprocess.Popen[bytes]:
    command = ["bash", "-c", shell, "bash", sys.executable, "-c", START + program]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr)


def test_a_closed_pipe_ends_nothing_and_the_rest_goes_to_the_run_folder(tmp_path: Path) -> None:
    """The reader of `train | head` leaves, or the tee of `train | tee log` has died."""
    read, write = os.pipe()
    program = f"""keep_output_in(Path({str(tmp_path / LOG)!r}))
print("one", flush=True)
input()
for number in range(3): log_line(f"line {{number}}")
os.write(1, b"a library\\n")
print("to the end", file=sys.stderr)
"""
    process = start(program, stdout=write, stderr=write)
    os.close(write)
    assert os.read(read, 100) == b"one\n"
    os.close(read)
    process.communicate(b"\n", timeout=30)
    assert process.returncode == 0
    text = (tmp_path / LOG).read_text()
    assert "nobody reads this program's output any more; it continues here" in text
    for line in ("line 2\n", "a library\n", "to the end\n"):
        assert line in text


def test_output_lost_before_there_is_a_run_folder_goes_nowhere_and_then_to_its_file(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(f'print("early"); keep_output_in(Path({str(tmp_path / LOG)!r})); print("late")', stdout=write)
    os.close(write)
    assert process.wait(timeout=30) == 0
    assert (tmp_path / LOG).read_text().splitlines()[1:] == ["late"]


def test_a_reader_that_pauses_does_not_hold_the_program_up() -> None:
    """A pager or a stopped terminal pauses: lines are dropped and counted."""
    read, write = os.pipe()
    process = start(
        "start = time.monotonic()\nfor _ in range(3000): print('x' * 99)\nprint(time.monotonic() - start, "
        "file=sys.stderr)\ninput()\nprint('end')",
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert process.stderr is not None
    assert float(process.stderr.readline()) < 30  # nothing is read until here
    os.set_blocking(read, False)
    taken = len(os.read(read, 10**6))
    process.communicate(b"\n", timeout=30)
    rest = os.read(read, 10**6).decode()
    os.close(read)
    assert f"[output] {3000 * 100 - taken} bytes could not be written here and are lost\n" in rest
    assert rest.endswith("end\n")
    assert process.returncode == 0


def test_a_stopped_terminal_does_not_hold_the_program_up() -> None:
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)  # Ctrl-S
    process = start("for _ in range(300): print('x' * 99)", stdout=theirs)
    assert process.wait(timeout=30) == 0
    os.close(ours)
    os.close(theirs)


def test_a_terminal_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(f"keep_output_in(Path({str(tmp_path / LOG)!r})); input(); print('on')", stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    time.sleep(0.1)
    process.communicate(b"\n", timeout=30)
    assert process.returncode == 0
    assert (tmp_path / LOG).read_text().endswith("on\n")


@pytest.mark.parametrize("shell", ['exec "$@" >&-', 'exec "$@" 2>&-', 'exec "$@" >&- 2>&- <&-'])
def test_a_stream_that_the_shell_has_closed_is_no_other_file(shell: str, tmp_path: Path) -> None:
    """Its number would be the next file's, and messages would end up in a checkpoint."""
    program = f"""
with open({str(tmp_path / "checkpoint")!r}, "w") as file:
    print("out"); print("err", file=sys.stderr); os.write(1, b"library"); os.write(2, b"library")
    file.write("weights")
"""
    assert start(program, stdout=subprocess.DEVNULL, shell=shell).wait(timeout=30) == 0
    assert (tmp_path / "checkpoint").read_text() == "weights"


def test_a_full_disk_ends_nothing() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    outlet = Outlet(descriptor, encoding="utf-8")
    assert outlet.write("text\n") == 5
    os.close(descriptor)


def test_what_an_encoding_lacks_is_replaced() -> None:
    """With LANG=C a class has a name in another script."""
    read, write = os.pipe()
    Outlet(write, encoding="ascii").write("größe\n")
    assert os.read(read, 100) == b"gr??e\n"
    os.close(read)
    os.close(write)

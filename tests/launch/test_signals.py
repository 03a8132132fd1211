"""Signals that ask a process to stop are noted wherever it is, once each, and none is lost."""

from __future__ import annotations

import argparse
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.errors import ExitCode
from pipeline.launch.signals import SIGNALS, Interrupted, StopRequest
from tests.conftest import REPOSITORY

START = """
import os, signal, socket, sys, time
from pipeline.launch.signals import Interrupted, StopRequest, exit_on_request
stop = StopRequest()
"""
LISTEN = f"""{START}
stop.install()
print("ready", flush=True)
while not stop.is_set: time.sleep(0.01)
print("/".join(stop.received), flush=True)
"""
STUCK = """
one, other = socket.socketpair()
print("ready", flush=True)
one.recv(1)  # in C, for ever
"""


def start(program: str, *, stdin: int = subprocess.DEVNULL, prepare: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", prepare + program],
        cwd=REPOSITORY,
        text=True,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_each_is_noted_by_its_name(number: signal.Signals) -> None:
    process = start(LISTEN)
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == f"{number.name}\n"
    assert process.returncode == 0


def test_nohup_keeps_what_it_is_for_and_a_background_job_can_be_interrupted() -> None:
    process = start(LISTEN, prepare="import signal\nfor n in (1, 2): signal.signal(n, signal.SIG_IGN)\n")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "SIGINT\n"


def test_a_child_that_does_not_listen_yet_keeps_them_for_later() -> None:
    program = f"""{START}
import subprocess
stop.install()
child = subprocess.Popen([sys.executable, "-c", '''print("ready", flush=True); import time; time.sleep(0.5)
from pipeline.launch.signals import StopRequest
stop = StopRequest(); stop.install()
while not stop.is_set: time.sleep(0.01)
print(stop.received[0], flush=True)'''])
child.send_signal(signal.SIGTERM)
sys.exit(child.wait())
"""
    process = start(program)
    assert process.communicate(timeout=30)[0] == "SIGTERM\n"
    assert process.returncode == 0


def test_while_there_is_nothing_to_save_one_ends_the_process_whatever_it_waits_in() -> None:
    process = start(f"{START}\nstop.install()\nexit_on_request(stop, tell=True)\n{STUCK}")
    process.send_signal(signal.SIGTERM)
    assert "[run] stopped by SIGTERM before training began; the same command starts it" in process.communicate(timeout=30)[0]
    assert process.returncode == ExitCode.STOPPED


def test_one_that_came_before_that_phase_ends_it_at_once_and_one_after_it_does_not() -> None:
    early = StopRequest(received=["SIGTERM"])
    names: list[str] = []
    end = early.on_request(names.append)
    assert names == ["SIGTERM"]
    end()
    early.note("SIGUSR1")
    assert names == ["SIGTERM"]
    assert early.received == ["SIGTERM", "SIGUSR1"]


def test_a_second_interrupt_is_not_waited_for_and_an_echo_is_none() -> None:
    """An echo comes when a terminal sends Ctrl-C to a rank, and so does the launcher."""
    process = start(f"{START}\nstop.install()\n{STUCK}")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == ExitCode.STOPPED_AT_ONCE  # the main thread was stuck


def test_a_command_that_may_end_anywhere_raises() -> None:
    process = start(
        f"{START}\nstop.install_everywhere()\ntry:\n  print('ready', flush=True); time.sleep(100)\n"
        "except Interrupted as error: print(error, stop.received)"
    )
    process.send_signal(signal.SIGUSR2)
    assert process.communicate(timeout=30)[0] == "SIGUSR2 ['SIGUSR2']\n"


TERMINAL = f"""{START}
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
stop.install()
print("ready", flush=True)
end = time.monotonic() + 60
while not stop.is_set and time.monotonic() < end: time.sleep(0.01)
print("/".join(stop.received), flush=True)
"""


@pytest.mark.parametrize("lost", [True, False])
def test_a_terminal_that_closes_asks_for_nothing(lost: bool) -> None:
    """The end of an ssh session sends SIGHUP, as a person may with `kill`; but then the terminal still exists."""
    ours, theirs = pty.openpty()
    process = start(TERMINAL, stdin=theirs)
    os.close(theirs)
    if lost:
        os.close(ours)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    else:
        process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=30)[0] == ("SIGTERM\n" if lost else "SIGHUP\n")
    if not lost:
        os.close(ours)


def test_a_background_job_is_not_halted_by_what_it_prints() -> None:
    """With `stty tostop` the terminal stops a background job that writes, unless it ignores that."""
    process = start(LISTEN)
    ignored = next(
        int(line.split()[1], 16)
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("SigIgn")
    )
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert ignored >> (signal.SIGTTOU - 1) & 1


@pytest.mark.parametrize("is_interrupted", [True, False])
def test_a_library_that_fails_to_clean_up_when_it_is_interrupted_does_not_hide_the_stop(
    is_interrupted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As tqdm does in its first line: it releases a lock that it has not made yet."""

    def work(*_: object) -> int:
        try:
            if is_interrupted:
                raise Interrupted("SIGTERM")
            raise ValueError("a bug")
        finally:
            raise AttributeError("type object 'tqdm' has no attribute '_lock'")

    monkeypatch.setattr(
        "pipeline.__main__.parse_arguments", lambda _argv: argparse.Namespace(command="evaluate", function=work)
    )
    if is_interrupted:
        assert main([], process="shared") == ExitCode.STOPPED
        assert capsys.readouterr().out == "[evaluate] stopped by SIGTERM; the same command resumes from here\n"
    else:
        with pytest.raises(AttributeError, match="_lock"):
            main([], process="shared")

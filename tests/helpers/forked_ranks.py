"""Start the ranks of a test as forks of a process that has imported the libraries, so that each rank saves that time.

    python -m tests.helpers.forked_ranks NUM_RANKS MODULE [ARGUMENT ...]

Each rank runs MODULE as `python -m` does, with the variables of a launcher. The rest (process group, engine, files) is real.
Exits with 1 if a rank fails, after it has ended the others.
"""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import signal
import socket
import sys
import threading
import traceback

from pipeline.launch.imports import collector_paused


def main(num_ranks: int, module: str, arguments: list[str]) -> int:
    with collector_paused():
        importlib.import_module(module)
    gc.freeze()  # ranks share these pages
    assert threading.active_count() == 1, threading.enumerate()  # a fork has no thread but this one
    port = free_port()
    running = {start_rank(module, arguments, rank=rank, num_ranks=num_ranks, port=port) for rank in range(num_ranks)}
    failed = False
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if os.waitstatus_to_exitcode(status) and not failed:
            failed = True
            for other in running:
                os.kill(other, signal.SIGTERM)
    return int(failed)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start_rank(module: str, arguments: list[str], *, rank: int, num_ranks: int, port: int) -> int:
    """Start a rank. Return the process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        sys.argv = [module, *arguments]
        sys.modules.pop(module)  # runpy warns of a module that is imported already
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what the parent has registered for its own end is not a rank's


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))

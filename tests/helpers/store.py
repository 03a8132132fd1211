"""Run a real S3 server on loopback, and between it and its clients a proxy that treats requests as networks do."""

from __future__ import annotations

import http.client
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import fsspec
import pytest

ACCESS_KEY, SECRET_KEY = "test-key", "test-secret-of-no-value"
RCLONE = Path(sys.executable).parent / "rclone"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _open_for_life(command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
    """Start a process from a thread that lives as long as it does.

    The parent-death signal comes when the *thread* that started the process ends (prctl(2), PR_SET_PDEATHSIG), and a test may
    start a server from a timer.
    """
    started: Queue[subprocess.Popen[bytes] | OSError] = Queue()

    def run() -> None:
        try:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except OSError as error:
            started.put(error)
            return
        started.put(process)
        process.wait()

    threading.Thread(target=run, daemon=True).start()
    process = started.get()
    if isinstance(process, OSError):
        raise process
    return process


class S3Server:
    """Runs rclone's S3 server over a folder; its subfolders are the buckets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        # A file that a test writes there itself is seen at once. With 0s the server would keep a whole core busy.
        options = ["--config", "/dev/null", "--no-cleanup", "--vfs-cache-mode", "off", "--dir-cache-time", "1ms"]
        keys, address = ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"], ["--addr", f"127.0.0.1:{self.port}"]
        # It goes with this process: left alone it would turn in circles on its closed standard error.
        bound = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self._process = _open_for_life([*bound, RCLONE, "serve", "s3", *options, *keys, *address, str(self.root)])
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                raise RuntimeError(self._process.stderr.read().decode())
            time.sleep(0.05)
        raise RuntimeError("rclone did not begin to listen within ten seconds")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


class FaultProxy:
    """Forwards to a server; `fault` happens to requests for shards, tables and images with a probability, drawn from a seed.

    Faults of reads: error (500), reset (RST in the middle of the body), truncated (connection closed there), short (a valid
    answer of half the bytes), slow (the body in pieces), hang (no answer for `hang_s`), mixed (any of them).

    Faults of writes (PUT, and POST of multipart uploads): error, reset and truncated (the same in the middle of what is sent,
    so the server has nothing), lost (the server has all, and its answer does not come), slow, hang, mixed.

    Attributes:
        requests: how many there were of each method for shards, and the bytes of their bodies both ways.
    """

    FAULTS = ("error", "reset", "truncated", "short", "slow", "hang")
    WRITE_FAULTS = ("error", "reset", "truncated", "lost", "slow", "hang")
    WRITES = ("PUT", "POST")

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.fault = ""
        self.probability = 0.3
        self.hang_s = 1.5
        self.methods: tuple[str, ...] = ("GET",)
        self.counts: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._random = random.Random(0)
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def draw(self, method: str, path: str) -> str:
        """Return what happens to this request."""
        with self._lock:
            if not self.fault or not _is_large(path) or method not in self.methods:
                return ""
            self.counts["writes" if method in self.WRITES else "reads"] += 1
            if self._random.random() >= self.probability:
                return ""
            faults = self.WRITE_FAULTS if method in self.WRITES else self.FAULTS
            fault = self._random.choice(faults) if self.fault == "mixed" else self.fault
            self.counts[fault] += 1
            return fault

    def note(self, method: str, path: str, num_bytes: int) -> None:
        """Count a request for a shard."""
        if _is_large(path):
            with self._lock:
                self.requests[method] += 1
                self.requests[f"{method} bytes"] += num_bytes

    def inject(self, fault: str, *, probability: float = 0.3, methods: tuple[str, ...] = ("GET",)) -> None:
        """Inject faults from now on, into requests of these methods."""
        self.fault, self.probability, self.methods = fault, probability, methods
        self.counts.clear()
        self._random.seed(0)

    def close(self) -> None:
        self._http.shutdown()


def _is_large(path: str) -> bool:
    """Return whether a request is for images rather than for what is known of them."""
    return any(ending in path for ending in (".tar", ".parquet", ".arrow", ".jpg"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def _forward(self) -> None:
        fault = self.owner.draw(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        if self.command in self.owner.WRITES:
            if fault in ("reset", "truncated"):
                self.rfile.read(length // 2)
                return self._drop(reset=fault == "reset")
            sent_here = self.rfile.read(length) if length else None
            if fault == "slow":
                time.sleep(0.3)
        else:
            sent_here = None
        if fault == "hang":
            time.sleep(self.owner.hang_s)
            return self._drop(reset=False)
        if fault == "error":
            body = b"<Error><Code>InternalError</Code><Message>injected</Message></Error>"
            return self._answer(500, [("Content-Length", str(len(body)))], body)
        upstream = http.client.HTTPConnection("127.0.0.1", self.owner.server.port, timeout=30)
        try:
            upstream.request(self.command, self.path, sent_here, dict(self.headers))
            answer = upstream.getresponse()
            body = answer.read()
        except OSError:
            return self._drop(reset=True)  # the server is gone
        finally:
            upstream.close()
        self.owner.note(self.command, self.path, max(length, len(body)))
        if fault == "lost":
            return self._drop(reset=True)
        headers = [
            (k, v)
            for k, v in answer.getheaders()
            if k.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server")
        ]
        sent = body[: len(body) // 2] if fault == "short" else body
        told = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(sent))
        headers.append(("Content-Length", told))
        if fault in ("reset", "truncated") and self.command == "GET":
            self._answer(answer.status, headers, body[: len(body) // 2])
            return self._drop(reset=fault == "reset")
        if fault == "slow" and self.command == "GET":
            self._answer(answer.status, headers, b"")
            for start in range(0, len(body), max(1, len(body) // 8)):
                self.wfile.write(body[start : start + max(1, len(body) // 8)])
                time.sleep(0.05)
            return None
        return self._answer(answer.status, headers, sent)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()

    def _drop(self, *, reset: bool) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR) if not reset else self.connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # the client disconnected, or we cut it off
            pass


def s3_environment(url: str) -> dict[str, str]:
    """Return where clients find the store and who they are. One attempt a request: what fails reaches the code under test."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # rclone answers a range of an object with the checksum that the whole was sent with; Amazon's server sends none then
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }


def after(seconds: float, action: Callable[[], None]) -> threading.Timer:
    """Call a function after a while."""
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    return timer


@contextmanager
def bad_network(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Have this process reach a server through a network that can be made bad."""
    proxy = FaultProxy(server)
    for name, value in s3_environment(proxy.url).items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield proxy
    proxy.close()

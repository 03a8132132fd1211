"""Serve files on loopback, as a base for servers with habits of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Answers HEAD as GET without a body. A subclass says what it answers; `serve` sets its other attributes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        """Answer the request at `self.path`.

        Args:
            body: False for HEAD.
        """
        raise NotImplementedError

    def send(self, code: int, data: bytes = b"", *, headers: dict[str, str] | None = None, body: bool = True) -> None:
        """Send a whole answer; without a body its headers alone."""
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def cut_to_range(self, data: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Return code, bytes and headers for the byte range that the request asks for; all bytes where it asks for none."""
        wanted = self.headers.get("Range")
        if not wanted:
            return 200, data, {}
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        if int(first) >= len(data):
            return 416, b"", {"Content-Range": f"bytes */{len(data)}"}
        start, end = int(first), min(int(last or len(data) - 1), len(data) - 1) + 1
        return 206, data[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}


@contextmanager
def serve_handler(handler: type[Handler], **attributes: Any) -> Iterator[int]:
    """Run a server. Yield its port.

    Args:
        attributes: what the handler reads of itself.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), attributes))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

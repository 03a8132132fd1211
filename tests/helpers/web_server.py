"""Run a web server on loopback with byte ranges, and with one of the habits that such servers have."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Habit = Literal["plain", "redirects", "no HEAD", "no ranges", "compresses", "login page", "cut listing", "no listing"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    habit: Habit
    requests: list[tuple[str, str]]  # path and range

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.requests.append((self.path, self.headers.get("Range", "")))
        if self.habit == "no HEAD" and not body:
            return self._send(405)
        if self.habit == "redirects" and path.endswith(".tar") and not path.startswith("/cdn/"):
            # The signature differs each time, like those of object stores.
            return self._send(302, headers={"Location": f"/cdn{path}?signature={len(self.requests)}"})
        if self.habit == "login page" and path.endswith(".tar"):
            return self._send(200, b"<html><body>log in</body></html>", headers={"Content-Type": "text/html"}, body=body)
        file = self.root / path.removeprefix("/cdn").lstrip("/")
        if file.is_dir():
            return self._list(file, body=body)
        if not file.is_file():
            return self._send(404)
        return self._send_file(file.read_bytes(), body=body)

    def _list(self, folder: Path, *, body: bool) -> None:
        if self.habit == "no listing":
            return self._send(403)
        lines = "".join(f'<a href="{entry.name}">{entry.name[:20]}..&gt;</a>\n' for entry in sorted(folder.iterdir()))
        page = f"<html><body><pre><a href='../'>../</a>\n{lines}</pre></body></html>"
        if self.habit == "cut listing":
            page = page[: page.index("shard-001")]
        return self._send(200, page.encode(), headers={"Content-Type": "text/html"}, body=body)

    def _send_file(self, data: bytes, *, body: bool) -> None:
        headers = {"Content-Type": "application/x-tar", "ETag": f'"{len(data)}"'}
        code, wanted = 200, self.headers.get("Range")
        if wanted and self.habit != "no ranges":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data) - 1), len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            data, code = data[start:end], 206
        if self.habit == "compresses" and "gzip" in self.headers.get("Accept-Encoding", ""):
            data, headers = gzip.compress(data, 1), {**headers, "Content-Encoding": "gzip"}
        return self._send(code, data, headers=headers, body=body)

    def _send(self, code: int, data: bytes = b"", *, headers: dict[str, str] | None = None, body: bool = True) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serve(root: Path, habit: Habit = "plain") -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Run the server. Yield its URL, and the requests that it has had."""
    requests: list[tuple[str, str]] = []
    handler = type("Handler", (_Handler,), {"root": root, "habit": habit, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

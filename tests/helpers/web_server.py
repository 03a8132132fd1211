"""Run a web server on loopback with byte ranges, and with one of the habits that such servers have."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from tests.helpers.loopback_server import Handler, serve_handler

Habit = Literal["plain", "redirects", "no HEAD", "no ranges", "compresses", "login page", "cut listing", "no listing"]


class _Handler(Handler):
    root: Path
    habit: Habit
    requests: list[tuple[str, str]]  # path and range

    def answer(self, *, body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        self.requests.append((self.path, self.headers.get("Range", "")))
        if self.habit == "no HEAD" and not body:
            return self.send(405)
        if self.habit == "redirects" and path.endswith(".tar") and not path.startswith("/cdn/"):
            # The signature differs each time, like those of object stores.
            return self.send(302, headers={"Location": f"/cdn{path}?signature={len(self.requests)}"})
        if self.habit == "login page" and path.endswith(".tar"):
            return self.send(200, b"<html><body>log in</body></html>", headers={"Content-Type": "text/html"}, body=body)
        file = self.root / path.removeprefix("/cdn").lstrip("/")
        if file.is_dir():
            return self._list(file, body=body)
        if not file.is_file():
            return self.send(404)
        return self._send_file(file.read_bytes(), body=body)

    def _list(self, folder: Path, *, body: bool) -> None:
        if self.habit == "no listing":
            return self.send(403)
        names = [entry.name + "/" * entry.is_dir() for entry in sorted(folder.iterdir())]
        lines = "".join(f'<a href="{quote(name)}">{name[:20]}..&gt;</a>\n' for name in names)
        above = "<a href='?C=M;O=D'>Last modified</a> <a href='/'>Parent Directory</a> <a href='../'>../</a>\n"
        page = f"<html><body><pre>{above}{lines}</pre><a href='mailto:a@b.c'>Us</a></body></html>"
        if self.habit == "cut listing":
            page = page[: page.index("shard-001")]
        return self.send(200, page.encode(), headers={"Content-Type": "text/html"}, body=body)

    def _send_file(self, data: bytes, *, body: bool) -> None:
        headers = {"Content-Type": "application/x-tar", "ETag": f'"{len(data)}"'}
        code = 200
        if self.habit != "no ranges":
            code, data, cut = self.cut_to_range(data)
            headers |= cut
        if self.habit == "compresses" and "gzip" in self.headers.get("Accept-Encoding", ""):
            data, headers = gzip.compress(data, 1), {**headers, "Content-Encoding": "gzip"}
        return self.send(code, data, headers=headers, body=body)


@contextmanager
def serve(root: Path, habit: Habit = "plain") -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Run the server. Yield its URL, and the requests that it has had."""
    requests: list[tuple[str, str]] = []
    with serve_handler(_Handler, root=root, habit=habit, requests=requests) as port:
        yield f"http://127.0.0.1:{port}", requests

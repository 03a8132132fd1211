"""Serve a hub of data sets on loopback: its API of repositories and trees, page by page, and files behind a redirect."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"
PAGE = 2  # entries of a tree in one answer


class Request(NamedTuple):
    """Records what was requested of the hub or of the host behind it."""

    host: str  # hub, store
    path: str
    range: str
    token: str
    sent: int  # bytes of a file


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path  # folder of repositories: OWNER/NAME/...
    host: str
    store: str  # URL of the other host
    requests: list[Request]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body=True, posted=data)

    def _answer(self, *, body: bool, posted: bytes = b"") -> None:
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        if self.host == "store":
            return self._send_file(self.root / "/".join(parts), body=body)
        self._note(0)
        match parts:
            case ["api", "datasets", owner, name, "tree", revision, *path] if revision in (REVISION, "main"):
                return self._send_tree(self.root / owner / name, "/".join(path), url.query, body=body)
            case ["api", "datasets", owner, name, "paths-info", revision] if revision in (REVISION, "main"):
                form = parse_qs(posted.decode()) if not posted.startswith(b"{") else json.loads(posted)
                paths = form["paths"] if isinstance(form["paths"], list) else [form["paths"]]
                folder = self.root / owner / name
                return self._send_json([_entry(folder, path) for path in paths if (folder / path).exists()], body=body)
            case ["api", "datasets", owner, name, *rest] if rest in ([], ["revision", "main"], ["revision", REVISION]):
                if not (self.root / owner / name).is_dir() or (owner == "gated" and not self.headers.get("Authorization")):
                    return self._send(401, headers={"X-Error-Code": "RepoNotFound"}, body=body)
                return self._send_json({"id": f"{owner}/{name}", "sha": REVISION, "siblings": []}, body=body)
            case ["datasets", owner, name, "resolve", revision, *path] if revision in (REVISION, "main"):
                path = "/".join([owner, name, *path])
                if not (self.root / path).is_file():
                    return self._send(404, headers={"X-Error-Code": "EntryNotFound"}, body=body)
                signed = f"{self.store}/{path}?signature={len(self.requests)}"  # a different one each time
                return self._send(302, headers={"Location": signed, "X-Repo-Commit": REVISION}, body=body)
            case ["api", _, _, _, *_]:  # models, spaces
                return self._send(404, headers={"X-Error-Code": "RepoNotFound"}, body=body)
            case _:
                return self._send(404, body=body)

    def _send_tree(self, folder: Path, path: str, query: str, *, body: bool) -> None:
        if not (folder / path).is_dir():
            return self._send(404, headers={"X-Error-Code": "EntryNotFound"}, body=body)
        names = sorted(child.relative_to(folder).as_posix() for child in (folder / path).iterdir())
        first = int(parse_qs(query).get("cursor", ["0"])[0])
        headers = {}
        if first + PAGE < len(names):
            path = self.path.partition("?")[0]
            headers["Link"] = f'<http://{self.headers["Host"]}{path}?cursor={first + PAGE}>; rel="next"'
        return self._send_json([_entry(folder, name) for name in names[first : first + PAGE]], headers=headers, body=body)

    def _send_file(self, file: Path, *, body: bool) -> None:
        if not file.is_file():
            return self._send(403, body=body)  # as stores answer
        data, headers, code = file.read_bytes(), {"Content-Type": "application/x-tar"}, 200
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data) - 1), len(data) - 1) + 1
            headers["Content-Range"], code = f"bytes {first}-{end - 1}/{len(data)}", 206
            data = data[int(first) : end]
        self._note(len(data))
        return self._send(code, data, headers=headers, body=body)

    def _note(self, sent: int) -> None:
        token = self.headers.get("Authorization", "")
        self.requests.append(Request(self.host, self.path, self.headers.get("Range", ""), token, sent))

    def _send_json(self, value: Any, *, headers: dict[str, str] | None = None, body: bool) -> None:
        return self._send(
            200, json.dumps(value).encode(), headers={"Content-Type": "application/json", **(headers or {})}, body=body
        )

    def _send(self, code: int, data: bytes = b"", *, headers: dict[str, str] | None = None, body: bool) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


def _entry(folder: Path, path: str) -> dict[str, Any]:
    file = folder / path
    if file.is_dir():
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    size = file.stat().st_size
    return {
        "type": "file",
        "path": path,
        "oid": "0" * 40,
        "size": size,
        "lfs": {"oid": "0" * 64, "size": size, "pointerSize": 134},
    }


@contextmanager
def serve_hub(root: Path) -> Iterator[tuple[str, list[Request]]]:
    """Run the hub. Yield its URL, and the requests that it and the host behind it have had."""
    requests: list[Request] = []
    servers: list[ThreadingHTTPServer] = []
    store = ""
    for host in ("store", "hub"):
        handler = type("Handler", (_Handler,), {"root": root, "host": host, "store": store, "requests": requests})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        store = f"http://localhost:{server.server_port}"
    try:
        yield f"http://127.0.0.1:{servers[-1].server_port}", requests
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()

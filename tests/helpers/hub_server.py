"""Serve a hub of data sets on loopback: its API of repositories and trees, page by page, and files behind a redirect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.loopback_server import Handler, serve_handler

REVISION = "0123456789abcdef0123456789abcdef01234567"
PAGE = 2  # entries of a tree in one answer


class Request(NamedTuple):
    """Records what was requested of the hub or of the host behind it."""

    host: str  # hub, store
    path: str
    range: str
    token: str
    sent: int  # bytes of a file


class _Handler(Handler):
    root: Path  # folder of repositories: OWNER/NAME/...
    host: str
    store: str  # URL of the other host
    requests: list[Request]

    def do_POST(self) -> None:  # noqa: N802  # the name that http.server calls
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(body=True, posted=data)

    def answer(self, *, body: bool, posted: bytes = b"") -> None:
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
                    return self.send(401, headers={"X-Error-Code": "RepoNotFound"}, body=body)
                return self._send_json({"id": f"{owner}/{name}", "sha": REVISION, "siblings": []}, body=body)
            case ["datasets", owner, name, "resolve", revision, *path] if revision in (REVISION, "main"):
                path = "/".join([owner, name, *path])
                if not (self.root / path).is_file():
                    return self.send(404, headers={"X-Error-Code": "EntryNotFound"}, body=body)
                signed = f"{self.store}/{path}?signature={len(self.requests)}"  # a different one each time
                return self.send(302, headers={"Location": signed, "X-Repo-Commit": REVISION}, body=body)
            case ["api", _, _, _, *_]:  # models, spaces
                return self.send(404, headers={"X-Error-Code": "RepoNotFound"}, body=body)
            case _:
                return self.send(404, body=body)

    def _send_tree(self, folder: Path, path: str, query: str, *, body: bool) -> None:
        if not (folder / path).is_dir():
            return self.send(404, headers={"X-Error-Code": "EntryNotFound"}, body=body)
        names = sorted(child.relative_to(folder).as_posix() for child in (folder / path).iterdir())
        first = int(parse_qs(query).get("cursor", ["0"])[0])
        headers = {}
        if first + PAGE < len(names):
            path = self.path.partition("?")[0]
            headers["Link"] = f'<http://{self.headers["Host"]}{path}?cursor={first + PAGE}>; rel="next"'
        return self._send_json([_entry(folder, name) for name in names[first : first + PAGE]], headers=headers, body=body)

    def _send_file(self, file: Path, *, body: bool) -> None:
        if not file.is_file():
            return self.send(403, body=body)  # as stores answer
        code, data, headers = self.cut_to_range(file.read_bytes())
        self._note(len(data))
        return self.send(code, data, headers={"Content-Type": "application/x-tar", **headers}, body=body)

    def _note(self, sent: int) -> None:
        token = self.headers.get("Authorization", "")
        self.requests.append(Request(self.host, self.path, self.headers.get("Range", ""), token, sent))

    def _send_json(self, value: Any, *, headers: dict[str, str] | None = None, body: bool) -> None:
        return self.send(
            200, json.dumps(value).encode(), headers={"Content-Type": "application/json", **(headers or {})}, body=body
        )


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
    with serve_handler(_Handler, root=root, host="store", store="", requests=requests) as store_port:
        store = f"http://localhost:{store_port}"
        with serve_handler(_Handler, root=root, host="hub", store=store, requests=requests) as port:
            yield f"http://127.0.0.1:{port}", requests

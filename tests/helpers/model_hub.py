"""Serve a hub of models on loopback: repositories are made, small files come in a commit, large ones by Git LFS's protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.helpers.loopback_server import Handler, serve_handler


@dataclass
class Hub:
    """Holds what was uploaded.

    Attributes:
        files: contents by repository and path, once committed.
        tokens: that requests came with.
    """

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuses: bool = False


class _Handler(Handler):
    hub: Hub

    def do_POST(self) -> None:  # noqa: N802  # the name that http.server calls
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if self.hub.refuses:
            self.send(403, b'{"error": "this token may not write"}', headers={"Content-Type": "application/json"})
        elif self.path == "/api/repos/create":
            self._create(json.loads(data))
        elif match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/preupload/main", self.path):
            self._sort(json.loads(data))
        elif match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self.path):
            self._offer(json.loads(data))
        elif match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/commit/main", self.path):
            self._commit(match[1], data)
        else:
            self._answer({})

    def do_PUT(self) -> None:  # noqa: N802
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.objects[self.path.rpartition("/")[2]] = data
        self.send(200)

    def answer(self, *, body: bool) -> None:
        self._answer({"siblings": []}, body=body)

    def _create(self, asked: dict[str, object]) -> None:
        name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        self.hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
        self._answer({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _sort(self, asked: dict[str, list[dict[str, str]]]) -> None:
        """Say which files come by LFS: those that end as weights do."""
        mode = {True: "lfs", False: "regular"}
        files = [
            {"path": file["path"], "uploadMode": mode[file["path"].endswith(".safetensors")], "shouldIgnore": False}
            for file in asked["files"]
        ]
        self._answer({"files": files})

    def _offer(self, asked: dict[str, list[dict[str, object]]]) -> None:
        objects = [{**one, "actions": {"upload": {"href": f"{self.hub.url}/objects/{one['oid']}"}}} for one in asked["objects"]]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, repository: str, data: bytes) -> None:
        for line in data.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.files[repository, value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.hub.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.hub.files[repository, value["path"]] = content
        self._answer({"commitUrl": f"{self.hub.url}/{repository}/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None})

    def _answer(self, values: object, *, body: bool = True) -> None:
        self.send(200, json.dumps(values).encode(), headers={"Content-Type": "application/json"}, body=body)


@contextmanager
def serve_models() -> Iterator[Hub]:
    """Run a hub."""
    hub = Hub()
    with serve_handler(_Handler, hub=hub) as port:
        hub.url = f"http://127.0.0.1:{port}"
        yield hub

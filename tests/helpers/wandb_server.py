"""Serve the parts of W&B's protocol that its client uses, on loopback: GraphQL, the stream of a run's lines, files.

It keeps what it is given, as W&B's servers do: lines of one run from several writers one after the other. A line that a client
sends twice because it got no answer is kept once: the stream names its place.
"""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tests.helpers.loopback_server import Handler, serve_handler

KEY = "k" * 40


@dataclass
class StoredRun:
    """Holds what the server knows of a run."""

    name: str
    display_name: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)  # by writer's stream and place there
    summary: dict[str, Any] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    job_types: list[str] = field(default_factory=list)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Return lines of metrics in the order of their arrival."""
        return list(self.lines.values())

    def rows_with(self, key: str) -> list[dict[str, Any]]:
        """Return lines that have a metric."""
        return [row for row in self.history if key in row]


class WandbServer(Handler):
    """Answers W&B's client.

    Attributes:
        runs: by id.
        outage: set: every request is refused with 503, as by a proxy whose server is down.
    """

    runs: ClassVar[dict[str, StoredRun]]
    outage: ClassVar[threading.Event]
    lock: ClassVar[threading.Lock]
    refused: ClassVar[list[str]]
    views: ClassVar[dict[str, dict[str, Any]]]

    def do_POST(self) -> None:  # noqa: N802  (the library's name)
        self.answer(body=True)

    def do_PUT(self) -> None:  # noqa: N802  (the library's name)
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        data = self._read()
        if self.outage.is_set():
            self.refused.append(self.path)
            self.send(503, b"down")
            return
        with self.lock:
            self._answer(data)

    def _read(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def _answer(self, data: bytes) -> None:
        if self.path.startswith("/upload/"):
            run, _, name = self.path.removeprefix("/upload/").partition("/")
            self.runs[run].files[name] = data
            self.send(200)
        elif self.headers.get("Authorization") != "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode():
            self.send(401, b'{"errors": [{"message": "user is not logged in"}]}')
        elif self.path == "/graphql":
            call = json.loads(data)
            self._send_json({"data": self._graphql(call["query"], call.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            self._stream(self.runs[self.path.split("/")[-2]], json.loads(data))
            self._send_json({})
        else:  # telemetry of the client
            self.send(200)

    def _send_json(self, values: dict[str, Any]) -> None:
        self.send(200, json.dumps(values).encode(), headers={"Content-Type": "application/json"})

    def _graphql(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket(" in query:
            return {"upsertBucket": self._upsert(values)}
        if "createRunFiles(" in query:
            base = f"http://{self.headers['Host']}/upload/{values['run']}/"
            files = [{"name": name, "uploadUrl": base + name} for name in values["files"]]
            return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}
        if "notifyScriptableRunAlert(" in query:
            self.runs[values["runName"]].alerts.append({name: values[name] for name in ("title", "text", "severity")})
            return {"notifyScriptableRunAlert": {"success": True}}
        if "upsertView(" in query:
            self.views[values["name"]] = values
            return {"upsertView": {"view": {"id": f"id-{values['name']}", "name": values["name"]}, "inserted": True}}
        if "allViews(" in query:
            view = self.views.get(values["viewName"])
            node = (
                None if view is None else {"id": f"id-{view['name']}", "displayName": view["displayName"], "spec": view["spec"]}
            )
            return {"project": {"allViews": {"edges": [] if node is None else [{"node": node}]}}}
        if "bucket(" in query:
            run = self.runs.get(values["name"])
            project = {"id": "p1", "name": values["project"], "entity": {"id": "e1", "name": "me"}}
            return {"model": {**project, "bucket": None if run is None else _describe(run)}}
        if "viewer" in query:
            nobody = {"edges": list[Any]()}
            return {"viewer": {"id": "u1", "username": "me", "entity": "me", "email": "me@x", "flags": "{}", "teams": nobody}}
        return {}

    def _upsert(self, values: dict[str, Any]) -> dict[str, Any]:
        inserted = values["name"] not in self.runs
        run = self.runs.setdefault(values["name"], StoredRun(values["name"]))
        run.display_name = values["displayName"] or run.display_name
        run.group = values["groupName"] or run.group
        run.tags = values["tags"] or run.tags
        run.notes = values["notes"] or run.notes
        if values["jobType"]:
            run.job_types.append(values["jobType"])
        if values["config"]:
            run.config |= {name: value["value"] for name, value in json.loads(values["config"]).items()}
        project = {"id": "p1", "name": values["project"], "entity": {"id": "e1", "name": "me"}}
        return {"bucket": {**_describe(run), "description": None, "project": project}, "inserted": inserted}

    def _stream(self, run: StoredRun, sent: dict[str, Any]) -> None:
        # Each writer of a run in shared mode says who it is, and numbers its own lines.
        writer = self.headers["X-Wandb-Async-Client-Id"]
        for name, part in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                for place, line in enumerate(part["content"], start=part["offset"]):
                    run.lines[writer, place] = json.loads(line)
            elif name == "wandb-summary.json":
                run.summary |= json.loads(part["content"][-1])
        if sent.get("complete"):
            run.exit_codes.append(int(sent["exitcode"]))


def _describe(run: StoredRun) -> dict[str, Any]:
    tail = [json.dumps(row) for row in run.history[-1:]]
    config = json.dumps({name: {"value": value} for name, value in run.config.items()})
    return {
        "id": run.name,
        "name": run.name,
        "displayName": run.display_name,
        "config": config,
        "sweepName": None,
        "summaryMetrics": json.dumps(run.summary),
        "logLineCount": 0,
        "historyLineCount": len(run.history),
        "eventsLineCount": 0,
        "historyTail": json.dumps(tail),
        "eventsTail": "[]",
        "tags": run.tags,
        "notes": run.notes,
        "wandbConfig": json.dumps({"t": 1}),
    }


@dataclass(frozen=True)
class Serving:
    """Gives a server's address and what it was told."""

    url: str
    runs: dict[str, StoredRun]
    outage: threading.Event
    refused: list[str]
    views: dict[str, dict[str, Any]]  # saved views by name, as they were given

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which a client finds the server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}


@contextmanager
def serve_wandb() -> Iterator[Serving]:
    """Run a server."""
    runs: dict[str, StoredRun] = {}
    views: dict[str, dict[str, Any]] = {}
    outage, refused = threading.Event(), list[str]()
    with serve_handler(WandbServer, runs=runs, outage=outage, lock=threading.Lock(), refused=refused, views=views) as port:
        yield Serving(f"http://127.0.0.1:{port}", runs, outage, refused, views)

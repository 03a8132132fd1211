"""Keep FOLDER/make.json: first what the folder is made from, so that nothing else is mixed in; at the end also the report.

{"request": options and what kind of source it is,
 "stamp": paths, sizes and times of the source's files, where reading them is costly,
 "source": digest of the listing,
 "times": hash of when the source's files were written, where the stamp does not tell,
 "shards": what came of each shard, once all are written,
 "report": the report, once all is done}
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_tools.make.output import Output
from pipeline.errors import DataError
from pipeline.json_text import parse_json

RECORD_NAME = "make.json"
IDENTITY = ("request", "source", "times")


class MakeRecord:
    """Keeps the record of one output. Shards have their names below its root.

    Args:
        request: what is asked for, as JSON can hold it.

    Raises:
        DataError: the output holds shards of something else, or cannot be written to.
    """

    def __init__(self, output: Output, request: dict[str, Any]) -> None:
        self._output = output
        self._store = output.store()
        if not output.is_remote:
            try:
                Path(output.root).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"shards cannot be written to {output.root}: {error}") from error
        self._values = self._read()
        self.is_new = not self._values
        request = json.loads(json.dumps(request))  # as it reads after it was stored
        stored = self._values.setdefault("request", request)
        if differing := [
            name for name in request if not isinstance(stored, dict) or _given(stored.get(name)) != _given(request[name])
        ]:
            raise DataError(f"{self._refusal()} (what differs: {', '.join(differing)})")

    @property
    def report(self) -> dict[str, Any] | None:
        """Return the report, if everything was finished once."""
        return self._values.get("report")

    def is_unchanged(self, stamp: str | None) -> bool:
        """Return whether the source is known to be the same as before without being read."""
        return stamp is not None and self._values.get("stamp") == stamp

    def claim(self, source: str, *, times: int, stamp: str | None) -> None:
        """Record the source's digest and its files' times, or check that they are the same as before.

        Raises:
            DataError: it is another.
        """
        if self._values.setdefault("source", source) != source:
            raise DataError(f"{self._refusal()} (what differs: the source's files, labels or classes)")
        if self._values.setdefault("times", f"{times:x}") != f"{times:x}":
            raise DataError(
                f"{self._refusal()} (what differs: when the source's files were written, so one may have been replaced by "
                "another of its size)"
            )
        self._values["stamp"] = stamp
        self._write()

    @property
    def identity(self) -> str:
        """Return what the shards depend on, as text: request and source."""
        return json.dumps([self._values.get(name) for name in IDENTITY], sort_keys=True)

    def check_still_ours(self) -> None:
        """Check that no other command has claimed the same output meanwhile: a store has no lock.

        Raises:
            DataError: one has, with another source or other options.
        """
        stored = self._read()
        if any(stored.get(name) != self._values.get(name) for name in IDENTITY):
            raise DataError(
                f"{self._output.path(RECORD_NAME)} was written by another command meanwhile, for another source or with other "
                "options; give each an output of its own"
            )

    def note_path(self, shard: str) -> Path:
        """Return the path of a shard's note during the work."""
        return self._output.work / f"{shard.replace('/', '-')}.json"

    def note(self, shard: str, sizes: Mapping[str, int]) -> dict[str, Any] | None:
        """Return the note on a shard; None if the shard is still to be written.

        Args:
            sizes: of the tars that exist.
        """
        path = self.note_path(shard)
        note = _read_note(path) if path.exists() else self._stored_notes.get(shard)
        return note if note is not None and _is_there(shard, note, sizes) else None

    def unchecked_digest(self, shard: str, sizes: Mapping[str, int]) -> str | None:
        """Return the digest of a shard whose call did not finish: a crash of the machine may have truncated the shard."""
        note = self.note(shard, sizes) if self.note_path(shard).exists() else None
        return note.get("digest") if note is not None and note["num_samples"] else None

    def are_shards_there(self, sizes: Mapping[str, int]) -> bool:
        """Return whether every finished shard still exists with its size."""
        return all(_is_there(name, note, sizes) for name, note in self._stored_notes.items())

    @property
    def _stored_notes(self) -> dict[str, dict[str, Any]]:
        return self._values.get("shards", {})

    def finish(self, report: dict[str, Any], notes: dict[str, dict[str, Any]]) -> None:
        """Record the report; this is the last step."""
        self._values["shards"] = notes
        self._values["report"] = report
        self._write()
        self.clean()

    def clean(self) -> None:
        """Remove the files that only the work needed."""
        shutil.rmtree(self._output.work, ignore_errors=True)

    def _write(self) -> None:
        self._store.write(RECORD_NAME, (json.dumps(self._values, indent=1) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        output, path = self._output, self._output.path(RECORD_NAME)
        if not self._store.exists(RECORD_NAME):
            names = {*self._store.list_names(), *output.tar_sizes()}
            if tars := sorted(name for name in names if name.endswith(".tar")):
                raise DataError(
                    f"{output.root} holds tars that were not made by this command ({tars[0].rpartition('/')[2]} ...); choose "
                    "an empty folder"
                )
            return {}
        try:
            values = parse_json(self._store.read(RECORD_NAME).decode())
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}); empty {output.root} and start again") from error
        report = values.get("report") if isinstance(values, dict) else None
        notes = values.get("shards", {}) if isinstance(values, dict) else None
        if not isinstance(notes, dict) or not all(map(_is_note, notes.values())) or not _is_report(report):
            raise DataError(f"{path} is damaged (other types than are written); empty {output.root} and start again")
        return values

    def _refusal(self) -> str:
        root = self._output.root
        return f"{root} holds shards made from another source or with other options; empty it or choose another folder"


def _is_there(shard: str, note: dict[str, Any], sizes: Mapping[str, int]) -> bool:
    """Return whether the shard of a note exists with the note's size. Notes of older versions have no size."""
    if not note["num_samples"]:
        return True
    return shard in sizes and sizes[shard] == note.get("num_bytes", sizes[shard])


def _given(value: Any) -> Any:
    """Return the request without the options that were not given: other versions have more of them, or fewer."""
    return {name: _given(one) for name, one in value.items() if one is not None} if isinstance(value, dict) else value


def _read_note(path: Path) -> dict[str, Any] | None:
    """Return a note; None if it is damaged, and its shard is then written again."""
    try:
        note = parse_json(path.read_text())
    except ValueError:
        return None
    return note if _is_note(note) else None


def _is_note(note: Any) -> bool:
    """Return whether a value is what `write_shard` notes of a shard."""
    wanted = {"num_samples": int, "num_reencoded": int, "left_out": list}
    return isinstance(note, dict) and all(type(note.get(name)) is kind for name, kind in wanted.items())


def _is_report(report: Any) -> bool:
    """Return whether a value is what `finish` recorded, or None."""
    wanted = {"block_samples": int, "num_shards": int, "num_samples": int}
    return report is None or (isinstance(report, dict) and all(type(report.get(name)) is kind for name, kind in wanted.items()))

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.parallel import write_json
from pipeline.errors import DataError
from pipeline.json_text import parse_json

RECORD_NAME = "make.json"
WORK_NAME = ".make"  # exists while `make` works: notes of finished shards, images copied out of tables


class MakeRecord:
    """Keeps the record of one folder.

    Args:
        request: what is asked for, as JSON can hold it.
        folders: where shards will go: the folder itself, or folders in it.

    Raises:
        DataError: the folder holds shards of something else, or cannot be written to.
    """

    def __init__(self, root: Path, request: dict[str, Any], *, folders: Sequence[Path]) -> None:
        self.work = root / WORK_NAME
        self.is_new = not (root / RECORD_NAME).exists()
        self._path = root / RECORD_NAME
        self._root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"shards cannot be written to {root}: {error}") from error
        request = json.loads(json.dumps(request))  # as it reads after it was stored
        self._values = self._read(folders)
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
        write_json(self._path, self._values)

    def note_path(self, shard: Path) -> Path:
        """Return the path of a shard's note during the work."""
        return self.work / f"{'-'.join(shard.relative_to(self._root).parts)}.json"

    def note(self, shard: Path) -> dict[str, Any] | None:
        """Return the note on a shard; None if the shard is still to be written."""
        path = self.note_path(shard)
        note = _read_note(path) if path.exists() else self._stored_notes.get(str(shard.relative_to(self._root)))
        return note if note is not None and _is_there(shard, note) else None

    def unchecked_digest(self, shard: Path) -> str | None:
        """Return the digest of a shard whose call did not finish: a crash of the machine may have truncated the shard."""
        note = self.note(shard) if self.note_path(shard).exists() else None
        return note.get("digest") if note is not None and note["num_samples"] else None

    def are_shards_there(self) -> bool:
        """Return whether every finished shard still exists with its size."""
        return all(_is_there(self._root / name, note) for name, note in self._stored_notes.items())

    @property
    def _stored_notes(self) -> dict[str, dict[str, Any]]:
        return self._values.get("shards", {})

    def finish(self, report: dict[str, Any], notes: dict[Path, dict[str, Any]]) -> None:
        """Record the report; this is the last step."""
        self._values["shards"] = {str(shard.relative_to(self._root)): note for shard, note in notes.items()}
        self._values["report"] = report
        write_json(self._path, self._values)
        self.clean()

    def clean(self) -> None:
        """Remove the files that only the work needed."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _read(self, folders: Sequence[Path]) -> dict[str, Any]:
        if not self._path.exists():
            if tars := sorted(tar for folder in (self._root, *folders) for tar in folder.glob("*.tar")):
                raise DataError(
                    f"{self._root} holds tars that were not made by this command ({tars[0].name} ...); choose an empty folder"
                )
            return {}
        try:
            values = parse_json(self._path.read_text())
        except ValueError as error:
            raise DataError(f"{self._path} is damaged ({error}); empty {self._root} and start again") from error
        report = values.get("report") if isinstance(values, dict) else None
        notes = values.get("shards", {}) if isinstance(values, dict) else None
        if not isinstance(notes, dict) or not all(map(_is_note, notes.values())) or not _is_report(report):
            raise DataError(f"{self._path} is damaged (other types than are written); empty {self._root} and start again")
        return values

    def _refusal(self) -> str:
        return f"{self._root} holds shards made from another source or with other options; empty it or choose another folder"


def _is_there(shard: Path, note: dict[str, Any]) -> bool:
    """Return whether the shard of a note exists with the note's size. Notes of older versions have no size."""
    if not note["num_samples"]:
        return True
    return shard.exists() and shard.stat().st_size == note.get("num_bytes", shard.stat().st_size)


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

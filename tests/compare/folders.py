"""Write run folders as trainings and evaluators leave them, number by number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, Any]
SHARDS = {"shard-0.tar": [100, 10, "aa", "bb"], "shard-1.tar": [100, 10, "cc", "dd"]}


def data_record(fingerprint: str = "f", **changes: list[Any]) -> Row:
    shards = {**SHARDS, **{f"{name}.tar": entry for name, entry in changes.items()}}
    return {
        "fingerprint": fingerprint,
        "corpora": [{"folder": "/data", "weight": 1.0, "first_class": 0, "shards": shards}],
        "accepted": [],
    }


def line(step: int, *, batch: int = 8, **changes: Any) -> Row:
    return {
        "step": step,
        "images_seen": step * batch,
        "train/loss": 2.0 / step,
        "train/learning_rate": 0.001,
        "train/gradient_norm": 1.0 + step / 100,
        "train/skipped_steps": 0,
        "speed/images_per_s": 100.0,
        "data/unreadable": 0,
        "data/retries": 0,
        "data/digest": 1000 * step * batch,
        **{key.replace("__", "/"): value for key, value in changes.items()},
    }


def result(measure: str, accuracy: float, *, step: int = 50, seed: int | None = None, **more: Any) -> Row:
    images = more.pop("test_images", 1000)
    return {
        "step": step,
        "dataset": "bars",
        "protocol": "linear" if seed is None else "few_shot",
        "protocol_version": 1,
        "measure": measure,
        "seed": seed,
        "accuracy": accuracy,
        "ci95": 1.96 * (accuracy * (1 - accuracy) / images) ** 0.5,
        "test_images": images,
        "data": "set",
        **more,
    }


@dataclass(frozen=True)
class Written:
    """Describes a run folder."""

    config: Row
    lines: Sequence[Row] = tuple(line(step) for step in (10, 20, 30, 40, 50))
    results: Sequence[Row] = (result("linear", 0.8),)
    data: Row = field(default_factory=data_record)
    initial: Row | None = None
    ranks: int = 2
    versions: Row = field(default_factory=lambda: {"pipeline": "1", "torch": "2.0"})

    def setting(self, **settings: Any) -> Written:
        """Return it with settings `section__key=value`, or of the top."""
        config = {key: dict(value) if isinstance(value, dict) else value for key, value in self.config.items()}
        for path, value in settings.items():
            section, _, key = path.partition("__")
            if key:
                config[section][key] = value
            else:
                config[section] = value
        return replace(self, config=config)

    def changing(self, steps: Iterable[int], **changes: Any) -> Written:
        """Return it with other values in the lines of these steps."""
        named = {key.replace("__", "/"): value for key, value in changes.items()}
        return replace(self, lines=[{**row, **(named if row["step"] in steps else {})} for row in self.lines])

    def write(self, root: Path) -> Path:
        checkpoint = root / "checkpoints" / "step_00000050"
        checkpoint.mkdir(parents=True)
        (root / "config.yaml").write_text(yaml.safe_dump(self.config))
        (root / "data.json").write_text(json.dumps(self.data))
        (root / "heartbeat.json").write_text(
            json.dumps({"world_size": self.ranks, "global_batch_size": 8, "phase": "finished"})
        )
        (checkpoint / "meta.json").write_text(json.dumps({"versions": self.versions, "world_size": self.ranks}))
        if self.initial is not None:
            (root / "initial.json").write_text(json.dumps(self.initial))
        for name, rows in (("metrics", self.lines), ("evaluations", self.results)):
            (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return root

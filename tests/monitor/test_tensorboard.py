"""Event files hold the numbers of metrics.jsonl and of evaluations.jsonl, also after a resume."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from pipeline.errors import ConfigError
from pipeline.monitor.section import TrackingSection
from pipeline.monitor.tensorboard import EventFile, check_tensorboard
from pipeline.run.records import read_json_lines, read_metrics
from tests.conftest import run_command
from tests.helpers.trainings import folder_of, train

protocol: Any = event_pb2  # protobuf makes its classes when it is imported


def events_of(path: Path) -> Iterator[Any]:
    """Yield the events of a file: length (8 bytes), its checksum (4), the event, its checksum (TFRecord)."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield protocol.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def curves_of(folder: Path) -> dict[str, dict[int, float]]:
    """Return what TensorBoard shows: of each step what the newest file that has it says, without what was purged."""
    curves: dict[str, dict[int, float]] = {}
    for path in sorted(folder.iterdir()):
        for event in events_of(path):
            if event.HasField("session_log"):  # START: earlier files' events from this step on do not count
                curves = {name: {s: v for s, v in curve.items() if s < event.step} for name, curve in curves.items()}
            for value in event.summary.value:
                curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return curves


def test_rows_are_written_without_what_is_no_curve(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    row: dict[str, Any] = {"step": 3, "time": 1e9, "loss": 0.5, "nan": float("nan"), "name": "x", "flag": True, "count": 2}
    events.write(row, step=3)
    events.close()
    assert curves_of(tmp_path) == {"loss": {3: 0.5}, "count": {3: 2.0}}


def test_a_launch_purges_what_it_trains_again(tmp_path: Path) -> None:
    for start, steps, value in ((0, range(1, 7), 1.0), (4, range(5, 8), 2.0)):
        events = EventFile(tmp_path / f"{start}", purge_after=start)
        for step in steps:
            events.write({"loss": value}, step=step)
        events.close()
    for path in (tmp_path / "4").iterdir():
        path.rename(tmp_path / "0" / f"events.out.tfevents.9999999999{path.name}")
    assert curves_of(tmp_path / "0")["loss"] == {**dict.fromkeys(range(1, 5), 1.0), **dict.fromkeys(range(5, 8), 2.0)}


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install '.\[tensorboard\]'"):
        check_tensorboard(TrackingSection(tensorboard=True))  # type: ignore[call-arg]
    check_tensorboard(TrackingSection())  # type: ignore[call-arg]


@pytest.mark.slow
def test_a_resumed_training_and_its_evaluator(write_config: Callable[..., Path]) -> None:
    config = write_config(tracking={"tensorboard": True}, trainer={"devices": 1})
    train(config, "trainer.max_steps=5")
    train(config)
    folder = folder_of(config)
    done = run_command("evaluate", str(folder.root))
    assert done.returncode == 0, done.stdout
    curves = curves_of(folder.tensorboard / "train")
    lines = read_metrics(folder.metrics)
    assert curves["train/loss"] == pytest.approx({line["step"]: line["train/loss"] for line in lines}, rel=1e-6)
    assert set(curves["train/loss"]) == set(range(1, 13))
    results = curves_of(folder.tensorboard / "evaluate")
    rows = [row for row in read_json_lines(folder.evaluations) if row.get("protocol") == "linear"]
    assert results["eval/bars/linear"] == pytest.approx({row["step"]: row["accuracy"] for row in rows}, rel=1e-6)
    assert any(name.startswith("eval/bars/few_shot") for name in results)

"""The logger that judges lines of metrics: an alert goes to the log, RUN_DIR/alerts.jsonl and W&B.

RUN_DIR/alerts.jsonl       one line when an alert is raised, one when it is cleared
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from pipeline.console.lines import log_line
from pipeline.monitor.alerts import Alert, AlertState, observe_line
from pipeline.monitor.loggers import RowLogger
from pipeline.run.folder import RunFolder
from pipeline.run.records import append_json_line

REMEMBERED_LINES = 500  # of earlier launches, for what is usual


class AlertLog(RowLogger):
    """Raises and clears alerts, line by line. It exists on rank 0 only. Goes after the loggers that store a line.

    Args:
        history: lines of metrics of earlier launches, up to the step that this one starts from. They say what is usual.
        send_alert: title and text to whoever should know.
    """

    def __init__(
        self, folder: RunFolder, *, history: Sequence[Mapping[str, Any]], send_alert: Callable[[str, str], None]
    ) -> None:
        super().__init__()
        self.folder = folder
        self.send_alert = send_alert
        self.active: dict[str, str] = {}  # the texts of alerts that are raised now, by kind
        self._state = AlertState()
        for line in history[-REMEMBERED_LINES:]:
            self._state, _ = observe_line(self._state, line)

    @property
    def name(self) -> str:
        return "alerts"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._state, alerts = observe_line(self._state, metrics)
        for alert in alerts:
            self._report(alert)

    def _report(self, alert: Alert) -> None:
        if alert.change == "raised":
            self.active[alert.kind] = alert.text
            log_line(f"[alert] step {alert.step}: {alert.text}")
            self.send_alert(f"{self.folder.root.name}: {alert.kind}", f"step {alert.step}: {alert.text}")
        else:
            self.active.pop(alert.kind, None)
            log_line(f"[alert] step {alert.step}: {alert.kind} is normal again")
        try:
            append_json_line(self.folder.alerts, {"time": round(time.time(), 3), **asdict(alert)})
        except OSError as error:  # it was printed; what matters is metrics.jsonl
            log_line(f"[alert] alerts.jsonl cannot be written: {error}")

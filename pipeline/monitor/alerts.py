"""Raise alerts when a run's numbers become abnormal: pure functions of the lines of metrics, each alert once, with hysteresis.

A series is judged by the median of its `recent` last values against its own `baseline`, the values before. So a single odd
value, such as an interval with a checkpoint in it, is passed over. Of the loss the last value alone is judged, because a spike
is short. An alert is raised at one threshold. It is cleared when the series has been below a lower one for `calm` lines in a
row, so that a series near a threshold does not raise and clear an alert by turns. The baseline is frozen while an alert is
active; otherwise it would drift to the abnormal level and hide the problem. A level that has lasted a whole window becomes the
new baseline.

The thresholds are this project's, chosen by simulation (tests/monitor/test_alerts.py). They are silent on 10^5 lines of
stationary noise of up to 20 % (log-normal). At a doubling they raise an alert within ten lines. At any level there is at most
one change in 500 lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, mode
from typing import Any, Literal

Level = Literal["high", "between", "normal"]
Judge = Callable[[float, Sequence[float]], Level]  # judges a value, given the baseline

MAD_TO_SIGMA = 1.4826  # for a normal distribution: 1 / quantile(3/4)


def judge_multiple(value: float, baseline: Sequence[float], *, least_rise: float) -> Level:
    """Judge a doubling, seen through noise: high from 1.8 times the baseline's median, normal again below 1.4 times.

    Args:
        least_rise: rise above the median, in the series' own unit, below which it is normal whatever the multiple.
    """
    usual = median(baseline)
    if value >= 1.8 * usual and value >= usual + least_rise:
        return "high"
    return "normal" if value < 1.4 * usual or value < usual + least_rise / 2 else "between"


def judge_spike(value: float, baseline: Sequence[float]) -> Level:
    """Judge a spike: high from 10 robust standard deviations, and 10 %, above the median; normal again below 3, or 3 %."""
    usual = median(baseline)
    sigma = MAD_TO_SIGMA * median(abs(other - usual) for other in baseline)
    if not math.isfinite(value) or value > usual + max(10 * sigma, 0.1 * abs(usual)):
        return "high"
    return "normal" if value < usual + max(3 * sigma, 0.03 * abs(usual)) else "between"


def judge_share(value: float, baseline: Sequence[float]) -> Level:
    """Judge a share of the step that should be near zero: high from 15 %, normal again below 5 %. It needs no baseline."""
    return "high" if value >= 0.15 else "normal" if value < 0.05 else "between"


@dataclass(frozen=True)
class Rule:
    """Says what is watched, and how.

    Args:
        key: key in the line of metrics.
        recent: values whose median is judged.
        least_baseline: values a baseline must have before anything is judged; 0: the judge needs none.
        calm: judgements in a row that must be normal before an alert is cleared.
        window: most values a baseline has.
        subject: key of the line that says who a value is about. Values about another subject than most recent ones count as 0.
        text: text of the alert, given value, usual, and the line's own keys with '/' as '_'.
    """

    kind: str
    key: str
    judge: Judge
    recent: int
    least_baseline: int
    calm: int
    text: str
    window: int = 200
    subject: str | None = None


RULES = (
    Rule(
        "data_wait",
        "speed/data_wait_fraction",
        lambda v, b: judge_multiple(v, b, least_rise=0.1),
        recent=7,
        least_baseline=20,
        calm=20,
        text="ranks wait for data {value:.0%} of the time, usually {usual:.0%}: look at the storage, or raise data.num_workers",
    ),
    Rule(
        "step_time",
        "speed/step_time_s",
        lambda v, b: judge_multiple(v, b, least_rise=0.0),
        recent=7,
        least_baseline=20,
        calm=20,
        text="steps take {value:.3g} s, usually {usual:.3g} s: look for a slow node (stragglers.json), the storage or the "
        "network",
    ),
    Rule(
        "loss",
        "train/loss",
        judge_spike,
        recent=1,
        least_baseline=30,
        window=100,
        calm=10,
        text="the loss rose to {value:.4g}, usually {usual:.4g}: `python -m pipeline samples RUN_DIR --step {step}` shows "
        "what it saw",
    ),
    Rule(
        "straggler",
        "speed/slowest_rank_cost",
        judge_share,
        recent=9,
        least_baseline=0,
        calm=20,
        subject="speed/slowest_rank",
        text="the others wait {value:.0%} of each step for rank {subject}: stragglers.json has a table by node",
    ),
)


@dataclass(frozen=True)
class AlertSeries:
    """Holds the state of one series."""

    baseline: tuple[float, ...] = ()
    recent: tuple[float, ...] = ()
    subjects: tuple[Any, ...] = ()  # subjects of the recent values
    since_raised: tuple[float, ...] = ()
    calm: int = 0  # judgements in a row
    raised: bool = False

    def usual(self) -> float:
        return median(self.baseline) if self.baseline else math.nan


@dataclass(frozen=True)
class Alert:
    """Describes a change worth reporting: something is abnormal, or is normal again."""

    kind: str
    change: Literal["raised", "cleared"]
    step: int
    text: str


@dataclass(frozen=True)
class AlertState:
    """Holds all series of a run."""

    series: Mapping[str, AlertSeries] = field(default_factory=dict)


def observe_value(series: AlertSeries, value: float, rule: Rule, subject: Any = None) -> AlertSeries:
    """Return the series after one more value. Its `raised` says how the value was judged."""
    window = (*series.recent, value)
    left, recent = window[: -rule.recent], window[-rule.recent :]
    series = replace(series, recent=recent, subjects=(*series.subjects, subject)[-rule.recent :])
    if series.raised:
        series = replace(series, since_raised=(*series.since_raised, *left)[-rule.window :])
        if rule.least_baseline and len(series.since_raised) >= rule.window:
            finite = tuple(other for other in series.since_raised if math.isfinite(other))
            return AlertSeries(baseline=finite, recent=recent, subjects=series.subjects)  # the new normal level
    else:
        # A value that leaves the recent values joins the baseline; a value that is not finite would spoil it.
        kept = tuple(other for other in left if math.isfinite(other))
        series = replace(series, baseline=(*series.baseline, *kept)[-rule.window :])
    if len(series.baseline) < rule.least_baseline or len(recent) < rule.recent:
        return series
    level = rule.judge(_judged(series), series.baseline)
    calm = series.calm + 1 if level == "normal" else 0
    if not series.raised:
        return replace(series, raised=level == "high", calm=0)
    return replace(series, raised=False, since_raised=(), calm=0) if calm >= rule.calm else replace(series, calm=calm)


def _judged(series: AlertSeries) -> float:
    """Return the median of the recent values, of those whose subject is the most frequent one."""
    usual = mode(series.subjects)
    if series.subjects.count(usual) == len(series.subjects):
        return median(series.recent)
    return median(value if subject == usual else 0.0 for value, subject in zip(series.recent, series.subjects, strict=True))


def observe_line(state: AlertState, line: Mapping[str, Any]) -> tuple[AlertState, list[Alert]]:
    """Return all series after one more line of metrics, and the alerts raised or cleared. A missing loss counts as infinite."""
    series, alerts = dict(state.series), []
    for rule in RULES:
        if rule.key not in line:
            continue
        value = math.inf if line[rule.key] is None or math.isnan(line[rule.key]) else float(line[rule.key])
        before = series.get(rule.kind, AlertSeries())
        after = series[rule.kind] = observe_value(before, value, rule, line.get(rule.subject) if rule.subject else None)
        if before.raised != after.raised:
            facts = {key.replace("/", "_"): item for key, item in line.items()}
            text = rule.text.format(**facts, value=_judged(after), usual=before.usual(), subject=mode(after.subjects))
            alerts.append(Alert(rule.kind, "raised" if after.raised else "cleared", int(line["step"]), text))
    return AlertState(series), alerts

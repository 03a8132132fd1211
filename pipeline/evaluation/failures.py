"""Describe a measurement that fails: its reason in words, and a summary of several failures."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pipeline.errors import PipelineError
from pipeline.evaluation.tasks import Key

_SHOWN_STEPS = 5


@dataclass
class Failure:
    """Holds whether something failed, and why."""

    reason: str | None = None


@contextmanager
def failing(what: str) -> Iterator[Failure]:
    """Run one piece of work whose failure, of whatever kind, must not keep the next one from starting."""
    failure = Failure()
    try:
        yield failure
    except PipelineError as error:
        failure.reason = _last_words(str(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        failure.reason = f"out of memory; lower evaluation.batch_size ({_last_words(str(error)) or 'of the host'})"
    except OSError as error:
        failure.reason = str(error)
    except Exception as error:  # a library's error or a bug: shown whole, and no reason to lose the other results
        traceback.print_exc()
        failure.reason = f"{type(error).__name__}: {_last_words(str(error))}"
    if failure.reason is not None:
        print(f"[eval] {what} cannot be measured: {failure.reason}", flush=True)


def _last_words(text: str) -> str:
    """Return one line. A data loader's worker puts its traceback into the error's message: the error is its last line."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    if "Original Traceback" not in text:
        return " ".join(line.strip() for line in lines)
    return lines[-1].partition(": ")[2] or lines[-1]


def describe_failures(failures: Mapping[Key, str]) -> list[str]:
    """Return a sentence a reason: what it kept from being measured, and at which steps."""
    measures: dict[tuple[str, str], dict[str, None]] = {}
    steps: dict[tuple[str, str], dict[int, None]] = {}
    for key, reason in failures.items():
        measures.setdefault((key.dataset, reason), {})[key.measure] = None
        steps.setdefault((key.dataset, reason), {})[key.step] = None
    return [
        f"{dataset} {', '.join(measures[dataset, reason])} at step{'s' * (len(found) > 1)} "
        f"{', '.join(map(str, list(found)[:_SHOWN_STEPS]))}{' ...' * (len(found) > _SHOWN_STEPS)}: {reason}"
        for (dataset, reason), found in steps.items()
    ]

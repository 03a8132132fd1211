"""Pass over a run's weights once, or repeatedly until no more can come."""

from __future__ import annotations

import time
from typing import Protocol

from pipeline.errors import EvaluationError
from pipeline.launch.signals import StopRequest
from pipeline.run.claims import SILENT_AFTER_S, Sightings
from pipeline.run.folder import RunFolder
from pipeline.run.state import RunState, read_state

LOOKS_AT_THE_END = 10  # a training that is started again needs a moment until its folder shows it


class Evaluations(Protocol):
    """Says what a watcher needs of an evaluator."""

    def evaluate_pending(self) -> None: ...

    def has_pending(self) -> bool: ...

    def is_complete(self) -> bool: ...

    def has_doubtful_claims(self) -> bool: ...

    def close(self) -> None: ...

    def check(self, *, lost: str | None) -> None: ...

    def why_lost(self) -> str | None: ...


class Outlook:
    """Judges at every look whether further weights can come. It prints what it waits for whenever that changes.

    Args:
        waits_for: what a watcher waits for.
    """

    def __init__(self, folder: RunFolder, *, waits_for: str) -> None:
        self.folder = folder
        self.waits_for = waits_for
        self._said = ""
        self._sightings = Sightings()
        self._looks_at_the_end = 0

    def is_over(self) -> bool:
        """Look once more. Return whether the run has been over for some looks."""
        # A lock that a lost machine has left would make this wait for ever. Whether it is touched is observed, not read from a
        # clock.
        is_silent = self._sightings.silent_s(self.folder.lock) > SILENT_AFTER_S
        state = read_state(self.folder.root, lock="silent" if is_silent else "counts")
        self._looks_at_the_end = self._looks_at_the_end + 1 if state.outlook == "over" else 0
        text = self._describe(state)
        if text != self._said:
            print(f"[eval] {text}", flush=True)
            self._said = text
        return self._looks_at_the_end >= LOOKS_AT_THE_END

    def _describe(self, state: RunState) -> str:
        if state.outlook == "over":
            return f"no further weights will come: {reason_of(state)}. This ends shortly unless the training is started again"
        if state.outlook == "may go on":
            return f"waiting for {self.waits_for}: {reason_of(state)}"
        return f"waiting for {self.waits_for} of a training that is going on in {self.folder.root}"


def reason_of(state: RunState) -> str:
    """Return what a run does, in a clause."""
    reached = "" if state.step is None else f" at step {state.step}"
    detail = "" if state.detail is None else f" ({state.detail})"
    if state.state == "never started":
        return "no training has been started in this folder"
    verb = {
        "finished": "has finished",
        "failed": "has failed",
        "died": "has died",
        "copied": "was copied here",
        "silent": "is silent",
        "stopped by signal": "was stopped by a signal",
    }.get(state.state, f"is {state.state}")
    return f"the training {verb}{reached}{detail}"


def wait_for_weights(folder: RunFolder, *, stop: StopRequest, poll_s: float) -> None:
    """Wait for the first weights of a run: an evaluator may well start before its training.

    Raises:
        EvaluationError: the run is over without weights.
        Interrupted: a stop was requested.
    """
    outlook = Outlook(folder, waits_for=f"the first weights in {folder.weights}")
    while not folder.weight_steps() and not stop.is_set:
        if outlook.is_over():
            raise EvaluationError(
                f"{folder.weights} holds no weights to evaluate, and none will come: {reason_of(read_state(folder.root))}"
            )
        time.sleep(poll_s)
    stop.end_here()


def watch_run(evaluator: Evaluations, folder: RunFolder, *, watch: bool, stop: StopRequest, poll_s: float) -> None:
    """Measure every checkpoint that lacks results, oldest first; with `watch`, go on until no more can come.

    Raises:
        EvaluationError: at the end, naming what could not be measured.
        Interrupted: a stop was requested.
    """
    if not watch and not evaluator.has_pending():
        print("[eval] nothing to do: every checkpoint has its results, or there is none", flush=True)
    outlook = Outlook(folder, waits_for="further weights")
    looks_for_folder, lost = 0, None
    try:
        while not stop.is_set:
            evaluator.evaluate_pending()
            lost = evaluator.why_lost()
            looks_for_folder = looks_for_folder + 1 if lost else 0
            if lost:  # a file server may be unreachable for a while
                if not watch or looks_for_folder >= LOOKS_AT_THE_END:
                    lost += "; if it was moved, type `python -m pipeline evaluate` with its new path"
                    break
                if looks_for_folder == 1:
                    print(f"[eval] {lost}. This ends shortly unless it comes back", flush=True)
                time.sleep(poll_s)
                continue
            if not watch and not evaluator.has_doubtful_claims():
                break
            if watch and (evaluator.is_complete() or (not evaluator.has_pending() and outlook.is_over())):
                break
            time.sleep(poll_s)
    finally:
        evaluator.close()
    stop.end_here()
    evaluator.check(lost=lost)

"""One pass over a run's weights, or one after the other until the run is complete."""

from __future__ import annotations

import time

from pipeline.evaluation.runner import Evaluator
from pipeline.interruption import StopRequest


def watch_run(evaluator: Evaluator, *, watch: bool, stop: StopRequest, poll_s: float) -> None:
    """Measure every checkpoint that lacks results, oldest first; with `watch`, go on until the run is complete.

    Raises:
        EvaluationError: at the end, naming what could not be measured.
    """
    if not watch and not evaluator.has_pending():
        print("[eval] nothing to do: every checkpoint has its results, or there is none", flush=True)
    try:
        while not stop.is_set:
            evaluator.evaluate_pending()
            if evaluator.is_complete() if watch else not evaluator.claims.are_in_doubt():
                break
            time.sleep(poll_s)
    finally:
        evaluator.close()
    evaluator.check()

"""Work on many shards in parallel, each finished shard remembered, so that a killed command goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from pipeline.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, num_workers: int, description: str, unit: str
) -> Iterator[tuple[Task, Result]]:
    """(task, function(task)) as they finish, with a progress bar. At most two tasks a worker wait at a time.

    Raises:
        DataError: a worker process was killed; and whatever `function` raises.
    """
    context = multiprocessing.get_context("spawn")
    todo = iter(tasks)
    running: dict[Future[Result], Task] = {}
    with (
        tqdm(total=len(tasks), desc=description, unit=unit) as bar,
        ProcessPoolExecutor(max(1, min(num_workers, len(tasks))), mp_context=context) as pool,
    ):
        try:
            while True:
                for task in todo:
                    running[pool.submit(function, task)] = task
                    if len(running) >= 2 * num_workers:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    result = future.result()
                    bar.update()
                    yield task, result
        except BrokenProcessPool as error:
            raise DataError(
                f"{description}: a worker process was killed, most likely for want of memory; the same command goes on "
                f"where it stopped, with fewer --workers if it happens again"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def remember(function: Callable[[], dict[str, Any]], *, place: Path, facts: Sequence[object]) -> dict[str, Any]:
    """The result of an earlier call with the same facts, or else that of calling now, kept at `place` (JSON).

    Args:
        facts: everything the result depends on, for example a shard's size and the options.
    """
    key = hashlib.blake2b(repr(tuple(facts)).encode(), digest_size=16).hexdigest()
    try:
        stored = json.loads(place.read_text())
    except (FileNotFoundError, ValueError):  # never made, or a file that another program wrote
        stored = {}
    if isinstance(stored, dict) and stored.get("key") == key:
        return stored["result"]
    result = function()
    write_json(place, {"key": key, "result": result})
    return result


def write_json(place: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(part, place)

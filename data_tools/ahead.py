"""Ask a store some questions ahead of the answer that is needed: answers take time, and no processor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.data.shards.folder import CONCURRENT_QUESTIONS

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = CONCURRENT_QUESTIONS
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result, in their order. An exception is raised in its item's turn.

    Args:
        threads: how many are worked on at a time; 1 works on each when it is asked for, in this thread.
    """
    if threads == 1:
        for item in items:
            yield item, function(item)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        asked: deque[tuple[Item, Future[Result]]] = deque()
        for item in items:
            asked.append((item, pool.submit(function, item)))
            if len(asked) > threads:
                first, result = asked.popleft()
                yield first, result.result()
        for first, result in asked:
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)

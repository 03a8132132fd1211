"""Share one split's images between several processes, each with a device of its own.

Blocks of images are dealt out in turn. A batch never holds images of two blocks, so what is computed of it is the same bits
for every number of processes.
"""

from __future__ import annotations

import atexit
import multiprocessing
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.shards.index import ShardIndex
from pipeline.data.workers import ignore_signals, start_process
from pipeline.errors import ConfigError, EvaluationError, PipelineError
from pipeline.evaluation.clock import Clock
from pipeline.evaluation.reading import Reading
from pipeline.run.weights import Weights, load_weights

Pipe = Any  # a connection of `multiprocessing`, whose type has another name on each system


class Share(Protocol):
    """Works on some blocks of a set. It is sent to other processes, and so is what it returns: arrays of numpy's, no tensors.

    torch sends each tensor as an open file, of which a process may have some hundred.
    """

    @property
    def index(self) -> ShardIndex: ...

    def __call__(self, weights: Weights, *, blocks: NDArray[np.int64] | None, reading: Reading, clock: Clock) -> Any:
        """Do the blocks of these numbers, which ascend; all if None. The model is on the device of the reading."""


@dataclass(frozen=True)
class _Job:
    weights: Path
    digest: str
    share: Share
    blocks: NDArray[np.int64]
    reading: Reading


def device_of_replica(device: torch.device, number: int) -> torch.device:
    """Return the device of a process: each has its own GPU.

    Raises:
        ConfigError: there are fewer GPUs.
    """
    if device.type != "cuda":
        return device
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"evaluation.replicas is {number + 1} or more, but {torch.cuda.device_count()} GPUs are visible; each process "
            "needs its own"
        )
    return torch.device("cuda", number)


class Replicas:
    """Holds the processes that do shares of a set next to this one. They start with the first job.

    Args:
        number: of processes in all, this one among them.
        clock: counts this process' time.

    Raises:
        ConfigError: there are fewer GPUs.
    """

    def __init__(self, number: int, reading: Reading, clock: Clock) -> None:
        self.number = number
        self._clock = clock
        self._reading = reading
        self._devices = [device_of_replica(reading.device, replica) for replica in range(number)]
        self._others: list[tuple[BaseProcess, Pipe]] = []

    def do(self, weights: Weights, share: Share) -> list[Any]:
        """Return what each process has returned for its blocks of a set, this one's first.

        Raises:
            EvaluationError: a process has died, or failed.
        """
        if self.number == 1:
            return [share(weights, blocks=None, reading=self._reading, clock=self._clock)]
        shares = deal_blocks(len(share.index.block_samples), self.number)
        busy = self._send(weights, share, shares[1:])
        try:
            found = [share(weights, blocks=shares[0], reading=self._reading, clock=self._clock)]
            with self._clock.part("other processes"):
                found += [self._receive(process, connection) for process, connection in busy]
        except BaseException:
            self.close()  # others may still be computing: their answers would be taken for the next job's
            raise
        return found

    def _send(self, weights: Weights, share: Share, dealt: Sequence[NDArray[np.int64]]) -> list[tuple[BaseProcess, Pipe]]:
        """Give each process that has images to compute its job."""
        if any(len(blocks) for blocks in dealt) and not self._others:
            self._start()
        busy = []
        for replica, blocks in enumerate(dealt, start=1):
            if not len(blocks):
                continue
            process, connection = self._others[replica - 1]
            reading = replace(self._reading, device=self._devices[replica], shows_progress=False)
            try:
                connection.send(_Job(weights.path, weights.header.digest, share, blocks, reading))
            except OSError as error:
                raise self._failed(process) from error
            busy.append((process, connection))
        return busy

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        atexit.register(self.close)  # Python waits for them when it exits
        for _ in range(self.number - 1):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), name="evaluator")
            start_process(process)
            theirs.close()
            self._others.append((process, mine))

    def _receive(self, process: BaseProcess, connection: Pipe) -> Any:
        try:
            answer, reason = connection.recv()
        except (EOFError, OSError) as error:
            raise self._failed(process) from error
        if reason is not None:
            raise EvaluationError(reason)
        return answer

    def _failed(self, process: BaseProcess) -> EvaluationError:
        process.join(5)
        code = process.exitcode
        self.close()
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        return EvaluationError(
            f"one of {self.number} processes of the evaluator {how}; where memory is short, lower evaluation.replicas or "
            "evaluation.batch_size"
        )

    def close(self) -> None:
        """End the processes, at once. The next job starts new ones."""
        for process, connection in self._others:
            connection.close()
            process.kill()
        for process, _ in self._others:
            process.join()
        self._others.clear()
        atexit.unregister(self.close)


def deal_blocks(num_blocks: int, number: int) -> list[NDArray[np.int64]]:
    """Return which blocks each of the processes computes, ascending."""
    return [np.arange(replica, num_blocks, number, dtype=np.int64) for replica in range(number)]


def _serve(connection: Pipe) -> None:
    """Compute what the evaluator asks for, until it ends."""
    ignore_signals()  # of a scheduler: the evaluator decides what to do
    weights: Weights | None = None
    while True:
        try:
            job: _Job = connection.recv()
        except EOFError:
            return
        try:
            if job.reading.device.type == "cpu":
                torch.set_num_threads(job.reading.cpu_threads)
            if weights is None or weights.header.digest != job.digest:
                weights = load_weights(job.weights)
                weights.model.to(job.reading.device)
            answer = job.share(weights, blocks=job.blocks, reading=job.reading, clock=Clock())
            message = ForkingPickler.dumps((answer, None))
        except PipelineError as error:
            message = ForkingPickler.dumps((None, str(error)))
        except Exception as error:  # a library's error or a bug: shown whole, where the log is
            traceback.print_exc()
            message = ForkingPickler.dumps((None, f"{type(error).__name__}: {error}"))
        try:
            connection.send_bytes(message)
        except OSError:  # the evaluator has ended
            return

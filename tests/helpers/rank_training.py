"""What modules of the tests that train as a rank of one launch have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Callback

from pipeline.build.resume import agree_on_start
from pipeline.build.training import make_training
from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.distributed.quiet import quiet_libraries
from pipeline.distributed.world import World, device_of, die_with_parent, init_process_group, leave_process_group
from pipeline.launch.signals import StopRequest
from pipeline.run.lock import RunLock


@contextmanager
def as_rank(*, timeout_s: float = 600) -> Iterator[World]:
    """Be a rank of the launch that the environment describes."""
    die_with_parent()
    world = World.from_environment()
    quiet_libraries(is_first=world.is_first)
    init_process_group(world, timeout_s=timeout_s)
    yield world
    leave_process_group()


def train_here(config: str | Path, world: World, *callbacks: Callback) -> None:
    """Train a configuration, with callbacks behind the run's own."""
    run = resolve_run(load_config(config), world_size=world.size)
    lock = RunLock(run.config.run_dir)
    start = agree_on_start(run, world, device=device_of(world), lock=lock)
    training = make_training(run.with_precision(start.precision), world=world, stop=StopRequest(), start=start)
    training.trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    training.run()
    lock.release()

"""Parse the command line of `train`: a training with one rank, with ranks on this machine, or as one rank of many."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.options import add_config, read_run
from pipeline.console.streams import keep_output_in
from pipeline.errors import DataError, ExitCode, PipelineError, StoppedError
from pipeline.launch.environment import read_ranks
from pipeline.launch.imports import collector_paused
from pipeline.launch.ranks import Ranks
from pipeline.launch.signals import StopRequest, exit_on_request

if TYPE_CHECKING:
    from pipeline.build.resume import ResumePoint
    from pipeline.config.resolve import ResolvedRun
    from pipeline.config.run import RunConfig
    from pipeline.distributed.world import World
    from pipeline.evaluation.section import EvaluationSection

AS_FOUND = "trainer.hardware=found"


EPILOG = (
    "examples:\n  python -m pipeline train configs/l16_in21k.yaml data.train=/data/in21k\n"
    "  python -m pipeline train configs/demo.yaml trainer.devices=2\n\n"
    "One machine: starts trainer.devices ranks by itself. Under srun or torchrun: is one of their ranks.\n"
    "Ctrl-C, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2 save at the end of the step (on several GPUs of the next); a second "
    "Ctrl-C does not wait.\n"
    "A terminal or pipe that closes does not end a training; what it prints then goes to RUN_DIR/output.log.\n"
    "Exit codes: 0 done, 2 a named error, 70 no step ended for trainer.hang_timeout_s (RUN_DIR/hangs says where), 73 another\n"
    "program took the run folder over, 75 asked to stop and saved (the same command resumes)."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_config(command)


def run(arguments: argparse.Namespace, stop: StopRequest) -> int:
    return run_training(arguments.config, arguments.overrides, stop)


@dataclass(frozen=True)
class Voice:
    """Prints a launch's messages, in one of its processes."""

    speaks: bool
    start: float

    def say(self, text: str) -> None:
        if self.speaks:
            print(f"[run] {text}", flush=True)

    @property
    def elapsed(self) -> str:
        return f"{time.monotonic() - self.start:.0f} s"


def run_training(config_path: str, overrides: Sequence[str], stop: StopRequest) -> int:
    """Train, or launch what trains. Return the exit code.

    Raises:
        PipelineError: what is wrong, in words.
    """
    start = time.monotonic()
    ranks = read_ranks()
    voice = Voice(speaks=ranks.rank == 0, start=start)
    if ranks.launcher == "local":
        stop.second_interrupt = "ignore"
    let_stop_wait = exit_on_request(stop, tell=voice.speaks and ranks.launcher != "local")
    if ranks.launcher != "local":
        import pipeline

        voice.say(f"pipeline {pipeline.__version__}: train {config_path}; reading it and loading torch")
    config = read_run(config_path, overrides)
    from pipeline.distributed.world import World, die_with_parent

    if ranks.launcher == "local":
        die_with_parent(signal.SIGKILL)
    elif ranks.launcher == "torchrun":
        die_with_parent(signal.SIGTERM)  # it may have died of a signal that its ranks have to handle
    num_ranks = _check_hardware(config, ranks, voice)
    if ranks.launcher != "local":  # a local launcher has opened them
        for note in _examine_sets(config):
            voice.say(note)
    if ranks.launcher == "none":
        _examine_beginning(config, num_ranks=num_ranks)
        if num_ranks > 1:
            let_stop_wait()
            return _launch(config_path, overrides, num_ranks=num_ranks, stop=stop, voice=voice)
    return _train_as_rank(config, World.from_environment(), stop, voice=voice, let_stop_wait=let_stop_wait)


def _examine_beginning(config: RunConfig, *, num_ranks: int) -> None:
    """Raise here, before any rank starts, what would be wrong with shards or initial weights."""
    from pipeline.build.initial import examine_initial
    from pipeline.config.resolve import resolve_run
    from pipeline.run.folder import RunFolder

    run = resolve_run(config, world_size=num_ranks)
    run.mixture.check_shards()
    if num_ranks > 1 and config.init_from is not None and not RunFolder(config.run_dir).checkpoint_steps():
        examine_initial(config, resolved=run.model)


def _launch(config_path: str, overrides: Sequence[str], *, num_ranks: int, stop: StopRequest, voice: Voice) -> int:
    from pipeline.launch.local import launch_local

    if stop.is_set:
        raise StoppedError(f"stopped by {stop.received[0]} before training began; the same command starts it")
    voice.say(f"starting {num_ranks} ranks on this machine ({voice.elapsed})")
    return launch_local([sys.executable, "-m", "pipeline", "train", config_path, *overrides], num_ranks=num_ranks, stop=stop)


def _examine_sets(config: RunConfig) -> Iterator[str]:
    """Open what the evaluator will be given, or else it would find what is wrong first, hours later. Yield remarks.

    Raises:
        DataError: a set cannot be opened.
        EvaluationError: nothing can be measured on it.
    """
    from pipeline.evaluation.datasets import examine_dataset
    from pipeline.evaluation.held_out import Corpus, examine_held_out
    from pipeline.evaluation.mask_sets import examine_mask_set

    section = config.evaluation
    for dataset in section.datasets:
        yield from _unless_absent(lambda dataset=dataset: examine_dataset(dataset, section), section)
    if config.evaluation.validation:
        from pipeline.config.resolve import find_class_names, load_mixture

        mixture = load_mixture(config.data)
        corpus = Corpus(config.model.num_classes, find_class_names(mixture), config.objective.labels)
        for held_out in config.evaluation.validation:
            yield from _unless_absent(
                lambda held_out=held_out: examine_held_out(held_out, corpus, trained_on=mixture.fingerprint), section
            )
    for with_masks in section.segmentation:
        yield from _unless_absent(lambda with_masks=with_masks: examine_mask_set(with_masks), section)
    for measure, reference in config.evaluation.references.items():
        yield f"to expect: {measure} {reference.describe()}"


def _unless_absent(examine: Callable[[], list[str]], section: EvaluationSection) -> list[str]:
    """Return the remarks on a set, or that it is not there, where such sets are left out."""
    try:
        return examine()
    except DataError as error:
        if section.absent == "refuse":
            raise
        return [f"left out: {error}"]


def _check_hardware(config: RunConfig, ranks: Ranks, voice: Voice) -> int:
    """Compare what was given with what will be used. Return the number of ranks on this machine."""
    if ranks.launcher == "local":  # the local launcher has compared
        return ranks.local_size
    from pipeline.launch.allotment import Torch, check_enough, check_hidden, check_nodes, check_ranks, check_visible, remarks

    torch, devices = Torch.look(), config.trainer.devices
    local_size = ranks.local_size if ranks.launcher != "none" else max(1, torch.num_gpus) if devices == "auto" else devices
    if config.trainer.hardware == "allotted":
        check_nodes(os.environ, num_nodes=ranks.num_nodes, launcher=ranks.launcher, setting=AS_FOUND)
        check_hidden(os.environ, setting=AS_FOUND)
        check_visible(os.environ, torch, setting=AS_FOUND)
        check_ranks(os.environ, torch, local_size=local_size, launcher=ranks.launcher, setting=AS_FOUND)
    check_enough(torch, local_size=local_size, launcher=ranks.launcher)
    asked = None if devices == "auto" else devices
    for line in remarks(os.environ, torch, local_size=local_size, asked=asked, launcher=ranks.launcher):
        voice.say(line)
    return local_size


def _train_as_rank(
    config: RunConfig, world: World, stop: StopRequest, *, voice: Voice, let_stop_wait: Callable[[], None]
) -> int:
    from pipeline.config.resolve import resolve_run
    from pipeline.distributed.determinism import use_deterministic_kernels
    from pipeline.distributed.quiet import quiet_libraries
    from pipeline.distributed.world import device_of, init_process_group, leave_process_group

    if config.trainer.deterministic:
        use_deterministic_kernels()

    voice.say(f"loading Lightning and DeepSpeed ({voice.elapsed})")
    with collector_paused():
        quiet_libraries(is_first=world.is_first)
        import pipeline.build.training  # noqa: F401  # loads them here, before the ranks wait for one another

    resolved = resolve_run(config, world_size=world.size)
    if world.size > 1:
        where = f"{world.size} ranks on {world.num_nodes} nodes" if world.num_nodes > 1 else f"{world.size} ranks"
        voice.say(f"waiting for {where} to join ({voice.elapsed})")
    init_process_group(world, timeout_s=config.trainer.collective_timeout_s)
    let_stop_wait()
    device = _describe(device_of(world))
    voice.say(f"{world.size} {'ranks' if world.size > 1 else 'rank'} on {device}, {config.name} ({voice.elapsed})")
    try:
        stopped = _fit(resolved, world, stop, voice=voice)
    except PipelineError as error:
        if error.on_all_ranks:
            leave_process_group()
        raise
    leave_process_group()
    if not stopped:
        return 0
    voice.say(f"stopped by {'/'.join(stop.received) or 'another rank'}; the same command resumes from here")
    return ExitCode.STOPPED


def _fit(resolved: ResolvedRun, world: World, stop: StopRequest, *, voice: Voice) -> bool:
    """Train from the state of the run folder. Return whether a signal ended it early."""
    from pipeline.build.resume import agree_on_start
    from pipeline.build.training import make_training
    from pipeline.distributed.world import any_rank, device_of
    from pipeline.run.checkpoint import RunFolder
    from pipeline.run.lock import RunLock
    from pipeline.train.callbacks.checkpointing import mark_complete

    lock = RunLock(resolved.config.run_dir, should_stop=lambda: stop.is_set, tell=voice.say)
    try:
        device = device_of(world)
        start = agree_on_start(resolved, world, device=device, lock=lock)
        keep_output_in(RunFolder(resolved.config.run_dir).output_log)
        for message in start.messages:
            voice.say(message)
        if start.step >= resolved.stop_step:
            voice.say(f"nothing to do: step {start.step} of {resolved.stop_step} is reached")
            folder = RunFolder(resolved.config.run_dir)
            if world.is_first and not folder.complete.exists():  # a kill came before it was written
                mark_complete(folder, start.step)
            return False
        if any_rank(stop.is_set, device=device):
            names = "/".join(stop.received) or "a signal to another rank"
            raise StoppedError(f"stopped by {names} before a step was made; the same command resumes from here").everywhere()
        voice.say(f"building the model and its optimizer; then the first batch ({voice.elapsed})")
        training = make_training(resolved.with_precision(start.precision), world=world, stop=stop, start=start)
        training.run()
        if training.checkpointing.stopped_by_signal:
            return True
        _close(resolved, start, voice)
        return False
    finally:
        lock.release()


def _close(resolved: ResolvedRun, start: ResumePoint, voice: Voice) -> None:
    """Say where everything is, and what to type next."""
    from pipeline.run.checkpoint import RunFolder

    config, folder = resolved.config, RunFolder(resolved.config.run_dir)
    command = f"{_python()} -m pipeline"
    goes_on = "" if resolved.stop_step == resolved.total_steps else "; the same command with more steps resumes"
    voice.say(f"step {resolved.stop_step} of {resolved.total_steps} is saved{goes_on}")
    voice.say(f"weights  {folder.weights_of(resolved.stop_step)}")
    if config.optimizer.average is not None:
        voice.say(f"average  {folder.weights_of(resolved.stop_step, 'average')}")
    voice.say(f"metrics  {folder.metrics}")
    if config.tracking.mode != "disabled":
        voice.say(f"W&B      run {start.wandb_id}, folder {folder.root / 'wandb'}")
    example = "evaluation.datasets='[{name: cifar10, train: /data/cifar10/train, test: /data/cifar10/test}]'"
    voice.say(f"next     {command} evaluate {folder.root}{'' if config.evaluation.datasets else f' {example}'}")
    voice.say(f"         {command} report {folder.root}")


def _python() -> str:
    """Return what to type for this Python from here."""
    found = shutil.which("python")
    if found is not None and os.path.abspath(found) == sys.executable:
        return "python"
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _describe(device: object) -> str:
    import torch

    assert isinstance(device, torch.device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"

"""Parse the command line of `benchmark train`: ways to train the same model, side by side."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, TrainingError
from pipeline.image_size import image_size

if TYPE_CHECKING:
    from pipeline.benchmark.train.compare import GroupResult, Plan
    from pipeline.benchmark.train.entries import Group
    from pipeline.config.run import RunConfig
    from pipeline.models.base import ModelConfig

CPU_BATCH, MOST_GPU_BATCH = 16, 256
KINDS = ("loops", "loader", "float8", "choices")
ANY_MEMORY = 2.0**50  # bytes: what is needed is asked, not what fits


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("configs", nargs="*", metavar="CONFIG", help="configurations of your own, measured as they are")
    command.add_argument(
        "--models",
        nargs="*",
        default=[],
        metavar="NAME",
        help="Vision Transformers by name: L/16 H/14 (default: L/16, or CONFIG)",
    )
    command.add_argument("--image-size", type=int, default=224, help="pixels, for --models")
    command.add_argument("--classes", type=int, default=1000, help="for --models")
    command.add_argument(
        "--batch",
        type=int,
        help="images of a step on each rank (default: on a GPU the largest power of two that fits, "
        f"{MOST_GPU_BATCH} at most; on a CPU {CPU_BATCH})",
    )
    command.add_argument(
        "--ranks", type=int, default=1, help="processes of each contender: ZeRO against plain data parallelism (default: 1)"
    )
    command.add_argument("--steps", type=int, default=10, help="timed steps of a turn (default: 10)")
    command.add_argument("--rounds", type=int, default=5, help="turns of each contender; the table shows medians (default: 5)")
    command.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="measure compiled models (default: on a GPU, not on a CPU)"
    )
    command.add_argument(
        "--measure",
        nargs="*",
        choices=KINDS,
        help="loops: ours, a bare loop, timm and transformers; loader: with real images, which --data names; float8: each "
        "linear layer of the blocks, then trainings with float8 in all of them and where it wins; choices: ZeRO "
        "stages, compilation, attention, checkpointing, at several ranks reduction (default: loops, and loader with --data)",
    )
    command.add_argument("--data", metavar="SHARDS", help="folder of indexed shards: measure with the real loader too")
    command.add_argument("--workers", type=int, default=2, help="decoding processes of that loader (default: 2)")
    command.add_argument("--budget", type=float, metavar="MINUTES", help="stop then; what was not reached is said")
    command.add_argument("--profile", type=Path, metavar="FILE", help="write a trace of some steps there (chrome://tracing)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")


def run(arguments: argparse.Namespace) -> int:
    from pipeline.benchmark.train.compare import Budget, make_table, measure_group, to_values

    _check(arguments)
    import torch

    has_gpu = torch.cuda.is_available()
    configs = _configs(arguments)
    compiled = has_gpu if arguments.compile is None else arguments.compile
    budget, found, missed = Budget(arguments.budget), {}, []
    print(_heading(arguments), flush=True)
    plans: dict[str, Plan] = {}
    for number, choose in enumerate(_groups(arguments, compiled=compiled, gpu=has_gpu)):
        for name, config in configs.items():  # every model's first group before any model's second
            if not budget.is_left():
                missed.append(f"{name}: {choose.title}")
                continue
            if name not in plans:
                plans[name] = _plan(arguments, config, has_gpu=has_gpu)
            group = choose.group or _float8_group(name, config, plans[name], compiled=compiled)
            if group is None:
                continue
            profile = arguments.profile if number == 0 and not found else None
            result = measure_group(
                group, config, plans[name], flops_per_image=_model(config).cost.training_flops, profile=profile
            )
            found.setdefault(name, []).append(result)
            print(f"\n## {name}, batch of {result.batch_size}: {group.title}\n", flush=True)
            print(make_table(result, forecasts=_forecasts(arguments, config, result, group) if has_gpu else None), flush=True)
            _write(arguments.json, [to_values(*item) for item in found.items()])
    if missed:
        print(f"\nnot reached in {arguments.budget:g} minutes: {'; '.join(missed)}", flush=True)
    return 0


@dataclass(frozen=True)
class _Chosen:
    """Names a group; None in place of it where it follows from what is measured first."""

    title: str
    group: Group | None


def _check(arguments: argparse.Namespace) -> None:
    if (
        min(arguments.steps, arguments.rounds, arguments.workers, arguments.classes, arguments.ranks) < 1
        or (arguments.batch or 1) < 1
    ):
        raise ConfigError("--batch, --classes, --ranks, --steps, --rounds and --workers are 1 or more")
    if "loader" in (arguments.measure or []) and arguments.data is None:
        raise ConfigError("--measure loader needs images: name a folder of indexed shards with --data")


def _configs(arguments: argparse.Namespace) -> dict[str, RunConfig]:
    from pipeline.benchmark.train.work import read_training, standard_config

    size = image_size(arguments.image_size, arguments.image_size)
    names = arguments.models or ([] if arguments.configs else ["L/16"])
    configs = {f"ViT-{name}": standard_config(name, image_size=size, num_classes=arguments.classes) for name in names}
    for path in arguments.configs:
        configs[path] = read_training(path, [])
    for config in configs.values():
        _model(config)
    return configs


def _model(config: RunConfig) -> ModelConfig:
    return config.model.resolve(head_bias=config.objective.head_bias)


def _groups(arguments: argparse.Namespace, *, compiled: bool, gpu: bool) -> list[_Chosen]:
    from pipeline.benchmark.train.entries import choice_groups, loader_group, main_group

    groups = {
        "loops": [main_group(compiled=compiled)],
        "loader": [loader_group(compiled=compiled)],
        "float8": [None],  # which layers are in it follows from a measurement
        "choices": choice_groups(compiled=compiled, gpu=gpu, ranks=arguments.ranks),
    }
    chosen = arguments.measure or (["loops"] if arguments.data is None else ["loops", "loader"])
    return [
        _Chosen(kind if group is None else group.title, group) for kind in KINDS if kind in chosen for group in groups[kind]
    ]


def _float8_group(name: str, config: RunConfig, plan: Plan, *, compiled: bool) -> Group | None:
    """Print how long each linear layer takes in float8. Return the trainings that follow from it; None, and why, if none do."""
    from pipeline.benchmark.train.compare import measure_float8
    from pipeline.benchmark.train.entries import float8_group
    from pipeline.benchmark.train.layers import layer_table

    try:
        times = measure_float8(config, plan, compiled=compiled)
    except TrainingError as error:  # other groups and models are measured all the same
        print(f"\n## {name}: float8\n\n{error}", flush=True)
        return None
    print(f"\n## {name}, batch of {plan.batch_size}: linear layers, forward and backward, speed in float8\n", flush=True)
    print(layer_table(times), flush=True)
    return float8_group(times, compiled=compiled)


def _plan(arguments: argparse.Namespace, config: RunConfig, *, has_gpu: bool) -> Plan:
    from pipeline.benchmark.train.compare import Plan, find_largest_batch

    batch = arguments.batch
    if batch is None and has_gpu:
        largest = find_largest_batch(config)
        batch = min(MOST_GPU_BATCH, 2 ** (largest.bit_length() - 1))
        print(f"{config.model.title}: a micro-batch of {largest} fits, measured with {batch}", flush=True)
    return Plan(
        batch_size=batch or CPU_BATCH,
        steps=arguments.steps,
        warmup=2,
        rounds=arguments.rounds,
        data=arguments.data,
        num_workers=arguments.workers,
        ranks=arguments.ranks,
    )


def _forecasts(arguments: argparse.Namespace, config: RunConfig, result: GroupResult, group: Group) -> list[float | None]:
    """Return the bytes that `plan` expects of each contender that Lightning runs."""
    from pipeline.benchmark.train.work import with_settings
    from pipeline.plan.stages import sizes_of_model, stage_memory

    model = sizes_of_model(_model(config), config.objective)

    def forecast(number: int) -> float | None:
        entry = group.entries[number]
        if entry.loop != "lightning":
            return None
        own = with_settings(config, folder="", data="", batch_size=result.batch_size, num_workers=0, **entry.trainer)
        stage = own.trainer.zero_stage
        return stage_memory(stage, own, model=model, num_gpus=arguments.ranks, accumulation=1, memory_bytes=ANY_MEMORY).total

    return [forecast(number) for number in range(len(group.entries))]


def _heading(arguments: argparse.Namespace) -> str:
    import torch

    from pipeline.benchmark.turns import describe_machine

    turns = f"medians of {arguments.rounds} interleaved turns of {arguments.steps} steps"
    return f"{describe_machine()}, torch {torch.__version__}; {time.strftime('%Y-%m-%d')}; {turns}"


def _write(path: Path | None, values: list[dict[str, object]]) -> None:
    if path is not None:
        from pipeline.benchmark.turns import describe_machine

        path.write_text(json.dumps({"machine": describe_machine(), "models": values}, indent=1) + "\n")

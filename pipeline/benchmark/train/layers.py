"""Time the linear layers of a model's blocks in float8 next to what they are now, one size after another."""

from __future__ import annotations

import functools
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pipeline.benchmark.train.synthetic import make_batch
from pipeline.build.initial import make_model
from pipeline.config.resolve import ResolvedRun
from pipeline.distributed.precision import TrainingPrecision
from pipeline.train.float8 import RECIPES, Float8Recipe, allows, check_device, linear_layers, recipes_of, use_float8

AS_IS = "as it is"
WORTH = 0.98  # of the time as it is: less than that is a gain, and not noise
ROUNDS = 5
LEAST_S = 0.05  # of one timing


@dataclass(frozen=True)
class LayerTimes:
    """Holds how long the layers of one size take, forward and backward.

    Attributes:
        names: of these layers inside a block, and how many layers of the model have each.
        rows: that a micro-batch multiplies: images times tokens.
        seconds: of one layer, as it is and by recipe.
    """

    names: dict[str, int]
    rows: int
    inputs: int
    outputs: int
    seconds: dict[str, float]


def measure_layers(run: ResolvedRun, *, device: torch.device) -> list[dict[str, Any]]:
    """Return the fields of `LayerTimes` for each size of a linear layer that float8 allows for.

    A layer is timed after a LayerNorm, with which compilation fuses the rounding of its inputs, in the precision of the run.

    Raises:
        ConfigError: torchao is not installed, or the device computes no float8.
    """
    recipes = recipes_of(device)
    if not recipes:
        check_device(RECIPES[0], device)
    compiled = run.config.trainer.compile is not False
    found = []
    for (rows, inputs, outputs), names in _sizes(run, device=device).items():
        make = functools.partial(_step, inputs, outputs, rows, device=device, precision=run.precision, compiled=compiled)
        steps = {AS_IS: make(recipe=None), **{recipe: make(recipe=recipe) for recipe in recipes}}
        seconds = _in_turns(steps, device=device)
        torch._dynamo.reset()  # it compiles the same code eight times at most
        found.append(asdict(LayerTimes(dict(Counter(names)), rows, inputs, outputs, seconds)))
    return found


def _sizes(run: ResolvedRun, *, device: torch.device) -> dict[tuple[int, int, int], list[str]]:
    """Return the names of the blocks' layers by rows, inputs and outputs, as one micro-batch shows them."""
    config = run.config
    model = make_model(run.model, seed=config.seed).to(device)
    objective = config.objective.build(run.model, seed=config.seed, class_names=None).to(device)
    sizes: dict[tuple[int, int, int], list[str]] = defaultdict(list)

    def note(name: str) -> Callable[[nn.Module, tuple[torch.Tensor], Any], None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor], output: Any) -> None:
            assert isinstance(layer, nn.Linear)
            sizes[inputs[0].shape[:-1].numel(), layer.in_features, layer.out_features].append(name)

        return hook

    for block in model.repeated_blocks():
        for name, layer in linear_layers(block):
            if allows(layer):
                layer.register_forward_hook(note(name))
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=run.precision != "fp32"):
        objective(model, make_batch(run, device=device))
    return sizes


def _step(
    inputs: int,
    outputs: int,
    rows: int,
    *,
    recipe: Float8Recipe | None,
    device: torch.device,
    precision: TrainingPrecision,
    compiled: bool,
) -> Callable[[], None]:
    """Return a function that computes a layer and its gradients once."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32  # of the weights
    layer = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, outputs)).to(device, dtype)
    if recipe is not None:
        use_float8([layer], recipe, layers=None, device=device)
    if compiled:
        layer.compile()
    value = torch.randn(rows, inputs, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn(rows, outputs, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16_autocast"):
            output = layer(value)
        output.backward(gradient.to(output.dtype))
        value.grad = None
        layer.zero_grad()

    return step


def _in_turns(steps: dict[str, Callable[[], None]], *, device: torch.device) -> dict[str, float]:
    """Return each step's seconds: the median of rounds in which they take turns."""
    repeats, seconds = {}, defaultdict(list)
    for name, step in steps.items():
        step()  # compiles
        repeats[name] = max(1, round(LEAST_S / _time(step, 1, device=device)))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            seconds[name].append(_time(step, repeats[name], device=device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _time(step: Callable[[], None], repeats: int, *, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def winners(times: Sequence[LayerTimes], recipe: Float8Recipe) -> list[str]:
    """Return the names of the layers that a recipe makes faster. A name with two sizes must win by the sum."""
    gain: dict[str, float] = defaultdict(float)
    for each in times:
        for name, count in each.names.items():
            gain[name] += count * (WORTH * each.seconds[AS_IS] - each.seconds[recipe])
    return sorted(name for name, seconds in gain.items() if seconds > 0)


def layer_table(times: Sequence[LayerTimes]) -> str:
    """Return a row for each size: milliseconds, and each recipe's speed where the layer as it is has 1."""
    columns = ["layer", "of the model", "rows x inputs x outputs", "ms", *RECIPES]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for each in times:
        speeds = [f"{each.seconds[AS_IS] / each.seconds[r]:.3f}" if r in each.seconds else "-" for r in RECIPES]
        size = f"{each.rows:,} x {each.inputs:,} x {each.outputs:,}"
        cells = [", ".join(each.names), str(sum(each.names.values())), size, f"{1e3 * each.seconds[AS_IS]:.3g}", *speeds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)

"""Run one contender of `benchmark train`, in a process of its own.

    python -m pipeline.benchmark.train.contender WORK

WORK is JSON: the fields of `Work`. `Turn` says what the process reads and answers. A contender whose library is not
installed ends with Python's error, whose last line the table shows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.benchmark.train.layers import measure_layers
from pipeline.benchmark.train.peers import timm_model, transformers_model
from pipeline.benchmark.train.synthetic import make_batch
from pipeline.benchmark.train.turn import Turn
from pipeline.benchmark.train.work import Work
from pipeline.build.initial import make_model
from pipeline.config.resolve import ResolvedRun, resolve_run
from pipeline.config.run import RunConfig
from pipeline.distributed.determinism import use_deterministic_kernels
from pipeline.distributed.precision import TrainingPrecision, choose_training_precision, measure_bf16_speedup
from pipeline.distributed.world import World, device_of, init_process_group
from pipeline.errors import PipelineError
from pipeline.train.attention import use_attention
from pipeline.train.blocks import prepare_blocks

PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}
MOST_IMAGES = 8192  # that the search for the largest micro-batch tries


class LossOf(nn.Module):
    """Computes the loss of a batch in its forward pass, which is what data parallelism wraps."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Mapping[str, Any]], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        return self.loss(self.model, batch)


def run_plain(
    model: nn.Module, loss: Callable[[nn.Module, Mapping[str, Any]], Tensor], run: ResolvedRun, *, world: World
) -> None:
    """Train in the simplest loop that is fast.

    It has autocast where the precision is bf16, the configuration's optimizer, and plain data parallelism on several ranks.
    """
    device = device_of(world)
    batch = make_batch(run, device=device)
    parameters = list(model.parameters())
    optimizer = run.config.optimizer.build(model, fused=True)
    clip_norm, turn = run.config.optimizer.clip_norm, Turn(device)
    loss_of: nn.Module = LossOf(model, loss)
    if world.size > 1:
        init_process_group(world, timeout_s=run.config.trainer.collective_timeout_s)
        loss_of = DistributedDataParallel(loss_of, gradient_as_bucket_view=True)
    while True:
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision != "fp32"):
            value = loss_of(batch)
        value.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        turn.step_ended()


def run_bare(run: ResolvedRun, *, world: World) -> None:
    """Train our model and objective without Lightning, DeepSpeed and callbacks."""
    config, device = run.config, device_of(world)
    model = make_model(run.model, seed=config.seed).to(device)
    objective = config.objective.build(run.model, seed=config.seed, class_names=None).to(device)
    prepare_blocks(model, config.trainer, device=device, is_even=True)
    run_plain(model, lambda m, batch: objective(m, batch).loss, run, world=world)  # type: ignore[arg-type]


def run_peer(make: Callable[[Any], nn.Module], run: ResolvedRun, *, world: World) -> None:
    """Train another library's model of the same shape. Its pixels are scaled in the step, as ours are in the model."""
    model = make(run.model).to(device_of(world))
    if run.config.trainer.compile is True:
        model.compile()  # with the layers that compilation would fuse: its users compile the whole

    def loss(m: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        logits = m(batch["images"].float() / 127.5 - 1.0)
        return nn.functional.cross_entropy(getattr(logits, "logits", logits).float(), batch["labels"])

    run_plain(model, loss, run, world=world)


def run_product(*, device: torch.device, precision: TrainingPrecision) -> None:
    """Multiply two large random matrices: each product is a step, of 2 n^3 operations for matrices of n x n."""
    size = PRODUCT_SIZE[device.type]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    turn = Turn(device)
    while True:
        torch.mm(left, right)
        turn.step_ended()


def search_largest(run: ResolvedRun, *, device: torch.device) -> None:
    """Say how many images a step of the bare loop takes at once at most, to a sixteenth of it."""
    config = run.config
    model = make_model(run.model, seed=config.seed).to(device)
    objective = config.objective.build(run.model, seed=config.seed, class_names=None).to(device)
    prepare_blocks(model, config.trainer, device=device, is_even=True)
    optimizer = config.optimizer.build(model, fused=True)
    one = make_batch(run, device=device)

    def fits(count: int) -> bool:
        batch = {**one, "images": one["images"][:1].expand(count, -1, -1, -1), "labels": one["labels"][:1].expand(count)}
        batch |= {"label_ends": torch.arange(1, count + 1, device=device), "positions": torch.arange(count)}
        try:
            for _ in range(2):  # the second has the optimizer's state
                with torch.autocast(device.type, torch.bfloat16, enabled=run.precision != "fp32"):
                    loss = objective(model, batch).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        except torch.OutOfMemoryError:
            return False
        finally:
            optimizer.zero_grad()
            torch.cuda.empty_cache()
        return True

    print(json.dumps({"largest": largest_that_fits(fits, most=MOST_IMAGES)}), flush=True)


def largest_that_fits(fits: Callable[[int], bool], *, most: int) -> int:
    """Return the largest even number that fits, to a sixteenth of it; 0 if 2 do not. What fits must fit with fewer too."""
    known, step = 0, 2
    while known + step <= most and fits(known + step):
        known, step = known + step, max(2, known + step)
    while step > max(2, known // 16):
        step = step // 4 * 2
        if step and known + step <= most and fits(known + step):
            known += step
    return known


def main(work: Work) -> None:
    config = RunConfig.model_validate(work.config)
    if config.trainer.deterministic:
        use_deterministic_kernels()
    world = World.from_environment() if work.ranks > 1 else World.alone()
    run = resolve_run(config, world_size=work.ranks)
    device = device_of(world)
    use_attention(config.trainer.attention, device=device)
    precision = choose_training_precision(
        config.trainer.precision,
        zero_stage=config.trainer.zero_stage,
        recorded=None,
        bf16_speedup=measure_bf16_speedup(device),
    ).precision
    run = run.with_precision(precision)
    if work.loop == "lightning":
        from pipeline.benchmark.train.lightning_loop import run_lightning  # other contenders do without Lightning

        run_lightning(run, world=world, real_data=work.real_data)
    elif work.loop == "bare":
        run_bare(run, world=world)
    elif work.loop == "search":
        search_largest(run, device=device)
    elif work.loop == "layers":
        print(json.dumps({"layers": measure_layers(run, device=device)}), flush=True)
    elif work.loop == "product":
        run_product(device=device, precision=precision)
    else:
        run_peer(timm_model if work.loop == "timm" else transformers_model, run, world=world)


if __name__ == "__main__":
    try:
        main(Work(**json.loads(sys.argv[1])))
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from None

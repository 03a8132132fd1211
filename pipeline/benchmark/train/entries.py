"""List what `benchmark train` measures side by side, the most telling first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.benchmark.train.layers import LayerTimes, winners
from pipeline.benchmark.train.work import Loop
from pipeline.train.attention import KERNELS
from pipeline.train.float8 import RECIPES

OURS = "ours, Lightning + ZeRO-1"
BARE = "ours, bare loop"
PRODUCT = "matrix product"
BUCKET_SIZES = (6_500_000, 25_000_000, 100_000_000, 500_000_000)  # the first is torch's (25 MiB), the last DeepSpeed's
NO_FLOAT8: dict[str, Any] = {"float8": None, "float8_layers": None}  # whatever the configuration says


@dataclass(frozen=True)
class Entry:
    """Describes a contender: what runs the model, and the settings that differ from the group's."""

    name: str
    loop: Loop
    trainer: Mapping[str, Any] = field(default_factory=dict)  # settings of that section
    real_data: bool = False


@dataclass(frozen=True)
class Group:
    """Holds contenders that take turns. The first is what the others are compared with."""

    title: str
    entries: tuple[Entry, ...]


def _ours(*, compiled: bool) -> dict[str, Any]:
    """Return the settings that our contenders share."""
    return {"compile": "blocks" if compiled else False, "zero_stage": 1}


def main_group(*, compiled: bool) -> Group:
    """Compare training as it is with the loop that does nothing else, and with other libraries' models."""
    ours = _ours(compiled=compiled)
    peers = {"compile": compiled}
    how = ", compiled" if compiled else ""
    return Group(
        "loops and libraries",
        (
            Entry(BARE, "bare", ours),
            Entry(OURS, "lightning", ours),
            Entry(f"timm, plain loop{how}", "timm", peers),
            Entry(f"transformers, plain loop{how}", "transformers", peers),
            Entry(PRODUCT, "product"),
        ),
    )


def loader_group(*, compiled: bool) -> Group:
    """Compare one batch that is always there with the real loader."""
    ours = _ours(compiled=compiled)
    return Group("loader", (Entry("one batch", "lightning", ours), Entry("the loader", "lightning", ours, real_data=True)))


def choice_groups(*, compiled: bool, gpu: bool, ranks: int = 1) -> list[Group]:
    """Compare settings with the default, in groups that a budget may cut.

    Args:
        ranks: at several, how they reduce gradients is compared too.
    """
    ours = _ours(compiled=compiled)
    default = Entry(OURS, "lightning", ours)
    plain = ours | NO_FLOAT8  # ZeRO-3 has float8 with activation checkpointing alone
    zero = [Entry(f"ZeRO-{stage}", "lightning", plain | {"zero_stage": stage}) for stage in (0, 2, 3)]
    groups = [Group("ZeRO stages", (Entry(OURS, "lightning", plain), *zero))]
    if ranks > 1:
        groups.append(_reduction_group(plain, gpu=gpu))
    if compiled:
        others = {"not compiled": False, "compiled as a whole": True}
        groups.insert(
            0,
            Group(
                "compilation",
                (default, *(Entry(name, "lightning", ours | {"compile": how}) for name, how in others.items())),
            ),
        )
    groups.append(
        Group(
            "activation checkpointing",
            (
                default,
                Entry("every block again", "lightning", ours | {"activation_checkpointing": 1}),
                Entry("every second block again", "lightning", ours | {"activation_checkpointing": 2}),
            ),
        )
    )
    groups.append(
        Group("deterministic kernels", (default, Entry("deterministic", "lightning", ours | {"deterministic": True})))
    )
    if gpu:
        kernels = [Entry(f"attention: {name}", "lightning", ours | {"attention": name}) for name in KERNELS]
        groups.insert(1, Group("attention", (default, *kernels)))
    return groups


def _reduction_group(settings: dict[str, Any], *, gpu: bool) -> Group:
    """Compare plain data parallelism with ZeRO-2's buckets of several sizes, next to the backward pass and not."""
    zero_2 = settings | {"zero_stage": 2}
    sizes = [Entry(f"ZeRO-2, buckets of {size:,}", "lightning", zero_2 | {"reduce_bucket_size": size}) for size in BUCKET_SIZES]
    # A CPU has one stream, on which nothing overlaps.
    alone = [Entry("ZeRO-2, no overlap", "lightning", zero_2 | {"overlap_comm": False})] if gpu else []
    first = (Entry("plain data parallelism", "bare", settings), Entry(OURS, "lightning", settings))
    return Group("reduction of gradients", (*first, *sizes, *alone))


def float8_group(times: Sequence[LayerTimes], *, compiled: bool) -> Group:
    """Compare trainings with products of float8, in all layers of the blocks and in those that it made faster.

    Args:
        times: the layers' own, as measured.
    """
    ours = _ours(compiled=compiled) | NO_FLOAT8
    entries = [Entry(OURS, "lightning", ours)]
    every = {name for each in times for name in each.names}
    for recipe in RECIPES:
        if not all(recipe in each.seconds for each in times):
            continue  # this device has no such products
        entries.append(Entry(f"float8 {recipe}", "lightning", ours | {"float8": recipe}))
        won = winners(times, recipe)
        if won and set(won) != every:
            name = f"float8 {recipe}: {', '.join(won)}"
            entries.append(Entry(name, "lightning", ours | {"float8": recipe, "float8_layers": won}))
    return Group("float8", tuple(entries))

"""Float8 measured layer by layer, and the trainings that follow from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.benchmark.train import layers
from pipeline.benchmark.train.entries import float8_group
from pipeline.benchmark.train.layers import AS_IS, LayerTimes, layer_table, measure_layers, winners
from pipeline.benchmark.train.work import standard_config, with_settings
from pipeline.config.resolve import resolve_run
from pipeline.train.float8 import RECIPES
from tests.conftest import run_command


def times(name: str, *, as_is: float, tensorwise: float, rowwise: float, count: int = 24) -> LayerTimes:
    seconds = {AS_IS: as_is, "tensorwise": tensorwise, "rowwise": rowwise, "rowwise_with_gw_hp": 2 * as_is}
    return LayerTimes({name: count}, 12_608, 1024, 4096, seconds)


FOUND = [
    times("attention.out", as_is=0.001, tensorwise=0.0015, rowwise=0.002),
    times("mlp.up", as_is=0.004, tensorwise=0.003, rowwise=0.0039),
    times("mlp.down", as_is=0.004, tensorwise=0.00399, rowwise=0.003),
]


def test_layers_win_where_they_save_more_than_noise() -> None:
    assert winners(FOUND, "tensorwise") == ["mlp.up"]  # mlp.down saves a quarter of a per cent
    assert winners(FOUND, "rowwise") == ["mlp.down", "mlp.up"]
    assert winners(FOUND, "rowwise_with_gw_hp") == []


def test_a_name_with_two_sizes_wins_by_its_own_layers() -> None:
    """a gains in 24 layers less than it loses in 24 others; b, of the first size, gains."""
    shared = LayerTimes({"a": 24, "b": 24}, 64, 16, 16, {AS_IS: 1.0, "tensorwise": 0.88})
    other = LayerTimes({"a": 24}, 64, 32, 32, {AS_IS: 1.0, "tensorwise": 1.12})
    assert winners([shared, other], "tensorwise") == ["b"]


def test_recipes_that_a_gpu_lacks_are_left_out() -> None:
    ada = [LayerTimes({"mlp.up": 24}, 64, 16, 16, {AS_IS: 1.0, "tensorwise": 0.5})]
    assert layer_table(ada).endswith("| 1e+03 | 2.000 | - | - |")
    assert [entry.trainer["float8"] for entry in float8_group(ada, compiled=True).entries] == [None, "tensorwise"]


def test_trainings_follow_from_what_won(tmp_path: Path) -> None:
    group = float8_group(FOUND, compiled=True)
    found = {entry.name: (entry.trainer.get("float8"), entry.trainer.get("float8_layers")) for entry in group.entries[1:]}
    assert found == {
        "float8 tensorwise": ("tensorwise", None),
        "float8 tensorwise: mlp.up": ("tensorwise", ["mlp.up"]),
        "float8 rowwise": ("rowwise", None),
        "float8 rowwise: mlp.down, mlp.up": ("rowwise", ["mlp.down", "mlp.up"]),
        "float8 rowwise_with_gw_hp": ("rowwise_with_gw_hp", None),
    }
    config = standard_config("L/16", image_size=224, num_classes=1000)
    for entry in group.entries:
        own = with_settings(config, folder=str(tmp_path), data="x.tar", batch_size=6, num_workers=0, **entry.trainer)
        assert own.trainer.compile == "blocks"
    assert len(float8_group(FOUND[1:2], compiled=True).entries) == 1 + len(RECIPES)  # all of the layers: once is enough


def test_the_table_shows_speeds_against_the_layer_as_it_is() -> None:
    assert layer_table(FOUND).splitlines() == [
        "| layer | of the model | rows x inputs x outputs | ms | tensorwise | rowwise | rowwise_with_gw_hp |",
        "|---|---|---|---|---|---|---|",
        "| attention.out | 24 | 12,608 x 1,024 x 4,096 | 1 | 0.667 | 0.500 | 0.500 |",
        "| mlp.up | 24 | 12,608 x 1,024 x 4,096 | 4 | 1.333 | 1.026 | 0.500 |",
        "| mlp.down | 24 | 12,608 x 1,024 x 4,096 | 4 | 1.003 | 1.333 | 0.500 |",
    ]


def test_every_size_of_the_blocks_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layers, "LEAST_S", 0.0)
    config = standard_config("Ti/16", image_size=32, num_classes=10)
    own = with_settings(
        config, folder=str(tmp_path), data="x.tar", batch_size=3, num_workers=0, compile=False, precision="fp32"
    )
    found = [LayerTimes(**each) for each in measure_layers(resolve_run(own, world_size=1), device=torch.device("cpu"))]
    # Three images of 4 tokens and a class token; twelve blocks.
    assert [(each.names, each.rows, each.inputs, each.outputs) for each in found] == [
        ({"attention.qkv": 12}, 15, 192, 576),
        ({"attention.out": 12}, 15, 192, 192),
        ({"mlp.up": 12}, 15, 192, 768),
        ({"mlp.down": 12}, 15, 768, 192),
    ]
    assert all(set(each.seconds) == {AS_IS, *RECIPES} and min(each.seconds.values()) > 0 for each in found)


@pytest.mark.slow
def test_the_command_prints_layers_and_trainings() -> None:
    done = run_command(
        "benchmark", "train", "--models", "Ti/16", "--image-size", "32", "--batch", "4", "--steps", "1", "--rounds", "1",
        "--measure", "float8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| mlp.up | 12 | 20 x 192 x 768 |" in done.stdout
    assert "| float8 rowwise_with_gw_hp |" in done.stdout

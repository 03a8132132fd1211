"""Choices of the data section that do not fit together are answered in words, before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.errors import ConfigError

Write = Callable[..., Path]


def test_an_epoch_with_repeats_is_as_many_times_longer(write_config: Write) -> None:
    """83 images in batches of 8."""
    steps = {}
    for repeats in (1, 3):
        config = load_config(write_config(), ["trainer.duration=8 epochs", f"data.repeats={repeats}"])
        run = resolve_run(config, world_size=1)
        steps[repeats] = run.total_steps
        assert run.mixture.epochs_per_image(num_streams=8, repeats=repeats) == {"epoch": pytest.approx(1 / (83 * repeats))}
    assert steps == {1: 83, 3: 249}


def test_repeats_need_an_order(write_config: Write) -> None:
    config = load_config(write_config(), ["data.train=pipe:cat /nowhere.tar", "data.repeats=2"])
    with pytest.raises(ConfigError, match=r"data.repeats=2 needs an exact order"):
        resolve_run(config, world_size=1)


def test_a_crop_fits_into_the_resized_image(write_config: Write) -> None:
    overrides = ["data.crop.name=simple", "data.crop.short_side=15"]
    with pytest.raises(
        ConfigError, match=r"data.crop.short_side=15 is less than the 16 px of model.image_size.*use 16 or more"
    ):
        resolve_run(load_config(write_config(), overrides), world_size=1)
    assert resolve_run(load_config(write_config(), [*overrides[:1], "data.crop.short_side=16"]), world_size=1)


def test_laws_are_chosen_by_name(write_config: Write) -> None:
    config = load_config(write_config(), ["data.augment.name=three_augment", "data.augment.color_jitter=0.1"])
    law = config.data.augment.build()
    assert law is not None
    assert law.num_draws == 6
    with pytest.raises(ConfigError, match=r"unknown key data.augment.colour_jitter; did you mean data.augment.color_jitter"):
        load_config(write_config(), ["data.augment.name=three_augment", "data.augment.colour_jitter=0.1"])
    with pytest.raises(ConfigError, match=r"did you mean data.augment.name=randaugment_tf"):
        load_config(write_config(), ["data.augment.name=randaugment"])

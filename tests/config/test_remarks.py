"""What a launch says of settings that are allowed, and that a user may not expect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.index import index_folder
from data_tools.parallel import LocalWorkers
from pipeline.config.read import load_config
from pipeline.config.remarks import remarks
from pipeline.config.resolve import resolve_run
from tests.conftest import write_tar

WriteConfig = Callable[..., Path]


def said(path: Path, *overrides: str) -> list[str]:
    return remarks(resolve_run(load_config(path, list(overrides)), world_size=1))


def test_usual_settings_are_worth_no_word(write_config: WriteConfig) -> None:
    assert said(write_config()) == []
    assert said(write_config(), "schedule.decay=constant", "schedule.end=1") == []


@pytest.mark.parametrize("decay", ["linear", "cosine", "wsd"])
def test_an_end_above_the_peak_is_told(write_config: WriteConfig, decay: str) -> None:
    """The default end, 1e-5, is that of a peak of 1e-3: a fine-tuning at 1e-5 would keep its learning rate without a word."""
    settings = [f"schedule.decay={decay}", "optimizer.learning_rate=5e-6", "schedule.end=1e-5"]
    assert said(write_config(), *settings) == [
        "the learning rate does not decay: schedule.end=1e-05 is not below the peak, 5e-06; schedule.end=0 decays to zero"
    ]
    scaled = ["optimizer.scale_lr=linear", "optimizer.reference_batch_size=1"]  # the peak counts, not the setting
    assert said(write_config(), *settings, *scaled) == []


def test_a_warmup_from_above_the_peak_is_told(write_config: WriteConfig) -> None:
    assert said(write_config(), "schedule.warmup_start=0.1") == [
        "the learning rate does not rise: schedule.warmup_start=0.1 is not below the peak, 0.002"
    ]


def test_an_average_that_keeps_the_initial_weights_is_told(write_config: WriteConfig) -> None:
    """0.9999 after 12 updates: 0.9999^12 of it are what the run began with."""
    (text,) = said(write_config(), "optimizer.average={decay: 0.9999}")
    assert text.startswith(
        "the average of the weights is too slow for this run: 99.9 % of it are the initial weights after 12 "
    )
    assert said(write_config(), "optimizer.average={decay: 0.9999, warmup: timm}") == []
    assert said(write_config(), "optimizer.average={decay: 0.5}") == []


def test_a_weight_decay_meant_for_another_rule_is_told(write_config: WriteConfig) -> None:
    """AugReg's paper says 0.1, times the learning rate; big_vision's file for the same training 1e-4, which is not."""
    settings = ["optimizer.weight_decay=0.1", "optimizer.learning_rate=1e-3"]
    assert said(write_config(), *settings) == []
    (text,) = said(write_config(), *settings, "optimizer.weight_decay_rule=decoupled_schedule")
    assert text.startswith("weight decay takes 10 % of each kernel in every step at the peak; as much as weight_decay=100 of")
    assert (
        said(write_config(), *settings, "optimizer.weight_decay_rule=decoupled_schedule", "optimizer.weight_decay=1e-4") == []
    )


def test_how_many_classes_a_hierarchy_reaches_is_told(write_config: WriteConfig, tmp_path: Path) -> None:
    """Names that no class has are no error: they may lie between two classes. So a spelling of one's own is silent."""
    file = tmp_path / "hierarchy.txt"
    file.write_text("0 animal\nanimal 3\nDog 3\n")
    settings = ["objective.name=multi_label", f"objective.hierarchy={file}"]
    assert said(write_config(), *settings) == ["objective.hierarchy gives 1 of 4 classes ancestors among the classes"]


def test_corpora_that_share_a_part_of_their_classes_are_told(write_config: WriteConfig, corpus: Path) -> None:
    def mixture(first_class: int) -> list[str]:
        parts = f"[{{path: {corpus}}}, {{path: {corpus}, first_class: {first_class}}}]"
        return said(write_config(), f"data.train={parts}", f"model.num_classes={first_class + 4}")

    (text,) = mixture(3)
    assert text.startswith(f"classes 3 to 3 are of {corpus} and of {corpus} too (first_class=3); set first_class=4 if")
    assert mixture(0) == mixture(4) == []


def test_classes_without_an_image_are_told(write_config: WriteConfig, tmp_path: Path) -> None:
    """Labels from 1 on train as well, with a class more (LightCNN #5); so do ImageNet-21k's 21,843 (big_transfer #18)."""
    (text,) = said(write_config(), "model.num_classes=6")
    assert text == "2 of model.num_classes=6 classes have no image in data.train: 4, 5"
    assert said(write_config(), "model.num_classes=6", "objective={name: masked_patches}") == []
    members = [member for i in range(8) for member in ((f"{i}.png", b"?"), (f"{i}.cls", str(1 + i % 3).encode()))]
    write_tar(tmp_path / "a.tar", members)
    index_folder(str(tmp_path), block_samples=4, workers=LocalWorkers(1))
    (text,) = said(write_config(), f"data.train={tmp_path}")
    assert text.endswith(
        "1 of model.num_classes=4 classes have no image in data.train: 0; labels count from 0, and these may count from 1"
    )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "objective.mixing.labels=whole",
            "objective.mixing does nothing: labels=whole is set, but mixup_alpha and cutmix_alpha are 0",
        ),
        ("objective.mixing.mixup_alpha=0.2", None),
        ("objective.mixing={mixup_alpha: 0.2, probability: 0}", None),
        (
            "data.random_erasing={fill: mean, min_area: 0.1}",
            "data.random_erasing does nothing: min_area=0.1, fill=mean is set, but",
        ),
        ("data.random_erasing={fill: mean, probability: 0.25}", None),
    ],
)  # fmt: skip
def test_settings_of_what_is_off_are_told(write_config: WriteConfig, setting: str, words: str | None) -> None:
    found = said(write_config(), setting)
    assert len(found) == (words is not None)
    assert all(text.startswith(words or "") for text in found)

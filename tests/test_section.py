"""Every setting has the relaunch rule that is written here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.config.run import RunConfig
from pipeline.section import Section, relaunch_rule, sections_in

TOLD = {
    "name", "output_dir", "data.train", "data.unreadable_budget", "optimizer.learning_rate", "optimizer.scale_lr",
    "optimizer.reference_batch_size", "optimizer.adamw_learning_rate", "schedule.warmup", "schedule.warmup_start",
    "schedule.decay",
    "schedule.end", "schedule.cooldown", "schedule.cooldown_fraction", "schedule.shape", "schedule.timescale_steps",
    "trainer.duration", "trainer.micro_batch_size", "trainer.zero_stage", "trainer.compile", "trainer.activation_checkpointing",
    "trainer.overlap_comm", "trainer.reduce_bucket_size", "trainer.deterministic", "trainer.attention", "trainer.float8",
    "trainer.float8_layers",
    "trainer.max_skipped_steps", "checkpoint.every", "checkpoint.keep_last", "checkpoint.keep_every",
}  # fmt: skip
FREE = {
    "data.num_workers", "data.decoder", "data.prefetch", "data.read_ahead", "data.read_timeout_s", "data.read_patience_s",
    "data.cache_dir", "data.cache_gib", "data.accept", "trainer.devices", "trainer.hardware", "trainer.hang_timeout_s",
    "trainer.collective_timeout_s", "trainer.max_steps", "trainer.peak_tflops", "checkpoint.max_failed_saves",
}  # fmt: skip


def settings(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Return the settings of every member, where one is chosen."""
    for name, field in section.model_fields.items():
        inner = list(sections_in(field.annotation))
        if not inner or name in ("train", "datasets"):
            yield f"{prefix}{name}"
        for member in inner if name not in ("train", "datasets") else []:
            yield from settings(member, f"{prefix}{name}.")


def expected(key: str) -> str:
    if key in FREE or key.startswith(("evaluation.", "tracking.", "finetune.")):
        return "free"
    return "told" if key in TOLD else "fixed"


@pytest.mark.parametrize("key", sorted(set(settings(RunConfig))))
def test_every_setting_has_its_rule(key: str) -> None:
    assert relaunch_rule(RunConfig, key) == expected(key)


def test_what_is_below_a_setting_has_its_rule() -> None:
    assert relaunch_rule(RunConfig, "data.train.path") == "told"
    assert relaunch_rule(RunConfig, "evaluation.datasets") == "free"


def test_what_no_section_has_is_fixed() -> None:
    assert relaunch_rule(RunConfig, "data.randaugment") == "fixed"
    assert relaunch_rule(RunConfig, "nonsense.deep.key") == "fixed"


def test_a_setting_without_a_mark_is_fixed() -> None:
    class New(Section):
        strength: float = 0.0

    assert relaunch_rule(New, "strength") == "fixed"

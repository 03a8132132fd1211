"""Define the choices that are compared: each is a few settings over one base configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pipeline.config.read import parse_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.section import annotation_of, mark_of, section_for

Settings = Mapping[str, Mapping[str, Any]]  # section, key, value

DEFAULT = "default"  # class token, learned 1-D positions at the stem: the paper's

VARIANTS: Mapping[str, Settings] = MappingProxyType(
    {
        DEFAULT: {},
        "position_none": {"model": {"position": "none"}},
        "position_learned_2d": {"model": {"position": "learned_2d"}},
        "position_sincos_2d": {"model": {"position": "sincos_2d"}},
        "position_relative": {"model": {"position": "relative"}},
        "position_every_layer": {"model": {"position_at": "every_layer"}},
        "position_shared": {"model": {"position_at": "shared"}},
        "pooling_gap": {"model": {"pooling": "gap"}},
        "pooling_map": {"model": {"pooling": "map"}},
        # Of similar compute at 64 px: a deeper ViT, one block of ViT on a small ResNet's tokens, and that ResNet alone.
        "depth_8": {"model": {"depth": 8}},
        "hybrid": {"model": {"family": "hybrid", "name": "R26+Ti/16", "blocks": [1, 1, 1], "root_width": 32, "depth": 1}},
        "bit": {"model": {"family": "bit", "name": "R26x0.5", "blocks": [1, 1, 1]}},
        # The class token has no part in the loss, so the probes read the patches' mean. Its own loss is of another kind.
        "masked_patches": {
            "model": {"pooling": "gap"},
            "objective": {"name": "masked_patches"},
            "evaluation": {"validation": []},
        },
    }
)

# Rows that are measured at step 0 of another variant's runs: the same networks untrained.
UNTRAINED: Mapping[str, str] = MappingProxyType({"masked_patches_step_0": "masked_patches"})


def choose_variants(only: Sequence[str]) -> dict[str, Settings]:
    """Return the variants whose names have one of these words in them, and the default, with which they are compared.

    Args:
        only: all variants if empty.

    Raises:
        ConfigError: a word is in no name.
    """
    for word in only:
        if not any(word in name for name in VARIANTS):
            raise ConfigError(f"--only {word}: no variant has it in its name; they are {', '.join(VARIANTS)}")
    return {
        name: settings
        for name, settings in VARIANTS.items()
        if name == DEFAULT or not only or any(word in name for word in only)
    }


def configure(base: RunConfig, settings: Settings, *, name: str, seed: int, output_dir: str) -> RunConfig:
    """Return the configuration of one run.

    A variant that chooses another member of a kind (model family, objective) keeps those settings of the base's member that its
    own member has too.

    Raises:
        ConfigError: the settings do not fit together.
    """
    values = base.model_dump(mode="json") | {"name": name, "seed": seed, "output_dir": output_dir}
    for key, given in settings.items():
        annotation = annotation_of(RunConfig.model_fields[key])
        mark = mark_of(annotation)
        changes_member = mark is not None and given.get(mark.key, values[key][mark.key]) != values[key][mark.key]
        section = section_for(annotation, {**values[key], **given})
        kept = {k: v for k, v in values[key].items() if section is None or not changes_member or k in section.model_fields}
        values[key] = kept | dict(given)
    config = parse_config(values, source=f"variant {name}")
    config.model.resolve()  # sizes that do not fit together are an error of the first minute, not of the last run
    return config

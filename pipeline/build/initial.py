"""Give a new run's model the weights that it begins with, and keep with the run what they were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.build.pretrained import open_pretrained
from pipeline.config.read import load_config, parse_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.exchange.initial import Beginning, begin_with
from pipeline.exchange.pretrained import Pretrained
from pipeline.files import write_whole
from pipeline.models import settings_of
from pipeline.models.base import Backbone, ModelConfig
from pipeline.run.folder import RunFolder
from pipeline.run.weights import digest_tensors


def open_initial(config: RunConfig) -> Pretrained | None:
    """Return the weights that a configuration begins with; None where it begins without any.

    Raises:
        ExchangeError: they are missing, damaged, or no model that is known here.
    """
    return None if config.init_from is None else open_pretrained(config.init_from)


def with_model_of_weights(config: RunConfig) -> RunConfig:
    """Return a run whose model is that of the weights it begins with, where the settings name no model.

    A run that has begun keeps its own: the weights may have been removed since. What the settings do say stays as it is.

    Raises:
        ConfigError: a setting does not fit the weights' family.
        ExchangeError: the weights are missing, damaged, or no model that is known here.
    """
    given = config.model.model_fields_set
    if config.init_from is None or {"name", "family"} & given:
        return config
    begun = RunFolder(config.run_dir).config
    if begun.exists() and (run := load_config(begun)).init_from == config.init_from:
        found = run.model.model_dump(mode="json")
        found = {name: found[name] for name in settings_of(run.model.resolve())}
    else:
        weights = open_pretrained(config.init_from)
        try:
            found = settings_of(weights.config)
        except ValueError as error:
            raise ConfigError(f"init_from={config.init_from}: {error}") from error
    values = config.model_dump(mode="json")
    values["model"] = {**found, **{name: values["model"][name] for name in given}}
    return parse_config(values, source=f"the model of init_from={config.init_from}")


def make_model(config: ModelConfig, *, seed: int) -> Backbone:
    """Make a freshly initialised model, the same on every rank."""
    model = config.build()
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def begin(weights: Pretrained, model: Backbone, config: RunConfig, *, resolved: ModelConfig) -> Beginning:
    """Fill a freshly initialised model with what fits of the weights. Return what was taken.

    Raises:
        ExchangeError: the weights are of another model.
    """
    beginning = begin_with(weights, model, resolved, head=config.init.head, positions=config.init.positions)
    model.load_state_dict(beginning.tensors)
    return beginning


@dataclass(frozen=True)
class Initial:
    """Says what a run begins with: in words, and for the run folder."""

    messages: list[str]
    record: dict[str, Any]

    def write(self, folder: RunFolder) -> None:
        """Keep it with the run."""
        write_whole(folder.initial, json.dumps(self.record, indent=1) + "\n")


def compare_classes(theirs: Sequence[str] | None, ours: Sequence[str] | None) -> list[str]:
    """Return in words that a classifier which is taken has other classes, or in another order, where both have names."""
    if theirs is None or ours is None or len(theirs) != len(ours):
        return []
    number = next((number for number, name in enumerate(theirs) if name != ours[number]), None)
    if number is None:
        return []
    order = ", in another order" if sorted(theirs) == sorted(ours) else ""
    return [
        f"the classifier is taken, and its classes are others{order}: class {number} is {theirs[number]!r} there and "
        f"{ours[number]!r} here; "
        "init.head=new begins it with zeros"
    ]


def examine_initial(config: RunConfig, *, resolved: ModelConfig, class_names: Sequence[str] | None = None) -> Initial | None:
    """Return what a run begins with; None where it begins without weights. Every rank then does the same for itself.

    Args:
        class_names: of the run's classes, where they are known.

    Raises:
        ExchangeError: the weights are missing, damaged, or of another model.
    """
    weights = open_initial(config)
    if weights is None:
        return None
    beginning = begin(weights, make_model(resolved, seed=config.seed), config, resolved=resolved)
    if any(name.startswith("head.") for name in beginning.taken):
        beginning = replace(beginning, notes=[*beginning.notes, *compare_classes(weights.class_names, class_names)])
    record = {
        "source": beginning.source,
        "digest": digest_tensors(weights.filled()),
        "taken": list(beginning.taken),
        "resized": list(beginning.resized),
        "fresh": list(beginning.fresh),
        "left_out": list(beginning.left_out),
        "notes": list(beginning.notes),
    }
    return Initial(beginning.describe(), record)

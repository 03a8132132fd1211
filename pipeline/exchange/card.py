"""Write a model card: README.md with the front matter that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipeline.exchange.pixels import describe_pixels
from pipeline.exchange.pretrained import Pretrained
from pipeline.image_size import describe_size
from pipeline.models.bit.model import BiTConfig
from pipeline.models.timm.model import TimmConfig
from pipeline.models.vit.encoder_config import EncoderConfig

CITATION = "https://arxiv.org/abs/2010.11929"


@dataclass(frozen=True)
class Result:
    """Holds one result of the model: its measure, its value in words and as a number."""

    dataset: str
    measure: str
    value: float
    shown: str
    is_accuracy: bool


@dataclass(frozen=True)
class CardFacts:
    """Holds what a card says and the weights do not.

    Attributes:
        recipe: settings of the training by name.
        data: fingerprint of the images it was trained on, and its corpora in words.
    """

    title: str
    library: str
    usage: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    results: Sequence[Result] = ()
    license: str | None = None
    software: str = ""


def make_card(model: Pretrained, facts: CardFacts, *, num_parameters: int, macs: int | None) -> str:
    """Return the text of README.md."""
    config = model.config
    size = describe_size(config.image_size)
    short = model.preprocessing.pixels(config)
    details = {
        "architecture": describe_model(model),
        "parameters": f"{num_parameters / 1e6:.2f} million",
        **({} if macs is None else {"multiply-accumulates an image": f"{macs:.3g}"}),
        "images": f"{size}; the short side is resized to {short} px ({model.preprocessing.resize}), then the centre is cropped",
        "pixels": describe_pixels(config),
        "classes": config.num_classes if model.has_head else "none: it gives features",
        **({"trained for": f"{model.step} steps, {model.images_seen} images"} if model.step else {}),
    }
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(model, facts), sort_keys=False, allow_unicode=True)}---\n",
        f"# {facts.title}\n",
        _table("Model", details),
        _table("Training", {**facts.recipe, **({} if facts.data is None else {"data": facts.data})}),
        _results(facts.results),
        f"## Use\n\n```python\n{facts.usage.strip()}\n```\n",
        _notes(model.notes),
        f"## Source\n\n{f'Trained and written with {facts.software}. ' if facts.software else ''}The architecture is that of "
        f'"An Image is Worth 16x16 Words" ({CITATION}).\n',
    ]
    return "\n".join(part for part in parts if part)


def describe_model(model: Pretrained) -> str:
    """Return a model's form in words."""
    config = model.config
    if isinstance(config, TimmConfig):
        return f"timm {config.name}"
    if isinstance(config, BiTConfig):
        return f"BiT ResNet {config.variant}, blocks {list(config.blocks)}, root of {config.width} channels"
    assert isinstance(config, EncoderConfig)
    heads = f"{config.depth} blocks, width {config.width}, {config.num_heads} heads"
    return f"{config.family}: {heads}, MLP {config.mlp_dim}, pooling {config.pooling}, positions {config.position}"


def _front_matter(model: Pretrained, facts: CardFacts) -> dict[str, Any]:
    task = "image-classification" if model.has_head else "image-feature-extraction"
    matter: dict[str, Any] = {
        **({} if facts.license is None else {"license": facts.license}),
        "library_name": facts.library,
        "pipeline_tag": task,
        "tags": [task, facts.library, model.config.family],
    }
    by_set: dict[str, list[dict[str, Any]]] = {}
    for result in facts.results:
        if result.is_accuracy:
            metric = {"type": "accuracy", "name": result.measure, "value": round(100 * result.value, 3)}
            by_set.setdefault(result.dataset, []).append(metric)
    measured = [
        {"task": {"type": task}, "dataset": {"name": name, "type": name}, "metrics": metrics}
        for name, metrics in by_set.items()
    ]
    if measured:
        matter["model-index"] = [{"name": facts.title, "results": measured}]
    return matter


def _table(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join([f"## {title}\n", "| | |", "|---|---|", *rows, ""])


def _results(results: Sequence[Result]) -> str:
    if not results:
        return ""
    rows = [f"| {_cell(result.dataset)} | {_cell(result.measure)} | {result.shown} |" for result in results]
    return "\n".join(["## Results\n", "| set | measure | value |", "|---|---|---|", *rows, ""])


def _notes(notes: Sequence[str]) -> str:
    return "\n".join(["## Conversion\n", *(f"- {note}" for note in notes), ""]) if notes else ""


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")

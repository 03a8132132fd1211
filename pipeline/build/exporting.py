"""Write weights in another library's format, with a model card of what the run knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch

import pipeline
from pipeline.build.pretrained import RunWeights, recipe_of
from pipeline.exchange.card import CardFacts, Result, make_card
from pipeline.exchange.fold import drop_head
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.write import CARD, Options, Target, Written, write_model
from pipeline.files import write_whole
from pipeline.run.evaluations import group_results
from pipeline.run.folder import RunFolder

_LIBRARIES: dict[Target, str] = {
    "timm": "timm",
    "transformers": "transformers",
    "npz": "big_vision",
    "onnx": "onnx",
    "safetensors": "vit-pretraining-pipeline",
}


@dataclass(frozen=True)
class Export:
    """Says what is written, where, and how.

    Attributes:
        run: what a run knows of the weights; None for weights from elsewhere.
        license: for the card; None: the card names none.
    """

    model: Pretrained
    target: Target
    out: Path
    options: Options
    run: RunWeights | None = None
    license: str | None = None
    repository: str | None = None


def export(export: Export) -> Written:
    """Write the weights, then the card.

    Raises:
        ExchangeError: the target has no such model.
        OSError: a file cannot be written.
    """
    written = write_model(export.model, export.target, export.out, export.options)
    folder = export.out if export.out.is_dir() else export.out.parent
    name = CARD if export.out.is_dir() else f"{export.out.stem}.{CARD}"
    write_whole(folder / name, _card(export, written))
    return Written((*written.paths, folder / name), written.notes)


def _card(export: Export, written: Written) -> str:
    model, run = export.model, export.run
    if not export.options.has_head:
        model = drop_head(model)
    with torch.device("meta"):
        built = model.config.build()
    title = export.out.stem if run is None else run.config.name
    facts = CardFacts(
        title=title,
        library=_LIBRARIES[export.target],
        usage=_usage(export, title),
        recipe={} if run is None else recipe_of(run.config),
        data=None if run is None else _describe_data(run.folder),
        results=() if run is None else _results(run),
        license=export.license,
        software=f"vit-pretraining-pipeline {pipeline.__version__}",
    )
    kept = [tensor for name, tensor in built.named_parameters() if model.has_head or not name.startswith("head.")]
    noted = replace(model, notes=written.notes)
    return make_card(noted, facts, num_parameters=sum(tensor.numel() for tensor in kept), macs=model.config.cost.macs)


def _results(run: RunWeights) -> Sequence[Result]:
    """Return the run's results of these weights, each as the mean over seeds."""
    found = []
    for measure in group_results(run.results):
        dataset, _, setting = measure.measure.partition(" ")
        value = mean(measure.by_step[run.name.step])
        found.append(Result(dataset, setting, value, measure.show(value), measure.quantity == "accuracy"))
    return found


def _describe_data(folder: RunFolder) -> str | None:
    try:
        record = json.loads(folder.data.read_text())
        corpora = ", ".join(Path(str(corpus["folder"])).name for corpus in record["corpora"])
        return f"{corpora}, fingerprint {str(record['fingerprint'])[:16]}"
    except (OSError, ValueError, KeyError, TypeError):  # a run of unindexed shards has no record of each
        return None


def _usage(export: Export, title: str) -> str:
    """Return the lines that load what was written."""
    where = export.repository or str(export.out)
    hub = f"hf-hub:{where}" if export.repository else f"local-dir:{where}"
    result = "logits" if export.options.has_head else "features"
    if export.target == "timm":
        return (
            "import timm\n\n"
            f'model = timm.create_model("{hub}", pretrained=True).eval()\n'
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
            f"{result} = model(transform(image).unsqueeze(0))  # image: a PIL image in RGB"
        )
    if export.target == "transformers":
        kind = "AutoModelForImageClassification" if export.options.has_head else "AutoModel"
        result = "logits" if export.options.has_head else "pooler_output"
        return (
            f"from transformers import AutoImageProcessor, {kind}\n\n"
            f'processor = AutoImageProcessor.from_pretrained("{where}")\n'
            f'model = {kind}.from_pretrained("{where}").eval()\n'
            f'{result} = model(**processor(image, return_tensors="pt")).{result}  # image: a PIL image in RGB'
        )
    if export.target == "onnx":
        return (
            "import onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{title}.onnx")\n'
            '(outputs,) = session.run(None, {"images": images})  # images: float32 (B, 3, H, W) in [-1, 1]'
        )
    if export.target == "npz":
        return f'import numpy\n\narrays = numpy.load("{export.out.name}")  # as google-research/vision_transformer reads it'
    return f'import pipeline\n\nmodel = pipeline.load("{where}")'

"""Weights in the formats of other libraries give a model that runs, or a refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from pipeline.errors import PipelineError
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.source import read_pretrained
from pipeline.exchange.write import Options, Target, write_model
from tests.fuzz.folders import pack, unpack, write_folder
from tests.fuzz.fuzzer import BrokenLaw, Fuzzer, Outcome
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.targets.weights import KEYS, MODELS
from tests.fuzz.values import mutate_values

MOST_PIXELS = 4096  # that a model is run on
WORDS = (
    *KEYS, "architecture", "model_args", "pretrained_cfg", "img_size", "embed_dim", "mlp_ratio", "global_pool", "model_type",
    "vit", "ijepa", "dinov2_with_registers", "bit", "hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps",
    "id2label", "image_mean", "size", "shortest_edge", "crop_pct", "mean", "std", "resnetv2_50x1_bit",
)  # fmt: skip
Files = dict[str, bytes]


def published_weights(scratch: Path) -> Fuzzer:
    torch.set_num_threads(1)
    seeds = [files for number in range(len(MODELS)) for files in _write(number, scratch / "seeds")]
    folder = scratch / "published"
    return Fuzzer(make=lambda random: pack(_mutate(random.choice(seeds), random)), check=lambda data: _check(data, folder))


def _write(number: int, folder: Path) -> list[Files]:
    """Return a model in every format that has it."""
    config = MODELS[number]
    model = config.build()
    model.init_weights(torch.Generator().manual_seed(number))
    pretrained = Pretrained(config, dict(model.state_dict()), source="seed")
    formats: list[tuple[Target, str, Options]] = [
        ("timm", "timm", Options()),
        ("transformers", "hf", Options()),
        ("transformers", "features", Options(has_head=False)),
        ("npz", "w.npz", Options()),
    ]
    found = []
    for target, name, options in formats:
        out = folder / str(number) / name
        try:
            write_model(pretrained, target, out, options)
        except PipelineError:
            continue
        paths = [out] if out.is_file() else sorted(out.iterdir())
        found.append({path.name: path.read_bytes() for path in paths})
    return found


def _mutate(files: Files, random: Random) -> Files:
    name = random.choice([name for name in sorted(files) if name != "README.md"])
    changed = _change_text if name.endswith(".json") and random.random() < 0.9 else mutate_bytes
    return {**files, name: changed(files[name], random)}


def _change_text(data: bytes, random: Random) -> bytes:
    values = mutate_values(json.loads(data), random, words=WORDS)
    return json.dumps(values).encode("utf-8", "surrogatepass")


def _check(data: bytes, folder: Path) -> Outcome:
    shutil.rmtree(folder, ignore_errors=True)
    write_folder(folder, data)
    files = unpack(data)
    path = folder / "w.npz" if "w.npz" in files else folder
    try:
        model = read_pretrained(path)
    except PipelineError as error:
        if "\n" in str(error):
            raise BrokenLaw("a refusal of several lines", details=str(error)) from error
        return "refused"
    _run(model.build, model)
    return "taken"


def _run(build: Callable[[], torch.nn.Module], model: Pretrained) -> None:
    height, width = model.config.height_and_width
    if height * width > MOST_PIXELS:
        return
    with torch.no_grad():
        logits = build()(torch.zeros(1, 3, height, width, dtype=torch.uint8))
    if logits.shape != (1, model.config.num_classes):
        raise BrokenLaw("the model does not run", details=str(logits.shape))

"""Weights files give the model that was saved, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import torch

from pipeline.errors import CheckpointError
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.run.evaluations import read_digest
from pipeline.run.weights import digest_tensors, load_weights, read_weights_header, save_weights
from tests.fuzz.fuzzer import BrokenLaw, Fuzzer, Outcome
from tests.fuzz.safetensors_files import mutate_file
from tests.fuzz.values import mutate_values

MODELS = (
    ViTConfig(image_size=8, patch_size=4, width=8, depth=2, mlp_dim=12, num_heads=2, num_classes=3, representation_size=None,
              dropout=0.1),
    ViTConfig(image_size=4, patch_size=2, width=4, depth=1, mlp_dim=4, num_heads=1, num_classes=2, representation_size=4,
              dropout=0.0),
    ViTConfig(image_size=(4, 6), patch_size=2, width=8, depth=2, mlp_dim=4, num_heads=2, num_classes=2,
              representation_size=None, dropout=0.0,
              pooling="map", position="sincos_2d", registers=2, qk_norm=True, layer_scale=1e-4, stochastic_depth=0.1),
    ViTConfig(image_size=(4, 2), patch_size=2, width=4, depth=2, mlp_dim=4, num_heads=1, num_classes=2,
              representation_size=None, dropout=0.0,
              position="learned_2d", position_at="every_layer", gelu="tanh", qkv_bias=False),
    ViTConfig(image_size=4, patch_size=2, width=4, depth=1, mlp_dim=4, num_heads=1, num_classes=2, representation_size=None,
              dropout=0.0, position="relative", pooling="gap"),
)  # fmt: skip
MOST_PIXELS = 1024  # that a model is run on
KEYS = (
    "model",
    "step",
    "digest",
    "format",
    "width",
    "depth",
    "num_heads",
    "image_size",
    "patch_size",
    "head.bias",
    "pooling",
    "position",
    "position_at",
    "registers",
    "layer_scale",
    "map",
    "gap",
    "none",
    "shared",
    "dtype",
    "shape",
)


def weights_files(scratch: Path) -> Fuzzer:
    torch.set_num_threads(1)
    seeds = []
    for number, config in enumerate(MODELS):
        model = VisionTransformer(config)
        model.init_weights(torch.Generator().manual_seed(number))
        path = scratch / "weights" / f"seed{number}.safetensors"
        save_weights(path, dict(model.state_dict()), model=config, step=7, images_seen=56)
        seeds.append(path.read_bytes())
    path = scratch / "weights" / "step_00000007.safetensors"
    return Fuzzer(
        make=lambda random: mutate_file(random.choice(seeds), random, change=_change_header),
        check=lambda data: _check(data, path),
    )


def _change_header(header: dict[str, Any], random: Random) -> Any:
    """Change mostly what is said of the model, which is JSON inside JSON."""
    if random.random() < 0.25:
        return mutate_values(header, random, words=KEYS)
    model = mutate_values(json.loads(header["__metadata__"]["model"]), random, words=KEYS)
    return {**header, "__metadata__": {**header["__metadata__"], "model": json.dumps(model)}}


def _check(data: bytes, path: Path) -> Outcome:
    path.write_bytes(data)
    digest = read_digest(path)  # this raises nothing
    try:
        header = read_weights_header(path)
    except CheckpointError:
        header = None
    if header is not None and digest != header.digest:
        raise BrokenLaw("two readers find different digests", details=f"{digest}, {header.digest}")
    try:
        weights = load_weights(path)
    except CheckpointError:
        return "refused"
    if header is None:
        raise BrokenLaw("weights are read whose header is not")
    config: Any = weights.model.config
    if digest_tensors(weights.model.state_dict()) != header.digest or config != header.model:
        raise BrokenLaw("the model is not what its file says")
    height, width = config.height_and_width
    if height * width > MOST_PIXELS:  # no tensor says how many patches there are where their positions are not learned
        return "taken"
    with torch.no_grad():
        logits = weights.model(torch.zeros(1, 3, height, width, dtype=torch.uint8))
    if logits.shape != (1, config.num_classes):
        raise BrokenLaw("the model does not run", details=str(logits.shape))
    return "taken"

"""Make figures of weights from anywhere: filters, positions, attention distance and rollout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.console.figures import figure_bytes
from pipeline.data.images.crop import EvalTransform
from pipeline.data.images.decode import UnreadableImage, decode_image
from pipeline.data.shards.index import load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.data.shards.sample import IMAGE_EXTENSIONS
from pipeline.errors import ConfigError
from pipeline.exchange.pretrained import Pretrained
from pipeline.files import write_whole
from pipeline.functional.attention_maps import (
    attention_rollout,
    mean_attention_distance,
    position_similarity,
    principal_filters,
)
from pipeline.models.vit.encoder import EncoderBackbone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCH = 8


@dataclass(frozen=True)
class ModelFigures:
    """Holds figures by name, and their numbers as JSON."""

    figures: dict[str, Figure]
    numbers: dict[str, object]

    def write(self, out: Path, *, formats: Sequence[str]) -> list[Path]:
        """Write NAME.FORMAT of each figure, and figures.json.

        Raises:
            ConfigError: the folder cannot be written.
        """
        written = []
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, figure in self.figures.items():
                for format in formats:
                    write_whole(out / f"{name}.{format}", figure_bytes(figure, format))
                    written.append(out / f"{name}.{format}")
            write_whole(out / "figures.json", json.dumps(self.numbers, indent=1).encode())
        except OSError as error:
            raise ConfigError(
                f"{out} cannot be written ({error.strerror or error}); name another folder for figures"
            ) from error
        return written


def make_figures(pretrained: Pretrained, images: Tensor) -> ModelFigures:
    """Draw what a model has, and attention on some images.

    Args:
        images: (B, 3, H, W) uint8, as the model takes them; B may be 0.

    Raises:
        ConfigError: the model has no encoder of patches.
    """
    from pipeline.report.model_figures import (
        NUM_FILTERS,
        draw_attention_distance,
        draw_filters,
        draw_position_similarity,
        draw_rollout,
    )

    model = pretrained.build()
    if not isinstance(model, EncoderBackbone):
        raise ConfigError(
            f"figures are of Vision Transformers and hybrids; {pretrained.source} is of family {pretrained.config.family}"
        )
    grid = model.config.grid
    figures: dict[str, Figure] = {}
    numbers: dict[str, object] = {"step": pretrained.step, "images_seen": pretrained.images_seen, "grid": list(grid)}
    if isinstance(model.patch_embed, nn.Conv2d):
        figures["filters"] = draw_filters(principal_filters(model.patch_embed.weight.detach(), NUM_FILTERS).float())
    positions = model.patch_positions()
    if positions is not None:
        figures["position_similarity"] = draw_position_similarity(position_similarity(positions.detach()), grid)
    if len(images):
        distances, maps = _look(model, images)
        figures["attention_distance"] = draw_attention_distance(distances, longest=max(images.shape[-2:]))
        figures["attention_rollout"] = draw_rollout(images, maps)
        numbers["attention_distance_pixels"] = [[round(float(value), 3) for value in layer] for layer in distances]
    return ModelFigures(figures, numbers)


def _look(model: EncoderBackbone, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return mean attention distances by layer, and rollout maps (B, rows, columns)."""
    grid = model.config.grid
    patch_size = images.shape[-2] / grid[0]
    sums: list[Tensor] = []
    maps: list[Tensor] = []
    for batch in images.split(_BATCH):
        layers = model.attention_weights(batch)
        found = [mean_attention_distance(layer, grid=grid, patch_size=patch_size) * len(batch) for layer in layers]
        sums = found if not sums else [total + new for total, new in zip(sums, found, strict=True)]
        rollout = attention_rollout(layers)
        # What the classifier reads: the class token, or else the mean of the patches.
        row = rollout[:, 0] if model.class_token is not None else rollout[:, model.config.num_prefix_tokens :].mean(dim=1)
        maps.append(row[:, model.config.num_prefix_tokens :].unflatten(1, grid))
    return [total / len(images) for total in sums], torch.cat(maps)


def read_images(sources: Sequence[str], transform: EvalTransform, *, count: int) -> Tensor:
    """Return the first readable images of files and shards, (B, 3, H, W) uint8, B at most `count`.

    Raises:
        ConfigError: a file is no image, or nothing can be read.
        DataError: shards cannot be read.
    """
    found: list[Tensor] = []
    for source in sources:
        if Path(source).suffix.lower().removeprefix(".") in IMAGE_EXTENSIONS:
            try:
                found.append(transform(decode_image(Path(source).read_bytes())))
            except (OSError, UnreadableImage) as error:
                raise ConfigError(f"--images {source}: {error}") from error
        else:
            found += _from_shards(source, transform, count=count - len(found))
        if len(found) >= count:
            break
    if not found:
        raise ConfigError(f"--images {' '.join(sources)}: none can be read")
    return torch.stack(found[:count])


def _from_shards(folder: str, transform: EvalTransform, *, count: int) -> list[Tensor]:
    """Return images spread over all blocks: neighbours may be of one class."""
    index = load_index(folder)
    reader = BlockReader(index, capacity=1)
    found: list[Tensor] = []
    step = max(1, index.num_blocks // max(1, count))
    for block in range(0, index.num_blocks, step):
        for sample in reader.read(block)[: max(1, -(-count // index.num_blocks))]:
            try:
                found.append(transform(decode_image(sample.image)))
            except UnreadableImage:
                continue
            if len(found) == count:
                return found
    return found

"""Use models in a notebook: load one from anywhere in one line, classify images, compute and read features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.build.pretrained import is_run, open_pretrained
from pipeline.config.read import load_config
from pipeline.data.images.crop import EvalTransform
from pipeline.data.images.decode import Pixels, UnreadableImage, decode_image, to_rgb
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.embedding_files import ShardFeatures, read_features_of
from pipeline.exchange.places import place_of
from pipeline.image_size import ImageSize
from pipeline.models.base import Backbone, ModelConfig
from pipeline.objectives.base import Probabilities
from pipeline.run.folder import RunFolder, WeightsKind

BATCH_SIZE = 32  # images of one forward pass

ImageLike: TypeAlias = str | Path | Image.Image | NDArray[np.uint8]
"""A file, an image of Pillow, or pixels (H, W, 3) uint8."""


class Prediction(NamedTuple):
    """Names a class and gives its probability. Where the model does not name its classes, the name is the number."""

    name: str
    probability: float


@dataclass(frozen=True)
class Model:
    """Holds a model that is ready to use.

    Attributes:
        module: the torch module, in eval mode, fp32. It takes (B, 3, H, W) uint8 and returns logits; its
            `forward_outputs` returns the representation, the pooled tokens and the patches.
        config: everything that fixes its weights.
        class_names: by class number, where they are known.
        probabilities: what makes its logits probabilities; None: it has no trained classifier.
        source: where it was read.
        step: of the training; 0 where it is not known.
    """

    module: Backbone
    config: ModelConfig
    class_names: tuple[str, ...] | None
    probabilities: Probabilities | None
    preprocessing: EvalTransform
    source: str
    step: int

    def transform(self, image: ImageLike) -> Tensor:
        """Return an image as the model takes it, (3, H, W) uint8: resized and cropped as the evaluator does.

        Raises:
            DataError: it cannot be decoded.
            ConfigError: pixels that are no (H, W, 3) uint8.
        """
        return self.preprocessing(_pixels_of(image))

    @overload
    def predict(self, images: ImageLike, *, top: int = 5) -> list[Prediction]: ...
    @overload
    def predict(self, images: Sequence[ImageLike], *, top: int = 5) -> list[list[Prediction]]: ...
    @torch.no_grad()
    def predict(self, images: ImageLike | Sequence[ImageLike], *, top: int = 5) -> list[Prediction] | list[list[Prediction]]:
        """Return the most probable classes, the first one first; of a list of images a list for each.

        Softmax gives probabilities of one class among all; sigmoid gives each class one of its own.

        Raises:
            ConfigError: the model has no trained classifier.
            DataError: see `transform`.
        """
        if self.probabilities is None:
            raise ConfigError(f"{self.source} has no trained classifier; `features` gives what one could be trained on")
        logits = torch.cat([self.module(batch).float().cpu() for batch in self._batches(images)])  # (N, C)
        found = logits.softmax(dim=1) if self.probabilities == "softmax" else logits.sigmoid()
        values, numbers = found.topk(min(top, found.shape[1]), dim=1)
        rows = [
            [Prediction(self._name_of(number), value) for number, value in zip(*row, strict=True)]
            for row in zip(numbers.tolist(), values.tolist(), strict=True)
        ]
        return rows if isinstance(images, list | tuple) else rows[0]

    @torch.no_grad()
    def features(self, images: ImageLike | Sequence[ImageLike]) -> Tensor:
        """Return what the classifier reads of each image: (N, R) fp32 on CPU, N = 1 for one image.

        Raises:
            DataError, ConfigError: see `transform`.
        """
        return torch.cat([self.module.forward_representation(batch).float().cpu() for batch in self._batches(images)])

    def _batches(self, images: ImageLike | Sequence[ImageLike]) -> Iterator[Tensor]:
        listed = _listed(images)
        device = next(self.module.parameters()).device
        for first in range(0, max(1, len(listed)), BATCH_SIZE):
            batch = [self.transform(image) for image in listed[first : first + BATCH_SIZE]]
            size = self.config.height_and_width
            yield (torch.stack(batch) if batch else torch.empty((0, 3, *size), dtype=torch.uint8)).to(device)

    def _name_of(self, number: int) -> str:
        return str(number) if self.class_names is None else self.class_names[number]


def load(
    path: str | Path,
    *,
    step: int | None = None,
    kind: WeightsKind = "raw",
    size: ImageSize | None = None,
    probabilities: Probabilities | None = None,
    device: torch.device | str | None = None,
) -> Model:
    """Load a model: of a run folder the newest weights, or a weights file, a folder of timm or transformers, a Google .npz.

    Args:
        step: of a run, another step than the newest.
        kind: of a run, `average` for the averaged weights.
        size: height and width of the model's images, for an .npz file that does not say them.
        probabilities: what makes logits probabilities. None: as the run was trained or the file says, else softmax.
        device: None: the first GPU where there is one, else the CPU.

    Raises:
        ExchangeError: there are no such weights, or no model that is known here.
        CheckpointError: they are damaged.
    """
    path = place_of(path)
    found = open_pretrained(path, step=step, kind=kind, size=size)
    trained: Probabilities | None = found.probabilities or "softmax"
    if is_run(path):  # of some objectives there are no classes
        trained = load_config(RunFolder(path).config).objective.probabilities
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    module = found.build()
    has_classifier = bool(module.get_parameter("head.weight").any())  # a file without one is read with zeros
    return Model(
        module=module.to(chosen),
        config=found.config,
        class_names=found.class_names,
        probabilities=(probabilities or trained) if has_classifier else None,
        preprocessing=found.preprocessing.transform(found.config),
        source=found.source,
        step=found.step,
    )


def read_features(path: str | Path) -> ShardFeatures:
    """Read what `embed` wrote: a file, or all files of a folder.

    Raises:
        DataError: there is none, or one is damaged.
        ConfigError: it is Parquet, and pyarrow is not installed.
    """
    return read_features_of(place_of(path))


def _listed(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """Return the images of a list or tuple; anything else is one image."""
    return list(images) if isinstance(images, list | tuple) else [cast("ImageLike", images)]


def _pixels_of(image: ImageLike) -> Pixels:
    """Return (H, W, 3) uint8.

    Raises:
        DataError: it cannot be decoded.
        ConfigError: it is no image.
    """
    try:
        if isinstance(image, str | Path):
            return decode_image(Path(image).read_bytes())
        if isinstance(image, Image.Image):
            return to_rgb(image)
    except UnreadableImage as error:
        raise DataError(f"{image} cannot be decoded: {error}") from error
    except OSError as error:
        raise DataError(f"{image} cannot be read: {error.strerror or error}") from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image if image.flags.writeable else image.copy()  # torch warns of arrays that it could not write to
    found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ConfigError(f"an image is a path, an image of Pillow, or an array (H, W, 3) of uint8, not {found}")

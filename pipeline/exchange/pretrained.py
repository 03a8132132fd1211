"""Hold a model that comes from anywhere: its configuration, its tensors under our names, and what its images go through."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from pipeline.data.images.crop import Aspect, EvalTransform, Resize
from pipeline.errors import CheckpointError, ExchangeError
from pipeline.models.base import Backbone, ModelConfig
from pipeline.objectives.base import Probabilities

RESIZE_RATIO = 256 / 224  # of the short side to the crop: the authors' evaluation at 224 pixels


@dataclass(frozen=True)
class Preprocessing:
    """Says what an image goes through before the model, in evaluation. Pixels are scaled to [-1, 1] by the model.

    Attributes:
        short_side: pixels to which the short side is resized before the centre is cropped; None: image size x 256 / 224.
        aspect: stretch: every image is resized to a square of that side, whatever its ratio.
    """

    short_side: int | None = None
    resize: Resize = "bilinear_antialias"
    aspect: Aspect = "keep"

    def transform(self, config: ModelConfig) -> EvalTransform:
        """Return the transform for a model: (H, W, 3) uint8 to (3, *image_size) uint8."""
        return EvalTransform(
            image_size=config.image_size, short_side=self.pixels(config), resize=self.resize, aspect=self.aspect
        )

    def pixels(self, config: ModelConfig) -> int:
        """Return the length of the short side in pixels."""
        return self.short_side or round(min(config.height_and_width) * RESIZE_RATIO)


@dataclass(frozen=True)
class Pretrained:
    """Holds a model's weights, and what one must know to use them.

    Attributes:
        tensors: fp32, by our names.
        class_names: by class id, where they are known.
        probabilities: what makes its logits probabilities; None where it is not known.
        source: where they were read, in words, for messages.
        notes: what was folded or left out on the way, in words.
    """

    config: ModelConfig
    tensors: dict[str, Tensor]
    source: str
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing = Preprocessing()
    probabilities: Probabilities | None = None
    step: int = 0
    images_seen: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def has_head(self) -> bool:
        """Return whether the classifier is there: a model may be read or written without."""
        return "head.weight" in self.tensors

    @property
    def num_features(self) -> int:
        """Return the width of the representation that the classifier reads."""
        with torch.device("meta"):
            head = self.config.build().get_submodule("head")
        assert isinstance(head, nn.Linear)
        return head.in_features

    def build(self) -> Backbone:
        """Return the model in eval mode, on CPU, fp32. A classifier that is not there is zeros.

        Raises:
            CheckpointError: the tensors are not its own.
        """
        model = self.config.build()
        try:
            model.load_state_dict(self.filled())
        except RuntimeError as error:
            raise CheckpointError(f"{self.source}: {error}") from error
        return model.eval()

    def filled(self) -> dict[str, Tensor]:
        """Return the model's tensors, all of them: those of a classifier that is not there are zeros."""
        if self.has_head:
            return self.tensors
        with torch.device("meta"):
            built = self.config.build().state_dict()
        zeros = {name: torch.zeros(value.shape) for name, value in built.items() if name.startswith("head.")}
        return zeros | self.tensors

    def noting(self, *notes: str) -> Pretrained:
        """Return it with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def check_class_names(self) -> None:
        """Compare the names of classes with their number.

        Raises:
            ExchangeError: there are more or fewer names.
        """
        if self.class_names is not None and len(self.class_names) != self.config.num_classes:
            raise ExchangeError(
                f"{self.source}: classes.txt names {len(self.class_names)} classes, the model has {self.config.num_classes}"
            )

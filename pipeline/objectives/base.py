"""Define what every objective says of itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from pipeline.models.base import Backbone, ModelConfig
from pipeline.section import Section

if TYPE_CHECKING:
    from torchmetrics import Metric

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (B, C), labels (B,) -> scalar
LabelKind = Literal["one", "several", "none"]  # what an objective needs of an image
Probabilities = Literal["softmax", "sigmoid"]


class ObjectiveOutput(NamedTuple):
    """Holds what an objective computes on a micro-batch."""

    loss: Tensor  # scalar, fp32, the mean over the images
    predictions: Tensor  # what metrics compare with the targets; without a gradient
    targets: Tensor


class Objective(nn.Module):
    """Computes the loss of a model on a micro-batch. It may have parameters of its own, which are trained and saved too.

    Their names in checkpoints and weights files begin with `objective.`; what reads the weights alone leaves them out.
    """

    @abstractmethod
    def forward(self, model: Backbone, batch: Mapping[str, Any]) -> ObjectiveOutput:
        """Return the loss.

        Args:
            batch: see `pipeline.data.streams.loader.Batch`; images (B, 3, H, W) and labels are on the model's device.
        """

    def init_weights(self, seed: int) -> None:
        """Initialise its own parameters in place, the same on every rank."""


class ClassifierLoss(Objective):
    """Computes the loss of a model's logits and one label an image."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, model: Backbone, batch: Mapping[str, Any]) -> ObjectiveOutput:
        logits = model(batch["images"])  # (B, C)
        return ObjectiveOutput(self.loss(logits, batch["labels"]), logits.detach(), batch["labels"])


class ObjectiveSection(Section):
    """Configures an objective, and says what follows from its settings."""

    head_bias: float = Field(default=0.0, description="what the classifier's biases begin at")

    labels: ClassVar[LabelKind] = "one"
    probabilities: ClassVar[Probabilities | None] = "softmax"  # what makes the logits probabilities; None: there are no classes
    has_parameters: ClassVar[bool] = False  # whether the objective has some of its own, which are trained too

    @property
    def images_together(self) -> int:
        """Return how many neighbours in the run's order one micro-batch must hold together: 2 where pairs are mixed."""
        return 1

    def check(self, model: ModelConfig, *, class_names: Sequence[str] | None) -> None:
        """Refuse a model, or files of its own, that this objective cannot be used with.

        Args:
            class_names: of the corpus, by class number, where they are known.

        Raises:
            ConfigError: what does not fit, and what would.
        """

    def remarks(self, model: ModelConfig, *, class_names: Sequence[str] | None) -> list[str]:
        """Return what a user may not expect of the settings with this model and this corpus, a sentence each; see `check`."""
        del model, class_names
        return []

    @abstractmethod
    def build(self, model: ModelConfig, *, seed: int, class_names: Sequence[str] | None) -> Objective:
        """Return the objective.

        Args:
            model: the model that is trained.
            seed: of the run; draws are keyed by it and by positions.
            class_names: see `check`.
        """

    def metrics(self, model: ModelConfig) -> dict[str, Metric]:
        """Return the metrics of predictions and targets, by their names in the metrics file; none by default."""
        del model
        return {}

    def held_out_metrics(self, model: ModelConfig) -> dict[str, Metric]:
        """Return metrics of predictions and targets on held-out images, by the names of their measures; none by default."""
        del model
        return {}

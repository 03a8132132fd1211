"""Protocols turn the features of two splits into accuracies. Each has one file, and its name in the union below."""

from typing import Annotated

from pipeline.evaluation.protocols.attention_distance import AttentionDistance
from pipeline.evaluation.protocols.diagnostics import Diagnostics
from pipeline.evaluation.protocols.few_shot import FewShot
from pipeline.evaluation.protocols.fine_tune import FineTune
from pipeline.evaluation.protocols.knn import NearestNeighbours
from pipeline.evaluation.protocols.linear import Linear
from pipeline.evaluation.protocols.linear_sgd import LinearSgd
from pipeline.section import OneOf

Protocol = Annotated[
    FewShot | Linear | LinearSgd | NearestNeighbours | FineTune | Diagnostics | AttentionDistance,
    OneOf("protocol", default="few_shot"),
]

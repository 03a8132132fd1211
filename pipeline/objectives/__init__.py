"""Join the objectives, which are minimised, in one union. Each has one file, and its name below."""

from typing import Annotated

from pipeline.objectives.masked_patches import MaskedPatches
from pipeline.objectives.multi_label import MultiLabel
from pipeline.objectives.sigmoid import Sigmoid
from pipeline.objectives.softmax import Softmax
from pipeline.section import OneOf

Objective = Annotated[Sigmoid | Softmax | MultiLabel | MaskedPatches, OneOf("name", default="sigmoid")]

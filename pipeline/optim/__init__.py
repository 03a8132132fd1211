"""Optimizers. One file each, and its name in the union below."""

from typing import Annotated

from pipeline.optim.adamw import AdamW
from pipeline.optim.sgd import SGD
from pipeline.section import OneOf

Optimizer = Annotated[AdamW | SGD, OneOf("name", default="adamw")]

"""Optimizers. One file each, and its name in the union below."""

from typing import Annotated

from pipeline.optim.adamw import AdamW
from pipeline.section import OneOf

Optimizer = Annotated[AdamW, OneOf("name", default="adamw")]

"""Join the optimizers in one union. Each has one file, and its name below."""

from typing import Annotated

from pipeline.optim.adam import Adam
from pipeline.optim.adamw import AdamW
from pipeline.optim.lamb import Lamb
from pipeline.optim.lion import Lion
from pipeline.optim.muon import Muon
from pipeline.optim.sgd import SGD
from pipeline.section import OneOf

Optimizer = Annotated[AdamW | Adam | SGD | Lamb | Lion | Muon, OneOf("name", default="adamw")]

"""Join the learning-rate schedules in one union. Each has one file, and its name below."""

from typing import Annotated

from pipeline.optim.schedules.constant import Constant
from pipeline.optim.schedules.cosine import Cosine
from pipeline.optim.schedules.linear import Linear
from pipeline.optim.schedules.rsqrt import ReciprocalSqrt
from pipeline.optim.schedules.wsd import WarmupStableDecay
from pipeline.section import OneOf

Schedule = Annotated[Linear | Cosine | Constant | ReciprocalSqrt | WarmupStableDecay, OneOf("decay", default="linear")]

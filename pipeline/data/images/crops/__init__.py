"""Join the crops of training images in one union. Each has one file, and its name below."""

from typing import Annotated

from pipeline.data.images.crops.inception import Inception
from pipeline.data.images.crops.random_resized import RandomResized
from pipeline.data.images.crops.simple import Simple
from pipeline.section import OneOf

Crop = Annotated[Inception | RandomResized | Simple, OneOf("name", default="inception")]
"""What a setting `data.crop` may be."""

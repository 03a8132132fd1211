"""Crops of training images. One file each, and its name in the union below."""

from typing import Annotated

from pipeline.data.images.crops.inception import Inception
from pipeline.data.images.crops.simple import Simple
from pipeline.section import OneOf

Crop = Annotated[Inception | Simple, OneOf("name", default="inception")]
"""What a setting `data.crop` may be."""

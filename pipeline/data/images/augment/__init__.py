"""Augment training images after crop and flip. Each law has one file, and its name in the union below."""

from typing import Annotated

from pipeline.data.images.augment.nothing import NoAugment
from pipeline.data.images.augment.randaugment_tf import RandAugmentTF
from pipeline.data.images.augment.randaugment_timm import RandAugmentTimm
from pipeline.data.images.augment.randaugment_torchvision import RandAugmentTorchvision
from pipeline.data.images.augment.three_augment import ThreeAugment
from pipeline.section import OneOf

Augment = Annotated[
    NoAugment | RandAugmentTF | RandAugmentTorchvision | RandAugmentTimm | ThreeAugment, OneOf("name", default="none")
]

"""The region decoder gives the same pixels as decoding whole images, or both refuse."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from random import Random

import numpy as np
import torch

from pipeline.data.images import decode
from pipeline.data.images.crop import Box, resize_box
from pipeline.data.images.decode import UnreadableImage, decode_image, decode_jpeg_crop, jpeg_size
from tests.fuzz import jpeg_files
from tests.fuzz.fuzzer import BrokenLaw, Fuzzer, Outcome
from tests.fuzz.sanitizers import ENCODER_VARIABLE, MODULE_VARIABLE

MAX_OUT = 33  # pixels a side


def region_decoder(scratch: Path) -> Fuzzer:
    """Return the decoder with the module that the environment names in place of the installed one."""
    spec = importlib.util.spec_from_file_location("_jpeg", os.environ[MODULE_VARIABLE])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    decode._jpeg = module
    torch.set_num_threads(1)
    seeds = [jpeg_files.parse(seed) for seed in jpeg_files.make_seeds(Path(os.environ[ENCODER_VARIABLE]))]
    return Fuzzer(make=lambda random: jpeg_files.mutate(seeds, random), check=check)


def check(data: bytes) -> Outcome:
    """Check one input. "Taken" means decoded by the region decoder, and compared.

    The crop is drawn from the content, so that the input alone repeats a finding.
    """
    random = Random(data)
    try:
        decode.entropy_decode(data)
    except UnreadableImage:
        pass
    try:
        whole = decode_image(data)
    except UnreadableImage as error:
        whole, reason = None, str(error)
    size = jpeg_size(data)
    if size is None:
        return "refused"
    height, width = size
    top, left = random.randrange(height), random.randrange(width)
    box = Box(top, left, random.randint(1, height - top), random.randint(1, width - left))
    flip, antialias, side = random.random() < 0.5, random.random() < 0.5, random.randint(1, MAX_OUT)
    shrink = random.choice((1, 1, 1, 2, 4, 8))
    ours = np.full((3, side, side), 77, np.uint8)
    taken = decode_jpeg_crop(
        data,
        box=box,
        shrink=shrink,
        flip=flip,
        antialias=antialias,
        out=ours,
    )
    if not taken:  # the caller decodes the whole image then
        return "refused"
    details = f"{height} x {width}, {box}, shrink {shrink}, side {side}, flip {flip}, antialias {antialias}"
    if whole is None:
        raise BrokenLaw("the region decoder takes what the whole decoder refuses", details=f"{details}: {reason}")
    if whole.shape[:2] != size:
        raise BrokenLaw("the sizes differ", details=f"{details}: {whole.shape}")
    if shrink == 1:
        expected = resize_box(whole, box, size=(side, side), resize="bilinear_antialias" if antialias else "bilinear")
        expected = (expected.flip(-1) if flip else expected).numpy()
        if not np.array_equal(ours, expected):
            worst = int(np.abs(ours.astype(int) - expected.astype(int)).max())
            raise BrokenLaw("the pixels differ", details=f"{details}: by up to {worst}")
    return "taken"

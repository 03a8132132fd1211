"""One image gets the right findings, and an image is left out exactly if training cannot decode it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.inspect_image import inspect_image
from data_tools.verify.findings import KINDS
from pipeline.data.images.decode import UnreadableImage, decode_image
from tests.data_tools.odd_images import ODD


@pytest.mark.parametrize("name", ODD)
def test_every_kind_is_told_apart(name: str) -> None:
    extension, data, expected = ODD[name]
    found = inspect_image(data, extension=extension)
    assert {finding.kind for finding in found} == expected, found


@settings(max_examples=600, deadline=None)
@given(name=st.sampled_from([n for n in ODD if "bomb" not in n]), data=st.data())
def test_an_image_is_left_out_exactly_when_training_cannot_decode_it(name: str, data: st.DataObject) -> None:
    extension, image, _ = ODD[name]
    damaged = bytearray(image)
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged
    found = inspect_image(bytes(damaged), extension=extension)
    effects = [KINDS[finding.kind].effect for finding in found]
    try:
        decode_image(bytes(damaged))
    except UnreadableImage:
        assert effects == ["replaced"]
    else:
        assert set(effects) <= {"kept"}

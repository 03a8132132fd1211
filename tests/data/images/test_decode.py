"""The region decoder gives the same pixels as decoding whole images, wherever the crop and however the file was made."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import itertools
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.images import decode
from pipeline.data.images.crop import Box, TrainTransform, resize_box
from pipeline.data.images.crops.boxes import CropBounds
from pipeline.data.images.decode import UnreadableImage, decode_image, decode_jpeg_crop, has_region_decoder, jpeg_size
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(not has_region_decoder(), reason="the region decoder was not built")


def make_jpeg(height: int, width: int, *, seed: int = 0, mode: str = "RGB", **options: object) -> bytes:
    """Make a photo-like picture: smooth colours, edges and noise."""
    y, x = np.mgrid[0:height, 0:width]
    phases = np.random.default_rng(seed).random(3) * 6
    smooth = np.stack([120 + 90 * np.sin(y / 13 + p) * np.cos(x / 17 - p) for p in phases], -1)
    edges = 40 * ((x // 23 + y // 19) % 2)[..., None]
    noise = np.random.default_rng(seed + 1).normal(0, 8, (height, width, 3))
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(smooth + edges + noise, 0, 255).astype(np.uint8)).convert(mode)
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def crop_both_ways(
    data: bytes, box: Box, *, size: int, flip: bool, antialias: bool, shrink: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    ours = np.zeros((3, size, size), np.uint8)
    assert decode_jpeg_crop(
        data,
        box=box,
        shrink=shrink,
        flip=flip,
        antialias=antialias,
        out=ours,
    )
    whole = resize_box(decode_image(data), box, size=(size, size), resize="bilinear_antialias" if antialias else "bilinear")
    return ours, (whole.flip(-1) if flip else whole).numpy()


@settings(max_examples=400, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    mode=st.sampled_from(["RGB", "RGB", "L"]),
    size=st.integers(1, 96),
    flip=st.booleans(),
    antialias=st.booleans(),
    data=st.data(),
)
def test_a_crop_has_the_pixels_of_the_whole_image(
    height: int,
    width: int,
    subsampling: int,
    progressive: bool,
    mode: str,
    size: int,
    flip: bool,
    antialias: bool,
    data: st.DataObject,
) -> None:
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = Box(top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    jpeg = make_jpeg(height, width, mode=mode, subsampling=subsampling, progressive=progressive)
    assert jpeg_size(jpeg) == (height, width)
    ours, whole = crop_both_ways(jpeg, box, size=size, flip=flip, antialias=antialias)
    assert np.array_equal(ours, whole)


@pytest.mark.parametrize(("margin", "lowest"), [(2, 38), (4, 44), (8, 50)])
def test_shrinking_while_decoding_costs_little_where_there_is_a_margin(margin: float, lowest: float) -> None:
    jpeg = make_jpeg(801, 977)
    law = TrainTransform(
        image_size=24,
        bounds=CropBounds(min_area=0.1, max_area=1.0, min_ratio=0.75, max_ratio=4 / 3),
        flip=True,
        resize="bilinear_antialias",
        decoder="region",
        shrink_margin=margin,
    )
    exact = dataclasses.replace(law, shrink_margin=None)
    errors = []
    for sample_id in range(60):
        ours, whole = (torch.zeros((3, 24, 24), dtype=torch.uint8) for _ in range(2))
        law(jpeg, seed=0, epoch=0, sample_id=sample_id, out=ours)
        exact(jpeg, seed=0, epoch=0, sample_id=sample_id, out=whole)
        errors.append(float((ours.float() - whole.float()).square().mean()))
    assert np.mean([error > 0 for error in errors]) > 0.7  # most were shrunk
    assert 10 * np.log10(255**2 / max(errors)) > lowest


@pytest.mark.parametrize("options", [{"mode": "CMYK"}, {"cut": 0.7}, {"cut": 0.02}], ids=str)
def test_what_it_must_not_take_goes_to_the_whole_decoder(options: dict[str, object]) -> None:
    cut = options.pop("cut", None)
    jpeg = make_jpeg(64, 80, **options)  # type: ignore[arg-type]
    assert jpeg_size(jpeg if cut is None else jpeg[: int(len(jpeg) * float(str(cut)))]) is None
    assert jpeg_size(b"") is None
    assert jpeg_size(b"\x89PNG") is None


def test_damage_inside_the_crop_is_seen_and_left_to_the_whole_decoder() -> None:
    jpeg = bytearray(make_jpeg(200, 200))
    middle = len(jpeg) // 2
    jpeg[middle : middle + 40] = b"\xff\xd3" * 20  # restart markers where none belong
    assert jpeg_size(bytes(jpeg)) == (200, 200)
    assert not decode_jpeg_crop(
        bytes(jpeg),
        box=Box(0, 0, 200, 200),
        shrink=1,
        flip=False,
        antialias=True,
        out=np.zeros((3, 32, 32), np.uint8),
    )


def every_crop_agrees(data: bytes, height: int, width: int) -> bool:
    """Assert that each row's crop has the pixels of the whole image or is left to it. Return whether any crop was taken."""
    taken = 0
    for top in range(height):
        ours = np.zeros((3, 8, 8), np.uint8)
        if decode_jpeg_crop(data, box=Box(top, 1, 1, width - 1), shrink=1, flip=False, antialias=True, out=ours):
            whole = resize_box(decode_image(data), Box(top, 1, 1, width - 1), size=(8, 8), resize="bilinear_antialias")
            assert np.array_equal(ours, whole.numpy()), top
            taken += 1
    return taken > 0


@pytest.mark.parametrize("marker", [b"\xff\xd8", b"\xff\xc4\x00\x03\x00", b"\xff\xda\x00\x02"], ids=["start", "table", "scan"])
def test_a_marker_below_the_crop_is_damage_to_a_crop_too(marker: bytes) -> None:
    jpeg = make_jpeg(120, 80)
    offset = len(jpeg) - 60
    offset += jpeg[offset - 1] == 0xFF
    damaged = jpeg[:offset] + marker + jpeg[offset:]
    with pytest.raises(UnreadableImage):
        decode_image(damaged)
    out = np.zeros((3, 8, 8), np.uint8)
    crop = {"box": Box(0, 0, 8, 8), "shrink": 1, "flip": False, "antialias": True}
    assert decode_jpeg_crop(jpeg, **crop, out=out)  # type: ignore[arg-type]
    assert not decode_jpeg_crop(damaged, **crop, out=out)  # type: ignore[arg-type]


def test_a_progressive_image_without_its_last_scans_has_the_same_pixels_in_a_crop() -> None:
    """Libraries smooth its blocks, and do so from neighbours."""
    jpeg = make_jpeg(48, 48, progressive=True)
    assert every_crop_agrees(jpeg, 48, 48)
    scans = [offset for offset in range(len(jpeg) - 2) if jpeg[offset : offset + 3] == b"\xff\xda\x00"]
    for kept in range(1, len(scans)):
        assert not every_crop_agrees(jpeg[: scans[kept]] + b"\xff\xd9", 48, 48)


def test_restart_markers_are_no_damage() -> None:
    assert every_crop_agrees(make_jpeg(64, 64, restart_marker_blocks=2), 64, 64)


def test_thousands_of_scans_are_not_decoded() -> None:
    """Ten thousand scans of a large image fit into a few megabytes and take minutes."""
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 3000), (9, 99, 199)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    assert decode_image(data).shape == (3000, 3000, 3)
    bomb = data[:last] + data[last:-2] * 1000 + b"\xff\xd9"
    assert jpeg_size(bomb) is None
    with pytest.raises(UnreadableImage, match="scans of 3000 x 3000"):
        decode_image(bomb)


@pytest.fixture
def sampled_4_1_1_on_its_side(tmp_path: Path) -> bytes:
    """Make a JPEG whose chroma has a quarter of the rows: libjpeg reads it, and neither Pillow nor simplejpeg writes it."""
    program = tmp_path / "encode_jpeg"
    source = REPOSITORY / "tests" / "fuzz" / "encode_jpeg.c"
    built = subprocess.run(["cc", str(source), "-o", str(program), "-ljpeg"], text=True, capture_output=True)
    assert built.returncode == 0, built.stderr
    words = ("40", "64", "3", "1", "4", "0", "0", "0")
    return subprocess.run([str(program), *words], capture_output=True, check=True).stdout


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_chroma_sampling_without_a_name_is_read(sampled_4_1_1_on_its_side: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(sampled_4_1_1_on_its_side)))
    assert np.array_equal(decode_image(sampled_4_1_1_on_its_side), expected)
    assert every_crop_agrees(sampled_4_1_1_on_its_side, 64, 40)


@pytest.fixture
def plain_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build the decoder as on processors other than x86."""
    source, library = REPOSITORY / "pipeline" / "data" / "images" / "_jpeg.c", tmp_path / "_jpeg.so"
    include = sysconfig.get_paths()["include"]
    command = ["cc", "-shared", "-fPIC", "-O2", "-DPLAIN_C", f"-I{include}", str(source), "-o", str(library), "-ljpeg", "-lm"]
    built = subprocess.run(command, text=True, capture_output=True)
    assert built.returncode == 0, built.stderr
    spec = importlib.util.spec_from_file_location("_jpeg", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(decode, "_jpeg", module)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_processors_without_these_vectors_make_the_same_pixels(plain_c: None) -> None:
    jpeg, random = make_jpeg(150, 190), np.random.default_rng(0)
    for flip, antialias, size in itertools.product((False, True), (False, True), (1, 7, 32, 97)):
        top, left = int(random.integers(100)), int(random.integers(100))
        box = Box(top, left, int(random.integers(1, 150 - top)), int(random.integers(1, 190 - left)))
        ours, whole = crop_both_ways(jpeg, box, size=size, flip=flip, antialias=antialias)
        assert np.array_equal(ours, whole), (box, size)


def test_wrong_arguments_are_refused_and_touch_nothing() -> None:
    from pipeline.data.images import _jpeg  # type: ignore[attr-defined]

    jpeg, out = make_jpeg(40, 40), np.zeros((3, 8, 8), np.uint8)
    for box in [(-1, 0, 8, 8), (0, 0, 0, 8), (0, 41, 4, 4), (38, 0, 8, 8), (0, 38, 8, 8)]:
        with pytest.raises(ValueError, match="no such crop"):
            _jpeg.crop_resize(jpeg, *box, 1, 8, False, True, out)
    with pytest.raises(ValueError, match=r"192 bytes, not 3 x .* x 9"):
        _jpeg.crop_resize(jpeg, 0, 0, 8, 8, 1, 9, False, True, out)
    assert not out.any()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("resize", ["bilinear", "bilinear_antialias"])
def test_both_decoders_give_a_transform_the_same_pixels(format: str, resize: str) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(make_jpeg(180, 240))).save(buffer, format)
    for sample_id in range(40):
        outs = []
        for decoder in ("region", "whole"):
            law = TrainTransform(
                image_size=48,
                bounds=CropBounds(min_area=0.05, max_area=1.0, min_ratio=0.75, max_ratio=4 / 3),
                flip=True,
                resize=resize,  # type: ignore[arg-type]
                decoder=decoder,  # type: ignore[arg-type]
            )
            outs.append(torch.zeros((3, 48, 48), dtype=torch.uint8))
            law(buffer.getvalue(), seed=0, epoch=0, sample_id=sample_id, out=outs[-1])
        assert torch.equal(*outs)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format: str) -> None:
    values = np.linspace(0, 65535, 48 * 48).reshape(48, 48).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format)
    pixels = decode_image(buffer.getvalue())
    assert pixels.shape == (48, 48, 3)
    assert (pixels == np.round(values / 257)[:, :, None]).all()


def test_floating_point_pixels_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(buffer, "TIFF")
    with pytest.raises(UnreadableImage, match="floating-point"):
        decode_image(buffer.getvalue())

"""Contenders decode the same images to the same pixels, and are measured with all their processes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.benchmark.contenders import ALONE, CONTENDERS, alone, cpu_seconds, main, worker_mib
from pipeline.benchmark.transforms import IMAGENET_MEAN, IMAGENET_STD, OurTransform, PillowTransform, Settings, encoded_images
from pipeline.data.images.decode import has_region_decoder

SIZE, BATCH = 16, 5


@pytest.fixture
def settings(corpus: Path, tmp_path: Path) -> Settings:
    return Settings(str(corpus), str(tmp_path), num_workers=0, batch_size=BATCH, image_size=SIZE)


def images_in(folder: Path) -> list[bytes]:
    """Read images with Python's own reader of tars."""
    images: list[bytes] = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            images += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpeg")]  # type: ignore[union-attr]
    return images


def test_everybody_gets_all_images_of_the_folder(settings: Settings, corpus: Path) -> None:
    assert encoded_images(settings) == images_in(corpus)
    assert [Path(path).name for path in settings.shards] == [f"shard-{number:03d}.tar" for number in range(3)]


def test_work_alone_goes_round_the_images_for_ever(settings: Settings, corpus: Path) -> None:
    images = images_in(corpus)
    seen = [image for batch in islice(alone(lambda data: data)(settings), 40) for image in batch]
    assert seen == [images[number % len(images)] for number in range(40 * BATCH)]


@pytest.mark.parametrize("decoder", ["whole", *(["region"] if has_region_decoder() else [])])
def test_pillow_and_ours_crop_the_same_pixels(decoder: str, settings: Settings) -> None:
    """They agree on a photo's gradients, to within the filters' rounding, so the same work is compared."""
    y, x = np.mgrid[0:90, 0:120]
    pixels = np.stack([2 * x, 2 * y, x + y], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95, subsampling=0)
    pillow, ours = PillowTransform(settings), OurTransform(settings, decoder)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    crops = []
    for _ in range(12):
        theirs = (pillow(Image.open(io.BytesIO(buffer.getvalue()))) * std + mean) * 255
        mine = ours(buffer.getvalue()).float()
        assert mine.shape == theirs.shape == (3, SIZE, SIZE)
        assert (mine - theirs).abs().mean() < 2
        crops.append(mine)
    assert (crops[0] - crops[1]).abs().mean() > 2  # another crop at each call


@pytest.mark.parametrize(
    "name", [*ALONE, "ours, region decoder", "ours, libraries alone", "webdataset as open_clip", "webdataset, our transform"]
)
def test_a_contender_gives_whole_batches_beyond_the_folders_end(name: str, settings: Settings) -> None:
    if "region" in name and not has_region_decoder():
        pytest.skip("no region decoder here")
    for batch in islice(CONTENDERS[name](settings), 83 // BATCH + 2):
        images = batch["images"] if isinstance(batch, dict) else batch if name in ALONE else batch[0]
        assert len(images) == BATCH


def test_child_processes_are_counted() -> None:
    """Their CPU time counts while they run and after their end, and so does the largest one's memory."""
    code = (
        "import sys, time; x = bytearray(200 << 20); x[::4096] = bytes([1]) * len(x[::4096]); end = time.process_time() + 0.1\n"
        "while time.process_time() < end: pass\nprint(); sys.stdout.flush(); sys.stdin.read()"
    )
    before = cpu_seconds()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    own = time.process_time()
    while_running = cpu_seconds() - before
    assert 200 <= worker_mib() < 300
    child.communicate()
    assert while_running >= 0.1
    assert cpu_seconds() - before >= while_running + time.process_time() - own - 0.05


def test_a_contender_answers_each_round(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n8\n"))
    main("Pillow, decode alone", settings)
    ready, short, long = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ready == {"ready": True}
    for cost in (short, long):
        assert cost["wall_s"] > 0
        assert cost["mib"] > 0

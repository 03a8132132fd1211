"""Measure what the steps of preparing a corpus cost an image, on some images of a folder of shards."""

from __future__ import annotations

import time
from collections.abc import Callable

from data_tools.dedup.perceptual_hash import hash_image
from data_tools.inspect_image import inspect_image
from data_tools.make.reencode import Encoding, reencode
from data_tools.plan.steps import Costs
from data_tools.shards import Shard, list_shards
from pipeline.console.progress import track
from pipeline.data.images.decode import UnreadableImage, decode_image
from pipeline.data.shards.sample import IMAGE_EXTENSIONS, find_member
from pipeline.errors import DataError

SHORT_SIDE = 256  # that images are made smaller to


def measure_costs(folder: str, *, num_images: int) -> tuple[Costs, int]:
    """Return the costs an image and the mean size, in bytes, of the first images of some shards.

    What needs no pixels (make, index, the search of test images) is left as it is: a disk decides it.

    Raises:
        DataError: no shards, or no image in them that can be decoded.
    """
    images: list[tuple[bytes, str]] = []
    shards = list_shards(folder)
    for name in shards.names:
        with Shard(shards.folder, name) as shard:
            for sample in shard.samples():
                member = find_member(sample, IMAGE_EXTENSIONS)
                if member is not None and len(images) < num_images:
                    images.append((shard.read(member), member.extension))
        if len(images) >= num_images:
            break
    readable = [image for image in images if _is_readable(image[0])]
    if not readable:
        raise DataError(f"{folder}: none of its first {len(images)} images can be decoded")

    def verify(image: tuple[bytes, str]) -> None:
        list(inspect_image(image[0], extension=image[1]))

    costs = Costs(
        verify=_measure("verify", verify, readable),
        hashing=_measure("hash", lambda image: hash_image(decode_image(image[0])), readable),
        reencode=_measure("re-encode", lambda image: reencode(image[0], Encoding(short_side=SHORT_SIDE)), readable),
    )
    return costs, round(sum(len(data) for data, _ in readable) / len(readable))


def _is_readable(data: bytes) -> bool:
    try:
        decode_image(data)
    except UnreadableImage:
        return False
    return True


def _measure(name: str, work: Callable[[tuple[bytes, str]], object], images: list[tuple[bytes, str]]) -> float:
    """Return milliseconds of this thread's processor time an image."""
    work(images[0])  # tables that are made once
    start = time.thread_time()
    for image in track(images, description=f"measure {name}", unit="image"):
        work(image)
    return 1000 * (time.thread_time() - start) / len(images)

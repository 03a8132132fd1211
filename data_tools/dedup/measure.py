"""Measure `dedup`: how many planted copies it finds, and what its search costs.

python -m data_tools.dedup.measure plant FOLDER --images 500     recall by alteration, and false pairs, on your images
python -m data_tools.dedup.measure benchmark 10000 100000 1000000    time and memory of the search
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from data_tools.dedup.hamming import HammingIndex, Pairs
from data_tools.dedup.hash_store import open_set, tabulate
from data_tools.dedup.matching import (
    DEFAULT_DISTANCE,
    CopyFinder,
    HashTable,
    crop_codes,
    join_copies,
    upright_codes,
    whole_codes,
)
from data_tools.dedup.perceptual_hash import HASH_BYTES, hash_image, middle_square
from data_tools.shards import Shard
from pipeline.console.progress import track
from pipeline.data.images.decode import UnreadableImage, decode_image
from pipeline.data.shards.folder import ShardFolder
from pipeline.data.shards.sample import IMAGE_EXTENSIONS, find_member
from pipeline.errors import PipelineError

DISTANCES = (8, 12, 16, 20, 24, 28)

Alteration = Callable[[Image.Image, np.random.Generator], Image.Image]


def recompress(image: Image.Image, _: np.random.Generator, *, quality: int) -> Image.Image:
    """Encode the image as JPEG and decode it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def rescale(image: Image.Image, _: np.random.Generator, *, factor: float) -> Image.Image:
    """Resize the image."""
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), Image.Resampling.BICUBIC)


def crop(image: Image.Image, generator: np.random.Generator, *, side: float) -> Image.Image:
    """Cut out a part with this share of width and height, anywhere."""
    width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
    left, top = generator.integers(image.width - width + 1), generator.integers(image.height - height + 1)
    return image.crop((int(left), int(top), int(left) + width, int(top) + height))


def cut_square(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Cut out the middle square."""
    box, (width, height) = middle_square(image.width / image.height), image.size
    return image.crop((round(box.left * width), round(box.top * height), round(box.right * width), round(box.bottom * height)))


def mirror(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Swap left and right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def brighten(image: Image.Image, _: np.random.Generator, *, factor: float) -> Image.Image:
    """Multiply every level by a factor."""
    return ImageEnhance.Brightness(image).enhance(factor)


def drop_colour(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Make the image grey."""
    return image.convert("L").convert("RGB")


HALF, POOR = partial(rescale, factor=0.5), partial(recompress, quality=30)
CROP_5, CROP_10 = partial(crop, side=0.95), partial(crop, side=0.9)
ALTERATIONS: dict[str, tuple[Alteration, ...]] = {
    "half the size": (HALF,),
    "JPEG quality 30": (POOR,),
    "half the size, JPEG 30": (HALF, POOR),
    "mirrored": (mirror,),
    "mirrored, half, JPEG 30": (mirror, HALF, POOR),
    "5 % of each side cropped": (CROP_5,),
    "10 % of each side cropped": (CROP_10,),
    "10 % cropped, mirrored": (CROP_10, mirror),
    "10 % cropped, half, JPEG 30": (CROP_10, HALF, POOR),
    "all four": (CROP_10, mirror, HALF, POOR),
    "middle square": (cut_square,),
    "middle square, half, JPEG 30": (cut_square, HALF, POOR),
    "a fifth brighter": (partial(brighten, factor=1.2),),
    "a fifth darker": (partial(brighten, factor=0.8),),
    "grey": (drop_colour,),
}


@dataclass(frozen=True)
class PlantedCopies:
    """Holds the planted copies that were found."""

    num_images: int
    distance_by_alteration: dict[str, NDArray[np.int64]]  # distances of the copies that were found
    false_distance: NDArray[np.int64]  # distances of pairs of a copy and another image than its own


def plant_copies(images: Sequence[Image.Image], *, seed: int) -> PlantedCopies:
    """Alter images in all ways, and look for the copies among the originals."""
    originals = _hash_all(images)
    numbers = np.flatnonzero(~originals.is_featureless)
    after = len(images)  # copies are numbered after the originals
    widest = max(DISTANCES)
    whole = CopyFinder.build(whole_codes(originals, numbers), distance=widest)
    crops = CopyFinder.build(crop_codes(originals, numbers), distance=widest)
    found: dict[str, NDArray[np.int64]] = {}
    false: list[NDArray[np.int64]] = []
    for name, steps in track(ALTERATIONS.items(), description="plant copies", unit="alteration"):
        altered = _hash_all([_alter(image, steps, seed=(seed, number)) for number, image in enumerate(images)])
        found_in = (
            whole.find(upright_codes(altered, numbers, first_image=after)),
            crops.find(whole_codes(altered, numbers, first_image=after)),
        )
        pairs = join_copies(found_in)
        is_own = pairs.first == pairs.second + after
        found[name], false = pairs.distance[is_own], [*false, pairs.distance[~is_own]]
    return PlantedCopies(len(numbers), found, np.concatenate(false))


def _alter(image: Image.Image, steps: Sequence[Alteration], *, seed: tuple[int, int]) -> Image.Image:
    generator = np.random.default_rng(seed)
    for step in steps:
        image = step(image, generator)
    return image


def _hash_all(images: Sequence[Image.Image]) -> HashTable:
    return tabulate([hash_image(np.asarray(image)) for image in images])


def read_images(path: str, *, num_images: int, seed: int) -> list[Image.Image]:
    """Return images of a set drawn at random; fewer if it has fewer."""
    images = open_set(path, work=None)
    folder = ShardFolder(images.folder)
    listed = []
    for name in images.shards:
        with Shard(images.folder, name) as shard:
            listed += [(name, member) for s in shard.samples() if (member := find_member(s, IMAGE_EXTENSIONS))]
    read: list[Image.Image] = []
    for number in np.random.default_rng(seed).permutation(len(listed)).tolist():
        name, member = listed[number]
        data = folder.read_range(name, member.start, member.start + member.length)
        try:
            read.append(Image.fromarray(decode_image(data)))
        except UnreadableImage:
            continue
        if len(read) == num_images:
            break
    return read


def tabulate_planted(planted: PlantedCopies) -> str:
    """Return a table of the share found by alteration and distance."""
    lines = [f"{planted.num_images} images  | found within" + "".join(f"{distance:>7}" for distance in DISTANCES)]
    for name, distances in planted.distance_by_alteration.items():
        lines.append(f"{name:32}" + "".join(f"{np.sum(distances <= d) / planted.num_images:>7.1%}" for d in DISTANCES))
    num_pairs = len(planted.distance_by_alteration) * planted.num_images * (planted.num_images - 1)
    counts = "".join(f"{np.sum(planted.false_distance <= d):>7}" for d in DISTANCES)
    return "\n".join([*lines, f"{'false, of ' + format(num_pairs, '.1e') + ' pairs':32}{counts}"])


def brute_force_pairs(entries: NDArray[np.uint8], queries: NDArray[np.uint8], *, radius: int) -> Pairs:
    """Return what `HammingIndex.search` must find, by comparing each with each."""
    rows = [np.zeros((3, 0), np.int64)]
    for number, query in enumerate(queries):
        distance = np.bitwise_count(entries ^ query).sum(axis=1, dtype=np.int64)
        near = np.flatnonzero(distance <= radius)
        rows.append(np.stack([np.full(len(near), number), near, distance[near]]))
    return Pairs(*np.concatenate(rows, axis=1))


@dataclass(frozen=True)
class SearchCost:
    """Holds what it costs to find all pairs of `num_entries` hashes with themselves."""

    num_entries: int
    build_s: float
    search_s: float
    peak_memory_mb: float
    num_planted: int
    num_found: int  # number of planted pairs found
    exact: str  # whether the pairs are those of brute force


def measure_search(num_entries: int, *, radius: int, num_checked: int = 10_000) -> SearchCost:
    """Search random hashes, a tenth of them planted near another one, with all of them."""
    generator = np.random.default_rng(num_entries)
    bits = generator.integers(0, 256, (num_entries, HASH_BYTES), dtype=np.uint8)
    planted, source = generator.permutation(num_entries)[: num_entries // 10 * 2].reshape(2, -1)
    flipped = np.zeros((len(planted), 8 * HASH_BYTES), np.uint8)
    for row, distance in zip(flipped, np.arange(len(planted)) % (radius + 1), strict=True):
        row[generator.permutation(len(row))[:distance]] = 1
    bits[planted] = bits[source] ^ np.packbits(flipped, axis=1)
    start = time.perf_counter()
    index = HammingIndex.build(bits, radius=radius)
    built = time.perf_counter()
    pairs = index.search(bits)
    searched = time.perf_counter()
    found = np.isin(planted * num_entries + source, pairs.query * num_entries + pairs.entry).sum()
    exact = "not compared"
    if num_entries <= num_checked:
        expected = brute_force_pairs(bits, bits, radius=radius)
        same = all(np.array_equal(getattr(pairs, name), getattr(expected, name)) for name in ("query", "entry", "distance"))
        exact = "the same" if same else "DIFFERENT"
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return SearchCost(num_entries, built - start, searched - built, peak_mb, len(planted), int(found), exact)


def tabulate_costs(costs: Sequence[SearchCost]) -> str:
    """Return a table with one line a size."""
    lines = ["   hashes   build s  search s  us a query  peak MB  planted found  brute force"]
    lines += [
        f"{cost.num_entries:>9,}  {cost.build_s:>8.2f}  {cost.search_s:>8.1f}  {cost.search_s / cost.num_entries * 1e6:>10.1f}"
        f"  {cost.peak_memory_mb:>7.0f}  {cost.num_found / cost.num_planted:>13.1%}  {cost.exact:>11}"
        for cost in costs
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.dedup.measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    plant = commands.add_parser("plant", help="recall by alteration, and false pairs")
    plant.add_argument("folder", help="folder or URL of .tar files, or one .tar")
    plant.add_argument("--images", type=int, default=500, help="drawn at random (default: %(default)s)")
    plant.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    benchmark = commands.add_parser("benchmark", help="time and memory of the search over random hashes")
    benchmark.add_argument("sizes", type=int, nargs="+", help="numbers of hashes, the smallest first")
    benchmark.add_argument("--distance", type=int, default=DEFAULT_DISTANCE, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "plant":
            images = read_images(arguments.folder, num_images=arguments.images, seed=arguments.seed)
            print(tabulate_planted(plant_copies(images, seed=arguments.seed)))
        else:
            print(tabulate_costs([measure_search(size, radius=arguments.distance) for size in arguments.sizes]))
    except PipelineError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

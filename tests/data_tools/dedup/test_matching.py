"""The maths of `dedup` is checked: hashes with imagehash, the search with brute force, and the rule of what stays."""

from __future__ import annotations

from dataclasses import replace

import imagehash  # type: ignore[import-not-found]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images  # type: ignore[import-not-found]

from data_tools.dedup import hamming
from data_tools.dedup.hamming import HammingIndex
from data_tools.dedup.hash_store import tabulate
from data_tools.dedup.keepers import choose_left_out
from data_tools.dedup.matching import (
    Copies,
    CopyFinder,
    colour_distance,
    crop_codes,
    group_identical,
    upright_codes,
    whole_codes,
)
from data_tools.dedup.measure import brute_force_pairs, main, measure_search, plant_copies, recompress
from data_tools.dedup.perceptual_hash import HASH_BYTES, VIEW_BYTES, hash_image

ALWAYS_FOUND = ("half the size", "JPEG quality 30", "mirrored", "mirrored, half, JPEG 30", "middle square", "grey")


def photo_tiles() -> list[Image.Image]:
    """Cut parts out of two real photos that share no pixel, without those that are nothing but blur."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    tiles = [photo.crop((x, y, x + 160, y + 140)) for photo in photos for x in range(0, 640, 160) for y in (0, 140, 280)]
    return [tile for tile in tiles if hash_image(np.asarray(tile)).detail > 0.2]


def spread_bits(seed: int, *, count: int, num_bytes: int, num_flips: int) -> np.ndarray:
    """Make bit strings in clusters: some random ones, and others a few bits off them."""
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 256, (max(1, count // 4), num_bytes), dtype=np.uint8)
    chosen = np.unpackbits(centres[generator.integers(len(centres), size=count)], axis=1)
    flips = generator.random(chosen.shape) < generator.random((count, 1)) * num_flips / chosen.shape[1]
    return np.packbits(chosen ^ flips, axis=1)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32), num_entries=st.integers(0, 300), num_queries=st.integers(0, 60),
    num_bytes=st.integers(1, 20), share=st.floats(0, 0.15), queries_at_once=st.integers(1, 40),
    candidates_at_once=st.integers(1, 99),
)  # fmt: skip
def test_search_finds_what_brute_force_finds(
    seed: int, num_entries: int, num_queries: int, num_bytes: int, share: float, queries_at_once: int, candidates_at_once: int
) -> None:
    radius = int(share * 8 * num_bytes)
    bits = spread_bits(seed, count=num_entries + num_queries, num_bytes=num_bytes, num_flips=2 * radius + 2)
    entries, queries = bits[:num_entries], bits[num_entries:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "QUERIES_AT_ONCE", queries_at_once)
        patch.setattr(hamming, "CANDIDATES_AT_ONCE", candidates_at_once)
        found = HammingIndex.build(entries, radius=radius).search(queries)
    expected = brute_force_pairs(entries, queries, radius=radius)
    for name in ("query", "entry", "distance"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_benchmark_finds_what_it_planted_and_compares_with_brute_force(capsys: pytest.CaptureFixture[str]) -> None:
    cost = measure_search(3000, radius=20)
    assert (cost.exact, cost.num_found, cost.num_planted) == ("the same", 300, 300)
    assert main(["benchmark", "500"]) == 0
    assert "100.0%     the same" in capsys.readouterr().out


def test_hash_is_that_of_imagehash_and_a_mirrored_hash_that_of_the_mirrored_image() -> None:
    for tile in photo_tiles():
        hashes = hash_image(np.asarray(tile))
        reference = np.packbits(imagehash.phash(tile, hash_size=12).hash.ravel())
        assert np.bitwise_count(hashes.frames[0, :HASH_BYTES] ^ reference).sum() <= 4  # it rounds levels on the way
        mirrored = hash_image(np.asarray(tile)[:, ::-1].copy())
        assert np.bitwise_count(hashes.mirrored[:, :HASH_BYTES] ^ mirrored.frames[:, :HASH_BYTES]).sum() <= 2
        assert np.abs(hashes.mirrored[:, HASH_BYTES:].astype(int) - mirrored.frames[:, HASH_BYTES:]).max() <= 1


def test_planted_copies_are_found_and_nothing_else() -> None:
    planted = plant_copies(photo_tiles(), seed=0)
    for name, distances in planted.distance_by_alteration.items():
        share = np.sum(distances <= 20) / planted.num_images
        assert share >= (1.0 if name in ALWAYS_FOUND else 0.8), name
    assert planted.num_images == 20
    assert not np.any(planted.false_distance <= 20)


def test_cropped_copies_are_found_whichever_side_is_cropped() -> None:
    tiles = photo_tiles()
    crops = [tile.crop((9, 3, 9 + 144, 3 + 126)) for tile in tiles]
    whole, cropped = (tabulate([hash_image(np.asarray(image)) for image in images]) for images in (tiles, crops))
    numbers = np.arange(len(tiles))
    after = len(tiles)
    as_crop = CopyFinder.build(whole_codes(cropped, numbers, first_image=after), distance=20).find(
        upright_codes(whole, numbers)
    )
    as_whole = CopyFinder.build(crop_codes(whole, numbers), distance=20).find(whole_codes(cropped, numbers, first_image=after))
    assert np.mean(np.isin(numbers, as_crop.first[as_crop.first + after == as_crop.second])) > 0.9
    assert np.mean(np.isin(numbers, as_whole.second[as_whole.second + after == as_whole.first])) > 0.9


@pytest.mark.parametrize("kind", ["flat", "striped", "gradient"])
def test_images_without_details_are_featureless_and_photos_are_not(kind: str) -> None:
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:90, :120] / 90
    levels = {"flat": 0 * x, "striped": 60 * np.sin(25 * x), "gradient": 90 * x - 40 * y}[kind] + generator.integers(60, 190)
    image = Image.fromarray(np.stack([np.clip(levels + 3 * channel, 0, 255).astype(np.uint8) for channel in range(3)], axis=2))
    stored = recompress(image, generator, quality=80)
    photos = [hash_image(np.asarray(recompress(tile, generator, quality=30))) for tile in photo_tiles()]
    table = tabulate([hash_image(np.asarray(stored)), *photos])
    assert table.is_featureless.tolist() == [True] + [False] * len(photos)


def test_colours_are_compared_up_to_brightness() -> None:
    levels = np.random.default_rng(0).integers(20, 120, (50, 27)).astype(np.uint8)
    assert colour_distance(levels, levels * 2).max() < 1
    assert colour_distance(levels, levels[::-1]).min() > 10
    assert colour_distance(np.zeros_like(levels), levels).max() == 0  # black says nothing


def test_a_colour_picture_is_compared_with_a_grey_one_as_pillow_makes_it_grey() -> None:
    colours = np.random.default_rng(0).integers(20, 120, (50, 9, 1, 3)).astype(np.uint8)
    grey = np.stack([np.asarray(Image.fromarray(fields).convert("L").convert("RGB")) for fields in colours]).reshape(50, 27)
    coloured = colours.reshape(50, 27)
    assert max(colour_distance(coloured, grey).max(), colour_distance(grey, coloured).max()) < 1
    assert colour_distance(coloured, grey[::-1]).min() > colour_distance(coloured, grey).max()


pairs_of_images = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=120)


@given(pairs=pairs_of_images, seed=st.integers(0, 2**32))
def test_whatever_is_left_out_matches_what_stays_and_nothing_that_stays_matches(
    pairs: list[tuple[int, int]], seed: int
) -> None:
    edges = {(a, b) for a, b in pairs if a != b}
    rank = np.random.default_rng(seed).permutation(31)
    first, second = (np.array([edge[side] for edge in sorted(edges)], np.int64) for side in (0, 1))
    left_out = choose_left_out(Copies(first, second, first + second, first % 4), rank=rank)
    gone = set(left_out.first.tolist())
    assert len(gone) == len(left_out)
    assert all((a in gone) or (b in gone) for a, b in edges)
    for image, keeper, distance in zip(
        *(x.tolist() for x in (left_out.first, left_out.second, left_out.distance)), strict=True
    ):
        assert keeper not in gone
        assert {(image, keeper), (keeper, image)} & edges
        assert rank[keeper] < rank[image]
        assert distance == image + keeper  # the figure of this very pair


def test_a_chain_of_copies_loses_every_other_link() -> None:
    chain = np.arange(9)
    left_out = choose_left_out(Copies(chain, chain + 1, chain * 0, chain * 0), rank=np.arange(10))
    assert left_out.first.tolist() == [1, 3, 5, 7, 9]


def test_identical_images_are_grouped_unless_their_colours_differ() -> None:
    views = np.zeros((6, VIEW_BYTES), np.uint8)
    views[:, HASH_BYTES:] = 100
    views[:, HASH_BYTES + 1 :: 3] = 20
    views[3, HASH_BYTES::3] = 255  # same bits, another colour
    views[4, 0] = 1
    assert group_identical(views, rank=np.array([5, 4, 0, 1, 2, 3])).tolist() == [2, 2, 2, 3, 4, 2]


def test_pictures_of_other_colours_are_no_copies() -> None:
    tile = np.asarray(photo_tiles()[0]).astype(float)
    tinted = np.clip(tile + np.array([60, -30, 0]), 0, 255).astype(np.uint8)  # about as bright in grey
    table = tabulate([hash_image(pixels.astype(np.uint8)) for pixels in (tile, tinted)])
    bits = table.frames[:, 0, :HASH_BYTES]
    assert np.bitwise_count(bits[0] ^ bits[1]).sum() <= 20
    first, second = (whole_codes(table, np.array([number])) for number in (0, 1))
    twin = replace(first, image=np.full_like(first.image, 7))
    assert len(CopyFinder.build(first, distance=20).find(twin)) == 1
    assert len(CopyFinder.build(first, distance=20).find(second)) == 0


def test_grey_pictures_that_are_alike_in_bits_alone_are_no_copies() -> None:
    """A grey nail on white and a nail on yellow had the same bits, and their fields differed by nine levels in grey."""
    tile = Image.fromarray(np.asarray(photo_tiles()[0]))
    coloured, grey = (tabulate([hash_image(np.asarray(image))]) for image in (tile, tile.convert("L").convert("RGB")))
    ours = whole_codes(coloured, np.array([0]))
    for table, is_found in ((coloured, (True, True)), (grey, (True, False))):
        query = whole_codes(table, np.array([0]), first_image=7)
        assert (len(CopyFinder.build(ours, distance=20).find(query)) == 1) is is_found[0]
        other = query.views.copy()
        shift = np.resize(np.repeat([7, -7], 3), 27)  # each field brighter or darker, in all channels
        other[:, HASH_BYTES:] = np.clip(other[:, HASH_BYTES:].astype(int) + shift, 0, 255).astype(np.uint8)
        assert (len(CopyFinder.build(ours, distance=20).find(replace(query, views=other))) == 1) is is_found[1]

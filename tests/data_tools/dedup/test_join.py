"""The join by bands finds what brute force and the index find, whatever the partitions, and chooses who stays as before."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.dedup import band_join, join
from data_tools.dedup.band_join import Side, join_band
from data_tools.dedup.bands import (
    NUM_BITS,
    Cut,
    as_words,
    choose_cut,
    choose_width,
    estimate_join,
    groups_after,
    outer_band,
)
from data_tools.dedup.catalogue import Catalogue
from data_tools.dedup.hash_store import HashedShard, ImageSet, save_shard
from data_tools.dedup.join import plan_join
from data_tools.dedup.keepers import add_identical, choose_left_out
from data_tools.dedup.matching import Copies, CopyFinder, HashTable, Method, join_copies, upright_codes, whole_codes
from data_tools.dedup.measure import brute_force_pairs
from data_tools.dedup.partitions import Partition, cut_leaves, cut_values
from data_tools.dedup.perceptual_hash import HASH_BYTES, NUM_CROPS, NUM_FRAMES, VIEW_BYTES
from data_tools.dedup.within import find_within
from data_tools.parallel import Workers
from tests.helpers.workers import WorkersHere

COLUMNS = ("first", "second", "distance", "kind")


@pytest.fixture(autouse=True, scope="module")
def unflushed() -> Iterator[None]:
    """Leave out the flushing of hundreds of small files: no power is cut here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def spread_bits(seed: int, *, count: int, num_flips: int, num_centres: int) -> np.ndarray:
    """Make hashes in clusters: some centres, and others a few bits off them."""
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 256, (num_centres, HASH_BYTES), dtype=np.uint8)
    chosen = np.unpackbits(centres[generator.integers(len(centres), size=count)], axis=1)
    flips = generator.random(chosen.shape) < generator.random((count, 1)) * num_flips / chosen.shape[1]
    return np.packbits(chosen ^ flips, axis=1)


def rows_of(copies: Copies) -> list[tuple[int, ...]]:
    return list(zip(*(getattr(copies, name).tolist() for name in COLUMNS), strict=True))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32), distance=st.integers(0, 14), width=st.integers(1, 9), num_groups=st.integers(1, 3),
    num_agreeing=st.integers(0, 3), sizes=st.tuples(st.integers(0, 150), st.integers(0, 150)),
    num_centres=st.integers(1, 60), at_once=st.integers(1, 99),
)  # fmt: skip
def test_a_join_finds_each_pair_of_brute_force_once(
    seed: int, distance: int, width: int, num_groups: int, num_agreeing: int, sizes: tuple[int, int], num_centres: int,
    at_once: int,
) -> None:  # fmt: skip
    num_agreeing = min(num_agreeing, 2 if num_groups == 1 and distance > 7 else 3)  # a thousand tables take a second
    bits = spread_bits(seed, count=sum(sizes), num_flips=2 * distance + 2, num_centres=num_centres)
    owner = np.random.default_rng(seed).integers(0, 200, len(bits)).astype(np.uint32)
    cut = Cut(num_groups, num_agreeing)
    sides = [Side(as_words(bits[rows]), owner[rows]) for rows in (slice(sizes[0]), slice(sizes[0], None))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(band_join, "LEFT_AT_ONCE", 7 * at_once)
        patch.setattr(band_join, "CANDIDATES_AT_ONCE", at_once)
        found = [
            (row, entry, apart)
            for number in range(distance + 1)
            for near in join_band(*sides, number=number, distance=distance, width=width, cut=cut)
            for row, entry, apart in zip(near.left.tolist(), near.right.tolist(), near.distance.tolist(), strict=True)
        ]
    expected = brute_force_pairs(bits[sizes[0] :], bits[: sizes[0]], radius=distance)
    is_other = owner[expected.query] != owner[expected.entry + sizes[0]]
    columns = (expected.query[is_other], expected.entry[is_other], expected.distance[is_other])
    assert sorted(found) == sorted(zip(*(column.tolist() for column in columns), strict=True))


@given(distance=st.integers(0, 32), data=st.data())
def test_bands_and_groups_hold_each_bit_once(distance: int, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, NUM_BITS // (distance + 1)))
    number = data.draw(st.integers(0, distance))
    bands = [outer_band(earlier, width=width) for earlier in range(number + 1)]
    groups = groups_after(number, distance=distance, width=width, cut=Cut(1, data.draw(st.integers(1, 5))))
    masks = np.concatenate([bands, *(group.bands for group in groups)])
    assert np.bitwise_count(masks[: number + 1]).sum(axis=1).tolist() == [width] * (number + 1)
    assert np.bitwise_count(masks).sum() == NUM_BITS == np.bitwise_count(np.bitwise_or.reduce(masks, axis=0)).sum()


def test_the_estimate_counts_the_tables_that_are_made() -> None:
    for distance, number in itertools.product((0, 3, 8, 12), (0, 2)):
        if number > distance:
            continue
        width = choose_width(1e6, 1e6, distance=distance)
        cut, cost = choose_cut(number, distance=distance, width=width, num_left=1e6, num_right=1e6)
        groups = groups_after(number, distance=distance, width=width, cut=cut)
        assert sum(len(group.tables()) for group in groups) == cost.num_tables


def test_groups_need_fewer_tables_than_bands_of_one_kind() -> None:
    """The plain choice: k of distance + k equal bands, all tables of the same number of bits."""
    left, right = 28e8, 4e8
    ours = estimate_join(left, right, distance=20, width=choose_width(left, right, distance=20))
    plain = [(math.comb(20 + k, k), 144 * k / (20 + k)) for k in range(1, 10)]
    enough = min(tables for tables, bits in plain if tables * left * right / 2**bits <= ours.num_candidates)
    assert ours.num_tables < 0.5 * enough


counts_of_values = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=20)


@settings(max_examples=40)
@given(counts=counts_of_values, max_bytes=st.integers(1, 20_000), max_right=st.integers(1, 90))
def test_partitions_hold_all_meetings_once_within_their_bound(
    counts: list[tuple[int, int]], max_bytes: int, max_right: int
) -> None:
    left, right = np.array(counts, np.int64).T
    met: list[tuple[int, int, int]] = []
    for part in cut_values(left, right, max_bytes=max_bytes):
        assert part.high == part.low + 1 or part == Partition(part.low, part.high)
        blocks = []
        for side, block, num_blocks in (
            (left, part.left_block, part.num_left_blocks),
            (right, part.right_block, part.num_right_blocks),
        ):
            rows = [(value, row) for value in range(part.low, part.high) for row in range(side[value])]
            blocks.append(rows[len(rows) * block // num_blocks : len(rows) * (block + 1) // num_blocks])
        size = join.LEFT_BYTES * len(blocks[0]) + join.RIGHT_BYTES * len(blocks[1])
        assert size <= max(max_bytes, join.LEFT_BYTES + join.RIGHT_BYTES)
        met += [(one, row, other) for one, row in blocks[0] for value, other in blocks[1] if value == one]
    assert sorted(met) == [(v, a, b) for v in range(len(left)) for a in range(left[v]) for b in range(right[v])]
    leaves = cut_leaves(left, right, max_right=max_right)
    inside = [value for low, high in leaves for value in range(low, high)]
    assert len(set(inside)) == len(inside)
    assert set(np.flatnonzero((left > 0) & (right > 0)).tolist()) <= set(inside)
    assert all(high == low + 1 or right[low:high].sum() <= max_right for low, high in leaves)


def make_set(folder: Path, *, seed: int, sizes: Sequence[int], num_flips: int, num_centres: int) -> ImageSet:
    """Store hashes of shards: clusters of views, frames that differ or not, two kinds of colours, some featureless images."""
    generator = np.random.default_rng(seed)
    num_images, num_views = sum(sizes), 2 * NUM_FRAMES + NUM_CROPS
    bits = spread_bits(seed, count=num_images * num_views, num_flips=num_flips, num_centres=num_centres)
    colours = np.where(generator.random((num_images, 1, 1)) < 0.8, 90, np.resize([200, 20, 20], 27))
    views = np.concatenate(
        [bits.reshape(num_images, num_views, HASH_BYTES), np.broadcast_to(colours, (num_images, num_views, 27))], axis=2
    ).astype(np.uint8)
    views[generator.random(num_images) < 0.5, 1] = views[generator.random(num_images) < 0.5, 0][0]
    whole = generator.integers(0, num_images, num_images // 5)
    views[whole, 0] = views[generator.permutation(whole), 0]  # equal hashes
    table = HashTable(
        views[:, :2], views[:, 2:4], views[:, 4:], np.where(generator.random(num_images) < 0.05, 0, 1).astype(np.float32)
    )
    work = folder / "work"
    work.mkdir(parents=True)
    names, edges = [], [0, *itertools.accumulate(sizes)]
    for low, high in itertools.pairwise(edges):
        names.append(f"{low:05}.tar")
        part = HashTable(**{key: value[low:high] for key, value in vars(table).items()})
        keys = [str(number) for number in range(low, high)]
        size = generator.integers(1, 4, (high - low, 2))
        save_shard(work, HashedShard(names[-1], "facts", keys, np.zeros((high - low, 2), np.int64), size, part, [], 0))
    return ImageSet(str(folder), str(folder), tuple(names), work)


def search(images: ImageSet, method: Method, *, distance: int, workers: Workers | None = None) -> Copies:
    return find_within(
        Catalogue(images), left_out=np.array([3, 5]), distance=distance, method=method, memory_bytes=2**30,
        workers=workers or WorkersHere(),
    )  # fmt: skip


@settings(deadline=None, max_examples=3)
@given(
    seed=st.integers(0, 2**32), distance=st.sampled_from([0, 4, 9, 12]), num_centres=st.integers(20, 3000),
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=4), max_bytes=st.integers(10_000, 300_000),
    max_pairs=st.integers(1, 99),
)  # fmt: skip
def test_joined_or_searched_the_same_images_are_left_out(
    tmp_path_factory: pytest.TempPathFactory, seed: int, distance: int, num_centres: int, sizes: list[int], max_bytes: int,
    max_pairs: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("set")
    sizes = [max(6, sizes[0]), *sizes[1:]]
    images = make_set(folder, seed=seed, sizes=sizes, num_flips=distance + 1, num_centres=num_centres)
    expected = search(images, "index", distance=distance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(join, "partition_bytes", lambda **_: max_bytes)
        patch.setattr(join, "PAIR_BYTES", max_bytes // max_pairs)
        patch.setattr(join, "MIN_GROUP_IMAGES", 20)
        patch.setattr(join, "MAX_GROUP_IMAGES", 20)
        patch.setattr(join, "LEAF_RIGHT", 30)
        found = search(images, "bands", distance=distance)
    assert rows_of(found) == rows_of(expected)
    assert not list(images.work.glob("join-*"))
    assert rows_of(search(images, "bands", distance=distance, workers=WorkersHere(num_left=0))) == rows_of(expected)


def test_pairs_are_the_same_bytes_after_any_interruption_and_in_any_partitions(tmp_path: Path) -> None:
    images = make_set(tmp_path, seed=1, sizes=[30, 0, 25, 40], num_flips=9, num_centres=60)
    expected = search(images, "bands", distance=5)
    (kept,) = images.work.glob("within-*.safetensors")
    data = kept.read_bytes()
    assert len(expected) > 20
    for max_bytes in (20_000, 2_000_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(join, "partition_bytes", lambda max_bytes=max_bytes, **_: max_bytes)
            patch.setattr(join, "MIN_GROUP_IMAGES", 30)
            patch.setattr(join, "MAX_GROUP_IMAGES", 30)
            kept.unlink()
            for attempt in range(20):
                try:
                    search(images, "bands", distance=5, workers=WorkersHere(num_left=2 * 2**attempt))
                    break
                except KeyboardInterrupt:
                    assert list(images.work.glob("join-*"))
            assert attempt >= 2
        assert kept.read_bytes() == data
        assert not list(images.work.glob("join-*"))


def test_a_join_meets_the_finder_pair_by_pair(tmp_path: Path) -> None:
    images = make_set(tmp_path, seed=2, sizes=[40, 40], num_flips=10, num_centres=2000)
    corpus = Catalogue(images)
    leads = ~corpus.is_featureless
    plan = replace(plan_join(len(corpus), distance=8, memory_bytes=2**30), max_bytes=100_000)
    scratch = tmp_path / "scratch"
    found = join.join_images(images, corpus.start, leads=leads, plan=plan, scratch=scratch, workers=WorkersHere())
    finder = CopyFinder.build(corpus.all_codes(whole_codes, leads), distance=8)
    expected = finder.find(corpus.all_codes(upright_codes, leads))
    assert len(expected) > 50
    assert rows_of(found) == rows_of(expected)
    (tmp_path / "turned").mkdir()
    order = ImageSet(images.path, images.folder, images.shards[::-1], images.work)
    turned = Catalogue(order)
    other = join.join_images(
        order, turned.start, leads=~turned.is_featureless, plan=plan, scratch=scratch, workers=WorkersHere()
    )
    number = np.concatenate([np.arange(40) + 40, np.arange(40)])
    back = Copies(number[other.first], number[other.second], other.distance, other.kind)
    assert rows_of(join_copies([back])) == rows_of(expected)


def choose_one_by_one(copies: Copies, *, rank: np.ndarray) -> Copies:
    """Choose by walking all pairs: the rule in its plainest form."""
    first, second = np.concatenate([copies.first, copies.second]), np.concatenate([copies.second, copies.first])
    pair = np.tile(np.arange(len(copies)), 2)
    order = np.lexsort((rank[second], rank[first]))
    first, second, pair = first[order], second[order], pair[order]
    kept_for: dict[int, tuple[int, int]] = {}
    for keeper, image, number in zip(first.tolist(), second.tolist(), pair.tolist(), strict=True):
        if keeper not in kept_for and image not in kept_for and keeper != image:
            kept_for[image] = (keeper, number)
    chosen = np.array([number for _, number in kept_for.values()], np.int64)
    images, keepers = np.array(list(kept_for), np.int64), np.array([keeper for keeper, _ in kept_for.values()], np.int64)
    return Copies(images, keepers, copies.distance[chosen], copies.kind[chosen])


def add_one_by_one(left_out: Copies, leader: np.ndarray, numbers: np.ndarray) -> Copies:
    """Add identical images one after the other."""
    rows = zip(left_out.first.tolist(), rows_of(left_out), strict=True)
    kept_for = {image: row[1:] for image, row in rows}
    twins = [int(number) for number in numbers if leader[number] != number]
    added = [(twin, *kept_for.get(int(leader[twin]), (int(leader[twin]), 0, 0))) for twin in twins]
    return join_copies([left_out, Copies(*np.array(added, np.int64).reshape(-1, 4).T)])


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32), num_images=st.integers(1, 60), num_pairs=st.integers(0, 200), is_chain=st.booleans(),
    is_ranked_along=st.booleans(),
)  # fmt: skip
def test_those_who_stay_are_those_of_a_walk_along_all_pairs(
    seed: int, num_images: int, num_pairs: int, is_chain: bool, is_ranked_along: bool
) -> None:
    generator = np.random.default_rng(seed)
    first, second = generator.integers(0, num_images, (2, num_pairs))
    if is_chain:
        first, second = np.arange(num_images - 1), np.arange(1, num_images)
    rank = np.arange(num_images) if is_ranked_along else generator.permutation(num_images)
    distance, kind = generator.integers(0, 20, (2, len(first)))
    copies = join_copies([Copies(first, second, distance, kind)])
    found, expected = choose_left_out(copies, rank=rank), choose_one_by_one(copies, rank=rank)
    assert rows_of(found) == rows_of(expected)
    leader = np.arange(num_images)
    stays = np.setdiff1d(leader, copies.first)
    followers = stays[generator.random(len(stays)) < 0.5]
    leader[followers] = generator.integers(0, num_images, len(followers))
    leader[leader] = np.where(np.isin(leader, followers), leader, leader[leader])
    numbers = np.flatnonzero(generator.random(num_images) < 0.9)
    assert rows_of(add_identical(found, leader, numbers)) == rows_of(add_one_by_one(expected, leader, numbers))


def test_a_chain_of_a_million_images_is_decided_in_seconds() -> None:
    """Each image waits for the one before: rounds alone would take half a million."""
    chain = np.arange(1_000_000)
    zeros = np.zeros_like(chain)
    left_out = choose_left_out(Copies(chain, chain + 1, zeros, zeros), rank=np.arange(1_000_001))
    assert np.array_equal(left_out.first, chain[::2] + 1)


def test_a_view_has_room_for_bits_and_colours() -> None:
    assert VIEW_BYTES == HASH_BYTES + 27

"""The sample order keeps its laws, for any sizes of blocks and any number of streams."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import RunOrder, split_repeats
from pipeline.data.streams.train import Division, share_of
from pipeline.keyed_random import Permutation, derive_key, few_uniforms, mix, permutation, uniforms

BLOCKS = st.lists(st.integers(1, 9), min_size=1, max_size=40)


def one_corpus(block_samples: np.ndarray, *, seed: int, num_streams: int, repeats: int = 1) -> RunOrder:
    return RunOrder([block_samples], weights=[1.0], seed=seed, num_streams=num_streams, repeats=repeats)


def samples_at(order: RunOrder, positions: np.ndarray, corpus: int = 0) -> np.ndarray:
    located = order.locate(positions)
    assert (located.corpus == corpus).all()
    first = np.concatenate([[0], np.cumsum(order._orders[corpus].block_samples)])
    return first[located.block] + located.slot


@settings(max_examples=150, deadline=None)
@given(blocks=BLOCKS, streams=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_every_epoch_holds_every_sample_once(blocks: list[int], streams: int, seed: int) -> None:
    order = one_corpus(np.array(blocks), seed=seed, num_streams=streams)
    seen = samples_at(order, np.arange(3 * sum(blocks))).reshape(3, -1)
    for epoch in seen:
        assert sorted(epoch) == list(range(sum(blocks)))


@settings(max_examples=100, deadline=None)
@given(
    blocks=BLOCKS,
    streams=st.integers(1, 50),
    seed=st.integers(0, 2**32),
    repeats=st.integers(1, 4),
    start=st.integers(0, 500),
    data=st.data(),
)
def test_a_position_is_found_alone_as_among_others(
    blocks: list[int], streams: int, seed: int, repeats: int, start: int, data: st.DataObject
) -> None:
    """A resume anywhere, or a request for any subset of positions, gives the same samples."""
    orders = [one_corpus(np.array(blocks), seed=seed, num_streams=streams, repeats=repeats) for _ in range(2)]
    whole, draws = samples_at(orders[0], np.arange(start + 60)), orders[0].locate(np.arange(start + 60)).draw
    positions = np.array(data.draw(st.lists(st.integers(0, start + 59), min_size=1, max_size=20)))
    assert samples_at(orders[1], positions).tolist() == whole[positions].tolist()
    assert orders[1].locate(positions).draw.tolist() == draws[positions].tolist()


@settings(max_examples=100, deadline=None)
@given(blocks=BLOCKS, streams=st.integers(1, 50), seed=st.integers(0, 2**32), repeats=st.integers(1, 5))
def test_every_epoch_holds_every_sample_as_often_as_it_is_repeated(
    blocks: list[int], streams: int, seed: int, repeats: int
) -> None:
    """Each time under another draw, in the order of a run without repeats; and all copies within 2 k positions."""
    num_samples = sum(blocks)
    order = one_corpus(np.array(blocks), seed=seed, num_streams=streams, repeats=repeats)
    positions = np.arange(
        2 * repeats * num_samples
    )  # two epochs: where an epoch is odd, its last pair has the next one's first
    located, samples = order.locate(positions), samples_at(order, positions)
    seen = sorted(zip(located.epoch.tolist(), samples.tolist(), located.draw.tolist(), strict=True))
    assert seen == [(e, s, d) for e in range(2) for s in range(num_samples) for d in range(repeats)]
    once = samples_at(one_corpus(np.array(blocks), seed=seed, num_streams=streams), np.arange(2 * num_samples))
    for draw in range(repeats):
        assert samples[located.draw == draw].tolist() == once.tolist()


@given(first=st.integers(0, 2**40), repeats=st.integers(1, 9))
def test_copies_are_near_and_never_paired(first: int, repeats: int) -> None:
    positions = 2 * repeats * first + np.arange(6 * repeats)
    images, draws = split_repeats(positions, repeats=repeats)
    expected = [(2 * (first + pair) + k % 2, k // 2) for pair in range(3) for k in range(2 * repeats)]
    assert list(zip(images.tolist(), draws.tolist(), strict=True)) == expected
    assert (images[0::2] != images[1::2]).all()
    for image in set(images.tolist()):
        places = positions[images == image]
        assert places[-1] - places[0] == 2 * (repeats - 1)


def test_without_repeats_positions_are_as_they_are() -> None:
    positions = np.array([0, 1, 2, 3, 1000, 2**40 + 1])
    images, draws = split_repeats(positions, repeats=1)
    assert images.tolist() == positions.tolist()
    assert not draws.any()


@settings(max_examples=100, deadline=None)
@given(
    world=st.integers(1, 16),
    accumulation=st.integers(1, 3),
    workers=st.integers(0, 5),
    step=st.integers(0, 9),
)
def test_ranks_and_workers_only_divide_a_batch(world: int, accumulation: int, workers: int, step: int) -> None:
    parts = []
    for rank in range(world):
        division = Division(global_batch_size=48, rank=rank, world_size=world, accumulation_steps=accumulation)
        for micro_step in range(accumulation):
            positions = division.positions(step=step, micro_step=micro_step)
            assert 1 <= len(positions) <= division.micro_batch_size < len(positions) + 3
            parts += [positions[share_of(len(positions), part=n, num_parts=max(1, workers))] for n in range(max(1, workers))]
    assert np.concatenate(parts).tolist() == list(range(48 * step, 48 * (step + 1)))


def test_epochs_and_seeds_differ() -> None:
    blocks = np.full(40, 8)
    orders = [samples_at(one_corpus(blocks, seed=seed, num_streams=16), np.arange(640)) for seed in (0, 1)]
    rows = [orders[0][:320], orders[0][320:], orders[1][:320]]
    for i, first in enumerate(rows):
        for second in rows[i + 1 :]:
            assert (first == second).mean() < 0.05  # two random permutations of 320 agree in one place on average


def test_neighbours_come_from_different_blocks() -> None:
    order = one_corpus(np.full(64, 16), seed=0, num_streams=32)
    for start in range(0, 32 * 31, 32):
        assert len(set(order.locate(np.arange(start, start + 32)).block)) == 32


def test_a_rank_reads_each_block_alone_when_streams_equal_the_batch() -> None:
    order = one_corpus(np.full(64, 16), seed=0, num_streams=32)
    readers: dict[int, set[int]] = {}
    for step in range(32):
        for rank in range(4):
            division = Division(global_batch_size=32, rank=rank, world_size=4, accumulation_steps=1)
            for block in order.locate(division.positions(step=step, micro_step=0)).block:
                readers.setdefault(int(block), set()).add(rank)
    assert len(readers) == 64
    assert all(len(ranks) == 1 for ranks in readers.values())


def test_the_order_is_pinned() -> None:
    """A run must resume under a later version of this software: these numbers never change."""
    order = one_corpus(np.array([4, 4, 3, 4, 2]), seed=7, num_streams=3)
    assert samples_at(order, np.arange(20)).tolist() == PINNED_ORDER
    assert derive_key(1, 2, 3) == PINNED_KEY
    assert permutation(42, 8).tolist() == PINNED_PERMUTATION
    assert Permutation(42, 100_000)(np.arange(6)).tolist() == PINNED_NETWORK


PINNED_ORDER = [10, 13, 15, 9, 11, 1, 8, 12, 0, 7, 16, 2, 6, 5, 3, 4, 14, 9, 1, 14]
PINNED_NETWORK = [68067, 85762, 34180, 78071, 64462, 31137]
PINNED_KEY = 15020427595393229491
PINNED_PERMUTATION = [2, 6, 3, 0, 7, 1, 4, 5]


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 5000), key=st.integers(0, 2**64 - 1), is_sorted=st.booleans())
def test_a_computed_permutation_holds_every_number_once_and_can_be_inverted(length: int, key: int, is_sorted: bool) -> None:
    shuffled = make_permutation(key, length, is_sorted=is_sorted)
    values = shuffled(np.arange(length))
    assert np.bincount(values, minlength=length).tolist() == [1] * length
    assert shuffled.inverse(values).tolist() == list(range(length))


def make_permutation(key: int, length: int, *, is_sorted: bool) -> Permutation:
    class Chosen(Permutation):
        SORTED_UP_TO = 10**9 if is_sorted else 0

    return Chosen(key, length)


def test_a_network_mixes_as_a_random_permutation_does() -> None:
    """Lengths are around powers of two, where it walks most: displacement, fixed points, and ties between neighbours."""
    for length in (1023, 1024, 1025, 3000):
        drawn = [make_permutation(key, length, is_sorted=False)(np.arange(length)) for key in range(200)]
        assert np.mean([np.abs(values - np.arange(length)).mean() for values in drawn]) == pytest.approx(length / 3, rel=0.01)
        assert np.mean([(values == np.arange(length)).sum() for values in drawn]) == pytest.approx(1, abs=0.25)
        assert np.mean([np.corrcoef(values[:-1], values[1:])[0, 1] for values in drawn]) == pytest.approx(0, abs=0.01)
        # Every value is as likely at the first index as any other: chi-squared over 16 bins of the first 64 indices.
        counts, _ = np.histogram(np.concatenate([values[:64] for values in drawn]), bins=16, range=(0, length))
        assert ((counts - 800) ** 2 / 800).sum() < 37.7  # 15 degrees of freedom, p = 0.001


def test_a_corpus_of_ten_million_blocks_costs_what_its_streams_cost() -> None:
    """With 300 M samples, one worker of a 4,096-wide batch finds its samples without the whole permutation in memory."""
    block_samples = np.full(9_400_000, 32, np.uint8)
    block_samples[::313] = 7  # the last block of each shard
    tracemalloc.start()
    order = one_corpus(block_samples, seed=0, num_streams=4096)
    before, _ = tracemalloc.get_traced_memory()
    located = order.locate(10**9 + np.arange(64))
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(located.block)) == 64
    assert after - before < 4e6
    assert peak - before < 16e6


def test_streams_need_their_next_blocks_at_different_times() -> None:
    order = one_corpus(np.full(512, 32), seed=0, num_streams=64)
    blocks = order.locate(np.arange(64 * 200)).block.reshape(200, 64)
    changes = (blocks[1:] != blocks[:-1]).sum(axis=1)
    assert changes.mean() == pytest.approx(2, abs=0.3)
    assert changes.max() <= 10  # 64, were they in step


def test_mix_is_splitmix64() -> None:
    # First outputs for seed 0, from the reference implementation at https://prng.di.unimi.it/splitmix64.c.
    state = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(value) for value in mix(state)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


@given(key=st.integers(0, 2**64 - 1), count=st.integers(0, 20))
def test_few_uniforms_are_the_first_of_many(key: int, count: int) -> None:
    assert few_uniforms(key, count) == uniforms(key, 20)[:count].tolist()


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    values = np.array([uniforms(derive_key(0, 3, 0, sample), 2) for sample in range(4000)])
    assert values.min() >= 0
    assert values.max() < 1
    assert values.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.02)
    histogram, _ = np.histogram(values[:, 0], bins=10, range=(0, 1))
    assert ((histogram - 400) ** 2 / 400).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.05


def test_a_permutation_mixes_as_a_random_one_does() -> None:
    """The mean displacement of a random permutation of n is n / 3, and the number of fixed points is about 1."""
    displaced = np.mean([np.abs(permutation(key, 300) - np.arange(300)).mean() for key in range(200)])
    fixed = np.mean([(permutation(key, 300) == np.arange(300)).sum() for key in range(200)])
    assert displaced == pytest.approx(100, rel=0.03)
    assert fixed == pytest.approx(1, abs=0.25)

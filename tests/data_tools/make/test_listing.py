"""A listing holds what was added, joined, chosen, stored and read again; a damaged one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.make.sources.concatenate import concatenate
from data_tools.make.sources.listing import Member, load_listing
from data_tools.make.sources.listing_builder import ListingBuilder
from pipeline.errors import DataError

several_labels = st.lists(st.integers(0, 9), max_size=3, unique=True)


member = st.tuples(st.sampled_from(["jpg", "cls", "json"]), st.integers(0, 99), st.integers(0, 2000))


samples = st.lists(st.tuples(st.text(max_size=5), several_labels, st.lists(member, max_size=3)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(samples, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_a_listing_is_what_was_added(tmp_path_factory: pytest.TempPathFactory, parts: list[Any], random: Any) -> None:
    """Joined, chosen from, stored and read again, the arrays say what plain tuples say."""
    listings, expected = [], []
    for number, part in enumerate(parts):
        builder = ListingBuilder()
        for name, labels, members in part:
            builder.add(name, labels=labels, members=[Member(kind, 0, start, length) for kind, start, length in members])
            expected.append((name, labels, [(kind, f"{number}.tar", start, length) for kind, start, length in members]))
        listings.append(builder.build(layout="ranges", files=(f"{number}.tar",)))
    joined = concatenate(listings)
    order = random.sample(range(len(expected)), random.randint(0, len(expected)))
    path = tmp_path_factory.mktemp("listing") / "x"
    joined.take(np.array(order, np.int64)).save(path)
    chosen = load_listing(path)
    found = [chosen.sample(i) for i in range(len(chosen))]
    as_tuples = [(s.name, s.labels, [(m.extension, chosen.files[m.file], m.start, m.length) for m in s.members]) for s in found]
    assert as_tuples == [expected[i] for i in order]
    of_members = [sum(512 + -(-length // 512) * 512 for _, _, _, length in expected[i][2]) for i in order]
    of_labels = [1024 if expected[i][1] else 0 for i in order]
    assert chosen.tar_bytes().tolist() == [a + b for a, b in zip(of_members, of_labels, strict=True)]


@pytest.mark.parametrize("offset", [-1, -60, 40])
def test_a_listing_with_a_byte_changed_is_refused(offset: int, tmp_path: Path) -> None:
    builder = ListingBuilder()
    builder.add("a", labels=[1], members=[Member("png", 0, 0, 9)])
    builder.build(layout="ranges", files=("x.tar",)).save(tmp_path / "x")
    data = bytearray((tmp_path / "x").read_bytes())
    data[offset] ^= 1
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DataError, match="x is damaged"):
        load_listing(tmp_path / "x")

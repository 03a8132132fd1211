"""Slurm's short forms of nodes and tasks are expanded as Slurm means them, and others are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.launch.slurm_lists import expand_nodes, first_node, parse_tasks_per_node


@pytest.mark.parametrize(
    ("listing", "counts"), [("8", [8]), ("2(x3)", [2, 2, 2]), ("2(x3),1", [2, 2, 2, 1]), ("1,4(x2),3", [1, 4, 4, 3])]
)
def test_tasks_per_node(listing: str, counts: list[int]) -> None:
    assert parse_tasks_per_node(listing) == counts


@pytest.mark.parametrize(
    ("listing", "first", "count"),
    [
        ("n1", "n1", 1), ("n[1-3,7]", "n1", 4), ("gpu007,gpu009", "gpu007", 2), ("gpu[007-008]", "gpu007", 2),
        ("n[7,1-3]", "n7", 4), ("rack[0-1]n[03-04]", "rack0n03", 4), ("a-b[1-2]-c,login", "a-b1-c", 3),
        ("n[098-101]", "n098", 4),
    ],
)  # fmt: skip
def test_lists_of_nodes(listing: str, first: str, count: int) -> None:
    assert (expand_nodes(listing)[0], len(expand_nodes(listing))) == (first, count)
    assert first_node(listing) == first


@pytest.mark.parametrize("listing", ["", "0", "a", "2(x)", "2(3)", "1,,2", "-1", "2(x3"])
def test_other_forms_are_refused(listing: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_tasks_per_node(listing)


@given(
    st.from_regex(r"[a-z][a-z-]{0,5}", fullmatch=True),
    st.lists(st.tuples(st.integers(0, 950), st.integers(0, 40)), min_size=1, max_size=4),
    st.integers(3, 5),
)
def test_ranges_are_expanded_with_their_zeros(prefix: str, ranges: list[tuple[int, int]], digits: int) -> None:
    parts = [f"{first:0{digits}d}-{first + more:0{digits}d}" for first, more in ranges]
    names = [f"{prefix}{number:0{digits}d}" for first, more in ranges for number in range(first, first + more + 1)]
    listing = f"{prefix}[{','.join(parts)}]"
    assert expand_nodes(listing) == names
    assert first_node(listing) == names[0]

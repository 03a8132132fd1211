"""Tests of differences are those of scipy."""

from __future__ import annotations

import random

import pytest

from pipeline.compare.statistics import compare_pairs, compare_proportions, correct, student_tails, wilson

stats = pytest.importorskip("scipy.stats")

SIZES = [(3, 5, 10, 10), (812, 845, 1000, 1000), (49, 50, 50, 50), (0, 4, 2000, 1500), (25_000, 25_400, 50_000, 50_000)]


@pytest.mark.parametrize(("a", "b", "count_a", "count_b"), SIZES)
def test_two_proportions_are_tested_as_a_table_of_two_by_two(a: int, b: int, count_a: int, count_b: int) -> None:
    table = [[a, count_a - a], [b, count_b - b]]
    found = compare_proportions(a / count_a, b / count_b, count_a=count_a, count_b=count_b)
    assert found.p == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue, rel=1e-9)
    assert found.low < b / count_b - a / count_a < found.high


@pytest.mark.parametrize(("count", "of"), [(0, 10), (3, 10), (10, 10), (4211, 5000)])
def test_the_interval_of_a_proportion_is_wilsons(count: int, of: int) -> None:
    expected = stats.binomtest(count, of).proportion_ci(method="wilson")
    assert wilson(count / of, count=of) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


def test_the_interval_of_a_difference_is_that_of_newcombes_table() -> None:
    """Newcombe 1998, table II, method 10: 56/70 - 48/80, 9/10 - 3/10, 10/10 - 0/20."""
    for a, b, low, high in [
        ((48, 80), (56, 70), 0.0524, 0.3339),
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((0, 20), (10, 10), 0.6791, 1.0),
    ]:
        found = compare_proportions(a[0] / a[1], b[0] / b[1], count_a=a[1], count_b=b[1])
        assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_equal_proportions_do_not_differ() -> None:
    assert compare_proportions(1.0, 1.0, count_a=10, count_b=10).p == 1.0
    assert compare_proportions(0.3, 0.3, count_a=10, count_b=10).p == 1.0


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_pairs_are_tested_by_students_t(count: int) -> None:
    draw = random.Random(count)
    a, b = ([draw.gauss(mean, 0.02) for _ in range(count)] for mean in (0.5, 0.52))
    expected = stats.ttest_rel(b, a)
    interval = expected.confidence_interval(0.95)
    found = compare_pairs([y - x for x, y in zip(a, b, strict=True)])
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-8)


@pytest.mark.parametrize("freedom", [1, 2, 9, 200])
@pytest.mark.parametrize("t", [0.0, 0.01, 1.0, 4.3, 40.0])
def test_the_tails_are_those_of_students_distribution(t: float, freedom: int) -> None:
    assert student_tails(t, freedom=freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-8, abs=1e-300)


def test_one_pair_and_pairs_without_spread_say_nothing() -> None:
    assert compare_pairs([0.1]) is None
    assert compare_pairs([0.1, 0.1, 0.1]) is None


def test_several_p_values_are_corrected_as_the_r_manual_does() -> None:
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert correct([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct([]) == []

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from compresslens.statistics import bootstrap_interval, holm, mcnemar_p, seeds_interval, seeds_mean, wilcoxon_p

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (5, 0), (3, 9), (6, 6), (20, 4)])
def test_mcnemar_is_a_coin_toss_over_the_disagreements(only_first, only_second):
    a = [True] * only_first + [False] * only_second + [True] * 7 + [False] * 3
    b = [False] * only_first + [True] * only_second + [True] * 7 + [False] * 3
    n = only_first + only_second
    chances = [math.comb(n, k) * 0.5**n for k in range(n + 1)]
    expected = sum(chance for chance in chances if chance <= chances[only_first] * (1 + 1e-9))
    assert mcnemar_p(a, b) == pytest.approx(min(expected, 1))
    assert mcnemar_p(b, a) == pytest.approx(mcnemar_p(a, b))


def wilcoxon_reference(differences):
    """All 2^n assignments of signs to the ranks of |d|; ranks count zeros, whose own are then dropped (Pratt)."""
    sizes = np.abs(differences)
    ranks = np.array([(sizes < size).sum() + ((sizes == size).sum() + 1) / 2 for size in sizes])
    kept, signs = ranks[sizes > 0], np.sign(differences[sizes > 0])
    observed = abs((kept * signs).sum())
    totals = [abs((kept * np.array(s)).sum()) for s in itertools.product((-1, 1), repeat=len(kept))]
    return np.mean([total >= observed - 1e-9 for total in totals])


def test_wilcoxon_equals_counting_all_signs():
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.5, 1, 11), np.zeros(11)
    assert wilcoxon_p(a, b) == pytest.approx(wilcoxon_reference(a), abs=1e-9)


def test_failed_attacks_rank_above_all_distances():
    finite = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    theirs = finite - 0.5
    ours = finite.copy()
    ours[3] = np.inf
    as_large = ours.copy()
    as_large[3] = 1e6
    assert wilcoxon_p(ours, theirs) == wilcoxon_p(as_large, theirs)
    assert wilcoxon_p([np.inf, np.inf], [np.inf, np.inf]) == 1
    assert wilcoxon_p([np.inf] * 8, finite) < 0.05
    with pytest.raises(ValueError, match="NaN"):
        wilcoxon_p([np.nan, 1], [1, 1])


@given(P_VALUES)
def test_holm_equals_its_definition(p_values):
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    expected, running = [0.0] * len(p_values), 0.0
    for step, index in enumerate(order):
        running = max(running, (len(p_values) - step) * p_values[index])
        expected[index] = min(running, 1.0)
    assert holm(p_values) == pytest.approx(expected)


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.5, 1.2])


def test_one_seed_has_the_plain_interval_and_equal_seeds_none_between():
    values = np.random.default_rng(0).normal(size=50)
    assert seeds_interval([values]) == bootstrap_interval(values)
    assert seeds_interval([np.ones(5), np.ones(7)]) == (1, 1)
    with pytest.raises(ValueError, match="no seeds"):
        seeds_interval([])


def test_seeds_that_differ_widen_the_interval():
    generator = np.random.default_rng(0)
    alike = [generator.normal(0, 1, 200) for _ in range(3)]
    apart = [group + shift for group, shift in zip(alike, (-0.5, 0, 0.5), strict=True)]
    narrow, wide = (np.diff(seeds_interval(groups))[0] for groups in (alike, apart))
    assert wide > 4 * narrow


def test_many_samples_of_seeds_that_differ_are_as_good_as_their_means():
    groups = [np.full(10_000, value) for value in (0.1, 0.4, 0.2, 0.5)]
    means = np.array([0.1, 0.4, 0.2, 0.5])
    half = 3.18244630528 * means.std(ddof=1) / 2  # Student's t with 3 degrees of freedom
    assert seeds_interval(groups) == pytest.approx((means.mean() - half, means.mean() + half))


@pytest.mark.parametrize(("seeds", "between"), [(2, 0.1), (2, 0.5), (3, 0.0), (3, 0.5), (10, 0.3)])
@pytest.mark.parametrize("shared", [0.0, 2.0], ids=["own samples", "shared samples"])
def test_coverage_by_simulation(seeds, between, shared):
    """Intervals called 95 % hold the truth in nearly as many cases, whether seeds differ, and share samples, or not."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        effects = generator.normal(0, shared, 100)
        groups = [generator.normal(0, between) + effects + generator.normal(0, 1, 100) for _ in range(seeds)]
        low, high = seeds_interval(groups, [np.arange(100)] * seeds if shared else None)
        held += low <= 0 <= high
    assert 0.88 < held / 1000 < 0.98


def test_the_parts_of_the_variance_by_hand():
    """Two seeds that share two of three samples."""
    groups, samples = [np.array([1.0, 4.0]), np.array([2.0, 3.0])], [np.array([0, 1]), np.array([1, 2])]
    found = seeds_mean(groups, samples)
    residuals = {(0, 0): -1.5, (0, 1): 1.5, (1, 1): -0.5, (1, 2): 0.5}
    of_samples = ((-1.5 / 4) ** 2) + ((1.5 - 0.5) / 4) ** 2 + (0.5 / 4) ** 2
    middle = (residuals[0, 1] + residuals[1, 1]) / 2
    left = (1.5**2 + 2 * (1.5 - middle) ** 2 + 2 * (-0.5 - middle) ** 2 + 0.5**2) / 16
    between = np.var([2.5, 2.5], ddof=1) / 2
    assert between < left
    assert (found.value, found.variance) == pytest.approx((2.5, of_samples))
    apart = seeds_mean([groups[0], groups[1] + 10], samples)
    between = np.var([2.5, 12.5], ddof=1) / 2
    assert apart.variance == pytest.approx(of_samples + between - left)
    assert apart.freedom == pytest.approx(1, abs=0.1)
    assert apart.p == pytest.approx(2 * student.sf(7.5 / apart.variance**0.5, apart.freedom))


def test_identities_of_samples_must_be_as_many():
    with pytest.raises(ValueError, match="identity"):
        seeds_mean([[1.0, 2.0]], [[0]])

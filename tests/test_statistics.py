"""Statistics against other programs, and the bootstrap against its definition."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as hs
from scipy import stats

from saqm import statistics as st
from saqm.errors import UndefinedScore

REFERENCE = json.loads((Path(__file__).parent / "reference" / "statistics.json").read_text(encoding="utf-8"))


# Statistics


@pytest.mark.parametrize("case", REFERENCE["correlations"], ids=lambda case: case["name"])
@pytest.mark.parametrize("statistic", ["srocc", "plcc", "krocc"])
def test_correlations_equal_other_programs(case: dict[str, object], statistic: str) -> None:
    if statistic in case:
        found = getattr(st, statistic)(case["x"], case["y"])
        assert found == pytest.approx(case[statistic], abs=case.get("tolerance", 1e-12))


@given(hs.lists(hs.tuples(hs.integers(-3, 3), hs.integers(-3, 3)), min_size=3, max_size=30))
def test_srocc_equals_scipy_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = map(list, zip(*pairs, strict=True))
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert st.srocc(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert st.plcc(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)


def test_perfect_and_inverse_prediction() -> None:
    y = [1.0, 2.0, 3.0, 5.0]
    for statistic in (st.srocc, st.krocc, st.plcc):
        assert statistic(y, y) == pytest.approx(1)
        assert statistic([-v for v in y], y) == pytest.approx(-1)
    assert st.srocc(np.exp(y), y) == 1  # ranks do not know the scale
    assert st.rmse(y, y) == st.mae(y, y) == 0
    assert st.rmse([0, 0], [3, 4]) == pytest.approx(math.sqrt(12.5))
    assert st.mae([0, 0], [3, -4]) == 3.5


@pytest.mark.parametrize("statistic", [st.srocc, st.plcc, st.krocc, st.plcc_logistic])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([2, 2, 2], [1, 2, 3], r"predictions are constant \(2\)"),
        ([1, 2, 3], [4, 4, 4], r"opinions are constant \(4\)"),
        ([1, 2], [1, 2], "2 pairs; wanted 3 or more"),
        ([1, 2, math.nan], [1, 2, 3], "predictions hold 1 values that are not finite"),
        ([1, 2, 3], [1, math.inf, math.nan], "opinions hold 2 values that are not finite"),
        ([1, 2, 3], [1, 2], "not two lists of the same length"),
    ],
)
def test_a_statistic_without_value_raises(
    statistic: Callable[..., float], x: list[float], y: list[float], message: str
) -> None:
    with pytest.raises(UndefinedScore, match=message):
        statistic(x, y)


def test_errors_of_nothing_raise() -> None:
    with pytest.raises(UndefinedScore, match="0 pairs; wanted 1 or more"):
        st.rmse([], [])


def test_scenes_without_order_are_left_out_of_the_within_scene_correlation() -> None:
    found = st.srocc_by_scene([1, 2, 3, 3, 2, 1, 1, 2, 3], [1, 2, 3, 1, 2, 3, 4, 4, 4], list("aaabbbccc"))
    assert found == {"a": 1, "b": -1}


# Logistic


def test_the_logistic_is_recovered() -> None:
    truth = st.Logistic((1.2, 4.7, 55.0, 8.0))
    x = np.linspace(10, 95, 40)
    fitted = st.fit_logistic(x, truth(x))
    assert fitted.fallback is None
    assert fitted.parameters == pytest.approx(truth.parameters, rel=1e-4)
    assert st.plcc_logistic(x, truth(x)) == pytest.approx(1)
    assert truth([55.0]) == pytest.approx((1.2 + 4.7) / 2)  # half way at b3


def test_the_logistic_is_no_worse_than_the_line() -> None:
    rng = np.random.default_rng(3)
    for n in (6, 12, 60):
        x = rng.normal(size=n)
        y = x**3 + rng.normal(size=n)
        line = np.polynomial.Polynomial.fit(x, y, 1)
        assert st.rmse(st.fit_logistic(x, y)(x), y) <= st.rmse(line(x), y) + 1e-9


def test_a_line_in_place_of_the_logistic_is_reported() -> None:
    few = st.fit_logistic([1, 2, 3, 4, 5], [1, 3, 2, 4, 5])
    assert few.fallback == "5 pairs are too few for four parameters"
    assert few([1, 2, 3, 4, 5]).mean() == pytest.approx(3)
    x = np.arange(20.0)
    straight = st.fit_logistic(x, 2 * x + 1)
    assert straight.fallback == "no logistic comes closer than the straight line"
    assert straight.parameters == pytest.approx((1, 2))


def test_a_prediction_that_runs_against_the_opinions_is_not_turned_round() -> None:
    x = np.arange(20.0)
    fitted = st.fit_logistic(x, -x)
    assert np.all(np.diff(fitted(x)) >= 0)
    with pytest.raises(UndefinedScore, match="constant"):
        st.plcc_logistic(x, -x)


def test_the_logistic_does_not_overflow() -> None:
    assert st.Logistic((0.0, 1.0, 0.0, 1e-3))([-1e6, 1e6]).tolist() == [0, 1]


# Bootstrap


def test_a_weighted_replicate_is_the_repeated_sample() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 20), rng.integers(0, 6, 20)
    weights = rng.integers(0, 4, (30, 20))
    found = st.srocc_replicates(x, y, weights)
    for value, weight in zip(found, weights, strict=True):
        assert value == pytest.approx(st.srocc(np.repeat(x, weight), np.repeat(y, weight)), abs=1e-12)


def test_a_constant_replicate_is_nan_and_left_out() -> None:
    weights = np.array([[3, 0, 0], [1, 1, 1], [1, 1, 1]])
    found = st.srocc_replicates([1, 2, 3], [1, 2, 3], weights)
    assert np.isnan(found[0])
    assert st.interval(found) == (1, 1)
    assert st.interval([math.nan, math.nan, 1]) is None


def test_scenes_are_drawn_whole() -> None:
    scenes = ["a", "a", "b", "c", "c", "c"]
    weights = st.cluster_weights(scenes, replicates=500, seed=1)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()  # three scenes drawn each time
    assert weights.mean() == pytest.approx(1, abs=0.1)
    assert (weights == st.cluster_weights(scenes, replicates=500, seed=1)).all()
    assert (weights != st.cluster_weights(scenes, replicates=500, seed=2)).any()


def test_scenes_and_methods_are_drawn_apart() -> None:
    scenes, methods = ["a", "a", "b", "b"], ["x", "y", "x", "y"]
    weights = st.cluster_weights(scenes, methods, replicates=200, seed=0).reshape(-1, 2, 2)
    assert (np.linalg.matrix_rank(weights) <= 1).all()  # a product of the two
    assert (weights.sum((1, 2)) == 4).all()


def test_the_cluster_bootstrap_sees_what_images_of_one_scene_share() -> None:
    rng = np.random.default_rng(5)
    scenes = np.repeat(np.arange(12), 6)
    shared = rng.normal(size=12)[scenes]  # a shift of the prediction that a whole scene shares
    y = rng.normal(size=72)
    x = y + 1.5 * shared
    by_scene = st.srocc_replicates(x, y, st.cluster_weights(list(scenes), replicates=1000, seed=0)).std()
    by_image = st.srocc_replicates(x, y, st.cluster_weights(list(range(72)), replicates=1000, seed=0)).std()
    assert by_scene > 0
    assert by_image == pytest.approx(math.sqrt((1 + st.srocc(x, y) ** 2 / 2) / 69) * (1 - st.srocc(x, y) ** 2), rel=0.3)


def test_a_better_predictor_is_significantly_better_and_itself_is_not() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(3, 1, 60)
    good, poor = y + rng.normal(0, 0.2, 60), y + rng.normal(0, 3, 60)
    weights = st.cluster_weights([place // 5 for place in range(60)], replicates=500, seed=0)
    difference, (low, high), p = st.compare(good, poor, y, weights)
    assert low < difference < high
    assert low > 0
    assert p == pytest.approx(2 / 501)
    assert st.compare(good, good, y, weights) == (0, (0, 0), 1)


@pytest.mark.parametrize("case", REFERENCE["holm"]["cases"])
def test_holm_equals_r(case: dict[str, list[float]]) -> None:
    assert st.holm(case["p"]) == pytest.approx(case["adjusted"])
    assert st.holm(case["p"][::-1]) == pytest.approx(case["adjusted"][::-1])

"""Scores, intervals and familiarity: fitted on some scenes, true of others, and never by looking at the answer."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from saqm.calibration import (
    COVERAGE,
    UNLIKE,
    _blurred,
    cross_fitted,
    distance,
    familiarity,
    feature_statistics,
    fit_familiar,
    fit_interval,
    fit_score_map,
    held,
    interval,
    picture_statistics,
    reliability,
    to_score,
)
from saqm.errors import SaqmError
from saqm.image import from_array
from saqm.modelfile import Conformal, ScoreMap

STRAIGHT = ScoreMap(raw=(0.0, 1.0), score=(0.0, 100.0))


def readers(n: int, seed: int = 0, noise: float = 5.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Outputs, opinions that follow them on a curve with noise that grows with the spread, spreads, scenes of eight."""
    rng = np.random.default_rng(seed)
    raw, spread = rng.uniform(0.2, 0.8, n), rng.uniform(2, 20, n)
    opinions = 100 * raw**2 + noise / 8 * spread * rng.standard_normal(n)
    return raw, np.clip(opinions, 0, 100), spread, [f"scene {i // 8}" for i in range(n)]


def test_a_map_goes_through_its_knots_and_straight_on() -> None:
    curve = ScoreMap(raw=(0.0, 0.5, 1.0), score=(0.0, 20.0, 100.0))
    np.testing.assert_allclose(to_score(curve, [0, 0.25, 0.5, 0.75, 1, 1.1, -0.1]), [0, 10, 20, 60, 100, 116, -4])
    falling = ScoreMap(raw=(0.0, 2.0), score=(100.0, 0.0))
    np.testing.assert_allclose(to_score(falling, [0, 1, 3]), [100, 50, -50])


@pytest.mark.parametrize("score", [(0.0, 0.0), (0.0, 10.0, 5.0), (3.0,)])
def test_a_map_that_is_not_monotone_is_refused(score: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match=r"rises or falls all the way|are a map"):
        ScoreMap(raw=tuple(map(float, range(len(score)))), score=score)


def test_the_map_finds_the_readers_curve() -> None:
    raw, opinions, _, _ = readers(400)
    curve = fit_score_map(raw, opinions, STRAIGHT)
    at = np.linspace(0.25, 0.75, 11)
    np.testing.assert_allclose(to_score(curve, at), 100 * at**2, atol=4)


def test_the_map_keeps_the_order_even_against_the_readers() -> None:
    raw, opinions, _, _ = readers(100)
    curve = fit_score_map(raw, 100 - opinions, STRAIGHT)
    assert (np.diff(curve.score) > 0).all()
    falling = fit_score_map(-raw, opinions, ScoreMap(raw=(-1.0, 0.0), score=(100.0, 0.0)))
    assert (np.diff(falling.score) < 0).all()


def test_few_images_hardly_bend_the_map() -> None:
    raw, opinions, _, _ = readers(24)
    few, many = fit_score_map(raw, opinions, STRAIGHT), fit_score_map(*readers(800)[:2], STRAIGHT)
    apart = [abs(float(to_score(one, 0.5)) - 50) for one in (few, many)]
    assert apart[0] < apart[1]


def test_what_cannot_be_fitted_is_said() -> None:
    raw, opinions, _, scenes = readers(40)
    with pytest.raises(SaqmError, match=r"7 scored images are too few to fit a map to; give 20"):
        fit_score_map(raw[:7], opinions[:7], STRAIGHT)
    with pytest.raises(SaqmError, match=r"all 40 opinion scores are equal \(50\)"):
        fit_score_map(raw, np.full(40, 50.0), STRAIGHT)
    with pytest.raises(SaqmError, match=r"all 40 outputs of the model are equal"):
        fit_score_map(np.full(40, 0.5), opinions, STRAIGHT)
    with pytest.raises(SaqmError, match=r"1 scene: a calibration is judged on scenes kept out"):
        cross_fitted(raw, opinions, ["only"] * 40, STRAIGHT)
    with pytest.raises(SaqmError, match=r"5 images are too few for an interval"):
        fit_interval(np.arange(5.0), np.ones(5), scenes[:5])
    with pytest.raises(SaqmError, match=r"equals its opinion exactly"):
        fit_interval(np.zeros(40), np.ones(40), scenes)


def test_no_score_has_seen_its_own_scenes_opinions() -> None:
    raw, opinions, _, scenes = readers(80)
    own = np.array(scenes) == "scene 3"
    changed = np.where(own, 100 - opinions, opinions)
    before, after = (cross_fitted(raw, y, scenes, STRAIGHT) for y in (opinions, changed))
    np.testing.assert_array_equal(before[own], after[own])
    assert not np.allclose(before[~own], after[~own])


def test_intervals_hold_what_they_promise_for_new_images() -> None:
    raw, opinions, spread, scenes = readers(400)
    errors = opinions - cross_fitted(raw, opinions, scenes, STRAIGHT)
    conformal = fit_interval(errors, spread, scenes)
    assert conformal.coverage == COVERAGE
    assert (conformal.images, conformal.scenes) == (400, 50)
    new_raw, new_opinions, new_spread, _ = readers(2000, seed=1)
    scores = to_score(fit_score_map(raw, opinions, STRAIGHT), new_raw)
    bounds = np.array([interval(conformal, s, u) for s, u in zip(scores, new_spread, strict=True)])
    inside = (bounds[:, 0] <= new_opinions) & (new_opinions <= bounds[:, 1])
    assert 0.87 < inside.mean() < 0.93
    for part in (new_spread < 8, new_spread > 14):  # normalised: not only in the mean
        assert 0.83 < inside[part].mean() < 0.97


def test_groups_that_are_harder_get_wider_intervals() -> None:
    raw, opinions, spread, scenes = readers(400)
    groups = ["hard" if i % 16 < 8 else "easy" for i in range(400)]
    rng = np.random.default_rng(3)
    opinions = np.clip(opinions + np.where(np.array(groups) == "hard", 15, 0) * rng.standard_normal(400), 0, 100)
    alike, _ = held(raw, opinions, spread, scenes, STRAIGHT)
    apart, width = held(raw, opinions, spread, scenes, STRAIGHT, groups=groups)
    hard = np.array(groups) == "hard"
    assert alike[hard].mean() < 0.86
    assert alike[~hard].mean() > 0.95
    assert abs(apart[hard].mean() - 0.9) < 0.05
    assert abs(apart[~hard].mean() - 0.9) < 0.05
    assert width[hard].mean() > 1.5 * width[~hard].mean()
    conformal = fit_interval(np.where(hard, 10.0, 2.0) * rng.standard_normal(400), spread, scenes, groups=groups)
    assert conformal.by_group["easy"] < conformal.reach < conformal.by_group["hard"]
    assert interval(conformal, 50, 5, "hard")[1] > interval(conformal, 50, 5)[1] > interval(conformal, 50, 5, "easy")[1]
    assert interval(conformal, 50, 5, "neither") == interval(conformal, 50, 5)


def test_an_interval_grows_with_the_spread_and_stays_on_the_scale() -> None:
    conformal = Conformal(coverage=0.9, reach=2.0, base=3.0, per_spread=0.5, images=50, scenes=9)
    assert interval(conformal, 50, 0) == (44, 56)
    assert interval(conformal, 50, 10) == (34, 66)
    assert interval(conformal, 99, 10) == (83, 100)


def test_coverage_is_measured_on_scenes_kept_out() -> None:
    raw, opinions, spread, scenes = readers(160)
    inside, width = held(raw, opinions, spread, scenes, STRAIGHT)
    assert 0.82 < inside.mean() < 0.97
    assert (width > 0).all()
    own = np.array(scenes) == "scene 2"
    wild = np.where(own, 100 - opinions, opinions)
    np.testing.assert_array_equal(held(raw, wild, spread, scenes, STRAIGHT)[1][own], width[own])


def test_reliability_is_of_equal_parts() -> None:
    raw, opinions, _, _ = readers(100)
    bins = reliability(100 * raw, opinions)
    assert [one["n"] for one in bins] == [20] * 5
    assert [one["opinion"] for one in bins] == sorted(one["opinion"] for one in bins)


def known_images(seed: int = 0, n: int = 200) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    groups = ["a" if i % 2 else "b" for i in range(n)]
    numbers = rng.standard_normal((n, 16)) * np.linspace(0.5, 3, 16) + np.array(
        [[8.0 if g == "a" else 0.0] for g in groups]
    )
    return numbers, groups


def kept_out(numbers: np.ndarray, groups: list[str]) -> dict[str, list[float]]:
    half = fit_familiar(numbers[:100], groups[:100], "picture", {})
    away = [(g, distance(half, one)[g]) for g, one in zip(groups[100:], numbers[100:], strict=True)]
    return {name: [d for g, d in away if g == name] for name in ("a", "b")}


def test_new_images_of_a_known_kind_are_rarely_flagged_and_others_are() -> None:
    numbers, groups = known_images()
    known = {"picture": fit_familiar(numbers, groups, "picture", kept_out(numbers, groups))}
    new, _ = known_images(1, 400)
    found = [familiarity(known, {"picture": one}) for one in new]
    assert np.mean([one.flag for one in found]) < 2 * UNLIKE
    between = familiarity(known, {"picture": np.full(16, 4.0)})  # far from both, although it is their mean
    assert between.flag
    assert between.statistic > 1
    assert between.p < UNLIKE
    assert distance(known["picture"], numbers[1])["a"] < distance(known["picture"], numbers[1])["b"]


def test_the_less_alike_view_decides() -> None:
    numbers, groups = known_images()
    one = fit_familiar(numbers, groups, "picture", kept_out(numbers, groups))
    likeness = familiarity({"picture": one, "features": one}, {"picture": numbers[0], "features": numbers[0] + 50})
    assert likeness.view == "features"
    assert likeness.flag
    assert familiarity({"picture": one}, {"picture": numbers[0]}).group == groups[0]


def test_numbers_of_another_model_are_refused() -> None:
    numbers, groups = known_images()
    known = fit_familiar(numbers, groups, "picture", {})
    with pytest.raises(SaqmError, match=r"9 numbers of an image where the calibration knows 16"):
        distance(known, np.ones(9))
    with pytest.raises(SaqmError, match=r"knows no images to compare with"):
        familiarity({}, {})


def test_picture_statistics_tell_inversion_and_clipping_and_not_air() -> None:
    rng = np.random.default_rng(0)
    body = np.zeros((96, 96), np.float32)
    body[16:80, 16:80] = 90 + 40 * (rng.random((64, 64)) > 0.8) + 5 * rng.standard_normal((64, 64))
    mask = body > 0
    here = picture_statistics(from_array(body, value_range=(0, 255), mask=mask))
    padded = np.pad(body, 32)
    wider = picture_statistics(from_array(padded, value_range=(0, 255), mask=np.pad(mask, 32)))
    np.testing.assert_allclose(wider, here, atol=0.02)
    inverted = picture_statistics(from_array(255 - body, value_range=(0, 255), mask=mask))
    assert inverted[9] == pytest.approx(-here[9], abs=1e-3)  # skewness
    assert inverted[10] > here[10] + 5  # white air
    clipped = picture_statistics(from_array(np.minimum(body, 100) * 2.55, value_range=(0, 255), mask=mask))
    assert clipped[8] > here[8] + 1  # share of white, log 10


def test_features_are_told_by_mean_and_spread() -> None:
    made = feature_statistics(np.array([[1.0, 2.0], [3.0, 2.0]]))
    np.testing.assert_allclose(made, [2, 2, 1, 0])


@pytest.mark.parametrize("shape", [(64, 64), (37, 101), (5, 3)])
def test_blurred_is_what_a_gaussian_filter_gives(shape: tuple[int, int]) -> None:
    from scipy import ndimage

    grey = 255 * np.random.default_rng(1).random(shape, np.float32)
    for sigma, found in zip((1, 3, 8), _blurred(grey, (1, 3, 8)), strict=True):
        np.testing.assert_allclose(found, ndimage.gaussian_filter(grey.astype(np.float64), sigma), atol=2e-3)

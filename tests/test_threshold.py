"""Thresholds from data: the rule, its promise, and what is said where the data do not bear one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saqm.errors import ManifestError, UndefinedScore
from saqm.evaluate import Evaluation, Orientation
from saqm.gating import gate
from saqm.manifest import Row, Scale
from saqm.threshold import (
    Choice,
    auc_replicates,
    choose_thresholds,
    clopper_pearson_upper,
    shortest_between,
    units_for_confidence,
    units_for_promise,
)

PERCENT = Scale(0, 100)


def evaluation(
    predictions: Sequence[float], opinions: Sequence[float], scenes: Sequence[object] | None = None, **more: Any
) -> Evaluation:
    names = range(len(opinions)) if scenes is None else scenes
    rows = tuple(
        Row(Path(f"{place}.png"), float(opinion), str(scene))
        for place, (opinion, scene) in enumerate(zip(opinions, names, strict=True))
    )
    return Evaluation((), (), "made for a test", 0, 0, rows=rows, predictions=tuple(map(float, predictions)), **more)


def chosen(predictions: Sequence[float], opinions: Sequence[float], **options: Any) -> Choice:
    scenes, scale, more = (
        options.pop(name, default) for name, default in (("scenes", None), ("scale", PERCENT), ("more", {}))
    )
    options = {"bad_below": 50, "miss_at_most": 0.25, "seed": 0, "replicates": 50, **options}
    return choose_thresholds(evaluation(predictions, opinions, scenes, **more), scale, **options)


BAD, GOOD = [20] * 7, [80] * 5  # opinions
BAD_SCORES, GOOD_SCORES = [10, 20, 30, 40, 50, 55.25, 90], [45, 55.3, 70, 80, 95]


# The rule


def test_the_lowest_threshold_that_the_rule_allows_is_taken() -> None:
    # Of 7 bad ones (m + 1) / (7 + 1) <= 0.25 allows 1 miss: that of score 90. So 55.25 must not pass, and 55.3 may.
    choice = chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD])
    assert choice.pass_at == 55.3
    assert (choice.missed.count, choice.missed.of) == (1, 7)
    assert (choice.reviewed.count, choice.reviewed.of) == (7, 12)  # six bad ones and the good one of 45
    assert (choice.passed_good.count, choice.passed_good.of) == (4, 5)
    assert choice.fail_below is None
    assert chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD], miss_at_most=0.24).pass_at > 90


def test_the_second_threshold_is_chosen_in_the_same_way_from_the_good_ones() -> None:
    # Of 5 good ones (f + 1) / (5 + 1) <= 0.34 allows 1 false fail: that of score 45. 55.3 must not fail.
    choice = chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD], false_fail_at_most=0.34)
    assert choice.fail_below == 55.3
    assert choice.failed_good is not None
    assert (choice.failed_good.count, choice.failed_good.of) == (1, 5)
    apart = chosen([*range(7), *range(90, 95)], [*BAD, *GOOD], false_fail_at_most=0.34)
    assert apart.fail_below == apart.pass_at == 6, "never above what passes"


def test_the_thresholds_do_in_a_gate_what_the_choice_says() -> None:
    scores = [*BAD_SCORES, *GOOD_SCORES]
    choice = chosen(scores, [*BAD, *GOOD], false_fail_at_most=0.34)
    model = {"name": "m"}
    records = [{"path": "x", "status": "scored", "score": score, "model": model} for score in scores]
    verdicts = [gate(record, choice.thresholds)["verdict"] for record in records]
    assert verdicts.count("pass") == choice.reviewed.of - choice.reviewed.count
    assert verdicts[:7].count("pass") == choice.missed.count
    assert choice.failed_good is not None
    assert verdicts[7:].count("fail") == choice.failed_good.count


def test_equal_scores_stand_and_fall_together() -> None:
    choice = chosen([10, 10, 10, 10, 60, 60, 60, 10, 70], [20] * 7 + [80] * 2)
    assert (choice.missed.count, choice.pass_at) == (0, 70)


def test_the_misses_of_a_scene_count_one_together() -> None:
    # Eight scenes of two bad images allow (m + 1) / 9 <= 0.25, 1.25 scenes: both images of one, but not of two.
    scores = [scene * 10.0 + copy for scene in range(8) for copy in range(2)] + [5, 76.5]
    opinions, scenes = [20] * 16 + [80] * 2, [scene for scene in range(8) for _ in range(2)] + [8, 9]
    by_scene = chosen(scores, opinions, scenes=scenes)
    assert (by_scene.missed.count, by_scene.units, by_scene.unit) == (2, 8, "scene")
    by_image = chosen(scores, opinions, scenes=scenes, unit="image")
    assert (by_image.missed.count, by_image.units) == (3, 16)
    assert by_image.pass_at < by_scene.pass_at


def test_the_promise_is_kept_in_the_mean_and_not_by_holding_everything_back() -> None:
    rng = np.random.default_rng(3)
    missed = []
    for _ in range(100):
        bad, good = rng.normal(45, 15, 20), rng.normal(65, 15, 5)
        choice = chosen([*bad, *good], [20] * 20 + [80] * 5, miss_at_most=0.1, replicates=2)
        chance = 0.5 * math.erfc((choice.pass_at - 45) / 15 / math.sqrt(2))  # of a new bad image to pass
        missed.append(chance)
    error = float(np.std(missed)) / 10
    assert np.mean(missed) < 0.1 + 3 * error  # 1 miss of 20 is allowed; the 2 that are a tenth of 20 would give 3 / 21
    assert np.mean(missed) > 1 / 21  # none would be allowed; in between, for the threshold is rounded up to be short


# Scales and directions


def test_the_threshold_is_on_the_scores_scale_whatever_the_opinions() -> None:
    opinions = [1 + 4 * value / 100 for value in (*BAD, *GOOD)]
    predictions = [1 + 4 * value / 100 for value in (*BAD_SCORES, *GOOD_SCORES)]
    choice = chosen(predictions, opinions, scale=Scale(1, 5), bad_below=3)
    assert choice.pass_at == pytest.approx(55.3, abs=0.01)
    assert choice.bad == "opinion below 3 (scale 1 to 5)"


def test_where_lower_opinions_are_better_bad_is_above() -> None:
    flipped = [100 - value for value in (*BAD, *GOOD)]
    predictions = [100 - value for value in (*BAD_SCORES, *GOOD_SCORES)]
    choice = chosen(predictions, flipped, scale=Scale(0, 100, higher_is_better=False))
    assert choice.bad == "opinion above 50 (scale 0 to 100)"
    assert choice.pass_at == pytest.approx(55.3, abs=0.01)
    assert choice.missed.count == 1


def test_a_metric_gets_thresholds_on_its_own_scale() -> None:
    own = {"orientation": Orientation.of("niqe", higher_is_better=False, scale=PERCENT)}
    values = [-score for score in (*BAD_SCORES, *GOOD_SCORES)]
    choice = chosen(values, [*BAD, *GOOD], more=own, false_fail_at_most=0.34)
    assert (choice.direction, choice.pass_at, choice.fail_below) == ("lower is better", -55.3, -55.3)
    assert choice.auc == chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD]).auc > 0.5
    assert "at or below -55.3" in choice.to_text()


# What is refused


def test_too_few_bad_images_are_told_how_many_more_it_takes() -> None:
    few = r"7 scenes with bad images are too few to promise 0\.05: that takes 19, 12 more \(and 59 .* 95% confidence\)"
    with pytest.raises(UndefinedScore, match=few + r".*allow 0\.125, which is the least that 7 can promise"):
        chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD], miss_at_most=0.05)
    assert chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD], miss_at_most=0.125).missed.count == 0
    with pytest.raises(
        UndefinedScore, match=r"5 scenes with good images are too few to promise 0\.1: that takes 9, 4 more"
    ):
        chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD], false_fail_at_most=0.1)


def test_a_threshold_needs_bad_and_good_images() -> None:
    with pytest.raises(UndefinedScore, match=r"opinion below 10 .*: none of 12 images; .* reach from 20 to 80"):
        chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD], bad_below=10)
    with pytest.raises(UndefinedScore, match="all of 12 images"):
        chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD], bad_below=99)


@pytest.mark.parametrize("share", [0, 1, -0.1, 5, math.nan])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(UndefinedScore, match=r"miss_at_most .* is no share between 0 and 1"):
        chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD], miss_at_most=share)


def test_a_manifest_without_a_scale_is_told_how_to_give_one() -> None:
    with pytest.raises(ManifestError, match="scores without a scale: write"):
        chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD], scale=None)


# The statistics


def test_the_exact_bound_is_that_of_the_books() -> None:
    assert clopper_pearson_upper(0, 30) == pytest.approx(1 - 0.05 ** (1 / 30))  # the rule of three: about 3 / 30
    assert clopper_pearson_upper(3, 3) == 1
    # R 4: binom.test(2, 10, alternative = "less")$conf.int is 0 to 0.5069013
    assert clopper_pearson_upper(2, 10) == pytest.approx(0.5069013, abs=1e-7)


def test_how_many_units_a_promise_takes() -> None:
    assert [units_for_promise(share) for share in (0.05, 0.1, 0.2, 0.03)] == [19, 9, 4, 33]
    assert [units_for_confidence(share) for share in (0.05, 0.1, 0.01)] == [59, 29, 299]
    for share in (0.05, 0.1, 0.01):
        wanted = units_for_confidence(share)
        assert clopper_pearson_upper(0, wanted) <= share < clopper_pearson_upper(0, wanted - 1)


def test_the_auc_is_the_share_of_pairs_in_the_right_order_ties_half() -> None:
    rng = np.random.default_rng(0)
    quality, good = rng.integers(0, 12, 60).astype(float), rng.random(60) < 0.4
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=20)
    expected = []
    for w in weights:
        values, kinds = np.repeat(quality, w), np.repeat(good, w)
        apart = values[kinds][:, None] - values[~kinds]
        expected.append(np.mean((apart > 0) + (apart == 0) / 2))
    assert auc_replicates(quality, good, weights) == pytest.approx(expected)
    assert np.isnan(auc_replicates(quality, good, good[None].astype(np.int64))).all()  # no bad image: no value


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (62.31, 63.4, 63),
        (62.31, 62.9, 62.9),
        (62.31, 62.349, 62.34),
        (62, 63, 63),
        (62, math.inf, 63),
        (-math.inf, 7.8, 7),
        (-3.5, -3.2, -3.2),
        (-0.5, 0.2, 0),
    ],
)
def test_a_threshold_has_as_few_decimals_as_may_be(low: float, high: float, expected: float) -> None:
    assert shortest_between(low, high) == expected


def test_two_neighbouring_floats_are_still_told_apart() -> None:
    high = math.nextafter(62.1, 100)
    assert shortest_between(62.1, high) == high


# What is said


def test_no_miss_has_a_bound_but_no_interval() -> None:
    """Resampling a share of zero gives zero for ever; an interval of [0, 0] would look like certainty."""
    choice = chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD], miss_at_most=0.125)
    assert (choice.missed.value, choice.missed.interval) == (0, None)
    assert choice.missed_upper == pytest.approx(1 - 0.05 ** (1 / 7))
    assert choice.reviewed.interval is not None


def test_a_scorer_that_cannot_tell_is_called_so() -> None:
    choice = chosen([*range(50, 57), *range(40, 45)], [*BAD, *GOOD], miss_at_most=0.125)
    assert choice.reviewed.value == 1
    assert "No image here would pass: this scorer does not tell bad from good well enough" in choice.to_text()


def test_the_text_gives_the_command_and_the_promise() -> None:
    failures = (("x.png", "x.png: constant image"),)
    choice = chosen(
        [*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD], scorer="toy", false_fail_at_most=0.34, more={"failures": failures}
    )
    text = choice.to_text()
    assert "saqm gate PATHS --model toy --pass 55.3 --fail 55.3\n" in text
    assert "no more than 0.25 of the bad images of a new scene like these pass (conformal risk control over 7" in text
    assert "to say 0.25 takes 11 scenes, none missed" in text
    assert "Not scored, so for review, and not counted above: 1.\nx.png: x.png: constant image" in text
    record = json.loads(choice.to_json())
    assert (record["pass_at"], record["missed"]["value"], record["missed"]["of"]) == (55.3, 1 / 7, 7)


def test_each_domain_has_its_own_misses() -> None:
    made = evaluation([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD])
    rows = tuple(
        Row(row.path, row.score, row.scene, domain="head" if place in (6, 7) else "abdomen")
        for place, row in enumerate(made.rows)
    )
    both = Evaluation((), (), "", 0, 0, rows=rows, predictions=made.predictions)
    choice = choose_thresholds(both, PERCENT, bad_below=50, miss_at_most=0.25, seed=0, replicates=20)
    text = choice.to_text()
    assert "head         missed 100.0% of 1 bad, workload 50.0% of 2" in text
    assert "abdomen      missed 0.0% of 6 bad" in text


def test_the_same_seed_gives_the_same_choice() -> None:
    assert chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD]) == chosen([*BAD_SCORES, *GOOD_SCORES], [*BAD, *GOOD])

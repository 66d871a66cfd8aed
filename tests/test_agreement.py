"""Agreement of readers: published values, what the coefficients mean, and what is said where nothing can be fitted."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from saqm import agreement as module
from saqm.agreement import OPINION, OTHERS, Agreement, Group, intraclass
from saqm.errors import ManifestError, UndefinedScore
from saqm.evaluate import EVERYTHING, Orientation, evaluate_predictions
from saqm.manifest import Manifest, Row, Scale

SCALE = Scale(1, 10)
agreement = partial(module.agreement, replicates=200)
# Shrout and Fleiss 1979, Psychological Bulletin 86, table 2: six targets, four judges.
SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)


def manifest(scores_NK: NDArray[np.float64], *, domain: str = "made", scenes: int | None = None) -> Manifest:
    """Row n is the n-th image; NaN is a reader who gave no score. As many scenes as images, unless told."""
    rows = []
    for index, scores in enumerate(scores_NK):
        own = tuple(None if np.isnan(score) else float(score) for score in scores)
        known = [score for score in own if score is not None]
        rows.append(
            Row(
                Path(f"/none/{domain}/{index}.png"),
                float(np.mean(known)) if known else None,
                f"{domain}-{index % (scenes or len(scores_NK))}",
                domain,
                raters=len(known),
                rater_scores=own if known else None,
            )
        )
    return Manifest(tuple(rows), SCALE)


def agreed(scores_NK: NDArray[np.float64], readers: int, noise: float, seed: int = 0) -> NDArray[np.float64]:
    """What `readers` say of images of these qualities, each with noise of his own."""
    rng = np.random.default_rng(seed)
    return np.clip(scores_NK[:, None] + noise * rng.standard_normal((len(scores_NK), readers)), 1, 10)


def correlation(group: Group, first: str, second: str) -> float | None:
    (found,) = [c for c in group.correlations if (c.first, c.second) == (first, second)]
    return found.srocc


# Intraclass correlations


def test_the_worked_example_of_shrout_and_fleiss() -> None:
    """Their table 4; the intervals as R's psych::ICC and Python's pingouin 0.7.0 print them for it."""
    found = intraclass(SHROUT_FLEISS)
    assert [r.name for r in found] == ["ICC(2,1)", "ICC(2,4)", "ICC(3,1)"]
    assert [r.value for r in found] == [pytest.approx(wanted, abs=0.005) for wanted in (0.29, 0.62, 0.71)]
    for reliability, bounds in zip(found, ((0.02, 0.76), (0.07, 0.93), (0.34, 0.95)), strict=True):
        assert reliability.interval == pytest.approx(bounds, abs=0.005)


def test_scale_and_zero_of_the_scores_do_not_matter() -> None:
    there, here = intraclass(SHROUT_FLEISS), intraclass(1000 - 7 * SHROUT_FLEISS)
    for first, second in zip(there, here, strict=True):
        assert first.value == pytest.approx(second.value)
        assert first.interval == pytest.approx(second.interval)


def test_readers_who_say_the_same_agree_entirely() -> None:
    quality = np.array([1.1, 2.3, 3.7, 3.9, 5.2])
    for found in intraclass(np.stack([quality] * 3, 1)):
        assert found.value == pytest.approx(1)
        assert found.interval == pytest.approx((1, 1))


def test_a_stricter_reader_lowers_absolute_agreement_only() -> None:
    quality = np.arange(1.0, 9)
    single, mean, consistent = intraclass(np.stack([quality, quality + 2], 1))
    assert consistent.value == pytest.approx(1)
    assert single.value is not None
    assert mean.value is not None
    assert single.value < mean.value < 0.95


def test_the_mean_of_readers_is_more_reliable_than_one() -> None:
    """Spearman and Brown's formula holds between ICC(2,1) and ICC(2,k), bounds included."""
    single, mean, _ = intraclass(agreed(np.linspace(2, 9, 30), 4, 1.5))
    for one, of_four in ((single.value, mean.value), *zip(single.interval or (), mean.interval or (), strict=True)):
        assert of_four == pytest.approx(4 * one / (1 + 3 * one))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Images' sd 1, readers' 0.5, rest 0.7: ICC(2,1) = 1 / (1 + 0.25 + 0.49), ICC(3,1) = 1 / (1 + 0.49)."""
    rng = np.random.default_rng(1)
    truth = {"ICC(2,1)": 1 / 1.74, "ICC(2,4)": 1 / (1 + 0.74 / 4), "ICC(3,1)": 1 / 1.49}
    held = dict.fromkeys(truth, 0)
    for _ in range(200):
        scores = rng.standard_normal((25, 1)) + 0.5 * rng.standard_normal((1, 4)) + 0.7 * rng.standard_normal((25, 4))
        for found in intraclass(scores):
            assert found.interval is not None
            held[found.name] += found.interval[0] <= truth[found.name] <= found.interval[1]
    for name, count in held.items():
        assert stats.binomtest(count, 200, 0.95).pvalue > 0.001, name


def test_what_has_no_value_is_not_made_up() -> None:
    with pytest.raises(UndefinedScore, match="2 images judged by all of 3 readers; wanted 3 images and 2 readers"):
        intraclass(np.ones((2, 3)))
    with pytest.raises(UndefinedScore, match="every image has the same scores"):
        intraclass(np.array([[2.0, 3.0]] * 5))
    with pytest.raises(UndefinedScore, match="1 values that are not finite"):
        intraclass(np.array([[1.0, 2], [np.nan, 3], [3, 4]]))
    against = intraclass(np.array([[1.0, 5], [5, 1], [2, 4], [4, 2]]))  # one the other upside down: no mean to rely on
    assert against[1].value is None
    assert against[1].interval is None


# Agreement of a manifest


def test_rank_correlations_are_those_of_scipy() -> None:
    scores = agreed(np.linspace(1, 9, 20), 3, 1.0)
    (group,) = agreement(manifest(scores), seed=0).groups
    assert correlation(group, "reader 1", "reader 3") == pytest.approx(stats.spearmanr(scores[:, 0], scores[:, 2])[0])
    others = scores[:, [0, 2]].mean(1)
    assert correlation(group, "reader 2", OTHERS) == pytest.approx(stats.spearmanr(scores[:, 1], others)[0])
    assert len(group.correlations) == 6
    assert all(c.interval and c.srocc and c.interval[0] <= c.srocc <= c.interval[1] for c in group.correlations)


def test_one_scene_gives_no_interval() -> None:
    (group,) = agreement(manifest(agreed(np.linspace(1, 9, 20), 2, 1.0), scenes=1), seed=0).groups
    assert [c.interval for c in group.correlations] == [None]  # and of two readers, the others' mean is the other


def test_images_that_somebody_left_out_count_where_they_can() -> None:
    scores = agreed(np.linspace(1, 9, 20), 3, 0.5)
    scores[:5, 1] = np.nan
    (group,) = agreement(manifest(scores), seed=0).groups
    assert (group.images, group.complete) == (20, 15)
    assert {(c.first, c.second): c.n for c in group.correlations}["reader 1", "reader 3"] == 20
    assert {(c.first, c.second): c.n for c in group.correlations}["reader 1", "reader 2"] == 15
    assert group.reliabilities == intraclass(scores[5:])


def test_domains_are_told_apart_and_together() -> None:
    quality = np.linspace(1, 9, 12)
    one, other = manifest(agreed(quality, 2, 0.1), domain="a"), manifest(agreed(quality, 2, 3.0), domain="b")
    found = agreement(Manifest(one.rows + other.rows, SCALE), seed=0, names=("ada",))
    assert [group.domain for group in found.groups] == ["a", "b", EVERYTHING]
    assert [group.images for group in found.groups] == [12, 12, 24]
    assert found.groups[0].correlations[0].first == "ada"
    assert found.groups[0].correlations[0].second == "reader 2"


def test_who_agrees_may_be_fitted() -> None:
    (group,) = agreement(manifest(agreed(np.linspace(1, 9, 40), 3, 0.5)), seed=0).groups
    assert group.verdict.startswith("The mean of these 3 readers can be fitted: ICC(2,3) is 0.9")
    assert group.verdict.endswith("reliability excellent.")


def test_who_disagrees_may_not_be_fitted() -> None:
    scores = np.random.default_rng(3).uniform(1, 10, (30, 3))
    found = agreement(manifest(scores), seed=0)
    mean = found.groups[0].reliabilities[1]
    assert mean.value is not None
    assert mean.value < 0.5
    assert f"These ratings cannot be fitted: ICC(2,3) is {mean.value:.3f} [" in found.groups[0].verdict
    assert "The readers disagree" in found.to_text()


def test_few_images_are_not_taken_for_agreement() -> None:
    (group,) = agreement(manifest(agreed(np.array([2.0, 5, 8]), 2, 1.0)), seed=0).groups
    assert "cannot be fitted yet" in group.verdict
    assert "more images" in group.verdict


def test_one_reader_is_asked_for_a_second() -> None:
    (group,) = agreement(manifest(np.linspace(1, 9, 10)[:, None]), seed=0).groups
    assert group.verdict == "One reader: whether others would agree is not known; ask a second."
    assert group.reliabilities == ()
    assert group.correlations == ()


def test_readers_of_different_images_have_nothing_in_common() -> None:
    scores = agreed(np.linspace(1, 9, 10), 2, 0.5)
    scores[:5, 0] = scores[5:, 1] = np.nan
    (group,) = agreement(manifest(scores), seed=0).groups
    assert "is not known: 0 images judged by all of 2 readers" in group.verdict
    assert correlation(group, "reader 1", "reader 2") is None


def test_a_manifest_without_readers_is_refused() -> None:
    rows = (Row(Path("/none/a.png"), 3.0, "a"),)
    with pytest.raises(ManifestError, match=r"no reader's own scores; wanted the columns score_r1, score_r2"):
        agreement(Manifest(rows, SCALE), seed=0)


# One reader


def test_agreement_with_oneself() -> None:
    """Differences 1, 0, -1, 2: mean 1; within-reader sd sqrt(6 / 4 / 2)."""
    pairs = [(1.0, 2.0), (2.0, 2.0), (4.0, 3.0), (3.0, 5.0)]
    repeats = {"ada": pairs, "ben": []}
    (found,) = agreement(manifest(SHROUT_FLEISS), seed=0, repeats=repeats).constancies
    assert (found.reader, found.n) == ("ada", 4)
    assert found.mean_difference == 1
    assert found.within_sd == pytest.approx(np.sqrt(0.75))
    assert found.srocc == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True))[0])


# A scorer


def against(orientation: Orientation | None) -> Agreement:
    made = manifest(agreed(np.linspace(1, 9, 15), 2, 0.5))
    sign = -1 if orientation is not None and orientation.turned else 1
    predictions = [sign * float(row.score or 0) for row in made.rows[:-1]]
    evaluation = evaluate_predictions(made.rows, [*predictions, None], seed=0, replicates=200, orientation=orientation)
    return agreement(made, seed=0, evaluation=evaluation, scorer="saqm-x")


@pytest.mark.parametrize(
    "orientation", [None, Orientation.of("niqe", higher_is_better=False, scale=SCALE)], ids=["model", "metric"]
)
def test_a_scorer_stands_beside_the_readers(orientation: Orientation | None) -> None:
    found = against(orientation)
    (group,) = found.groups
    assert correlation(group, "saqm-x", OPINION) == pytest.approx(1)
    assert 0.8 < (correlation(group, "saqm-x", "reader 1") or 0) < 1
    assert {c.n for c in group.correlations if c.first == "saqm-x"} == {14}
    assert "1 of 15 images have no prediction" in found.to_text()


# What is printed


def test_json_says_what_the_tables_say() -> None:
    found = agreement(manifest(SHROUT_FLEISS), seed=5, repeats={"ada": [(1, 2), (2, 2), (3, 3)]})
    content = json.loads(found.to_json())
    (group,) = content["groups"]
    assert group["reliabilities"][1]["name"] == "ICC(2,4)"
    assert group["verdict"] == found.groups[0].verdict
    assert content["seed"] == 5
    text = found.to_text()
    assert "ICC(2,4)     0.620  [0.07, 0.93]" in text
    assert "reader 2 - mean of the others" in text
    assert "seed 5" in text
    assert "ada" in text
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_readers_of_the_study_agree(ct_study: Path) -> None:
    """Three radiologists, two organs: they rank alike, and their mean is reliable."""
    from saqm.datasets import ct_reader_study

    abdomen, brain, _ = agreement(ct_reader_study(ct_study), seed=0).groups
    assert (abdomen.images, brain.images) == (132, 132)
    assert [r.value for r in abdomen.reliabilities] == [pytest.approx(v, abs=0.001) for v in (0.883, 0.958, 0.884)]
    assert [r.value for r in brain.reliabilities] == [pytest.approx(v, abs=0.001) for v in (0.848, 0.944, 0.853)]
    assert "excellent" in brain.verdict

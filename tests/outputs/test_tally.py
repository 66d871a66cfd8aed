"""What a run has come to so far."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from saqm.outputs.tally import Tally
from saqm.scorer import Score

SCORED = Score(path="a", status="scored", score=50.0, model={"name": "toy"})


def tally(*scores: Score) -> Tally:
    made = Tally()
    for score in scores:
        made.note(score.to_record())
    return made


def test_rows_are_counted_by_what_became_of_them() -> None:
    flagged = {"statistic": 3.0, "p": 0.001, "flag": True}
    made = tally(
        replace(SCORED, verdict="pass"),
        replace(SCORED, score=70.0, verdict="review", out_of_domain=flagged),
        replace(SCORED, score=20.0, verdict="fail"),
        replace(SCORED, score=30.0, verdict="fail", out_of_domain={**flagged, "flag": False}),
        replace(SCORED, status="not_scored", score=None),
    )
    assert made.line() == "4 scored, 1 not scored, median 40.0, 1 unlike training, 1 pass, 1 review, 2 fail"


def test_before_the_first_row_nothing_is_claimed() -> None:
    assert (tally().line(), tally().median) == ("0 scored, 0 not scored", None)


@pytest.mark.parametrize("values", [[3.0], [9.0, 1.0], [5.0, 5.0, 1.0], [7.0, 2.0, 9.0, 4.0]])
def test_the_median_is_the_median(values: list[float]) -> None:
    assert tally(*(replace(SCORED, score=value) for value in values)).median == statistics.median(values)


def test_scores_of_several_models_have_no_common_median_and_a_metric_has_none() -> None:
    metric = Score(path="a", status="scored", score_raw=4.0, model={"name": "niqe"})
    assert tally(SCORED, metric).median == 50
    assert tally(SCORED, replace(SCORED, model={"name": "other"})).median is None
    assert tally(metric).line() == "1 scored, 0 not scored"

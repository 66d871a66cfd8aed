"""Verdicts: which side of a threshold, and what never passes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saqm
from saqm.errors import SaqmError
from saqm.gating import EXIT_CODES, Thresholds, gate, gate_all, of_models
from saqm.image import from_array
from saqm.outputs.table import read_records, save_records
from saqm.scorer import Score, not_scored

MODEL = {"name": "saqm-ct", "version": "1", "sha256": "0" * 64, "engine": "onnx"}
NIQE = {"name": "niqe", "version": "1", "engine": "numpy", "direction": "lower is better"}
BAND = Thresholds(pass_at=60, fail_below=40)
NOISE = {"name": "noise", "value": 14.25, "unit": "grey levels", "threshold": 8.0, "direction": "above", "code": {}}


def scored(score: float | None, **more: Any) -> Score:
    return Score(path="a.png", status="scored", score=score, **{"model": MODEL, **more})


def verdict(score: Score, thresholds: Thresholds = BAND) -> str | None:
    return gate(score, thresholds).verdict


def reason(score: Score, thresholds: Thresholds = BAND) -> str:
    return gate(score, thresholds).reasons[0]


# The score


@pytest.mark.parametrize(
    ("score", "expected", "why"),
    [
        (100, "pass", "score 100 is at or above 60"),
        (60, "pass", "score 60 is at or above 60"),
        (59.9999, "review", "score 59.9999 is below 60 and not below 40"),
        (40, "review", "score 40 is below 60 and not below 40"),
        (39.99, "fail", "score 39.99 is below 40"),
    ],
)
def test_at_the_threshold_is_a_pass_and_only_below_is_a_fail(score: float, expected: str, why: str) -> None:
    made = gate(scored(score), BAND)
    assert (made.verdict, made.reasons) == (expected, (why,))
    assert made.score == score  # and nothing else is changed


def test_without_a_second_threshold_nothing_fails_by_its_score() -> None:
    assert verdict(scored(0), Thresholds(pass_at=60)) == "review"
    assert reason(scored(0), Thresholds(pass_at=60)) == "score 0 is below 60"


@pytest.mark.parametrize(("value", "expected"), [(3.0, "pass"), (4.0, "pass"), (5.0, "review"), (6.5, "fail")])
def test_a_metric_is_judged_on_its_own_scale_in_its_own_direction(value: float, expected: str) -> None:
    made = gate(scored(None, score_raw=value, model=NIQE), Thresholds(pass_at=4, fail_below=6))
    assert made.verdict == expected
    assert made.reasons[0].startswith(f"value {value:g} is {'at or below' if expected == 'pass' else 'above'}")


def test_thresholds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(SaqmError, match=r"pass at 40 and fail at 60 .* saqm-ct \(higher is better\): .* must be below"):
        gate(scored(50), Thresholds(pass_at=40, fail_below=60))
    with pytest.raises(SaqmError, match=r"niqe \(lower is better\): what fails must be above what passes"):
        gate(scored(None, score_raw=5.0, model=NIQE), Thresholds(pass_at=6, fail_below=4))
    with pytest.raises(SaqmError, match="fail_below nan is no threshold"):
        Thresholds(pass_at=1, fail_below=math.nan)


def test_a_record_that_was_scored_but_has_no_value_is_refused() -> None:
    with pytest.raises(SaqmError, match=r"a\.png: scored, but neither a score .* score it again"):
        gate(scored(None, score_raw=3.0), BAND)


# What never passes


def test_what_has_no_score_is_for_review_or_fails_with_its_own_reason() -> None:
    row = not_scored("b.png", "b.png: constant image", model=MODEL)
    assert (verdict(row), reason(row)) == ("review", "b.png: constant image")
    assert verdict(row, Thresholds(pass_at=0, not_scored="fail")) == "fail"


@pytest.mark.parametrize("score", [0, 50, 100])
def test_an_image_unlike_the_training_images_neither_passes_nor_fails(score: float) -> None:
    far = {"statistic": 9.1, "p": 0.0032, "flag": True}
    made = gate(scored(score, out_of_domain=far), BAND)
    assert made.verdict == "review"
    expected = f"unlike the images that the model knows (p = 0.0032): its score of {score} is no ground"
    assert made.reasons[0].startswith(expected)
    assert verdict(scored(100, out_of_domain={**far, "p": 0.4, "flag": False})) == "pass"


def test_another_modality_than_the_models_never_passes(toy_model: Path) -> None:
    scorer = saqm.load_scorer(toy_model)  # trained on CT; brightness is quality
    bright = np.random.default_rng(0).uniform(0.9, 1, (64, 64)).astype(np.float32)
    ct, mr = (saqm.score(from_array(bright, modality=modality), scorer) for modality in ("CT", "MR"))
    assert verdict(ct) == "pass"
    assert verdict(mr) == "review"
    assert reason(mr).startswith("outside the model's domain: modality MR")


def test_nothing_at_all_is_not_a_pass() -> None:
    with pytest.raises(SaqmError, match="nothing passes where there is nothing"):
        list(gate_all([], BAND))


# Sure


@pytest.mark.parametrize(
    ("score", "interval", "expected", "why"),
    [
        (70, (60, 80), "pass", "score 70 is at or above 60, and so is its interval 60 to 80"),
        (70, (59, 80), "review", "score 70 is at or above 60, but its interval 59 to 80 reaches below"),
        (30, (20, 39), "fail", "score 30 is below 40, and so is its interval 20 to 39"),
        (30, (20, 40), "review", "score 30 is below 40, but its interval 20 to 40 is not wholly so"),
        (50, (20, 80), "review", "score 50 is below 60 and not below 40"),
    ],
)
def test_sure_wants_the_whole_interval_on_one_side(
    score: float, interval: tuple[float, float], expected: str, why: str
) -> None:
    made = gate(scored(score, interval=interval, coverage=0.9), Thresholds(pass_at=60, fail_below=40, sure=True))
    assert (made.verdict, made.reasons) == (expected, (why,))


@pytest.mark.parametrize("score", [50, 90])
def test_sure_without_an_interval_is_refused(score: float) -> None:
    with pytest.raises(SaqmError, match=r"saqm-ct gives no intervals, .* leave sure \(--sure\) out"):
        gate(scored(score), Thresholds(pass_at=60, sure=True))


# Reasons


def test_what_is_wrong_is_told_with_what_does_not_pass() -> None:
    findings = (NOISE, {"name": "low contrast"})
    assert gate(scored(30, findings=findings), BAND).reasons[1:] == ("noise: 14.2 grey levels, above 8", "low contrast")
    assert len(gate(scored(90, findings=findings), BAND).reasons) == 1


def test_an_earlier_verdict_and_its_reasons_are_replaced() -> None:
    once = gate(scored(50), BAND)
    again = gate(once, Thresholds(pass_at=50))
    assert (again.verdict, again.reasons) == ("pass", ("score 50 is at or above 50",))
    assert gate(again, BAND) == once
    missing = gate(not_scored("b.png", "constant", model=MODEL), BAND)
    assert gate(missing, BAND) == missing
    assert gate(scored(50, reasons=("said before",)), BAND).reasons[1:] == ("said before",)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_a_score_its_record_and_a_result_file_get_the_same_verdict(tmp_path: Path, suffix: str) -> None:
    far = {"statistic": 9.0, "p": 0.01, "flag": True}
    scores = [scored(55, findings=(NOISE,)), scored(80, interval=(70, 90), coverage=0.9), scored(80, out_of_domain=far)]
    expected = [(made.verdict, list(made.reasons)) for made in (gate(each, BAND) for each in scores)]
    path = tmp_path / f"scores.{suffix}"
    save_records([each.to_record() for each in scores], path)
    made = list(gate_all(read_records(path), BAND))
    assert [(record["verdict"], record["reasons"]) for record in made] == expected
    assert {record["path"] for record in made} == {"a.png"}


# Several models


def test_thresholds_are_those_of_one_model() -> None:
    rows = [scored(70).to_record(), scored(None, score_raw=3.0, model=NIQE).to_record()]
    with pytest.raises(SaqmError, match=r"rows of saqm-ct and of niqe: .* choose it with --model"):
        list(gate_all(rows, BAND))
    assert [record["score_raw"] for record in of_models(rows, ["niqe"])] == [3.0]
    with pytest.raises(SaqmError, match="no row of brisque; there are rows of saqm-ct, niqe"):
        list(of_models(rows, ["brisque"]))


def test_the_exit_codes_rise_with_the_verdict() -> None:
    assert EXIT_CODES == {"pass": 0, "review": 10, "fail": 20}

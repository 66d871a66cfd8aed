"""Summaries: the numbers of many frames, by file and model, in the direction that is better."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from saqm.errors import OutputError
from saqm.outputs.summary import Summariser, Summary, save_summaries, summarise
from saqm.scorer import Score

LOWER = {"name": "niqe", "direction": "lower is better"}
HIGHER = {"name": "biqaa", "direction": "higher is better"}
MODEL = {"name": "saqm-ct"}


def row(value: float | None, frame: int | None, model: dict[str, str], path: str = "a.nii") -> Score:
    if value is None:
        return Score(path=path, frame=frame, status="not_scored", model=model, reasons=("constant image",))
    if "direction" in model:
        return Score(path=path, frame=frame, status="scored", score_raw=value, model=model)
    return Score(path=path, frame=frame, status="scored", score=value, score_raw=-value, model=model)


def test_median_quartiles_and_the_worst_frame() -> None:
    values = [50.0, 40, None, 10, 30, 20]
    (found,) = summarise([row(value, frame, MODEL) for frame, value in enumerate(values)])
    assert found == Summary(
        "a.nii", "saqm-ct", frames=6, scored=5, not_scored=1, of="score", direction="higher is better",
        lower_quartile=20, median=30, upper_quartile=40, worst=10, worst_frame=3,
    )  # fmt: skip


@pytest.mark.parametrize(("model", "worst", "frame"), [(LOWER, 9.0, 1), (HIGHER, 2.0, 0)])
def test_a_metric_is_summarised_on_its_own_scale_and_direction(model: dict[str, str], worst: float, frame: int) -> None:
    (found,) = summarise([row(value, number, model) for number, value in enumerate((2.0, 9.0, 4.0, 9.0, 2.0))])
    assert (found.of, found.direction) == ("score_raw", model["direction"])
    assert (found.median, found.worst, found.worst_frame) == (4, worst, frame)  # of equals the first frame


def test_one_odd_frame_moves_the_worst_and_not_the_middle() -> None:
    usual = [row(50 + frame % 3, frame, MODEL) for frame in range(100)]
    (before,), (after,) = summarise(usual), summarise([*usual, row(0, 100, MODEL)])
    assert (before.median, before.lower_quartile) == (after.median, after.lower_quartile)
    assert (after.worst, after.worst_frame) == (0, 100)


def test_files_and_models_stand_apart_in_the_order_they_come() -> None:
    rows = [
        row(value, frame, model, path)
        for path in "ab"
        for frame, value in enumerate((1.0, 2.0))
        for model in (MODEL, LOWER)
    ]
    found = summarise(rows)
    assert [(s.path, s.model, s.frames, s.worst) for s in found] == [
        ("a", "saqm-ct", 2, 1), ("a", "niqe", 2, 2), ("b", "saqm-ct", 2, 1), ("b", "niqe", 2, 2),
    ]  # fmt: skip


def test_where_nothing_was_scored_there_is_no_number() -> None:
    (found,) = summarise([row(None, 0, LOWER), row(None, 1, LOWER)])
    assert (found.frames, found.scored, found.not_scored) == (2, 0, 2)
    assert (found.of, found.direction, found.median, found.worst, found.worst_frame) == (None,) * 5


def test_records_and_scores_give_the_same_and_pass_unchanged() -> None:
    scores = [row(value, frame, LOWER) for frame, value in enumerate((3.0, None, 5.0))]
    records = [score.to_record() for score in scores]
    assert summarise(records) == summarise(scores)


def test_only_numbers_are_kept_of_many_frames() -> None:
    def many() -> Iterator[Score]:
        for frame in range(20_000):
            yield row(float(frame), frame, MODEL)

    summariser = Summariser()
    for score in many():
        summariser.note(score)
    (frames,) = summariser._seen.values()
    assert frames.values.itemsize * len(frames.values) == 160_000
    assert summariser.summaries()[0].median == 9999.5


def test_a_summary_file_has_a_line_for_each_file_and_model(tmp_path: Path) -> None:
    found = summarise([row(1.0, 0, MODEL, "=a"), row(None, None, LOWER, "b")])
    for suffix, dialect, missing in (("csv", "excel", ""), ("tsv", "excel-tab", "n/a")):
        save_summaries(found, tmp_path / f"s.{suffix}")
        with (tmp_path / f"s.{suffix}").open(newline="") as stream:
            first, second = csv.DictReader(stream, dialect=dialect)
        assert (first["median"], first["worst_frame"], second["median"]) == ("1.0", "0", missing)
        assert first["path"] == ("'=a" if suffix == "csv" else "=a")  # no formula for a spreadsheet
    save_summaries(found, tmp_path / "s.json")
    assert [line["model"] for line in json.loads((tmp_path / "s.json").read_text())] == ["saqm-ct", "niqe"]
    with pytest.raises(OutputError, match="cannot tell the format"):
        save_summaries(found, tmp_path / "s.txt")

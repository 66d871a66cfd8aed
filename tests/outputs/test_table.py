"""Tables of score records: each format gives the record back, and a file is whole or as it was."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from saqm.errors import MissingExtra, OutputError
from saqm.outputs import table

SCORED: dict[str, object] = {
    "path": "a/scan.dcm",
    "sha256": "ab" * 32,
    "frame": 3,
    "modality": "CT",
    "uids": {"study": "1.2", "series": "1.2.3", "instance": "1.2.3.4", "sop_class": "1.2.840"},
    "status": "scored",
    "score": 63.271828182845904,
    "score_raw": -0.1,
    "interval": [55.5, 71.25],
    "coverage": 0.9,
    "out_of_domain": {"statistic": 1.5, "p": 0.04, "flag": True},
    "verdict": None,
    "reasons": [],
    "model": {"name": "default", "version": "1", "sha256": "cd" * 32, "engine": "onnx"},
    "preparation": {"channels": "bands", "mean": [0.0, 0.0, 0.0], "sd": [1.0, 1.0, 1.0], "patch": 32, "stride": 32,
                    "min_coverage": 0.95},
    "patches": {"used": 60, "masked": 40},
    "warnings": ["modality CT is new", "small"],
    "software": "saqm 0.1.0",
    "created": None,
}  # fmt: skip
REFUSED: dict[str, object] = {
    **dict.fromkeys(SCORED),
    "path": "b.dcm",
    "status": "not_scored",
    "reasons": ["empty file"],
    "warnings": [],
}
METRIC: dict[str, object] = {
    **SCORED,
    "score": None,
    "score_raw": 4.75,
    "interval": None,
    "model": {"name": "niqe", "version": "1", "sha256": "ef" * 32, "engine": "numpy", "direction": "lower is better",
              "definition": "exact"},
    "preparation": {"judged_share": 0.8, "snap": True, "flat_fraction": 0.01, "parameters": "niqe-natural",
                    "options": {"eps": 1e-8}},
    "patches": None,
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores.{suffix}"
    table.save_records([SCORED, REFUSED, METRIC], path)
    first, second, third = table.read_records(path)
    assert table.flatten(first) == table.flatten(SCORED)
    assert table.flatten(second) == table.flatten(REFUSED)
    assert table.flatten(third) == table.flatten(METRIC)
    assert third["model"] == METRIC["model"]
    assert (third["score"], third["score_raw"]) == (None, 4.75)
    assert second["score"] is None
    assert second["reasons"] == ["empty file"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_reading_and_writing_again_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}"
    table.save_records([SCORED, REFUSED], first)
    table.save_records(table.read_records(first), second)
    assert first.read_bytes() == second.read_bytes()


def test_no_records_give_a_header_or_an_empty_list(tmp_path: Path) -> None:
    table.save_records([], tmp_path / "x.json")
    table.save_records([], tmp_path / "x.csv")
    assert json.loads((tmp_path / "x.json").read_text()) == []
    assert (tmp_path / "x.csv").read_text().startswith("path,sha256,frame,")


def test_missing_is_empty_in_csv_and_na_in_tsv() -> None:
    def second_row(form: table.TextFormat) -> dict[str, str]:
        stream = io.StringIO()
        table.write_records([SCORED, REFUSED], stream, form)
        stream.seek(0)
        return list(csv.DictReader(stream, dialect="excel" if form == "csv" else "excel-tab"))[1]

    assert second_row("csv")["score"] == ""
    tsv = second_row("tsv")
    assert tsv["score"] == "n/a"
    assert "" not in tsv.values()


def test_parquet_has_typed_columns(tmp_path: Path) -> None:
    import polars

    table.save_records([REFUSED, SCORED], tmp_path / "scores.parquet")
    frame = polars.read_parquet(tmp_path / "scores.parquet")
    assert frame["score"].to_list() == [None, SCORED["score"]]
    assert frame["patches_used"].to_list() == [None, 60]
    assert frame["warnings"].to_list() == [[], ["modality CT is new", "small"]]


def test_parquet_without_polars_names_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingExtra, match=r"pip install 'saqm\[parquet\]'"):
        table.save_records([SCORED], tmp_path / "scores.parquet")


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_text_that_a_spreadsheet_would_run_is_defused_in_csv(tmp_path: Path, start: str) -> None:
    name = f'{start}cmd|"/c calc".dcm'
    table.save_records([{**SCORED, "path": name}], tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    assert row["path"] == "'" + name
    assert row["score_raw"] == "-0.1"  # a number keeps its sign
    assert next(iter(table.read_records(tmp_path / "x.csv")))["path"] == name


def test_names_with_separators_line_ends_and_foreign_bytes_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b'a,b\t"c"\nd \xff\xc3\xa9.dcm')
    for suffix in ("csv", "tsv", "jsonl"):
        table.save_records([{**SCORED, "path": name}], tmp_path / f"x.{suffix}")
        assert next(iter(table.read_records(tmp_path / f"x.{suffix}")))["path"] == name


def test_records_are_written_as_they_come() -> None:
    stream = io.StringIO()

    def records() -> Iterator[dict[str, object]]:
        yield SCORED
        assert stream.getvalue().count("\n") == 2, (
            "header and first row must be out before the second record is asked for"
        )
        yield REFUSED

    table.write_records(records(), stream, "tsv")


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_an_old_result_stays_whole_when_the_run_fails(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores.{suffix}"
    table.save_records([SCORED], path)
    before = path.read_bytes()

    def broken() -> Iterator[dict[str, object]]:
        yield REFUSED
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.save_records(broken(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_result_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere.*x\.csv: cannot be written: No such file"):
        table.save_records([SCORED], tmp_path / "nowhere" / "x.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OutputError, match="not an ordinary file"):
        table.save_records([SCORED], tmp_path / "folder.csv")


def test_a_result_has_the_rights_any_new_file_has_and_a_link_stays_a_link(tmp_path: Path) -> None:
    plain, result, link = tmp_path / "plain", tmp_path / "x.csv", tmp_path / "link.csv"
    plain.touch()
    link.symlink_to(result)
    table.save_records([SCORED], link)
    assert link.is_symlink()
    assert stat.S_IMODE(result.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_an_unknown_suffix_is_refused_with_those_there_are() -> None:
    with pytest.raises(OutputError, match=r"cannot tell the format; name it \.csv, \.tsv"):
        table.format_of("scores.xlsx")


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("file,quality\na,1\n")
    with pytest.raises(OutputError, match="not a table of scores: its columns are file, quality"):
        list(table.read_records(tmp_path / "x.csv"))
    (tmp_path / "x.jsonl").write_text("{torn")
    with pytest.raises(OutputError, match="not a table of scores"):
        list(table.read_records(tmp_path / "x.jsonl"))


# In the terminal


def shown(*records: table.Record, width: int = 120, encoding: str = "utf-8") -> list[str]:
    """The lines of the table, as a terminal of that width and encoding gets them."""
    from rich.console import Console

    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=stream, width=width).print(table.table(records))
    stream.seek(0)
    return stream.read().splitlines()


def row(path: str, score: float | None, **more: object) -> dict[str, object]:
    return {**SCORED, "path": path, "frame": None, "score": score, "out_of_domain": None, "warnings": [], **more}


def test_the_terminal_table_shows_score_interval_verdict_cause_and_notes() -> None:
    noisy = row("b.dcm", 34.3, interval=[24.0, 47.6], verdict="fail", findings=[{"name": "noise"}, {"name": "blur"}])
    head, first, unlike, second = shown({**SCORED, "verdict": "review"}, noisy)
    assert head.split() == ["file", "score", "90%", "interval", "verdict", "cause"]
    assert re.fullmatch(r"a/scan\.dcm \[3\]  ██████▍···     63  \[56, 71\]      review *", first)
    assert unlike.strip() == "unlike training (p = 0.04); modality CT is new; small"
    assert re.fullmatch(r"b\.dcm           ███▍······     34  \[24, 48\]      fail     noise, blur *", second)


def test_an_interval_without_a_promise_has_a_question_mark() -> None:
    _, promised, bare = shown(row("a", 50), row("b", 50, coverage=None))
    assert "[56, 71] " in promised
    assert "[56, 71]?" in bare


def test_without_intervals_the_score_has_its_decimal_and_empty_columns_are_left_out() -> None:
    head, line = shown(row("a.png", 63.271, interval=None, coverage=None))
    assert head.split() == ["file", "score"]
    assert line.split() == ["a.png", "██████▍···", "63.3"]


@pytest.mark.parametrize(
    ("score", "bar", "plain"),
    [
        (0, "··········", ".........."),
        (0.6, "··········", ".........."),
        (50, "█████·····", "#####....."),
        (99.9, "██████████", "##########"),
        (100, "██████████", "##########"),
    ],
)
def test_the_bar_has_ten_cells(score: float, bar: str, plain: str) -> None:
    assert bar in shown(row("a", score))[1]
    assert plain in shown(row("a", score), encoding="latin-1")[1]


def test_a_reason_is_told_below_its_row_and_no_text_moves_the_cursor() -> None:
    evil = {**REFUSED, "path": "evil\x1b[2J.dcm", "reasons": ["[red]not markup[/red]"]}
    lines = shown(SCORED, evil)
    assert re.search(r"evil\\x1b\[2J\.dcm +not scored +-", lines[3])
    assert lines[4].strip() == "[red]not markup[/red]"


def test_a_shared_folder_and_a_note_of_all_rows_are_named_once_and_a_reason_without_the_path() -> None:
    rows = [
        {
            **REFUSED,
            "path": f"/long/folder/{n}.dcm",
            "reasons": [f"/long/folder/{n}.dcm: empty {n}"],
            "warnings": ["odd"],
        }
        for n in "ab"
    ]
    lines = [line.strip() for line in shown(*rows)]
    assert lines[0] == "in /long/folder/"
    assert [line.split()[0] for line in lines[2:-1]] == ["a.dcm", "empty", "b.dcm", "empty"]
    assert lines[-1] == "all: odd"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal_and_loses_no_letter(width: int) -> None:
    name = "a_very_long_name_that_no_terminal_has_room_for_" + "x" * 40 + ".dcm"
    findings = [{"name": "noise"}, {"name": "streak artefacts"}, {"name": "low contrast"}]
    warning = "outside the model's domain: modality MR (trained on CT)"
    lines = shown(row(name, 100, verdict="review", findings=findings, warnings=[warning]), row("b", 5), width=width)
    assert max(map(len, lines)) <= width
    said = "".join("".join(lines).split())
    assert all("".join(text.split()) in said for text in (warning, "[56, 71]", "review", "score"))
    assert sorted(c for c in said if c == "x") == ["x"] * 40
    assert all(word in said for finding in findings for word in finding["name"].split())


def test_the_terminal_table_names_metrics_and_their_direction() -> None:
    head, model, _, metric, _ = shown(row("a", 63.3, interval=None, warnings=["x"]), {**METRIC, "warnings": ["y"]})
    assert head.split() == ["file", "model", "score", "raw", "better"]
    assert re.search(r"default +█+.···  +63\.3 +-0\.1000 +higher", model)
    assert re.search(r"niqe +- +4\.750 +lower", metric)


def test_a_small_value_of_a_metric_is_not_rounded_away() -> None:
    assert "0.0002346" in shown({**METRIC, "score_raw": 0.00023456})[1]


def test_a_table_of_nothing_has_its_head() -> None:
    assert [line.split() for line in shown()] == [["file"]]

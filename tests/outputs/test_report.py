"""The report: one file that holds what the records say, shows it as text, and says what it cannot show."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image as pillow
from pydicom.data import get_testdata_file

from saqm import cli
from saqm.errors import OutputError, UndefinedScore
from saqm.image import read_frames, read_image
from saqm.outputs.heatmap import overlay
from saqm.outputs.report import with_acquisition, write_report
from saqm.outputs.report.drift import EWMA_SIGMAS, EWMA_WEIGHT, control_chart, control_charts
from saqm.outputs.report.group import DESCRIPTIONS, GROUP_COLUMNS, save_group
from saqm.outputs.report.pictures import LARGE, SMALL, pictures_of
from saqm.outputs.report.rows import checked, models_of, packed, worst_first
from saqm.outputs.table import COLUMNS, flatten, save_records
from saqm.scorer import ModelScorer, Score, load_scorer, not_scored

Row = dict[str, Any]

MODEL = {"name": "toy", "version": "1", "sha256": "a" * 64, "engine": "onnx"}
STEPS = [{"step": "decode", "transfer_syntax": "plain"}, {"step": "mask", "mode": "auto", "judged_share": 0.5}]


def record(path: str = "a.png", score: float | None = 50.0, **more: object) -> Row:
    """A record as `saqm score` writes it."""
    status = "not_scored" if score is None and "score_raw" not in more else "scored"
    made = {"score": score, "score_raw": score, "status": status, "model": MODEL, **more}
    return Score(path=path, **made).to_record()  # type: ignore[arg-type]


def data_of(page: Path) -> dict[str, Any]:
    """What the page was given."""
    text = page.read_text(encoding="utf-8")
    (held,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return dict(json.loads(held))


def unpacked(data: dict[str, Any], name: str) -> list[Any]:
    """A column, as the page's own `unpack` does it."""
    column, pool = data["columns"][name], data["pool"]
    if "plain" in column:
        return list(column["plain"])
    if "pooled" in column:
        return [None if place is None else pool[place] for place in column["pooled"]]
    return [None if places is None else [pool[place] for place in places] for places in column["lists"]]


@pytest.fixture
def ct() -> Path:
    return Path(str(get_testdata_file("CT_small.dcm", download=False)))


# The file


def test_the_page_holds_the_records_bit_by_bit(tmp_path: Path) -> None:
    rows = [
        record("a.png", 0.1 + 0.2, interval=(0.0, 12.5), coverage=0.9, preparation={"steps": STEPS, "mask": STEPS[1]}),
        record("b.png", None, reasons=("broken", "very")),
        record("c.png", 90.0, findings=({"name": "noise", "value": 3.5},), out_of_domain={"p": 0.01, "flag": True}),
    ]
    write_report(rows, tmp_path / "report.html", pictures=None)
    data = data_of(tmp_path / "report.html")
    for column in COLUMNS:
        assert unpacked(data, column.name) == [flatten(row)[column.name] for row in rows]
    assert [column["name"] for column in data["table"]] == [column.name for column in COLUMNS]


def test_the_page_may_run_its_own_script_and_fetch_nothing(tmp_path: Path) -> None:
    write_report([record()], tmp_path / "report.html", pictures=None)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (inlined,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inlined.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert not re.search(r"""(src|href)=["']?(https?:|//|file:)""", page)
    assert "innerHTML" not in page
    assert "\r" not in page


def test_text_from_files_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)><!--.dcm"
    rows = [{**record(evil, warnings=(evil,)), "device": evil, "acquired": "2026-03-14"}]
    write_report(rows, tmp_path / "report.html", title=evil, pictures=None)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert page.count("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;") == 2  # title and heading
    data = data_of(tmp_path / "report.html")
    assert unpacked(data, "path") == unpacked(data, "device") == [evil]


def test_a_name_that_is_no_unicode_is_kept(tmp_path: Path) -> None:
    write_report([record("caf\udce9.png")], tmp_path / "report.html", pictures=None)
    assert unpacked(data_of(tmp_path / "report.html"), "path") == ["caf\udce9.png"]


def test_the_same_records_are_the_same_file(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report([record()], tmp_path / name, pictures=None)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_ten_thousand_rows_are_quick_and_can_be_mailed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        record(
            f"study/series-{number // 100}/image-{number:05}.dcm",
            float(score),
            sha256=hashlib.sha256(str(number).encode()).hexdigest(),
            uids={"study": f"1.2.3.{number // 100}", "instance": f"1.2.840.10008.5.1.4.1.1.2.{number}"},
            interval=(max(score - 9, 0), min(score + 9, 100)),
            preparation={"steps": [STEPS[0], {**STEPS[1], "judged_share": float(score) / 100}]},
        )
        for number, score in enumerate(100 * rng.random(10_000))
    ]
    started = time.process_time()
    write_report(rows, tmp_path / "report.html", pictures=None)
    assert time.process_time() - started < 10
    size = (tmp_path / "report.html").stat().st_size
    assert size < 9e6  # so that pictures have room below 20 MB


def test_even_pictures_of_noise_can_be_mailed(tmp_path: Path) -> None:
    """JPEG is worst at noise: of CT slices a thousand small and 60 larger pictures take 7 MB, and of noise 18."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 600), np.uint8)
    pillow.fromarray(noise).save(tmp_path / "noise.png")
    digest = hashlib.sha256((tmp_path / "noise.png").read_bytes()).hexdigest()
    (made,) = pictures_of([record(str(tmp_path / "noise.png"), sha256=digest)], [0], 1, None, None).images
    assert 1000 * len(str(made["thumbnail"])) + 60 * len(str(made["picture"])) < 18e6


# Bad input


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"no records, so there is nothing to report: score some images first"),
        (["a.png"], r'record 1: "a\.png": an object, as `saqm score` writes it, is wanted'),
        ([record(), {"path": "a.png", "score": 3.0}], r"record 2 has no status, score_raw, model: a result file of"),
        ([{**record(), "status": "fine"}], r"record 1: status 'fine'; scored or not_scored is wanted"),
        ([{**record(), "score": float("nan")}], r"record 1: score is nan; a finite number, or nothing, is wanted"),
        ([{**record(), "score": "high"}], r"record 1: score is 'high'; a finite number"),
        ([{**record(), "score": None, "score_raw": None}], r"record 1 is scored, but has neither score nor score_raw"),
        ([{**record(), "interval": ["a", "b"]}], r"record 1: interval_low is 'a', which is no finite number"),
        ([{**record(), "interval": 5}], r"record 1 is nested otherwise than `saqm score` writes it"),
        ([{**record(), "findings": ["noise"]}], r"record 1: findings is .* which is no object or list of objects"),
        ([{**record(), "warnings": "none"}], r"record 1: warnings is 'none', which is no list of texts"),
    ],
)
def test_what_is_no_record_is_refused_and_the_old_report_stays(rows: list[Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(OutputError, match=message):
        write_report(rows, tmp_path / "report.html", pictures=None)
    assert (tmp_path / "report.html").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_number_of_pictures_below_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"-1 pictures: 0 or more are wanted; None for no picture at all"):
        write_report([record()], tmp_path / "report.html", pictures=-1)


def test_records_of_an_older_saqm_that_lack_a_key_are_shown(tmp_path: Path) -> None:
    row = record()
    del row["findings"], row["interval"]
    write_report([row], tmp_path / "report.html", pictures=None)
    assert unpacked(data_of(tmp_path / "report.html"), "findings") == [None]


# Order and packing


def test_the_worst_image_comes_first_whichever_way_is_better() -> None:
    niqe = {"name": "niqe", "version": "1", "direction": "lower is better"}
    rows = [record("a", 50.0), record("b", None), record("c", 10.0), record("d", 90.0)]
    assert worst_first(rows) == [2, 0, 3, 1]
    turned = [record(name, None, score_raw=value, model=niqe) for name, value in (("a", 3.0), ("b", 9.0), ("c", 5.0))]
    assert worst_first(turned) == [1, 2, 0]


def test_an_image_that_two_models_scored_is_one_image() -> None:
    niqe = {"name": "niqe", "version": "1", "direction": "lower is better"}
    rows = [
        record("a", 50.0), record("a", None, score_raw=3.0, model=niqe),
        record("b", 40.0), record("b", None, score_raw=1.0, model=niqe),
        record("a", 30.0, frame=1),
    ]  # fmt: skip
    assert worst_first(rows) == [4, 2, 0]
    models, of_row = models_of(rows)
    assert of_row == [0, 1, 0, 1, 0]
    assert [(model["name"], model["has_score"], model["rows"]) for model in models] == [
        ("toy", True, 3),
        ("niqe", False, 2),
    ]


def test_what_repeats_is_written_once() -> None:
    rows = [record(f"{number}.png", preparation={"steps": STEPS}, software="the same") for number in range(50)]
    data = packed(rows, {})
    text = json.dumps(data)
    assert text.count("the same") == text.count("transfer_syntax") == 1
    assert unpacked(data, "preparation_steps") == [STEPS] * 50


# Device and day


def test_device_and_day_come_from_the_header_of_the_file_that_was_scored(ct: Path, tmp_path: Path) -> None:
    uid = str(pydicom.dcmread(ct).SOPInstanceUID)
    seen: list[tuple[int, int]] = []
    rows = [
        record(str(ct), uids={"instance": uid}),
        record(str(ct), uids={"instance": "1.2.3"}),  # another object stands there now
        record(str(tmp_path / "gone.dcm"), uids={"instance": uid}),
        record("a.png"),
    ]
    made = with_acquisition(rows, on_image=lambda *done: seen.append(done))
    assert [row["device"] for row in made] == ["GE MEDICAL SYSTEMS RHAPSODE (CT01_OC0)", None, None, None]
    assert [row["acquired"] for row in made] == ["1997-04-30", None, None, None]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    undated = with_acquisition(rows, dates=False)
    assert undated[0]["device"] is not None
    assert undated[0]["acquired"] is None


# Drift


def days(count: int) -> list[str]:
    return [f"2026-{1 + number // 28:02}-{1 + number % 28:02}" for number in range(count)]


def test_limits_are_those_of_montgomery() -> None:
    """Introduction to Statistical Quality Control, example 6.5: costs of mortgage loan processing, 20 weeks."""
    costs = (310, 288, 297, 298, 307, 303, 294, 297, 308, 306, 294, 299, 297, 299, 314, 295, 293, 306, 301, 304)
    chart = control_chart(days(20), costs)
    assert chart.centre == pytest.approx(300.5)
    assert (chart.low, chart.high) == pytest.approx((279.78, 321.22), abs=0.01)
    assert chart.beyond == chart.drifting == ()


def test_a_day_is_one_point_in_whatever_order_the_images_come() -> None:
    values = np.arange(16.0)
    named = [day for day in days(8) for _ in range(2)]
    chart = control_chart(named, values.tolist())
    assert chart.means == tuple(values.reshape(8, 2).mean(1))
    assert chart.counts == (2,) * 8
    assert control_chart(named[::-1], values[::-1].tolist()) == chart


def test_a_jump_is_seen_at_once_and_a_slow_drift_by_the_average() -> None:
    rng = np.random.default_rng(1)
    steady = 60 + rng.standard_normal(20)
    jump = control_chart(days(25), [*steady, 60, 60, 50, 60, 60])
    assert jump.baseline == 20
    assert 22 in jump.beyond
    slow = control_chart(days(40), [*steady, *(60 - 0.12 * np.arange(20) + 0.5 * rng.standard_normal(20))])
    assert slow.drifting
    assert set(slow.drifting) <= set(range(20, 40))
    assert set(slow.beyond) < set(slow.drifting)


def test_the_average_follows_its_formula() -> None:
    values = [50.0, 52, 49, 51, 50, 48, 53, 50]
    chart = control_chart(days(8), values)
    level = np.mean(values)
    for day, value in enumerate(values):
        level = EWMA_WEIGHT * value + (1 - EWMA_WEIGHT) * level
        assert chart.ewma[day] == pytest.approx(level)
    widest = EWMA_SIGMAS * chart.sigma * np.sqrt(EWMA_WEIGHT / (2 - EWMA_WEIGHT))
    half = np.subtract(chart.ewma_high, chart.centre)
    assert half[0] == pytest.approx(EWMA_SIGMAS * chart.sigma * EWMA_WEIGHT)  # of one day: its share of one sigma
    assert (np.diff(half) > 0).all()
    assert half[-1] < widest


def test_too_few_days_or_no_spread_have_no_limits() -> None:
    with pytest.raises(UndefinedScore, match="7 days; limits need 8"):
        control_chart(days(7), [1.0] * 7)
    with pytest.raises(UndefinedScore, match="1 day; limits need 8"):
        control_chart(days(1) * 30, list(range(30)))
    with pytest.raises(UndefinedScore, match="the first 9 days have the same mean"):
        control_chart(days(9), [5.0] * 9)


def test_each_device_and_model_has_its_own_chart() -> None:
    dated = [{**record(), "device": "A", "acquired": day, "score": 50.0 + k % 3} for k, day in enumerate(days(9))]
    charts = control_charts(
        [*dated, {**dated[0], "device": "B"}, {**dated[0], "device": None}, {**record(score=None), "device": "C"}],
        [0] * 12,
    )
    assert [(chart["device"], chart["images"]) for chart in charts] == [("A", 9), ("B", 1)]
    assert charts[0]["days"] == tuple(days(9))
    assert charts[1]["why_not"] == "1 day; limits need 8"


# Pictures


def decoded(uri: object) -> pillow.Image:
    head, _, content = str(uri).partition(",")
    assert head in ("data:image/jpeg;base64", "data:image/png;base64")
    return pillow.open(io.BytesIO(base64.b64decode(content)))


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """A picture of 640 x 640: dark above and bright below, each with a little texture."""
    levels = np.random.default_rng(0).integers(0, 20, (640, 640))
    levels[:320] += 20
    levels[320:] += 200
    pillow.fromarray(levels.astype(np.uint8)).save(tmp_path / "halves.png")
    return tmp_path / "halves.png"


@pytest.fixture
def toy(toy_model: Path) -> ModelScorer:
    return load_scorer(toy_model)


def scored(path: Path, scorer: ModelScorer) -> Row:
    return scorer.rate(read_image(path)).to_record()


def test_the_worst_have_a_larger_picture_and_all_a_small_one(halves: Path, ct: Path, toy: ModelScorer) -> None:
    rows = [scored(halves, toy), scored(ct, toy)]
    seen = pictures_of(rows, [1, 0], 1, None, None)
    assert seen.of_row == [1, 0]
    small, large = decoded(seen.images[1]["thumbnail"]), decoded(seen.images[0]["picture"])
    assert small.size == (SMALL, SMALL)
    assert large.size == (128, 128)  # as large as it is: nothing is enlarged
    assert seen.images[0]["size"] == [128, 128]
    assert "picture" not in seen.images[1]
    above, below = np.asarray(small)[:60].mean(), np.asarray(small)[68:].mean()
    assert above < 50
    assert below > 180
    large_first = decoded(pictures_of(rows, [0, 1], 1, None, None).images[0]["picture"])
    assert large_first.size == (LARGE, LARGE)


def test_the_map_lies_over_the_picture(halves: Path, toy: ModelScorer) -> None:
    whole = read_image(halves, mask="none")
    score, quality = toy.rate_and_map(whole)
    (image,) = pictures_of([score.to_record()], [0], 1, toy, None).images
    assert image["map_row"] == 0
    drawn = np.asarray(decoded(image["map"])).astype(int)
    assert drawn.shape == (LARGE, LARGE, 3)
    wanted = overlay(whole, quality)
    for row_, row_there in ((60, 75), (450, 562)):
        assert drawn[row_, 256] == pytest.approx(wanted[row_there, 320], abs=12)  # JPEG, and noise made smaller
    dark, bright = drawn[60, 256], drawn[450, 256]
    assert dark[0] - dark[2] > 20  # bad is red
    assert bright.sum() > dark.sum()


def test_a_map_is_only_drawn_of_the_very_score(halves: Path, toy: ModelScorer) -> None:
    row = scored(halves, toy)

    def note(changed: Row) -> str:
        (image,) = pictures_of([changed], [0], 1, toy, None).images
        assert "map" not in image
        assert "picture" in image
        return str(image["note"])

    other = {**row, "model": {**row["model"], "sha256": "f" * 64}}
    assert note(other) == "No map: toy 0.1 draws the maps, and another model gave this score."
    assert note({**row, "score": 1.0}).startswith("No map: scored anew the image gets ")
    refused = not_scored(halves, "because", read_image(halves), model=toy.model).to_record()
    assert note(refused) == "No map: the image was not scored."


def test_a_file_that_is_gone_changed_or_broken_says_so(halves: Path, toy: ModelScorer, tmp_path: Path) -> None:
    row = scored(halves, toy)
    gone = {**row, "path": str(tmp_path / "gone.png")}
    changed = {**row, "sha256": "0" * 64}
    (tmp_path / "broken.png").write_bytes(halves.read_bytes()[:200])
    broken = {**row, "path": str(tmp_path / "broken.png")}
    for bad, reason in (
        (gone, "no such file"),
        (changed, "the file is no longer the one that was scored"),
        (broken, "."),
    ):
        (image,) = pictures_of([bad], [0], 1, toy, None).images
        assert set(image) == {"note"}
        assert re.match(reason, str(image["note"]))


def test_the_frames_of_a_file_are_found_in_one_pass(toy: ModelScorer) -> None:
    clip = str(get_testdata_file("examples_ybr_color.dcm", download=False))
    rows = []
    for image in read_frames(clip, mask="none"):
        rows.append(toy.rate(image).to_record())
        if image.source.frame == 3:
            break
    rows.append({**rows[0], "frame": 99})
    seen = pictures_of(rows, [3, 1, 4], 0, None, None)
    assert seen.of_row == [None, 1, None, 0, 2]
    assert all("thumbnail" in image for image in seen.images[:2])
    assert seen.images[2] == {"note": "the file has no such frame any more"}
    assert seen.images[0]["thumbnail"] != seen.images[1]["thumbnail"]


def test_the_page_says_what_was_left_out(halves: Path, toy: ModelScorer, tmp_path: Path) -> None:
    rows = [scored(halves, toy), record(str(tmp_path / "gone.png"), 70.0)]

    def left_out(**options: Any) -> str:
        write_report(rows, tmp_path / "report.html", **options)
        return " ".join(data_of(tmp_path / "report.html")["left_out"])

    assert left_out(pictures=None) == "Pictures were left out (--no-pictures)."
    said = left_out(pictures=1)
    assert "Larger pictures are of the 1 worst of 2 images: --pictures N for more." in said
    assert "1 images could not be shown" in said
    assert "No quality maps were drawn: --maps" in said
    assert "No dates, so no course over time" in said
    assert "maps" not in left_out(pictures=2, scorer=toy)


def test_without_pictures_no_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr("saqm.outputs.report.pictures.read_image", refuse)
    write_report([record()], tmp_path / "report.html", pictures=None)
    data = data_of(tmp_path / "report.html")
    assert data["images"] == []


# Group table


def test_every_column_of_the_group_table_is_described() -> None:
    assert list(DESCRIPTIONS) == [column.name for column in GROUP_COLUMNS]
    assert all(description["Description"] for description in DESCRIPTIONS.values())


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".parquet"])
def test_the_group_table_has_a_row_an_image_and_its_sidecar_beside(suffix: str, tmp_path: Path) -> None:
    rows = [{**record("a.png", 12.5), "device": "A", "acquired": "2026-03-14"}, record("b.png", None)]
    sidecar = save_group(rows, tmp_path / f"group{suffix}")
    assert sidecar == tmp_path / "group.json"
    described = json.loads(sidecar.read_text(encoding="utf-8"))
    assert described["score"]["Direction"] == "higher is better"
    assert (described["score"]["Minimum"], described["score"]["Maximum"]) == (0, 100)
    if suffix == ".parquet":
        polars = pytest.importorskip("polars")
        table = polars.read_parquet(tmp_path / "group.parquet").to_dicts()
        assert (table[0]["score"], table[1]["score"], table[0]["device"]) == (12.5, None, "A")
    else:
        with (tmp_path / f"group{suffix}").open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file, dialect="excel-tab" if suffix == ".tsv" else "excel"))
        missing = "n/a" if suffix == ".tsv" else ""
        assert [row["score"] for row in table] == ["12.5", missing]
        assert [row["acquired"] for row in table] == ["2026-03-14", missing]
    assert set(described) == {"GeneratedBy", *table[0]}


def test_a_group_table_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"group\.json: a group table is written as \.tsv, \.csv, \.parquet"):
        save_group([record()], tmp_path / "group.json")


# The command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    monkeypatch.setattr(sys, "argv", ["saqm", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_the_command_reports_several_result_files(
    ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_records([load_scorer().rate(read_image(ct)).to_record()], tmp_path / "a.csv")
    save_records([record("gone.png")], tmp_path / "b.jsonl")
    code = run(
        monkeypatch, tmp_path / "a.csv", tmp_path / "b.jsonl", "--out", tmp_path / "report.html", "--title", "Two",
        "--maps", "--group", tmp_path / "group.tsv", "--timestamp",
    )  # fmt: skip
    assert code in (0, None)
    assert re.search(r"2 rows: .*report\.html, \d\.\d MB", capsys.readouterr().err)
    data = data_of(tmp_path / "report.html")
    assert data["title"] == "Two"
    assert re.match(r"\d{4}-\d\d-\d\dT", data["created"])
    assert unpacked(data, "acquired") == ["1997-04-30", None]
    assert "map" in data["images"][0]
    assert (tmp_path / "group.json").exists()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", (), "error: no records, so there is nothing to report"),
        ('{"path": "a.png"}\n', (), "error: record 1 has no status, score, score_raw, model"),
        (json.dumps(record()) + "\n", ("--no-pictures", "--maps"), "a map is drawn over a picture"),
        (json.dumps(record()) + "\n", ("--model", "x.onnx"), "ask for them with --maps"),
        (json.dumps(record(score=None)) + "\n", ("--maps",), "no row has a score of a model"),
        (json.dumps(record()) + "\n", ("--maps", "--model", "niqe"), "it has no quality map; leave --maps out"),
    ],
)
def test_the_command_refuses_with_the_way_out(  # noqa: PLR0917
    content: str,
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "scores.jsonl").write_text(content, encoding="utf-8")
    assert run(monkeypatch, tmp_path / "scores.jsonl", "--out", tmp_path / "report.html", *options) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "report.html").exists()


def test_records_are_checked_one_by_one() -> None:
    assert checked(iter([record("a"), record("b")])) == [record("a"), record("b")]

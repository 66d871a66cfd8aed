"""Structured reports: valid by others' validators, the same for the same scores, and read back as they were written."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from saqm.errors import ImageError, MissingExtra, SaqmError
from saqm.findings import CAUSES
from saqm.outputs.dicom import Coded, Maker, Reported, header_of, quality_report, read_report, save_object
from saqm.scorer import Score

NOW = datetime(2026, 11, 21, 12, 30, 15, tzinfo=UTC)
MAKER = Maker.named("test")
MODEL = {"name": "toy", "version": "0.1", "sha256": "0123456789abcdef" * 4, "engine": "onnx"}
FINDING = {
    "name": "blur", "value": 0.31, "unit": "ratio", "threshold": 0.43, "direction": "below",
    "code": {"value": "111215", "scheme": "DCM", "meaning": "Artifact(s) other than grid or detector artifact"},
}  # fmt: skip
FILES = {  # a file that ships with pydicom, of each modality there is
    "CT": "CT_small.dcm",
    "CT whose patient was removed": "693_J2KI.dcm",
    "MR": "examples_overlay.dcm",
    "MR of an archive": "MR_small_bigendian.dcm",
    "US": "examples_palette.dcm",
    "US of ACR-NEMA's time": "ExplVR_BigEnd.dcm",
    "US cine": "examples_ybr_color.dcm",
    "CR": "dicomdirtests/77654033/CR1/6154",
    "NM": "JPEG-lossy.dcm",
    "SC": "SC_rgb_small_odd.dcm",
    "SC, deflated": "image_dfl.dcm",
}


def sample(name: str) -> Path:
    folder = Path(pydicom.__file__).parent / "data"
    for at in ("test_files", "charset_files"):
        if (folder / at / name).is_file():
            return folder / at / name
    return Path(str(get_testdata_file(name, download=False)))


@pytest.fixture
def ct() -> Dataset:
    return header_of(sample("CT_small.dcm"))


def scored(value: float = 72.345678901, **changes: Any) -> Score:
    """A score with everything that a report holds."""
    made = Score(
        path="/home/somebody/scan.dcm",
        status="scored",
        score=value,
        score_raw=3.2,
        interval=(value - 7.5, value + 9.25),
        coverage=0.9,
        out_of_domain={"statistic": 0.5, "p": 0.25, "flag": False, "view": "picture"},
        verdict="review",
        reasons=(f"score {value:.6g} is below 80", "blur: 0.31 ratio, below 0.43"),
        findings=(FINDING,),
        model=MODEL,
        preparation={
            "patch": 32,
            "stride": 16,
            "window": {"step": "window", "center": 40.0, "width": 400.0, "from": "file"},
            "mask": {"step": "mask", "mode": "auto"},
        },
        warnings=("ultrasound region reaches outside the picture: clipped",),
    )
    return replace(made, **changes)


def unscored(reason: str = "the picture is constant", **changes: Any) -> Score:
    path = "/home/somebody/scan.dcm"
    return Score(path=path, status="not_scored", reasons=(f"{path}: {reason}",), model=MODEL, **changes)


def frames_of(header: Dataset) -> list[Score]:
    """A score for each frame."""
    count = int(header.get("NumberOfFrames") or 1)
    return [scored(90 - 2 * frame, frame=frame) for frame in range(count)] if count > 1 else [scored()]


def report_of(header: Dataset, *scores: Score, maker: Maker = MAKER, now: datetime = NOW) -> Dataset:
    return quality_report([(header, scores)], maker, now=now)


def written(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def items(dataset: Dataset, code: str) -> list[Dataset]:
    """Every content item with this concept as its name, at any depth."""
    found = []
    for item in dataset.get("ContentSequence") or ():
        if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].CodeValue == code:
            found.append(item)
        found += items(item, code)
    return found


def checked_by(tool: str, *arguments: object) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


# Valid, by programs that others wrote


@pytest.mark.parametrize("name", FILES.values(), ids=FILES)
def test_a_report_of_every_modality_is_valid(name: str, tmp_path: Path) -> None:
    header = header_of(sample(name))
    save_object(report_of(header, *frames_of(header)), tmp_path / "sr.dcm")
    said = checked_by("dciodvfy", "-new", tmp_path / "sr.dcm")
    assert said.splitlines().count("Comprehensive3DSR") == 1
    assert "Error" not in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CT_small.dcm", "examples_ybr_color.dcm", "JPEG-lossy.dcm"])
def test_a_report_follows_its_template(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ("xpathExprGrpLimit", "xpathExprOpLimit", "xpathTotalOpLimit")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", " ".join(f"-Djdk.xml.{limit}=0" for limit in limits))
    header = header_of(sample(name))
    save_object(report_of(header, *frames_of(header)[:2], unscored()), tmp_path / "sr.dcm")
    said = checked_by("DicomSRValidator", tmp_path / "sr.dcm")
    assert "Found Root Template TID_1500 (MeasurementReport)" in said
    assert "Root Template Validation Complete" in said
    assert "Error" not in said


def test_highdicom_finds_its_way(tmp_path: Path) -> None:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    header = header_of(sample("examples_ybr_color.dcm"))
    save_object(report_of(header, *frames_of(header)[:3]), tmp_path / "sr.dcm")
    groups = sr.srread(tmp_path / "sr.dcm").content.get_image_measurement_groups()
    assert [group.source_images[0].referenced_frame_numbers for group in groups] == [[1], [2], [3]]
    ratings = [group.get_measurements(name=codes.DCM.ImageQualityRating)[0] for group in groups]
    assert [rating.value for rating in ratings] == [90, 88, 86]
    assert {rating.unit.value for rating in ratings} == {"{0:100}"}
    evaluations = groups[0].get_qualitative_evaluations()
    assert [each.value.value for each in evaluations] == ["111236", "111240", "111215"]
    assert str(groups[0].tracking_uid) != str(groups[1].tracking_uid)
    assert groups[0].tracking_identifier.endswith("frame 1")


# What stands in it


def test_what_is_read_back_is_the_record(ct: Dataset) -> None:
    (back,) = read_report(report_of(ct, scored()))
    record = scored().to_record()
    same = ("status", "score", "frame", "verdict", "coverage", "out_of_domain", "model", "software")
    assert {name: getattr(back, name) for name in same} == {name: record[name] for name in same}
    assert list(back.interval or ()) == pytest.approx(record["interval"], abs=1e-9)
    assert (list(back.reasons), list(back.warnings)) == (record["reasons"], record["warnings"])
    assert list(back.findings) == [FINDING]
    assert back.settings == {"patch": "32", "stride": "16", "window": "40/400 (file)", "mask": "auto"}
    assert back.uids == {
        "study": ct.StudyInstanceUID,
        "series": ct.SeriesInstanceUID,
        "instance": ct.SOPInstanceUID,
        "sop_class": ct.SOPClassUID,
    }


words = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=40)
codes = [(name, cause.code(modality)) for name, cause in CAUSES.items() for modality in (None, "MR", "CR")]
found = st.tuples(st.sampled_from(codes), st.floats(0, 1e6), st.floats(1e-3, 1e3), st.sampled_from(("above", "below")))


@st.composite
def scores(draw: st.DrawFn, frame: int | None = None) -> Score:
    """A score, or why there is none, with whatever a report may have to say of it."""
    reasons = tuple(draw(st.lists(words, max_size=2)))
    warnings = tuple(draw(st.lists(words, max_size=2)))
    if draw(st.booleans()):
        return replace(unscored(), frame=frame, reasons=reasons or ("constant",), warnings=warnings)
    value = draw(st.floats(0, 100))
    around = st.tuples(st.floats(0, 100), st.floats(0, 100)).map(lambda ends: (min(ends), max(ends)))
    outside = st.fixed_dictionaries(
        {
            "statistic": st.floats(0, 1e3),
            "p": st.floats(0, 1),
            "flag": st.booleans(),
            "view": st.sampled_from(("picture", "features")),
        }
    )
    interval = draw(st.none() | around)
    return scored(
        value,
        frame=frame,
        interval=interval,
        coverage=draw(st.none() | st.floats(0.5, 0.99)) if interval else None,
        out_of_domain=draw(st.none() | outside),
        verdict=draw(st.sampled_from((None, "pass", "review", "fail"))),
        findings=tuple(
            {**FINDING, "name": name, "value": measured, "threshold": threshold, "direction": direction,
             "unit": CAUSES[name].unit,
             "code": {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}}
            for (name, code), measured, threshold, direction in draw(st.lists(found, max_size=3))
        ),
        reasons=reasons,
        warnings=warnings,
        model={**MODEL, "name": draw(st.sampled_from(("toy", "saqm-ct")))},
    )  # fmt: skip


def close(back: Reported, said: Reported) -> bool:
    """Equal, up to the rounding of the ends of an interval, which are written as distances."""
    ends = [each.interval or () for each in (back, said)]
    return ends[0] == pytest.approx(ends[1], abs=1e-9) and replace(back, interval=None) == replace(said, interval=None)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_a_score_says_is_read_back(data: st.DataObject) -> None:
    header = header_of(sample("examples_ybr_color.dcm"))
    frames = data.draw(st.lists(st.none() | st.integers(0, 29), min_size=1, max_size=5, unique=True))
    made = [data.draw(scores(frame)) for frame in frames]
    file = BytesIO(written(report_of(header, *made)))
    back = read_report(pydicom.dcmread(file))
    said = sorted(made, key=lambda score: -1 if score.frame is None else score.frame)
    for read, score in zip(back, said, strict=True):
        assert close(read, Reported.of(score.to_record(), read.uids))
        assert (read.score, read.status, read.frame) == (score.score, score.status, score.frame)
        assert [each["name"] for each in read.findings] == [each["name"] for each in score.findings]


def test_a_verdict_comes_with_its_standard_and_only_there(ct: Dataset) -> None:
    for verdict, code in (("pass", "111237"), ("review", "111236"), ("fail", "111235")):
        report = report_of(ct, scored(verdict=verdict))
        assert [item.ConceptCodeSequence[0].CodeValue for item in items(report, "111050")] == [code]
        assert [item.ConceptCodeSequence[0].CodeValue for item in items(report, "111051")] == ["111240"]
    silent = report_of(ct, scored(verdict=None))
    assert items(silent, "111050") == items(silent, "111051") == []
    acr = Maker(MAKER.device_uid, standard=Coded("111238", "DCM", "ACR mammography 1999"))
    assert items(report_of(ct, scored(), maker=acr), "111051")[0].ConceptCodeSequence[0].CodeValue == "111238"


def test_what_was_not_scored_has_no_number_and_says_why(ct: Dataset) -> None:
    report = report_of(ct, unscored(verdict="review"))
    (rating,) = items(report, "111029")
    assert (rating.ValueType, rating.ConceptCodeSequence[0].CodeValue) == ("CODE", "114006")
    assert [item.TextValue for item in items(report, "121106")] == ["Not scored: the picture is constant"]
    assert items(report, "111050") == []
    (back,) = read_report(report)
    assert (back.status, back.score, back.verdict, back.reasons) == (
        "not_scored", None, None, ("the picture is constant",),
    )  # fmt: skip


def test_out_of_domain_is_seen_at_once(ct: Dataset) -> None:
    outside = {"statistic": 23.0826, "p": 0.0129, "flag": True, "view": "features"}
    report = report_of(ct, scored(out_of_domain=outside, coverage=None))
    comments = [item.TextValue for item in items(report, "121106")]
    assert "Interval: 64.8 to 81.6, coverage not promised" in comments
    assert (
        "Domain: OUT OF DOMAIN, unlike the images that the model knows (statistic 23.0826, p 0.0129, view features): "
        "the rating is no ground for a verdict"
    ) in comments
    assert read_report(report)[0].out_of_domain == outside


def test_the_number_is_short_for_people_and_whole_for_programs(ct: Dataset) -> None:
    measured = items(report_of(ct, scored(51.71173740442372)), "111029")[0].MeasuredValueSequence[0]
    assert (str(measured.NumericValue), measured.FloatingPointValue) == ("51.71", 51.71173740442372)


def test_a_report_tells_nobody_s_folders(ct: Dataset) -> None:
    gone = scored(reasons=("/home/somebody/scan.dcm: bad", "caf\u00e9\nnoir"))
    content = written(report_of(ct, gone, unscored(frame=0)))
    assert b"somebody" not in content
    assert b"caf\\xe9 noir" in content  # ASCII: the character set is that of the patient's name


# The same for the same


def series(count: int) -> list[tuple[Dataset, Sequence[Score]]]:
    """Headers of a series of CT, each with a score of its own."""
    made = []
    for number in range(count):
        header = deepcopy(header_of(sample("CT_small.dcm")))
        header.SOPInstanceUID, header.InstanceNumber = f"1.2.3.{number}", number
        made.append((header, [scored(10.0 + number)]))
    return made


def test_the_order_of_images_changes_nothing() -> None:
    images = series(4)
    report = quality_report(images, MAKER, now=NOW)
    assert written(report) == written(quality_report([images[i] for i in (2, 0, 3, 1)], MAKER, now=NOW))
    assert [each.uids["instance"] for each in read_report(report)] == [f"1.2.3.{number}" for number in range(4)]
    twice = [*images, images[1]]
    assert written(report) == written(quality_report(twice, MAKER, now=NOW))


def test_uids_are_made_of_what_is_said_and_who_says_it(ct: Dataset) -> None:
    first = report_of(ct, scored())
    later = report_of(ct, scored(), now=NOW + timedelta(days=1))
    assert (first.SOPInstanceUID, first.SeriesInstanceUID) == (later.SOPInstanceUID, later.SeriesInstanceUID)
    assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", first.SOPInstanceUID)
    assert (first.ContentDate, later.ContentDate) == ("20261121", "20261122")
    other_score, other_maker = report_of(ct, scored(50)), report_of(ct, scored(), maker=Maker.named("other"))
    judged_otherwise = report_of(ct, scored(verdict="fail"))
    uids = [each.SOPInstanceUID for each in (first, other_score, other_maker, judged_otherwise)]
    assert len(set(uids)) == 4
    assert other_score.SeriesInstanceUID == first.SeriesInstanceUID != other_maker.SeriesInstanceUID
    tracking = {items(each, "112040")[0].UID for each in (first, other_score, other_maker)}
    assert len(tracking) == 1  # the image is the same, whoever judges it


def test_scores_of_two_models_stand_side_by_side(ct: Dataset) -> None:
    others = scored(20, model={**MODEL, "name": "other", "sha256": "f" * 64})
    back = read_report(report_of(ct, scored(), others))
    assert [(each.model["name"], each.model["sha256"], each.score) for each in back] == [
        ("other", "f" * 64, 20),
        ("toy", MODEL["sha256"], 72.345678901),
    ]


# Refused


def test_images_of_several_studies_are_refused(ct: Dataset) -> None:
    with pytest.raises(
        SaqmError, match=r"images of 2 studies \(.*\): an object belongs to one study; make one for each"
    ):
        quality_report([(ct, [scored()]), (header_of(sample("MR_small.dcm")), [scored()])], MAKER, now=NOW)
    with pytest.raises(SaqmError, match="no image: an object needs at least one"):
        quality_report([], MAKER, now=NOW)
    with pytest.raises(SaqmError, match="no score, and no reason why: nothing to report"):
        quality_report([(ct, [])], MAKER, now=NOW)


def test_what_is_no_rating_is_refused(ct: Dataset) -> None:
    metric = scored(
        score=None, model={"name": "niqe", "version": "1", "engine": "numpy", "direction": "lower is better"}
    )
    with pytest.raises(SaqmError, match=r"niqe is a metric with a scale of its own; .* ratings of 0 to 100"):
        report_of(ct, metric)
    with pytest.raises(SaqmError, match=r"a score of 100\.5; a DICOM report holds ratings of 0 to 100"):
        report_of(ct, scored(100.5))
    with pytest.raises(SaqmError, match="a score of None"):
        report_of(ct, scored(float("nan")))


def test_the_score_of_another_image_is_refused(ct: Dataset) -> None:
    with pytest.raises(SaqmError, match=r"the score is of another one, 1\.2\.3"):
        report_of(ct, scored(uids={"instance": "1.2.3"}))


def test_a_maker_needs_a_uid() -> None:
    for text in ("", "saqm", "1.02.3", "1." * 40, "1..2"):
        with pytest.raises(SaqmError, match=r"digits and dots are wanted, at most 64"):
            Maker(text)
    assert Maker("1.2.840.0").device_uid == "1.2.840.0"


def test_without_highdicom_the_way_out_is_told(ct: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saqm.outputs.dicom.building.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"a structured report needs highdicom: pip install 'saqm\[dicom\]'"):
        report_of(ct, scored())


def test_a_class_that_highdicom_does_not_know_is_told_by_uid_alone(ct: Dataset) -> None:
    ct.SOPClassUID = "1.2.3.4"
    with pytest.raises(ImageError, match=r"image [\d.]+: a structured report cannot be made of its header") as caught:
        report_of(ct, scored())
    assert str(ct.PatientName) not in str(caught.value)


def test_what_is_no_report_is_not_read(tmp_path: Path, ct: Dataset) -> None:
    for name in ("CT_small.dcm", "reportsi.dcm"):
        with pytest.raises(
            ImageError, match=rf"{name}: not a report of image quality: no measurement group of TID 1500"
        ):
            read_report(sample(name))
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(ImageError, match=r"text\.dcm: not a report of image quality that can be read"):
        read_report(tmp_path / "text.dcm")
    report = report_of(ct, scored())
    items(report, "111052")[0].ContentSequence[0].TextValue = "somebody else's words"
    with pytest.raises(ImageError, match="a finding without its measure"):
        read_report(report)


# The patient's


def test_what_the_source_lacks_stays_empty(tmp_path: Path) -> None:
    lacking = ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "AccessionNumber", "StudyID")
    source = pydicom.dcmread(sample("CT_small.dcm"))
    for keyword in lacking:
        source.pop(keyword, None)
    source.save_as(tmp_path / "source.dcm")
    report = report_of(header_of(tmp_path / "source.dcm"), scored())
    assert all(keyword in report and not report[keyword].value for keyword in lacking)


def test_what_the_source_has_is_copied_as_it_stands(tmp_path: Path) -> None:
    source = pydicom.dcmread(sample("CT_small.dcm"))
    source.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    source.PatientName = "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"
    source.PatientSex, source.PatientAge = "X", "012Y"
    source.save_as(tmp_path / "source.dcm")
    save_object(report_of(header_of(tmp_path / "source.dcm"), scored()), tmp_path / "sr.dcm")
    back = pydicom.dcmread(tmp_path / "sr.dcm")
    assert str(back.PatientName) == "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"
    assert (back.PatientSex, back.PatientAge) == ("X", "012Y")  # "X" is no defined term: not ours to mend
    assert (back.StudyInstanceUID, back.StudyDate) == (source.StudyInstanceUID, source.StudyDate)
    assert (back.Modality, back.SeriesDescription, back.SeriesNumber) == ("SR", "Image quality (saqm)", 9901)
    assert (back.CompletionFlag, back.PreliminaryFlag, back.VerificationFlag) == (
        "COMPLETE", "PRELIMINARY", "UNVERIFIED",
    )  # fmt: skip


def test_no_name_comes_into_logs_or_errors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    source = pydicom.dcmread(sample("CT_small.dcm"))
    source.PatientName = "Mustermann"  # of one part, and no date: of both pydicom and highdicom tell the value
    source["PatientBirthDate"]._value = "31.12.1999"
    source.save_as(tmp_path / "source.dcm")
    header = header_of(tmp_path / "source.dcm")
    report = report_of(header, scored())
    save_object(report, tmp_path / "sr.dcm")
    assert (report.PatientName, report.PatientBirthDate) == ("Mustermann", "31.12.1999")
    monkeypatch.setattr("saqm.outputs.dicom.building.evidence_of", lambda _: 1 / 0)
    with pytest.raises(ImageError) as caught:
        report_of(header, scored())
    for text in (caplog.text, str(caught.value)):
        assert "Mustermann" not in text
        assert "1999" not in text


# Headers


def test_a_header_has_what_objects_need_and_nothing_else() -> None:
    header = header_of(sample("examples_overlay.dcm"))
    groups = {tag.group for tag in header.keys()}  # noqa: SIM118 - the elements' tags
    assert not [group for group in groups if group % 2 or group in (0x6000, 0x7FE0)]
    assert (header.Rows, header.Modality) == (300, "MR")


def test_a_header_comes_out_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(sample("CT_small.dcm"), "folder/ct.dcm")
    assert header_of(f"{tmp_path}/a.zip!/folder/ct.dcm") == header_of(sample("CT_small.dcm"))


def test_an_image_without_whole_pixels_has_a_header() -> None:
    assert header_of(sample("MR_truncated.dcm")).SOPInstanceUID


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.dcm", "cannot be opened: No such file or directory"),
        ("test-SR.dcm", r"not an image to judge: a structured report \(Modality SR\)"),
        ("rtdose.dcm", r"not an image to judge: a radiotherapy dose grid"),
        ("JPEGLSNearLossless_08.dcm", "no StudyInstanceUID, so no report can refer to it"),
        ("zipMR.gz", "not a DICOM file, so no report can refer to it"),
        ("dicomdirtests/DICOMDIR", "no StudyInstanceUID"),
    ],
)
def test_what_no_report_can_refer_to_is_told(name: str, reason: str) -> None:
    path = Path("/nowhere/nowhere.dcm") if name == "nowhere.dcm" else sample(name)
    with pytest.raises(ImageError, match=rf"{re.escape(path.name)}: {reason}"):
        header_of(path)


def test_a_uid_that_would_lead_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    source = pydicom.dcmread(sample("CT_small.dcm"))
    source["SeriesInstanceUID"]._value = "../../etc"
    source.save_as(tmp_path / "ct.dcm")
    with pytest.raises(ImageError, match=r"ct\.dcm: SeriesInstanceUID is no UID"):
        header_of(tmp_path / "ct.dcm")


def test_a_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saqm.outputs.dicom.header.DEFAULT_MAX_PIXELS", 10)
    with pytest.raises(ImageError, match="deflated data grow beyond"):
        header_of(sample("image_dfl.dcm"))

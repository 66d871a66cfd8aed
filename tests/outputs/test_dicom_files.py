"""Notes, and the reports of a batch: one for each series, nothing left out in silence, no rejection by a threshold."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import pytest
from PIL import Image as pillow
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from saqm import cli
from saqm.errors import SaqmError
from saqm.outputs.dicom import (
    REJECTION_REASONS,
    Maker,
    Rejection,
    SeriesReports,
    header_of,
    quality_note,
    read_report,
    rejection_note,
    save_object,
)
from saqm.scorer import Score

NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
MAKER = Maker.named("test")
LOOKED = "Dr. Example looked at it on 2026-11-21"


def sample(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def scored(verdict: str | None, frame: int | None = None, path: str = "scan.dcm", **changes: object) -> Score:
    model = {"name": "toy", "version": "0.1", "sha256": "0" * 64, "engine": "onnx"}
    reasons = (f"{path}: score 31 is below 40",)
    made = {"path": path, "frame": frame, "status": "scored", "score": 31.0, "verdict": verdict, "reasons": reasons}
    return Score(**{**made, "model": model, **changes})  # type: ignore[arg-type]


@pytest.fixture
def clip() -> Dataset:
    return header_of(sample("examples_ybr_color.dcm"))


def text_of(note: Dataset) -> str:
    return next(
        str(item.TextValue) for item in note.ContentSequence if item.ValueType == "TEXT" and "Key" in _name(item)
    )


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def complaints(made: Dataset, path: Path) -> str:
    save_object(made, path)
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed")
    return subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False).stderr


# Notes


def test_a_quality_note_names_what_does_not_pass(clip: Dataset, tmp_path: Path) -> None:
    scores = [scored("pass", 0), scored("review", 1), scored("fail", 2), scored(None, 3)]
    note = quality_note([(clip, scores)], MAKER, now=NOW)
    assert _name(note) == "Quality Issue"
    assert text_of(note) == (
        "image 16117, frame 2: review (score 31 is below 40); image 16117, frame 3: fail (score 31 is below 40)"
    )
    assert "Error" not in complaints(note, tmp_path / "ko.dcm")
    referenced = [item for item in note.ContentSequence if item.ValueType == "IMAGE"]
    assert [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in referenced] == [clip.SOPInstanceUID]
    again = quality_note([(clip, scores[::-1])], MAKER, now=NOW)
    assert (note.SOPInstanceUID, text_of(note)) == (again.SOPInstanceUID, text_of(again))


def test_where_all_is_well_there_is_nothing_to_note(clip: Dataset) -> None:
    with pytest.raises(SaqmError, match="no image with the verdict review or fail: there is nothing to note"):
        quality_note([(clip, [scored("pass")])], MAKER, now=NOW)


def test_a_rejection_names_only_what_fails_and_who_says_so(clip: Dataset, tmp_path: Path) -> None:
    scores = [scored("review", 1), scored("fail", 2)]
    note = rejection_note([(clip, scores)], MAKER, reason="motion-blur", confirmed=LOOKED, now=NOW)
    assert _name(note) == "Rejected for Quality Reasons"
    assert note.ContentSequence[0].ConceptCodeSequence[0].CodeValue == "111210"
    assert text_of(note).startswith(f"Rejection confirmed by a person: {LOOKED}. image 16117, frame 3: fail")
    assert "frame 2" not in text_of(note)
    assert "Error" not in complaints(note, tmp_path / "ko.dcm")


def test_nothing_is_rejected_without_a_person_and_a_reason(clip: Dataset) -> None:
    failed = [(clip, [scored("fail")])]
    with pytest.raises(SaqmError, match="'ugly' is no reason to reject an image; there are image-artifact, "):
        rejection_note(failed, MAKER, reason="ugly", confirmed=LOOKED, now=NOW)
    with pytest.raises(SaqmError, match="can make an archive hide or delete images: say who looked"):
        rejection_note(failed, MAKER, reason="motion-blur", confirmed="  ", now=NOW)
    with pytest.raises(SaqmError, match="no image with the verdict fail"):
        rejection_note([(clip, [scored("review")])], MAKER, reason="motion-blur", confirmed=LOOKED, now=NOW)
    with pytest.raises(SaqmError, match="can make an archive hide"):
        Rejection("motion-blur", "")


def test_the_reasons_are_those_of_cid_7011() -> None:
    from pydicom.sr.codedict import codes

    listed = {code.value: code.meaning for name in codes.cid7011.dir() for code in [getattr(codes.cid7011, name)]}
    assert {reason.value: reason.meaning for reason in REJECTION_REASONS.values()} == listed


# The reports of a batch


def test_each_series_has_its_report_whatever_the_order(tmp_path: Path) -> None:
    ct, clip, mr = (sample(name) for name in ("CT_small.dcm", "examples_ybr_color.dcm", "MR_small.dcm"))
    records = [
        scored("pass", 1, str(clip)).to_record(),
        scored("pass", path=str(ct)).to_record(),
        scored("fail", 0, str(clip)).to_record(),
        scored(None, path=str(mr), status="not_scored", score=None).to_record(),
    ]
    rejection = Rejection("other-artifact", LOOKED)
    with SeriesReports(tmp_path, MAKER, note=True, rejection=rejection) as reports:
        assert list(reports.watch(records)) == records
        written = list(reports.write(now=NOW))
    series = {path: header_of(path).SeriesInstanceUID for path in (ct, clip, mr)}
    assert {path.name for path in written} == {
        *(f"SR.{uid}.dcm" for uid in series.values()),
        f"KO.{series[clip]}.dcm",
        f"KO.rejected.{series[clip]}.dcm",
    }
    assert [each.frame for each in read_report(tmp_path / f"SR.{series[clip]}.dcm")] == [0, 1]
    assert read_report(tmp_path / f"SR.{series[mr]}.dcm")[0].status == "not_scored"
    assert reports.left_out == 0


def test_what_has_no_report_is_counted_once_and_told(tmp_path: Path) -> None:
    ct = str(sample("CT_small.dcm"))
    metric = {"name": "niqe", "version": "1", "engine": "numpy", "direction": "lower is better"}
    with SeriesReports(tmp_path, MAKER) as reports:
        for frame in range(3):
            reports.add(scored(None, frame, path=str(tmp_path / "volume.nii")).to_record())
        reports.add(scored(None, path=ct).to_record())
        reports.add(scored(None, path=ct, score=None, score_raw=4.2, model=metric).to_record())
        written = list(reports.write(now=NOW))
    assert (len(written), reports.left_out) == (1, 2)
    assert reports.why_left_out == f"{tmp_path}/volume.nii: cannot be opened: No such file or directory"


def test_a_series_that_no_report_can_refer_to_costs_no_other(tmp_path: Path) -> None:
    private = pydicom.dcmread(sample("MR_small.dcm"))
    private.SOPClassUID = private.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.9.1"
    private.save_as(tmp_path / "private.dcm")
    with SeriesReports(tmp_path, MAKER) as reports:
        reports.add(scored(None, path=str(tmp_path / "private.dcm")).to_record())
        reports.add(scored(None, path=str(sample("CT_small.dcm"))).to_record())
        written = list(reports.write(now=NOW))
    assert (len(written), reports.left_out) == (1, 1)
    assert "its class is one that highdicom does not know" in reports.why_left_out


# The command


class Ran(NamedTuple):
    code: int
    err: str


@pytest.fixture
def saqm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy_model: Path) -> Callable[..., Ran]:
    """Runs `saqm score` in this process with the toy model."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["saqm", "score", "--model", str(toy_model), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code = stopped.value.code
        return Ran(code if isinstance(code, int) else 0 if code is None else 1, capsys.readouterr().err)

    return run


def test_the_command_writes_a_report_of_each_series(saqm: Callable[..., Ran], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(60, 200, (64, 64), np.uint8)
    pillow.fromarray(pixels).save(tmp_path / "picture.png")
    ct, picture, out = sample("CT_small.dcm"), tmp_path / "picture.png", tmp_path / "reports"
    ran = saqm(
        ct, picture, "--dicom-sr", out, "--pass", 99, "--fail", 98, "--quality-note",
        "--map", tmp_path / "maps", "--map-format", "dcm", "--out", tmp_path / "scores.jsonl",
    )  # fmt: skip
    assert ran.code == 0  # a picture that is no DICOM is no failure
    assert f"2 DICOM objects: {out}" in ran.err
    assert f"no DICOM report of 1 files; of the first: {picture}: not a DICOM file" in ran.err
    series = header_of(ct).SeriesInstanceUID
    assert {path.name for path in out.iterdir()} == {f"SR.{series}.dcm", f"KO.{series}.dcm"}
    (back,) = read_report(out / f"SR.{series}.dcm")
    assert (back.verdict, back.model["name"]) == ("fail", "toy")
    assert [path.suffix for path in (tmp_path / "maps").iterdir()] == [".dcm"]
    rows = (tmp_path / "scores.jsonl").read_text()
    assert rows.count("no DICOM map: the image is no DICOM file") == 1
    assert rows.count('"verdict": "fail"') == 2


def test_the_command_gives_the_same_report_twice(saqm: Callable[..., Ran], tmp_path: Path) -> None:
    uids = set()
    for name in ("first", "second"):
        saqm(sample("CT_small.dcm"), "--dicom-sr", tmp_path / name)
        (path,) = (tmp_path / name).iterdir()
        uids.add(pydicom.dcmread(path).SOPInstanceUID)
    assert len(uids) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--quality-note"], "name their folder with --dicom-sr"),
        (["--fail", "3"], "--fail goes with --pass"),
        (["--dicom-sr", "DIR", "--quality-note"], "a note names what does not pass: say with --pass"),
        (["--dicom-sr", "DIR", "--pass", "60", "--rejection-note", "motion-blur"], "a person has to have looked at it"),
        (["--dicom-sr", "DIR", "--pass", "60", "--confirmed-by", "me"], "go together"),
        (
            ["--dicom-sr", "DIR", "--pass", "60", "--rejection-note", "ugly", "--confirmed-by", "me"],
            "'ugly' is no reason to reject an image",
        ),
    ],
)
def test_options_that_lack_others_are_refused(
    saqm: Callable[..., Ran], tmp_path: Path, options: list[str], said: str
) -> None:
    ran = saqm(sample("CT_small.dcm"), *(str(tmp_path) if each == "DIR" else each for each in options))
    assert ran.code == 2
    assert said in " ".join(ran.err.replace("\u2502", " ").split())

"""What the service answers: files in; records, reports, pictures and maps out. Real workers, files of pydicom's."""

from __future__ import annotations

import base64
import io
import json
import time
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image as pillow

from saqm.image import from_array, read_image, read_values
from saqm.scorer import load_scorer, quality_map, score

from .conftest import LONG, Served, sample

if TYPE_CHECKING:
    import httpx

    from saqm.scorer import AnyScorer

CT, MR, CINE = "CT_small.dcm", "MR_small.dcm", "SC_rgb_rle_2frame.dcm"


@cache
def scorer() -> AnyScorer:
    """The default model, on one thread as the workers have it."""
    return load_scorer(None, threads=1)


def part(name: str) -> tuple[str, tuple[str, bytes]]:
    """A file of pydicom's as a part of a form."""
    return "file", (name, sample(name).read_bytes())


def ended(served: Served, answer: httpx.Response) -> dict[str, Any]:
    """The status of a job that has ended."""
    assert answer.status_code == 202, answer.text
    place = answer.headers["Location"]
    until = time.monotonic() + LONG
    while (status := served.client.get(place).json())["state"] in ("queued", "running"):
        assert time.monotonic() < until, status
        time.sleep(0.02)
    return {"place": place, **status}


def test_a_file_is_scored_as_python_scores_it(served: Served) -> None:
    answer = served.client.post("/v1/score", files=[part(CT)])
    assert answer.status_code == 200
    (record,) = answer.json()["records"]
    expected = score(read_image(sample(CT)), scorer()).to_record()
    assert record.pop("created")
    assert record.pop("file") == 0
    assert expected.pop("created") is None
    assert record == {**json.loads(json.dumps(expected)), "path": CT}


def test_a_bare_body_does_as_well_and_is_called_what_its_name_says(served: Served) -> None:
    data = sample(CT).read_bytes()
    for kind in ("application/dicom", "application/octet-stream", "application/x-www-form-urlencoded"):
        answer = served.client.post(
            "/v1/score", content=data, headers={"Content-Type": kind}, params={"name": "../ward/slice.dcm"}
        )
        (record,) = answer.json()["records"]
        assert (record["path"], record["status"], record["modality"]) == ("slice.dcm", "scored", "CT")


def test_each_file_and_frame_has_its_row_in_order(served: Served) -> None:
    broken = ("file", ("notes.txt", b"no picture at all"))
    records = served.client.post("/v1/score", files=[part(CINE), broken, part(CT)]).json()["records"]
    assert [(r["file"], r["frame"]) for r in records] == [(0, 0), (0, 1), (1, None), (2, None)]
    assert [r["status"] for r in records[2:]] == ["not_scored", "scored"]
    assert records[2]["reasons"][0].startswith("notes.txt: not an image that saqm reads")
    assert [r["path"] for r in records] == [CINE, CINE, "notes.txt", CT]


def test_not_one_file_that_can_be_read_is_refused_with_the_reasons(served: Served) -> None:
    answer = served.client.post(
        "/v1/score", files=[("file", ("a.png", b"\x89PNG\r\n\x1a\nbroken")), ("file", ("b", b""))]
    )
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["detail"] == "not one file could be read; the records say why"
    assert [r["reasons"][0].partition(":")[0] for r in problem["records"]] == ["a.png", "b"]


def test_a_picture_that_cannot_be_judged_is_no_error(served: Served) -> None:
    blank = io.BytesIO()
    pillow.new("L", (64, 64), 128).save(blank, "PNG")
    answer = served.client.post("/v1/score", files=[("file", ("blank.png", blank.getvalue()))])
    assert answer.status_code == 200
    (record,) = answer.json()["records"]
    assert (record["status"], record["score"]) == ("not_scored", None)
    assert record["reasons"] == ["constant image: every judged pixel is 0.502"]


def test_an_archive_is_refused_by_name(served: Served) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.dcm", bytes(10_000_000))
    answer = served.client.post("/v1/score", files=[("file", ("study.dcm", packed.getvalue()))])
    assert answer.status_code == 422
    assert answer.json()["records"][0]["reasons"] == ["study.dcm: an archive; unpack it and send its files"]


def test_a_volume_is_cut_along_the_axis_asked_for(served: Served, tmp_path: Path) -> None:
    from nibabel.nifti1 import Nifti1Image

    voxels = np.random.default_rng(0).integers(0, 1000, (40, 48, 3)).astype(np.int16)
    path = tmp_path / "brain.nii.gz"
    Nifti1Image(voxels, np.eye(4)).to_filename(path)
    file = [("file", ("brain.nii.gz", path.read_bytes()))]
    undecided = served.client.post("/v1/score", files=file)
    assert undecided.status_code == 422
    assert "choose axis=0|1|2" in undecided.json()["records"][0]["reasons"][0]
    records = served.client.post("/v1/score", files=file, params={"axis": 2, "mask": "none"}).json()["records"]
    assert [r["frame"] for r in records] == [0, 1, 2]
    one = served.client.post("/v1/score", files=file, params={"axis": 2, "mask": "none", "frame": 1}).json()["records"]
    assert [(r["frame"], r["score"]) for r in one] == [(1, records[1]["score"])]


def test_a_verdict_comes_with_thresholds(served: Served) -> None:
    asked = {"pass_at": 99, "fail_below": 98, "window": "50,300", "strict": "false"}
    (record,) = served.client.post("/v1/score", files=[part(CT)], params=asked).json()["records"]
    assert record["verdict"] == "review"  # out of domain: no ground for a verdict
    assert "no ground for a verdict" in record["reasons"][0]
    assert (record["preparation"]["window"]["center"], record["preparation"]["window"]["width"]) == (50, 300)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"frame": "first"}, "frame: "),
        ({"axis": "3"}, "axis: "),
        ({"window": "40"}, "window: "),
        ({"window": "40,0"}, "window: Value error, centre, width: the width must be above 0"),
        ({"stride": "0"}, "stride: "),
        ({"strict": "maybe"}, "strict: Value error, true or false"),
        ({"pass_at": "nan"}, "pass_at: "),
        ({"fail_below": "3"}, "fail_below and sure need pass_at"),
        ({"pass_at": "40", "fail_below": "60"}, "stand the wrong way round"),
        ({"model": "best"}, "model: not served; there are saqm-ct"),
        ({"windows": "40,400"}, "windows: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_option_is_told(served: Served, asked: dict[str, str], said: str) -> None:
    answer = served.client.post("/v1/score", files=[part(CT)], params=asked)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_the_report_comes_where_dicom_is_accepted(served: Served) -> None:
    from saqm.outputs.dicom import read_report

    answer = served.client.post("/v1/score", files=[part(CT)], headers={"Accept": "application/dicom"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/dicom")
    import pydicom

    (reported,) = read_report(pydicom.dcmread(io.BytesIO(answer.content)))
    expected = score(read_image(sample(CT)), scorer())
    assert reported.score == pytest.approx(expected.score)
    assert reported.uids["instance"] == expected.uids["instance"]


def test_no_report_is_made_of_what_is_not_one_study(served: Served) -> None:
    wanted = {"Accept": "application/dicom"}
    png = io.BytesIO()
    pillow.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(png, "PNG")
    for files in ([part(CT), part(MR)], [("file", ("a.png", png.getvalue()))]):
        answer = served.client.post("/v1/score", files=files, headers=wanted)
        assert answer.status_code == 406
        assert "a report is of DICOM images of one study" in answer.json()["detail"]
    answer = served.client.post("/v1/score", files=[part(CT)], headers={"Accept": "text/html"})
    assert answer.status_code == 406


def test_a_map_comes_on_demand(served: Served) -> None:
    (record,) = served.client.post("/v1/score", files=[part(CT)], params={"map": "png"}).json()["records"]
    with pillow.open(io.BytesIO(base64.b64decode(record["map"]["png"]))) as picture:
        assert picture.format == "PNG"
        assert picture.width > 512  # the picture enlarged, and the bar
    assert "map" not in served.client.post("/v1/score", files=[part(CT)]).json()["records"][0]


# Jobs


def test_a_job_goes_from_queued_to_done_and_is_forgotten(served: Served) -> None:
    answer = served.client.post("/v1/jobs", files=[part(CT), part(CINE)], params={"mask": "none"})
    assert answer.json()["state"] == "queued"
    job = ended(served, answer)
    assert (job["state"], job["files"], job["files_done"], job["images"]) == ("done", 2, 2, 3)
    assert job["expires"] > job["created"]
    found = served.client.get(f"{job['place']}/records").json()
    assert [(r["path"], r["file"], r["frame"]) for r in found["records"]] == [(CT, 0, None), (CINE, 1, 0), (CINE, 1, 1)]
    assert (found["after"], found["next"], found["state"]) == (0, 3, "done")
    rest = served.client.get(f"{job['place']}/records", params={"after": 2}).json()
    assert rest["records"] == found["records"][2:]
    assert served.client.get(f"{job['place']}/records", params={"after": 9}).json()["records"] == []
    assert served.client.delete(job["place"]).status_code == 204
    for path in ("", "/records", "/report", "/images/0/picture"):
        gone = served.client.get(job["place"] + path)
        assert gone.status_code == 404
        assert "no such job" in gone.json()["detail"]
    assert served.client.delete(job["place"]).status_code == 404


def test_the_rows_of_a_job_as_files(served: Served, tmp_path: Path) -> None:
    from saqm.outputs.table import read_records

    job = ended(served, served.client.post("/v1/jobs", files=[part(CT), part(MR)]))
    scores = [r["score"] for r in served.client.get(f"{job['place']}/records").json()["records"]]
    for form in ("jsonl", "tsv"):
        answer = served.client.get(f"{job['place']}/records", params={"format": form})
        assert answer.headers["Content-Disposition"] == f'attachment; filename="saqm.{form}"'
        (tmp_path / f"rows.{form}").write_bytes(answer.content)
        rows = list(read_records(tmp_path / f"rows.{form}"))
        assert [(r["path"], r["score"]) for r in rows] == [(CT, scores[0]), (MR, scores[1])]


def test_a_job_has_a_report_for_each_series(served: Served) -> None:
    import pydicom

    from saqm.outputs.dicom import read_report

    job = ended(served, served.client.post("/v1/jobs", files=[part(CT), ("file", ("x", b"no"))]))
    answer = served.client.get(f"{job['place']}/report")
    assert answer.headers["Content-Type"] == "application/dicom"
    assert len(read_report(pydicom.dcmread(io.BytesIO(answer.content)))) == 1
    job = ended(served, served.client.post("/v1/jobs", files=[part(CT), part(MR)]))
    answer = served.client.get(f"{job['place']}/report")
    assert answer.headers["Content-Type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        modalities = {pydicom.dcmread(io.BytesIO(archive.read(name))).Modality for name in archive.namelist()}
        assert (len(archive.namelist()), modalities) == (2, {"SR"})
    job = ended(served, served.client.post("/v1/jobs", files=[("file", ("x", b"no"))]))
    assert served.client.get(f"{job['place']}/report").status_code == 406


@pytest.mark.slow
def test_a_cine_has_a_row_for_each_frame_and_one_report(served: Served) -> None:
    import pydicom

    from saqm.outputs.dicom import read_report

    cine = "examples_ybr_color.dcm"
    job = ended(served, served.client.post("/v1/jobs", files=[part(cine)], params={"pass_at": 60}))
    records = served.client.get(f"{job['place']}/records").json()["records"]
    assert [r["frame"] for r in records] == list(range(30))
    assert {r["modality"] for r in records} == {"US"}
    assert all(r["status"] == "scored" and r["interval"][0] <= r["score"] <= r["interval"][1] for r in records)
    report = pydicom.dcmread(io.BytesIO(served.client.get(f"{job['place']}/report").content))
    reported = sorted(read_report(report), key=lambda each: each.frame or 0)
    assert [(each.frame, each.verdict) for each in reported] == [(r["frame"], r["verdict"]) for r in records]
    assert [each.score for each in reported] == pytest.approx([r["score"] for r in records])
    last = served.client.get(f"{job['place']}/images/29/picture")
    with pillow.open(io.BytesIO(last.content)) as picture:
        assert np.abs(np.asarray(picture) / 255 - read_image(sample(cine), 29).pixels).max() <= 0.5 / 255 + 1e-6


def test_what_a_page_shows_of_an_image(served: Served) -> None:
    job = ended(served, served.client.post("/v1/jobs", files=[part(CT)]))
    image = f"{job['place']}/images/0"
    expected = read_image(sample(CT))
    with pillow.open(io.BytesIO(served.client.get(f"{image}/picture").content)) as picture:
        assert np.abs(np.asarray(picture) / 255 - expected.pixels).max() <= 0.5 / 255 + 1e-6
    answer = served.client.get(f"{image}/values")
    rows, columns = int(answer.headers["X-Rows"]), int(answer.headers["X-Columns"])
    low, high = float(answer.headers["X-Low"]), float(answer.headers["X-High"])
    stored = np.frombuffer(answer.content, "<u2").reshape(rows, columns)
    values = low + (high - low) * stored / 65535
    assert np.abs(values - read_values(sample(CT)).values_HW).max() < 0.02  # HU: whole numbers are found again
    assert [answer.headers[f"X-{name}"] for name in ("Center", "Width", "Unit", "Inverted")] == [
        "40.0",
        "400.0",
        "HU",
        "false",
    ]
    shown = np.clip((values - (40 - 0.5)) / 399 + 0.5, 0, 1)
    assert np.abs(shown - expected.pixels).max() < 1e-3
    answer = served.client.get(f"{image}/map")
    found = np.frombuffer(answer.content, "<f4").reshape(
        int(answer.headers["X-Rows"]), int(answer.headers["X-Columns"])
    )
    assert np.array_equal(found, quality_map(expected, scorer()).score_HW, equal_nan=True)
    missing = served.client.get(f"{job['place']}/images/1/picture")
    assert (missing.status_code, missing.json()["detail"]) == (404, "no image 1: this job has 1 so far")


def test_what_an_image_does_not_have_is_told(served: Served) -> None:
    job = ended(
        served, served.client.post("/v1/jobs", files=[part("examples_rgb_color.dcm"), ("file", ("x.txt", b"no"))])
    )
    colour = served.client.get(f"{job['place']}/images/0/values")
    assert colour.status_code == 415
    assert colour.json()["detail"].startswith("examples_rgb_color.dcm: a colour picture has no values")
    for what, status in (("picture", 415), ("values", 415), ("map", 404)):
        answer = served.client.get(f"{job['place']}/images/1/{what}")
        assert answer.status_code == status
        assert answer.json()["detail"].startswith("x.txt: ")


# State


def test_the_service_tells_what_it_takes(served: Served) -> None:
    limits = served.client.get("/v1/limits").json()
    assert limits == {
        "max_body_bytes": 512 << 20,
        "max_files": 1000,
        "max_pixels": 50_000_000,
        "keys": False,
        "models": ["saqm-ct"],
        "software": limits["software"],
    }
    (model,) = served.client.get("/v1/models").json()["models"]
    assert model == scorer().model
    assert served.client.get("/healthz").json() == served.client.get("/readyz").json() == {"status": "ok"}


def test_counters_count(served: Served) -> None:
    def counted(name: str) -> float:
        lines = served.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    name = 'saqm_http_requests_total{method="POST",route="/v1/score",status="200"}'
    before = counted(name), counted("saqm_images_total"), counted("saqm_received_bytes_total")
    served.client.post("/v1/score", files=[part(CT), part(MR)])
    assert counted(name) == before[0] + 1
    assert counted("saqm_images_total") == before[1] + 2
    assert counted("saqm_workers ") == 2


def test_every_answer_carries_what_a_browser_is_to_keep_to(served: Served) -> None:
    for path in ("/", "/v1/limits", "/nowhere"):
        headers = served.client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert len(headers["X-Request-ID"]) == 16
        assert "server" not in headers


def test_an_array_scores_the_same_as_its_file(served: Served) -> None:
    """The service's own way to a score is Python's: a PNG of an array is that array."""
    values = np.random.default_rng(1).integers(0, 255, (96, 96), np.uint8)
    png = io.BytesIO()
    pillow.fromarray(values).save(png, "PNG")
    asked = {"mask": "none"}
    (record,) = served.client.post("/v1/score", files=[("file", ("a.png", png.getvalue()))], params=asked).json()[
        "records"
    ]
    assert record["score"] == pytest.approx(score(from_array(values), scorer()).score)

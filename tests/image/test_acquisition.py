"""On which device and day a picture was taken."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pydicom
import pytest
from PIL import Image as pillow
from pydicom.data import get_testdata_file

from saqm.errors import ImageError
from saqm.image import read_acquisition


@pytest.fixture
def ct() -> Path:
    return Path(str(get_testdata_file("CT_small.dcm", download=False)))


def test_device_day_and_uid_are_those_of_the_header(ct: Path) -> None:
    found = read_acquisition(ct)
    assert found.device == "GE MEDICAL SYSTEMS RHAPSODE (CT01_OC0)"
    assert found.date == "1997-04-30"  # of the acquisition; the study's is 2004
    assert found.instance == pydicom.dcmread(ct).SOPInstanceUID
    assert "CompressedSamples" not in repr(found)  # the patient's name


@pytest.mark.parametrize(
    ("elements", "day"),
    [
        ({"AcquisitionDate": "20260314"}, "2026-03-14"),
        ({"AcquisitionDate": "2026.03.14"}, "2026-03-14"),
        ({"AcquisitionDate": "", "AcquisitionDateTime": "20260315101500.5"}, "2026-03-15"),
        ({"AcquisitionDate": "", "ContentDate": "20260316"}, "2026-03-16"),
        ({"AcquisitionDate": "20260230", "ContentDate": "", "SeriesDate": "", "StudyDate": ""}, None),  # no such day
        ({"AcquisitionDate": "yesterday", "ContentDate": "", "SeriesDate": "", "StudyDate": "20260317"}, "2026-03-17"),
    ],
)
def test_the_day_closest_to_the_picture_counts(
    ct: Path, tmp_path: Path, elements: dict[str, str], day: str | None
) -> None:
    dataset = pydicom.dcmread(ct)
    with pydicom.config.disable_value_validation():
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        dataset.save_as(tmp_path / "a.dcm")
    assert read_acquisition(tmp_path / "a.dcm").date == day


def test_what_the_header_does_not_say_is_none(ct: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(ct)
    for keyword in ("Manufacturer", "ManufacturerModelName", "StationName"):
        delattr(dataset, keyword)
    dataset.save_as(tmp_path / "a.dcm")
    assert read_acquisition(tmp_path / "a.dcm").device is None
    pillow.new("L", (8, 8)).save(tmp_path / "a.png")
    found = read_acquisition(tmp_path / "a.png")
    assert (found.device, found.date, found.instance) == (None, None, None)


def test_a_member_of_an_archive_is_read_too(ct: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(ct, "in/ct.dcm")
    assert read_acquisition(f"{tmp_path}/a.zip!/in/ct.dcm") == read_acquisition(ct)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.dcm: cannot be opened: No such file"):
        read_acquisition(tmp_path / "gone.dcm")
    with pytest.raises(ImageError, match="cannot be opened: Is a directory"):
        read_acquisition(tmp_path)
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 64)
    with pytest.raises(ImageError, match=r"a\.dcm: "):
        read_acquisition(tmp_path / "a.dcm")

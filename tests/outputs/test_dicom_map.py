"""Maps as DICOM objects: valid, the map's own numbers where DICOM has room for them, and the unjudged marked."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from saqm.errors import ImageError, MissingExtra, SaqmError
from saqm.image import Image, read_image
from saqm.maps import QualityMap
from saqm.outputs.dicom import Maker, header_of, quality_map, save_object
from saqm.outputs.map_files import MapFiles, map_name
from saqm.scorer import Score

NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
MAKER = Maker.named("test")
FILES = {
    "CT": "CT_small.dcm",
    "CT without a place": "693_J2KI.dcm",
    "MR": "examples_overlay.dcm",
    "US": "examples_palette.dcm",
    "CR": "dicomdirtests/77654033/CR1/6154",
    "NM": "JPEG2000.dcm",
    "SC": "SC_rgb_small_odd.dcm",
}


def sample(name: str) -> Path:
    inside = Path(pydicom.__file__).parent / "data" / "test_files" / name
    return inside if inside.is_file() else Path(str(get_testdata_file(name, download=False)))


def scored(frame: int | None = None) -> Score:
    model = {"name": "toy", "version": "0.1", "sha256": "0" * 64, "engine": "onnx"}
    return Score(path="scan.dcm", frame=frame, status="scored", score=60.0, model=model)


def ramp(header: Dataset) -> QualityMap:
    """From 0 at the left to 100 at the right; the uppermost rows were not judged."""
    shape = int(header.Rows), int(header.Columns)
    score_HW = np.broadcast_to(np.linspace(0, 100, shape[1], dtype=np.float32), shape).copy()
    score_HW[: shape[0] // 4] = np.nan
    return QualityMap(score_HW, np.full(shape, 1 / score_HW.size), 32)


def complaints(made: Dataset, path: Path) -> str:
    save_object(made, path)
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed")
    return subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("name", FILES.values(), ids=FILES)
def test_a_map_of_every_modality_is_valid(name: str, tmp_path: Path) -> None:
    header = header_of(sample(name))
    made = quality_map(header, ramp(header), scored(), MAKER, now=NOW)
    said = complaints(made, tmp_path / "map.dcm")
    assert "Error" not in said
    assert {"ParametricMap", "Segmentation"} & set(said.splitlines())
    assert (made.StudyInstanceUID, made.PatientID) == (header.StudyInstanceUID, header.PatientID)
    assert made.SeriesDescription.endswith("(saqm)")


@pytest.mark.parametrize("name", ["CT_small.dcm", "examples_overlay.dcm"])
def test_a_parametric_map_holds_the_map_s_numbers(name: str) -> None:
    header = header_of(sample(name))
    quality = ramp(header)
    made = quality_map(header, quality, scored(), MAKER, now=NOW)
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
    values_HW = made.pixel_array
    judged_HW = np.isfinite(quality.score_HW)
    np.testing.assert_array_equal(values_HW[judged_HW], quality.score_HW[judged_HW])
    assert (values_HW.dtype, made.FloatPixelPaddingValue) == (np.float32, -1000)
    assert set(values_HW[~judged_HW].tolist()) == {-1000.0}
    (frame,) = made.PerFrameFunctionalGroupsSequence
    position = frame.PlanePositionSequence[0].ImagePositionPatient
    assert position == header.ImagePositionPatient
    mapping = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "{0:100}"
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped > made.FloatPixelPaddingValue


def test_a_segmentation_holds_how_likely_an_artefact_is() -> None:
    header = header_of(sample("examples_palette.dcm"))
    quality = ramp(header)
    made = quality_map(header, quality, scored(), MAKER, now=NOW)
    assert (made.SOPClassUID, made.SegmentationType) == ("1.2.840.10008.5.1.4.1.1.66.4", "FRACTIONAL")
    likelihood_HW, unjudged_HW = made.pixel_array / made.MaximumFractionalValue
    judged_HW = np.isfinite(quality.score_HW)
    np.testing.assert_allclose(likelihood_HW[judged_HW], 1 - quality.score_HW[judged_HW] / 100, atol=1 / 255)
    np.testing.assert_array_equal(unjudged_HW, ~judged_HW)  # so that 0 there is not taken for perfect
    assert [segment.SegmentLabel for segment in made.SegmentSequence] == ["image artifact likelihood", "not judged"]
    assert made.SegmentSequence[0].SegmentDescription == "likelihood = 1 - rating / 100"


def test_places_beyond_the_scale_end_at_it_in_a_segmentation_alone() -> None:
    for name, ends in (("examples_palette.dcm", (0, 255)), ("CT_small.dcm", (-6.0, 103.0))):
        header = header_of(sample(name))
        quality = ramp(header)
        quality.score_HW[-1] = -6
        quality.score_HW[-2] = 103
        pixels = quality_map(header, quality, scored(), MAKER, now=NOW).pixel_array
        judged = pixels[0] if pixels.ndim == 3 else pixels[pixels > -1000]
        assert (judged.min(), judged.max()) == ends


def test_each_frame_of_a_clip_has_a_map_that_names_it(tmp_path: Path) -> None:
    header = header_of(sample("examples_ybr_color.dcm"))
    made = [quality_map(header, ramp(header), scored(frame), MAKER, now=NOW) for frame in (0, 29)]
    assert "Error" not in complaints(made[1], tmp_path / "map.dcm")
    for each, number in zip(made, (1, 30), strict=True):
        (derivation,) = each.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
        (source,) = derivation.SourceImageSequence
        assert (source.ReferencedSOPInstanceUID, source.ReferencedSOPClassUID) == (
            header.SOPInstanceUID,
            header.SOPClassUID,
        )
        assert (source.ReferencedFrameNumber, each.InstanceNumber) == (number, number)
        (listed,) = each.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert listed.ReferencedSOPClassUID == header.SOPClassUID
    assert made[0].SOPInstanceUID != made[1].SOPInstanceUID
    assert made[0].SeriesInstanceUID == made[1].SeriesInstanceUID


@pytest.mark.parametrize("name", ["CT_small.dcm", "examples_palette.dcm"])
def test_the_same_map_is_the_same_object(name: str) -> None:
    header = header_of(sample(name))

    def made(seconds: int = 0, **changes: float) -> Dataset:
        quality = ramp(header)
        quality.score_HW[-1, -1] = changes.get("corner", 50)
        return quality_map(header, quality, scored(), MAKER, now=NOW + timedelta(seconds=seconds))

    files = []
    for _ in range(2):
        files.append(BytesIO())
        made().save_as(files[-1], enforce_file_format=True)
    assert files[0].getvalue() == files[1].getvalue()
    assert made().SOPInstanceUID == made(5).SOPInstanceUID != made(corner=51).SOPInstanceUID


def test_what_is_no_map_of_the_image_is_refused() -> None:
    header = header_of(sample("CT_small.dcm"))
    quality = ramp(header)
    with pytest.raises(SaqmError, match=r"image [\d.]+: not scored, so it has no map"):
        quality_map(header, quality, replace(scored(), status="not_scored", score=None), MAKER, now=NOW)
    cut = QualityMap(quality.score_HW[1:], quality.weight_HW[1:], 32)
    with pytest.raises(ImageError, match=r"a map of \(127, 128\) pixels for an image of \(128, 128\)"):
        quality_map(header, cut, scored(), MAKER, now=NOW)
    quality.score_HW[-1, -1] = -1000
    with pytest.raises(ImageError, match="a map value of -1000: not in the score's units"):
        quality_map(header, quality, scored(), MAKER, now=NOW)
    header.PerFrameFunctionalGroupsSequence = []
    with pytest.raises(ImageError, match="frames of an enhanced CT or MR cannot be written as DICOM yet"):
        quality_map(header, ramp(header), scored(3), MAKER, now=NOW)


# As files


def own_map(image: Image) -> QualityMap:
    return QualityMap(100 * image.pixels, np.full(image.mask.shape, 1 / image.mask.size), 32)


def test_a_map_comes_as_a_file_among_the_others(tmp_path: Path) -> None:
    image = read_image(sample("CT_small.dcm"))
    with MapFiles(tmp_path, ("npy", "dcm"), (MAKER, NOW)) as files:
        assert files.add(image, own_map(image), scored()) == ()
    values = np.load(tmp_path / f"{map_name(image)}.npy")
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / f"{map_name(image)}.dcm").pixel_array, values)


def test_a_picture_that_is_no_dicom_has_none_and_says_so(tmp_path: Path) -> None:
    from PIL import Image as pillow

    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    pillow.fromarray(pixels).save(tmp_path / "picture.png")
    image = read_image(tmp_path / "picture.png")
    with MapFiles(tmp_path, ("dcm",), (MAKER, NOW)) as files:
        assert files.add(image, own_map(image), scored()) == ("no DICOM map: the image is no DICOM file",)
    assert list(tmp_path.glob("*.dcm")) == []


def test_a_map_needs_somebody_who_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SaqmError, match="says who made it and when"):
        MapFiles(tmp_path, ("dcm",))
    monkeypatch.setattr("saqm.outputs.dicom.building.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"a DICOM map needs highdicom: pip install 'saqm\[dicom\]'"):
        MapFiles(tmp_path, ("dcm",), (MAKER, NOW))

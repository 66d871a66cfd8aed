"""DICOM: each trap of real files, on the files that ship with pydicom, or on small ones made here."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    generate_uid,
)

from saqm.errors import ImageError
from saqm.image import Image, dicom_header, from_array, read_frames, read_image

MR_SYNTAXES = ("", "_RLE", "_bigendian", "_implicit", "_jp2klossless", "_jpeg_ls_lossless", "_expb", "_padded")
NO_IMAGES = {
    "liver_1frame.dcm": "segmentation",
    "rtdose.dcm": "dose grid",
    "badVR.dcm": "dose grid",
    "rtplan.dcm": "plan",
    "reportsi.dcm": "structured report",
    "waveform_ecg.dcm": "waveform",
    "dicomdirtests/DICOMDIR": "DICOMDIR",
    "UN_sequence.dcm": "no pixel data",
    "rtstruct.dcm": "not a DICOM image",
    "no_meta.dcm": "not a DICOM file",
    "MR_truncated.dcm": "8,130 bytes; 8,192 are needed",
    "JPEG2000-embedded-sequence-delimiter.dcm": "compressed frame is 1024x3722445056",
}


def bundled(name: str) -> str:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return str(path)


def step(image: Image, name: str) -> dict[str, object]:
    return dict(next(step for step in image.source.steps if step.name == name).details)


def names(image: Image) -> list[str]:
    return [step.name for step in image.source.steps]


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a small MONOCHROME2 file; `pixels` (frames, H, W) or (H, W); other elements by keyword, None removes."""

    def write(pixels: np.ndarray, name: str = "made.dcm", **elements: object) -> Path:
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name])
        data.Modality = "OT"
        data.Rows, data.Columns = pixels.shape[-2:]
        if pixels.ndim == 3:
            data.NumberOfFrames = len(pixels)
        data.SamplesPerPixel = 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes()
        data["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
        for keyword, value in elements.items():
            if value is None:
                delattr(data, keyword)
            else:
                setattr(data, keyword, value)
        path = tmp_path / name
        data.save_as(path, enforce_file_format=True)
        return path

    return write


RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


# --- what is read


@pytest.mark.parametrize("suffix", MR_SYNTAXES)
def test_one_picture_in_several_transfer_syntaxes_gives_equal_pixels(suffix: str) -> None:
    plain, other = read_image(bundled("MR_small.dcm")), read_image(bundled(f"MR_small{suffix}.dcm"))
    assert np.array_equal(plain.pixels, other.pixels)
    assert plain.spacing_mm == other.spacing_mm == (0.3125, 0.3125)
    assert other.modality == "MR"


@pytest.mark.parametrize(
    ("name", "shape", "syntax"),
    [
        ("693_J2KI.dcm", (512, 512), ".4.91"),
        ("examples_jpeg2k.dcm", (480, 640, 3), ".4.90"),
        ("SC_rgb_jpeg_dcmtk.dcm", (100, 100, 3), ".4.50"),
        ("SC_rgb_jpeg.dcm", (256, 256, 3), ".4.50"),  # pixel element coded implicitly under an explicit syntax
        ("SC_rgb_jls_lossy_line.dcm", (100, 100, 3), ".4.81"),
        ("SC_rgb_rle_16bit.dcm", (100, 100, 3), ".1.2.5"),
        ("SC_rgb_jpeg_gdcm.dcm", (100, 100, 3), ".4.70"),  # needs the extra
        ("JPGExtended.dcm", (1024, 256), ".4.51"),  # needs the extra and our plug-in
        ("JPEG-lossy.dcm", (1024, 256), ".4.51"),  # and an invalid marker besides
        ("image_dfl.dcm", (512, 512), ".1.99"),
        ("ExplVR_BigEnd.dcm", (60, 80, 3), ".1.2.2"),
    ],
)
def test_transfer_syntaxes_are_read(name: str, shape: tuple[int, ...], syntax: str) -> None:
    image = read_image(bundled(name))
    assert image.pixels.shape == shape
    assert image.pixels.dtype == np.float32
    assert image.mask.shape == shape[:2]
    assert 0 <= image.pixels.min() < image.pixels.max() <= 1
    assert (image.source.transfer_syntax or "").endswith(syntax)


@pytest.mark.parametrize(
    "other",
    ["SC_rgb_rle_16bit.dcm", "SC_rgb_rle_32bit.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_jpeg_dcmtk.dcm",
     "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_gdcm_KY.dcm", "SC_ybr_full_422_uncompressed.dcm"],
)  # fmt: skip
def test_colour_is_the_same_in_rgb_ybr_planar_and_every_depth(other: str) -> None:
    plain, same = read_image(bundled("SC_rgb_rle.dcm")).pixels, read_image(bundled(other)).pixels
    assert np.abs(plain - same).mean() < 0.015  # lossless but for JPEG's
    assert np.abs(plain.mean((0, 1)) - same.mean((0, 1))).max() < 0.01


def test_planar_configuration_makes_no_difference(make: Make) -> None:
    colours = np.random.default_rng(7).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    shared = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "Rows": 16, "Columns": 16, "NumberOfFrames": 1}
    pixel = make(colours, "a.dcm", **shared, PlanarConfiguration=0)
    plane = make(np.ascontiguousarray(colours.transpose(2, 0, 1)), "b.dcm", **shared, PlanarConfiguration=1)
    assert np.array_equal(read_image(pixel).pixels, read_image(plane).pixels)
    assert np.array_equal(read_image(pixel).pixels, colours.astype(np.float32) / np.float32(255))


def test_palette_entries_of_16_bits_do_not_turn_the_picture_black() -> None:
    image = read_image(bundled("examples_palette.dcm"))
    assert image.pixels.shape == (350, 800, 3)
    assert image.pixels.max() == 1  # 65280 >> 8 is 255
    assert step(image, "palette") == {"entry_bits": 16, "shift": 8}
    assert np.unique(image.pixels * 255 % 1).size == 1  # 8-bit levels


def test_palette_of_8_bits_with_more_than_256_entries_does_not_wrap_around(make: Make) -> None:
    table = (np.arange(512) // 2).astype(np.uint8).tobytes()
    palette = {f"{c}PaletteColorLookupTable{part}": value for c in ("Red", "Green", "Blue")
               for part, value in (("Descriptor", [512, 0, 8]), ("Data", table))}  # fmt: skip
    indices = np.arange(512, dtype=np.uint16).reshape(16, 32)
    image = read_image(make(indices, PhotometricInterpretation="PALETTE COLOR", **palette))
    assert np.array_equal(np.rint(image.pixels[..., 0] * 255), indices // 2)


def test_monochrome1_is_inverted_though_no_presentation_shape_is_given() -> None:
    path = bundled("dicomdirtests/77654033/CR1/6154")
    image = read_image(path)
    data = pydicom.dcmread(path)
    assert data.PhotometricInterpretation == "MONOCHROME1"
    assert "PresentationLUTShape" not in data
    assert np.corrcoef(image.pixels.ravel(), data.pixel_array.ravel())[0, 1] < -0.99
    assert "invert" in names(image)


def test_presentation_shape_inverse_is_honoured_once(make: Make) -> None:
    plain = read_image(make(RAMP, WindowCenter=2048, WindowWidth=4096)).pixels
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        shape = {"PhotometricInterpretation": photometric, "PresentationLUTShape": "INVERSE"}
        inverted = read_image(make(RAMP, WindowCenter=2048, WindowWidth=4096, **shape)).pixels
        assert np.array_equal(inverted, 1 - plain)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_stored_bits_and_sign_do_not_change_the_picture(make: Make, bits: int, signed: bool) -> None:
    values = (RAMP >> 4).astype(np.int32)  # 0..255
    stored = values - 128 if signed else values
    kind = np.int16 if signed else np.uint16
    offset = 128 if signed else 0
    image = read_image(
        make(stored.astype(kind), BitsStored=bits, HighBit=bits - 1, RescaleSlope=1, RescaleIntercept=offset),
        window=(128, 256),
    )
    assert np.allclose(image.pixels, np.clip((values - 127.5) / 255 + 0.5, 0, 1), atol=1e-6)
    assert image.source.bits_stored == bits


def test_high_bits_that_are_not_stored_are_ignored(make: Make) -> None:
    overlay = RAMP | 0xF000  # old files keep overlays there
    plain = read_image(make(RAMP, BitsStored=12, HighBit=11), window=(2048, 4096))
    assert np.array_equal(
        read_image(make(overlay, BitsStored=12, HighBit=11), window=(2048, 4096)).pixels, plain.pixels
    )


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"])
def test_lossless_jpeg_of_many_bits_is_the_plain_picture(make: Make, bits: int, syntax: str) -> None:
    import imagecodecs

    stored = RAMP if bits == 12 else RAMP * 16
    plain = make(stored, "plain.dcm", BitsStored=bits, HighBit=bits - 1)
    data = pydicom.dcmread(plain)
    data.PixelData = encapsulate([imagecodecs.jpeg8_encode(stored, lossless=True, bitspersample=bits)])
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(plain.with_name("coded.dcm"))
    assert np.array_equal(read_image(plain.with_name("coded.dcm")).pixels, read_image(plain).pixels)


# --- windows


def test_window_is_applied_to_rescaled_values_by_the_files_first_window() -> None:
    image = read_image(bundled("examples_overlay.dcm"))
    assert step(image, "window") == {"center": 450, "width": 790, "function": "LINEAR", "from": "file (1 of 2)"}


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_agree_with_pydicom(make: Make, function: str) -> None:
    stored = (RAMP.astype(np.int32) - 1024).astype(np.int16)
    path = make(
        stored, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=300, WindowWidth=900, VOILUTFunction=function
    )
    data = pydicom.dcmread(path)
    shown = apply_windowing(apply_modality_lut(data.pixel_array, data), data)
    low, high = -(2**15) * 2 - 100, (2**15 - 1) * 2 - 100  # the range pydicom maps to
    image = read_image(path)
    assert np.allclose(image.pixels, (shown - low) / (high - low), atol=1e-6)
    assert step(image, "window")["function"] == function


def test_pixels_are_scaled_by_the_window_and_not_by_the_picture(make: Make) -> None:
    middle = read_image(make(np.clip(RAMP, 1000, 1100), WindowCenter=2048, WindowWidth=4096)).pixels
    assert 0.2 < middle.min() < middle.max() < 0.3


def test_ct_without_window_takes_the_documented_default_and_a_given_one_wins() -> None:
    default = read_image(bundled("CT_small.dcm"))
    assert step(default, "window")["from"] == "default for CT"
    assert names(default).index("rescale") < names(default).index("window")
    given_window = read_image(bundled("CT_small.dcm"), window=(40, 400))
    assert step(given_window, "window")["from"] == "caller"
    assert np.array_equal(default.pixels, given_window.pixels)
    lung = read_image(bundled("CT_small.dcm"), window=(-600, 1500))
    assert lung.pixels.mean() > default.pixels.mean()


@pytest.mark.parametrize("window", [(40, 0), (40, -1), (float("nan"), 400)])
def test_a_window_that_is_none_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(ImageError, match="a center and a positive width are wanted"):
        read_image(bundled("CT_small.dcm"), window=window)


def test_without_a_window_the_range_is_percentiles_of_what_is_no_padding(make: Make) -> None:
    values = RAMP + 10_000
    values[:32] = 0
    image = read_image(make(values, PixelPaddingValue=0, Modality="MR"), mask="auto")
    details = step(image, "window")
    assert details["from"] == "percentiles 0.5–99.5"
    assert float(details["center"]) - float(details["width"]) / 2 > 10_000  # type: ignore[arg-type]
    assert step(image, "padding") == {"low": 0, "high": 0, "share": 0.5}
    assert not image.mask[:32].any()
    assert not image.pixels[:32].any()


def test_12_bits_in_16_without_a_window_are_not_black(make: Make) -> None:
    assert read_image(make(RAMP, BitsStored=12, HighBit=11)).pixels.mean() == pytest.approx(0.5, abs=0.01)


def test_8_bits_without_a_window_are_shown_as_they_are(make: Make) -> None:
    grey = np.full((64, 64), 100, np.uint8)
    grey[20:40] = 110
    image = read_image(make(grey))
    assert step(image, "window")["from"] == "stored range"
    assert np.array_equal(image.pixels, grey.astype(np.float32) / np.float32(255))


def test_padding_is_in_stored_units_and_may_be_a_range(make: Make) -> None:
    stored = (RAMP.astype(np.int32) - 2000).astype(np.int16)
    path = make(stored, RescaleSlope=1, RescaleIntercept=-1024, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
    image = read_image(path, window=(0, 4000))
    assert step(image, "padding")["share"] == 11 / RAMP.size
    j2k = read_image(bundled("693_J2KI.dcm"))
    assert step(j2k, "padding")["low"] == -2000
    assert not j2k.mask[0, 0]


def test_a_voi_table_wins_over_the_files_window(make: Make) -> None:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 8]
    table.LUTData = [min(255, entry // 8) for entry in range(4096)]
    table["LUTData"].VR = "US"
    image = read_image(make(RAMP, VOILUTSequence=[table], WindowCenter=100, WindowWidth=10))
    assert np.array_equal(np.rint(image.pixels * 255), np.minimum(255, RAMP // 8))
    assert step(image, "window")["from"] == "file (1 of 1)"
    assert step(image, "window")["function"] == "TABLE"


def test_a_modality_table_comes_before_the_window(make: Make) -> None:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = [4095 - entry for entry in range(4096)]
    table["LUTData"].VR = "US"
    table.ModalityLUTType = "US"
    image = read_image(make(RAMP, ModalityLUTSequence=[table]), window=(2048, 4096))
    assert np.allclose(image.pixels, np.clip((4095 - RAMP - 2047.5) / 4095 + 0.5, 0, 1), atol=1e-6)


def test_a_window_of_no_width_and_a_slope_of_zero_in_the_file_are_noted_and_not_applied(make: Make) -> None:
    image = read_image(make(RAMP, WindowCenter=10, WindowWidth=0, RescaleSlope=0, RescaleIntercept=0))
    assert image.source.warnings == ("RescaleSlope is 0: not applied", "window of width 0 in the file: not applied")
    assert np.ptp(image.pixels) == 1


def test_a_window_for_a_colour_image_is_not_silently_dropped() -> None:
    assert "not applied" in " ".join(read_image(bundled("examples_rgb_color.dcm"), window=(1, 2)).source.warnings)


# --- frames


def test_a_clip_is_streamed_and_each_frame_can_be_chosen() -> None:
    path = bundled("examples_ybr_color.dcm")
    clip = list(read_frames(path))
    assert [image.source.frame for image in clip] == list(range(30))
    assert {image.source.frames for image in clip} == {30}
    chosen = read_image(path, frame=17)
    assert np.array_equal(chosen.pixels, clip[17].pixels)
    assert not np.array_equal(clip[16].pixels, clip[17].pixels)
    assert step(chosen, "colour") == {"from": "YBR_FULL_422", "to": "RGB"}


def test_frames_need_constant_memory(make: Make) -> None:
    path = make(np.zeros((64, 128, 128), np.uint16) + np.arange(64, dtype=np.uint16)[:, None, None])
    tracemalloc.start()
    count = sum(1 for _ in read_frames(path, mask="none"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 64
    assert peak < 24 * 128 * 128 * 2  # the file holds 64 such frames


def test_a_clip_left_half_way_closes_its_file() -> None:
    clip = read_frames(bundled("examples_ybr_color.dcm"))
    assert next(clip).source.frame == 0
    clip.close()  # type: ignore[attr-defined]


def test_frames_have_to_be_chosen_and_to_exist() -> None:
    path = bundled("examples_ybr_color.dcm")
    with pytest.raises(ImageError, match=r"ybr_color.dcm: 30 frames; choose one with frame=0\.\.29"):
        read_image(path)
    for frame in (30, -1):
        with pytest.raises(ImageError, match=rf"no frame {frame}: 30 frames; choose one with frame=0\.\.29"):
            read_image(path, frame=frame)
    single = read_image(bundled("CT_small.dcm"), frame=0)
    assert single.source.frame is None
    assert single.source.frames == 1


def test_enhanced_objects_take_rescale_and_window_of_each_frame(make: Make) -> None:
    def group(sequence: str, **elements: object) -> Dataset:
        item, outer = Dataset(), Dataset()
        for keyword, value in elements.items():
            setattr(item, keyword, value)
        setattr(outer, sequence, [item])
        return outer

    shared = group("PixelMeasuresSequence", PixelSpacing=[0.7, 0.8])
    shared.update(group("FrameVOILUTSequence", WindowCenter=2048, WindowWidth=4096))
    per_frame = [
        group("PixelValueTransformationSequence", RescaleSlope=slope, RescaleIntercept=0, RescaleType="HU")
        for slope in (1, 2)
    ]
    per_frame[1].update(group("FrameVOILUTSequence", WindowCenter=[1000, 1], WindowWidth=[500, 1]))
    path = make(
        np.stack([RAMP, RAMP]),
        SOPClassUID=EnhancedCTImageStorage,
        Modality="CT",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=per_frame,
    )
    first, second = read_frames(path)
    assert step(first, "window") == {"center": 2048, "width": 4096, "function": "LINEAR", "from": "file (1 of 1)"}
    assert step(second, "window") == {"center": 1000, "width": 500, "function": "LINEAR", "from": "frame (1 of 2)"}
    assert (step(first, "rescale")["slope"], step(second, "rescale")["slope"]) == (1, 2)
    assert np.allclose(second.pixels, np.clip((2.0 * RAMP - 999.5) / 499 + 0.5, 0, 1), atol=1e-6)
    assert first.spacing_mm == (0.7, 0.8)


# --- ultrasound


def test_a_region_that_reaches_outside_the_picture_is_clipped_and_the_ecg_left_out() -> None:
    image = read_image(bundled("examples_palette.dcm"))
    region = step(image, "region")
    assert region["clipped"] is True
    assert region["kept"] == [{"rows": (60, 349), "columns": (120, 799), "type": 1}]
    assert region["left_out"] == [10]
    assert not image.mask[:60].any()
    assert not image.mask[:, :120].any()
    assert image.mask.any()
    assert image.spacing_mm == pytest.approx((0.262288, 0.262288), rel=1e-5)
    assert "clipped" in " ".join(image.source.warnings)


def test_a_region_of_another_picture_is_not_believed() -> None:
    image = read_image(bundled("examples_ybr_color.dcm"), frame=0)
    assert step(image, "region")["from"] == "not believed"
    assert "does not fit the 240x320 picture" in " ".join(image.source.warnings)
    assert image.spacing_mm is None
    assert image.mask[:, :84].any()  # left of where the file has its region, there is tissue


def test_doppler_regions_alone_are_left_out(make: Make) -> None:
    region = Dataset()
    region.RegionDataType, region.RegionSpatialFormat = 3, 3
    region.RegionLocationMinX0, region.RegionLocationMaxX1 = 0, 63
    region.RegionLocationMinY0, region.RegionLocationMaxY1 = 40, 63
    noise = np.random.default_rng(1).integers(60, 200, (64, 64)).astype(np.uint8)
    image = read_image(make(noise, Modality="US", SequenceOfUltrasoundRegions=[region]))
    assert step(image, "region")["left_out"] == [3]
    assert not image.mask[40:].any()


# --- what is told with the picture


def test_lossy_history_and_possible_text_are_recorded() -> None:
    image = read_image(bundled("examples_ybr_color.dcm"), frame=0)
    assert step(image, "lossy_history")["ratio"] == [19.0]
    assert "lossy compression in its history (19:1)" in image.source.warnings
    assert step(image, "burned_in_text") == {"annotation": "unknown"}
    assert "lossy_history" not in names(read_image(bundled("MR_small.dcm")))


def test_text_declared_absent_is_no_step_and_phantoms_are_marked(make: Make) -> None:
    image = read_image(make(RAMP, BurnedInAnnotation="NO", QualityControlImage="YES"))
    assert "burned_in_text" not in names(image)
    assert "quality-control image (of a phantom): not a patient's anatomy" in image.source.warnings


def test_identity_is_recorded_and_no_name(make: Make) -> None:
    image = read_image(make(RAMP, PatientName="Doe^Jane", PatientID="12345", StudyInstanceUID="1.2.3"))
    assert image.source.uids["study"] == "1.2.3"
    assert set(image.source.uids) == {"study", "instance", "sop_class"}
    assert "Jane" not in repr(image.source)
    assert "12345" not in repr(image.source)


def test_twice_the_same_file_twice_the_same_image() -> None:
    first, second = (read_image(bundled("693_J2KI.dcm")) for _ in range(2))
    assert first.source == second.source
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.mask, second.mask)


def test_a_picture_of_8_bits_and_its_copy_of_16_bits_are_the_same(make: Make) -> None:
    grey = (RAMP >> 4).astype(np.uint8)
    wide = grey.astype(np.uint16) * 257
    assert np.array_equal(from_array(grey).pixels, from_array(wide).pixels)
    assert np.array_equal(from_array(grey).pixels, read_image(make(grey)).pixels)


def test_private_and_empty_elements_do_no_harm(make: Make) -> None:
    path = make(
        RAMP, WindowCenter="", WindowWidth="", RescaleSlope="", RescaleIntercept="", PixelSpacing="", StudyID=""
    )
    data = pydicom.dcmread(path)
    data.private_block(0x0029, "SOMEBODY", create=True).add_new(1, "UN", b"\x00\x01\x02\x03")
    data.save_as(path)
    image = read_image(path)
    assert image.spacing_mm is None
    assert step(image, "window")["from"] == "percentiles 0.5–99.5"


def test_missing_elements_that_can_be_told_are_told(make: Make) -> None:
    image = read_image(make(RAMP, PixelRepresentation=None, SamplesPerPixel=None, Modality=None))
    assert "PixelRepresentation missing: taken as 0" in image.source.warnings
    assert image.modality is None


# --- what is refused


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_refused_with_its_name_and_the_reason(name: str) -> None:
    with pytest.raises(ImageError, match=rf"{Path(name).name}.*{NO_IMAGES[name]}"):
        read_image(bundled(name))


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": None}, "no geometry for the pixels: Rows None, Columns 64"),
        ({"Columns": 0}, "no geometry"),
        ({"PixelData": None}, "no pixel data"),
        ({"Rows": 65}, "8,192 bytes; 8,320 are needed"),
        ({"NumberOfFrames": 2}, "8,192 bytes; 16,384 are needed"),
        ({"NumberOfFrames": -1}, "NumberOfFrames is -1"),
        ({"BitsStored": 17}, "inconsistent depth: BitsStored 17, BitsAllocated 16"),
        ({"BitsAllocated": None}, "inconsistent depth"),
        ({"BitsAllocated": 12}, "BitsStored 16, BitsAllocated 12"),
        ({"PhotometricInterpretation": "NONSENSE"}, "NONSENSE"),
        ({"SamplesPerPixel": 2}, "truncated pixel data, or wrong geometry"),
    ],
)
def test_numbers_that_do_not_agree_are_refused(make: Make, elements: dict[str, object], reason: str) -> None:
    with pytest.raises(ImageError, match=rf"made\.dcm: .*{reason}"):
        read_image(make(RAMP, **elements))


def test_a_number_of_frames_that_is_no_number_is_refused(make: Make) -> None:
    path = make(RAMP[None], NumberOfFrames=12)
    path.write_bytes(path.read_bytes().replace(b"IS\x02\x0012", b"IS\x02\x001A"))
    with pytest.raises(ImageError, match="1A"):
        read_image(path)


def test_more_frames_announced_than_coded_stops_at_the_missing_one(tmp_path: Path) -> None:
    data = pydicom.dcmread(bundled("examples_ybr_color.dcm"))
    data.NumberOfFrames = 31
    data.save_as(tmp_path / "more.dcm")
    with pytest.raises(ImageError, match=r"more\.dcm: frame 30 cannot be decoded"):
        list(read_frames(tmp_path / "more.dcm", mask="none"))


def test_a_compressed_frame_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    for name in ("693_J2KI.dcm", "examples_ybr_color.dcm", "MR_small_jpeg_ls_lossless.dcm"):
        data = pydicom.dcmread(bundled(name))
        data.Rows = 77
        data.save_as(tmp_path / "size.dcm")
        with pytest.raises(ImageError, match=r"Rows x Columns is 77x\d+, but the compressed frame is"):
            read_image(tmp_path / "size.dcm", frame=0)


def test_a_bomb_is_refused_before_it_is_decoded_and_the_limit_can_be_raised(make: Make) -> None:
    path = make(RAMP, Rows=60_000, Columns=60_000)
    with pytest.raises(
        ImageError, match=r"60000x60000 = 3,600,000,000 pixels a frame; the limit is 200,000,000.*max_pixels="
    ):
        read_image(path)
    with pytest.raises(ImageError, match="the limit is 100"):
        read_image(bundled("CT_small.dcm"), max_pixels=100)
    assert read_image(bundled("CT_small.dcm"), max_pixels=128 * 128).pixels.size == 128 * 128


def test_a_deflated_bomb_is_refused_while_it_is_inflated(tmp_path: Path) -> None:
    whole = Path(bundled("image_dfl.dcm")).read_bytes()
    start = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(bytes(20_000_000)) + packer.flush()
    (tmp_path / "bomb.dcm").write_bytes(whole[:start] + bomb)
    with pytest.raises(ImageError, match=r"bomb\.dcm: deflated data grow beyond 8,000,000 bytes"):
        read_image(tmp_path / "bomb.dcm", max_pixels=1_000_000)


def test_a_syntax_without_decoder_names_itself_and_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dicom_header, "DECODER_ORDER", ("pylibjpeg",))  # as without the extra
    with pytest.raises(
        ImageError, match=rf"{JPEGLosslessSV1}.*no decoder is installed: pip install 'saqm\[dicom-decoders\]'"
    ):
        read_image(bundled("SC_rgb_jpeg_gdcm.dcm"))
    monkeypatch.setattr(dicom_header, "JPEG_ORDER", ("pillow",))
    with pytest.raises(ImageError, match=r"1\.2\.840\.10008\.1\.2\.4\.51\).*pip install 'saqm\[dicom-decoders\]'"):
        read_image(bundled("JPGExtended.dcm"))
    monkeypatch.undo()
    data = pydicom.dcmread(bundled("693_J2KI.dcm"))
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    data.save_as(tmp_path / "mpeg.dcm")
    jpeg_xl = (tmp_path / "mpeg.dcm").read_bytes().replace(b".10008.1.2.4.100", b".10008.1.2.4.110")
    (tmp_path / "jxl.dcm").write_bytes(jpeg_xl)  # pydicom does not know the syntax
    for name, reason in (("mpeg.dcm", "MPEG2"), ("jxl.dcm", "JPEG XL")):
        with pytest.raises(ImageError, match=rf"{name}: transfer syntax {reason}.*no decoder exists"):
            read_image(tmp_path / name)


def test_a_data_set_without_preamble_is_read_when_it_is_an_image(make: Make, tmp_path: Path) -> None:
    path = make(RAMP)
    plain = path.read_bytes()
    behind_meta = 144 + int.from_bytes(plain[140:144], "little")
    for name, content in (("no_preamble", plain[132:]), ("no_meta", plain[behind_meta:])):
        (tmp_path / f"{name}.dcm").write_bytes(content)
        image = read_image(tmp_path / f"{name}.dcm")
        assert np.array_equal(image.pixels, read_image(path).pixels)
    assert "no transfer syntax given; read as Explicit VR Little Endian" in image.source.warnings


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["693_J2KI.dcm", "MR_small_RLE.dcm", "image_dfl.dcm", "examples_ybr_color.dcm"])
def test_a_file_cut_short_is_an_image_error(tmp_path: Path, name: str, keep: float) -> None:
    whole = Path(bundled(name)).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ImageError, match=r"cut\.dcm"):
        list(read_frames(tmp_path / "cut.dcm", mask="none"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    noise=st.binary(max_size=400), prefix=st.sampled_from([b"", b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\x00"])
)
def test_noise_after_a_preamble_is_an_image_error(tmp_path: Path, noise: bytes, prefix: bytes) -> None:
    path = tmp_path / "noise.dcm"
    path.write_bytes(bytes(128) + b"DICM" + prefix + noise)
    with pytest.raises(ImageError, match=r"noise\.dcm"):
        read_image(path)


def test_a_decoder_that_panics_costs_one_file(tmp_path: Path) -> None:
    damaged = bytearray(Path(bundled("MR_small_RLE.dcm")).read_bytes())
    for at, value in ((1888, 251), (2319, 156), (2424, 138), (3144, 255), (5828, 245)):
        damaged[at] = value  # pylibjpeg-rle leaves with a PanicException, which is no Exception
    (tmp_path / "panic.dcm").write_bytes(damaged)
    with suppress(ImageError):  # another decoder may make something of it
        read_image(tmp_path / "panic.dcm")


SMALL = Path(bundled("MR_small.dcm")).read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(132, 1800), noise=st.binary(min_size=1, max_size=8))
def test_a_damaged_header_gives_an_image_or_an_image_error(tmp_path: Path, at: int, noise: bytes) -> None:
    path = tmp_path / "damaged.dcm"
    path.write_bytes(SMALL[:at] + noise + SMALL[at + len(noise) :])
    with suppress(ImageError):
        image = read_image(path, frame=0, mask="none")
        assert np.isfinite(image.pixels).all()
        assert 0 <= image.pixels.min() <= image.pixels.max() <= 1

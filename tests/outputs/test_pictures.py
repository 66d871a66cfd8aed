"""What a page is sent of an image: the picture that was judged, the values behind it, the map; each read back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as pillow
from pydicom.data import get_testdata_file

from saqm.errors import ImageError
from saqm.image import read_image, read_values
from saqm.maps import QualityMap
from saqm.outputs.pictures import Packed, heatmap_png, packed_map, packed_values, picture_png
from saqm.scorer import load_scorer, not_scored, score_and_map


def sample(name: str) -> str:
    """A file that ships with pydicom."""
    return str(get_testdata_file(name, download=False))


def unpacked(packed: Packed) -> np.ndarray:
    """The values, as whoever receives them computes them."""
    stored = np.frombuffer(packed.data, "<u2").reshape(packed.rows, packed.columns)
    return packed.low + (packed.high - packed.low) * stored / 65535


def displayed(packed: Packed) -> np.ndarray:
    """What a viewer shows of them, by the plain line through the window."""
    shown = np.clip((unpacked(packed) - packed.center) / packed.width + 0.5, 0, 1)
    return 1 - shown if packed.inverted else shown


@pytest.mark.parametrize(("name", "frame"), [("CT_small.dcm", None), ("SC_rgb_rle_2frame.dcm", 1)])
def test_the_picture_is_what_the_scorer_sees(name: str, frame: int | None) -> None:
    with pillow.open(io.BytesIO(picture_png(sample(name), frame))) as picture:
        shown = np.asarray(picture)
    assert shown.dtype == np.uint8
    assert np.abs(shown / 255 - read_image(sample(name), frame).pixels).max() <= 0.5 / 255 + 1e-6


def test_values_come_back_to_half_a_step_and_show_the_same_picture() -> None:
    packed = packed_values(sample("CT_small.dcm"))
    values = read_values(sample("CT_small.dcm")).values_HW
    assert np.abs(unpacked(packed) - values).max() <= (packed.high - packed.low) / 65535 / 2 * 1.001
    assert np.array_equal(np.rint(unpacked(packed)), values)  # Hounsfield units are whole here
    assert (packed.low, packed.high, packed.unit, packed.inverted) == (values.min(), values.max(), "HU", False)
    assert (packed.center, packed.width) == (40, 400)
    assert np.abs(displayed(packed) - read_image(sample("CT_small.dcm")).pixels).max() < 0.003  # LINEAR's half a unit


def test_an_inverted_picture_says_so(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(sample("CT_small.dcm"))
    dataset.PhotometricInterpretation, dataset.Modality = "MONOCHROME1", "DX"
    dataset.WindowCenter, dataset.WindowWidth = 100, 800
    dataset.save_as(tmp_path / "dx.dcm")
    packed = packed_values(str(tmp_path / "dx.dcm"))
    assert (packed.inverted, packed.unit, packed.center, packed.width) == (True, None, 100, 800)
    assert np.abs(displayed(packed) - read_image(tmp_path / "dx.dcm").pixels).max() < 0.003


def test_a_slice_and_a_deep_picture_have_values_too(tmp_path: Path) -> None:
    from nibabel.nifti1 import Nifti1Image

    voxels = np.random.default_rng(0).integers(-500, 500, (20, 30, 4)).astype(np.int16)
    Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "v.nii.gz")
    packed = packed_values(str(tmp_path / "v.nii.gz"), 2, axis=2)
    assert np.array_equal(np.rint(unpacked(packed)), voxels[::-1, ::-1, 2].T)
    assert np.abs(displayed(packed) - read_image(tmp_path / "v.nii.gz", 2, axis=2).pixels).max() < 1e-3
    deep = np.random.default_rng(0).integers(0, 4096, (20, 30), np.uint16)
    pillow.fromarray(deep).save(tmp_path / "deep.png")
    packed = packed_values(str(tmp_path / "deep.png"))
    assert np.array_equal(np.rint(unpacked(packed)), deep)
    assert np.abs(displayed(packed) - read_image(tmp_path / "deep.png").pixels).max() < 1e-4


def test_one_value_everywhere_is_that_value(tmp_path: Path) -> None:
    pillow.new("L", (8, 6), 77).save(tmp_path / "flat.png")
    packed = packed_values(str(tmp_path / "flat.png"))
    assert (packed.rows, packed.columns) == (6, 8)
    assert np.array_equal(unpacked(packed), np.full((6, 8), 77.0))


def test_a_colour_picture_has_no_values() -> None:
    with pytest.raises(ImageError, match="a colour picture has no values to set a window for"):
        packed_values(sample("examples_rgb_color.dcm"))
    with pytest.raises(ImageError, match=r"2 frames; choose one"):
        picture_png(sample("SC_rgb_rle_2frame.dcm"))


def test_the_map_comes_as_numbers_and_as_a_picture() -> None:
    name = sample("CT_small.dcm")
    score, quality = score_and_map(read_image(name), load_scorer())
    data, rows, columns = packed_map(quality)
    assert np.array_equal(np.frombuffer(data, "<f4").reshape(rows, columns), quality.score_HW, equal_nan=True)
    with pillow.open(io.BytesIO(heatmap_png(name, None, quality, score))) as picture:
        assert picture.width > 512


def test_what_was_not_scored_has_no_map() -> None:
    from saqm.errors import NotScorable

    nothing = QualityMap(np.full((128, 128), np.nan, np.float32), np.zeros((128, 128)), 32)
    with pytest.raises(NotScorable, match="was not scored, so it has no quality map"):
        heatmap_png(sample("CT_small.dcm"), None, nothing, not_scored("x", "because"))


def test_a_packed_volume_may_not_grow_without_bound(tmp_path: Path) -> None:
    from nibabel.nifti1 import Nifti1Image

    Nifti1Image(np.zeros((64, 64, 64), np.int16), np.eye(4)).to_filename(tmp_path / "zeros.nii.gz")
    with pytest.raises(ImageError, match=r"unpacks to 524,288 bytes, limit 40,000: raise it with max_pixels="):
        read_image(tmp_path / "zeros.nii.gz", 0, axis=2, max_pixels=5000)
    assert read_image(tmp_path / "zeros.nii.gz", 0, axis=2, max_pixels=70_000).pixels.shape == (64, 64)

"""The door: which reader a file goes to, what every image carries, and arrays as images."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pydicom.data import get_testdata_file

from saqm.errors import ImageError
from saqm.image import Image, from_array, read_frames, read_image

CT = str(get_testdata_file("CT_small.dcm", download=False))


def step(image: Image, name: str) -> dict[str, object]:
    return dict(next(step for step in image.source.steps if step.name == name).details)


# --- files


def test_every_image_carries_path_hash_mask_and_steps() -> None:
    image = read_image(CT)
    assert image.source.path == CT
    assert image.source.sha256 == hashlib.sha256(Path(CT).read_bytes()).hexdigest()
    assert image.source.format == "dicom"
    assert image.mask.dtype == bool
    assert step(image, "mask")["judged_share"] == image.judged_share
    assert step(image, "mask")["mode"] == "auto"


def test_no_mask_judges_everything() -> None:
    image = read_image(CT, mask="none")
    assert image.mask.all()
    assert step(image, "mask") == {"mode": "none", "judged_share": 1.0}
    assert np.array_equal(image.pixels, read_image(CT).pixels)


def test_another_mask_mode_is_refused() -> None:
    with pytest.raises(ImageError, match='mask \'some\': "auto" or "none" is wanted'):
        read_image(CT, mask="some")  # type: ignore[arg-type]


def test_a_single_image_comes_once_as_frames() -> None:
    (image,) = read_frames(CT)
    assert np.array_equal(image.pixels, read_image(CT).pixels)
    assert image.source == read_image(CT).source


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    grey = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    Pillow.fromarray(grey).save(tmp_path / "picture.png")
    (tmp_path / "picture.dcm").write_bytes((tmp_path / "picture.png").read_bytes())
    assert read_image(tmp_path / "picture.dcm").source.format == "png"
    (tmp_path / "scan.png").write_bytes(Path(CT).read_bytes())
    assert read_image(tmp_path / "scan.png").source.format == "dicom"


@pytest.mark.parametrize("suffix", [".dcm", ".png", ".nii", ".tif", ""])
def test_text_under_any_name_is_an_image_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_text("Dear colleague, please find attached the images of last week. " * 20)
    with pytest.raises(ImageError, match=path.name):
        read_image(path)


def test_what_is_no_image_file_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "data.bin").write_bytes(bytes(range(100, 200)))
    for path, reason in (
        (tmp_path / "empty.dcm", "empty file"),
        (tmp_path / "missing.dcm", "no such file"),
        (tmp_path, "a folder, not a file"),
        (tmp_path / "data.bin", "not an image that saqm reads"),
    ):
        with pytest.raises(ImageError, match=f"{path.name}.*{reason}"):
            read_image(path)
        with pytest.raises(ImageError, match=f"{path.name}.*{reason}"):
            next(read_frames(path))


def test_importing_the_door_loads_no_reader() -> None:
    heavy = ("pydicom", "nibabel", "PIL", "scipy", "tifffile", "torch", "onnxruntime")
    code = f"import sys, saqm.image; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# --- arrays


def test_arrays_of_integers_take_the_range_of_their_type() -> None:
    for kind in (np.uint8, np.uint16):
        top = np.iinfo(kind).max
        image = from_array(np.array([[0, top // 5], [top // 5 * 2, top]], kind))
        assert np.allclose(image.pixels, [[0, 0.2], [0.4, 1]])
        assert image.pixels.dtype == np.float32
        assert step(image, "range") == {"low": 0, "high": top, "from": f"range of {np.dtype(kind)}"}
    assert image.mask.all()
    assert image.source.format == "array"


def test_a_range_can_be_given_for_12_in_16_signed_and_float() -> None:
    ramp = np.linspace(0, 1, 16).reshape(4, 4)
    for values, value_range in (
        (np.rint(ramp * 4095).astype(np.uint16), (0, 4095)),
        (np.rint(ramp * 2000 - 1000).astype(np.int16), (-1000, 1000)),
        (ramp * 3 - 1, (-1, 2)),
    ):
        assert np.allclose(from_array(values, value_range=value_range).pixels, ramp, atol=5e-4)


def test_facts_and_a_mask_can_come_with_an_array() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1:3] = True
    image = from_array(np.full((4, 4, 3), 0.5), modality="US", spacing_mm=(0.1, 0.2), mask=mask)
    assert image.modality == "US"
    assert image.spacing_mm == (0.1, 0.2)
    assert np.array_equal(image.mask, mask)
    assert step(image, "mask") == {"mode": "given", "judged_share": 0.5}
    mask[:] = True
    assert image.judged_share == 0.5  # a copy


def test_the_foreground_of_an_array_is_looked_for_when_asked() -> None:
    picture = np.zeros((128, 128))
    picture[32:96, 32:96] = np.random.default_rng(3).uniform(0.3, 0.7, (64, 64))
    assert not from_array(picture, modality="CT", mask="auto").mask[:20].any()
    assert from_array(picture, modality="CT").mask.all()


def test_the_same_array_has_the_same_hash_and_another_type_another() -> None:
    ramp = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert from_array(ramp).source == from_array(ramp.copy()).source
    assert from_array(ramp).source.sha256 != from_array(ramp.astype(np.uint16)).source.sha256
    assert np.array_equal(from_array(ramp.T[..., None]).pixels, from_array(ramp).pixels.T)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([[0.5, np.nan]]), "1 values that are NaN or infinite"),
        (np.array([[0.5, np.inf]]), "1 values that are NaN or infinite"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
        (np.array([["a"]]), "numbers are wanted"),
        (np.array([[1 + 2j]]), "numbers are wanted"),
        (np.zeros((2, 2), np.int16), "value_range="),
        (np.array([[0.0, 255.0]]), r"from 0 to 255, outside 0\.\.1 .*give value_range="),
    ],
)
def test_arrays_that_are_no_image_are_refused(array: np.ndarray, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        from_array(array)


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_a_range_that_is_none_is_refused(value_range: tuple[float, float]) -> None:
    with pytest.raises(ImageError, match="two finite numbers are wanted"):
        from_array(np.zeros((2, 2)), value_range=value_range)


def test_a_mask_of_another_shape_or_type_is_refused() -> None:
    for mask in (np.ones((2, 3), bool), np.ones((2, 2))):
        with pytest.raises(ImageError, match=r"bool \(2, 2\) is wanted"):
            from_array(np.zeros((2, 2)), mask=mask)

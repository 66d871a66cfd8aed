"""Maps on the disk: the numbers add up to the score, and a volume's map lies on the volume voxel for voxel."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from saqm.errors import NotScorable, OutputError
from saqm.image import Image, from_array, read_frames, read_image
from saqm.maps import QualityMap
from saqm.outputs.map_files import MapFiles, map_name, save_nifti
from saqm.scorer import load_scorer, not_scored, score_and_map

SHAPE = (36, 40, 5)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Noise stored as left, inferior, posterior at an angle; its axial slices lie along the second axis."""
    values = np.random.default_rng(0).integers(100, 900, (SHAPE[0], SHAPE[2], SHAPE[1])).astype(np.int16)
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    affine = tilt @ np.diag([0.7, 0.9, 5.0, 1.0])
    affine[:3, 3] = -12.5, 30, 7
    stored = affine @ inv_ornt_aff(axcodes2ornt("LIP"), values.shape)
    nibabel.Nifti1Image(values, stored).to_filename(tmp_path / "volume.nii")
    return tmp_path / "volume.nii"


def own_pixels(image: Image) -> QualityMap:
    """A map that shows the picture's own pixels."""
    return QualityMap(image.pixels.astype(np.float32), np.full(image.mask.shape, 1 / image.mask.size), 32)


def test_the_numbers_add_up_to_the_score(toy_model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image = from_array(rng.random((80, 96)), mask=np.arange(96) + np.zeros((80, 1)) > 20)
    scorer = load_scorer(toy_model)
    result, made = score_and_map(image, scorer)
    with MapFiles(tmp_path / "maps", ("npy",)) as files:
        (tmp_path / "maps").mkdir()
        files.add(image, made, result)
    stem = map_name(image)
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [f"{stem}.npy", f"{stem}.weight.npy"]
    score, weight = (np.load(tmp_path / "maps" / f"{stem}{part}.npy") for part in ("", ".weight"))
    np.testing.assert_array_equal(score, made.score_HW)
    assert (score.dtype, weight.dtype) == (np.float32, np.float32)
    assert np.nansum(score.astype(float) * weight) == pytest.approx(result.score, abs=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_map_of_a_volume_lies_on_its_voxels(volume: Path, tmp_path: Path, axis: int) -> None:
    with MapFiles(tmp_path, ("nii",)) as files:
        for image in read_frames(volume, (500, 1000), axis=axis, mask="none"):
            files.add(image, own_pixels(image))
    source = nibabel.load(volume)
    made = nibabel.load(tmp_path / f"{map_name(image, of_volume=True)}.nii.gz")
    np.testing.assert_array_equal(made.affine, source.affine)
    assert (made.header.get_xyzt_units()[0], made.header.get_data_dtype()) == ("mm", np.float32)
    np.testing.assert_allclose(made.get_fdata(), source.get_fdata() / 1000, atol=1e-6)
    assert len(list(tmp_path.glob("*.gz"))) == 2  # all slices in one file; and the weights


def test_slices_without_a_map_are_empty_in_it(volume: Path, tmp_path: Path) -> None:
    image = read_image(volume, 1, axis=2)
    with MapFiles(tmp_path, ("nii",)) as files:
        files.add(image, own_pixels(image))
    made = nibabel.load(tmp_path / f"{map_name(image, of_volume=True)}.nii.gz").get_fdata()
    assert np.isfinite(made).all((0, 2)).tolist() == [False, False, False, True, False]  # stored feet last


def test_a_series_of_volumes_keeps_them_apart(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1000, (33, 34, 3, 2)).astype(np.int16)
    nibabel.Nifti1Image(values, np.diag([1, 1, 4, 1])).to_filename(tmp_path / "series.nii.gz")
    with MapFiles(tmp_path, ("nii",)) as files:
        for image in read_frames(tmp_path / "series.nii.gz", (500, 1000), mask="none"):
            files.add(image, own_pixels(image))
    made = nibabel.load(tmp_path / f"{map_name(image, of_volume=True)}.nii.gz")
    np.testing.assert_allclose(made.get_fdata(), values / 1000, atol=1e-6)


@pytest.mark.parametrize(
    ("spacing", "unit", "zooms"), [((0.5, 0.75), "mm", (0.75, 0.5, 1)), (None, "unknown", (1, 1, 1))]
)
def test_a_single_picture_is_one_slice_that_claims_no_more_than_is_known(
    tmp_path: Path, spacing: tuple[float, float] | None, unit: str, zooms: tuple[float, ...]
) -> None:
    image = from_array(np.random.default_rng(0).random((20, 30)), spacing_mm=spacing)
    with MapFiles(tmp_path, ("nii",)) as files:
        files.add(image, own_pixels(image))
    made = nibabel.load(tmp_path / f"{map_name(image)}.nii.gz")
    np.testing.assert_array_equal(made.get_fdata()[:, :, 0].T, image.pixels)
    assert made.header.get_zooms() == pytest.approx(zooms)
    assert made.header.get_xyzt_units()[0] == unit
    assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == (0, 0)  # no orientation is claimed


def test_the_same_voxels_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        save_nifti(np.ones((3, 4, 5), np.float32), tmp_path / name, affine=np.eye(4).tolist())
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_run_that_fails_leaves_no_half_of_a_volume(volume: Path, tmp_path: Path) -> None:
    image = read_image(volume, 1, axis=2)

    def run() -> None:
        with MapFiles(tmp_path, ("nii",)) as files:
            files.add(image, own_pixels(image))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run()
    assert [path.name for path in tmp_path.iterdir()] == ["volume.nii"]


def test_what_was_not_scored_has_no_map(tmp_path: Path) -> None:
    image = from_array(np.random.default_rng(0).random((20, 30)))
    for form in ("png", "npy", "nii"):
        with (
            pytest.raises(NotScorable, match=r"array: was not scored, so it has no quality map: constant image"),
            MapFiles(tmp_path, (form,)) as files,
        ):
            files.add(image, own_pixels(image), not_scored("array", "constant image", image))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["png", "npy", "nii"])
def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path, form: str) -> None:
    image = from_array(np.random.default_rng(0).random((20, 30)))
    with (
        pytest.raises(OutputError, match="cannot be written: No such file or directory"),
        MapFiles(tmp_path / "nowhere", (form,)) as files,  # type: ignore[arg-type]
    ):
        files.add(image, own_pixels(image))

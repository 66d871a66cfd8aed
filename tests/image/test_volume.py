"""NIfTI, NRRD and MetaImage: the same anatomy upright whatever the storage, and typed refusals."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from nibabel.testing import data_path

from saqm.errors import ImageError
from saqm.image import volume
from saqm.image.decoded import Decoded

LIMIT = 1_000_000
BUNDLED = Path(data_path)  # real files that ship with nibabel
SHAPE = (5, 6, 7)
VALUES = (np.arange(210, dtype=np.int16).reshape(SHAPE) * 7 + 3) % 211


def read(data: bytes | Path, name: str = "x.nii", **options: object) -> Decoded:
    settings: dict[str, object] = {"frame": None, "window": None, "axis": None, "max_pixels": LIMIT} | options
    return volume.read(data, name, **settings)  # type: ignore[arg-type]


def frames(data: bytes | Path, name: str = "x.nii", **options: object) -> list[Decoded]:
    settings: dict[str, object] = {"window": None, "axis": None, "max_pixels": LIMIT} | options
    return list(volume.frames(data, name, **settings))  # type: ignore[arg-type]


def nifti(values: np.ndarray, affine: np.ndarray | None = None, kind: type = nibabel.Nifti1Image) -> bytes:
    return bytes(kind(values, np.eye(4) if affine is None else affine).to_bytes())


def mha(values: np.ndarray, data: bytes | None = None, **fields: object) -> bytes:
    kinds = {"int16": "MET_SHORT", "float32": "MET_FLOAT", "uint8": "MET_UCHAR"}
    header: dict[str, object] = {
        "ObjectType": "Image",
        "NDims": values.ndim,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "DimSize": " ".join(map(str, values.shape)),
        "ElementType": kinds[values.dtype.name],
        "ElementDataFile": "LOCAL",
    }
    last = fields.pop("ElementDataFile", header.pop("ElementDataFile"))
    lines = {**header, **fields, "ElementDataFile": last}
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    return text.encode() + (values.tobytes("F") if data is None else data)


def nrrd_bytes(values: np.ndarray, tmp_path: Path, **header: object) -> bytes:
    nrrd.write(str(tmp_path / "made.nrrd"), values, header)
    return (tmp_path / "made.nrrd").read_bytes()


def step(image: Decoded, name: str) -> dict[str, object]:
    (found,) = [dict(s.details) for s in image.steps if s.name == name]
    return found


def test_claims_goes_by_content_then_by_suffix() -> None:
    head = nifti(VALUES)[:512]
    assert volume.claims("scan", head)
    assert volume.claims("scan", nifti(VALUES, kind=nibabel.Nifti2Image)[:512])
    assert volume.claims("scan", b"NRRD0004\n")
    assert volume.claims("scan", b"ObjectType = Image")
    assert volume.claims("SCAN.NII.GZ", b"\x1f\x8b")
    assert not volume.claims("scan.gz", b"\x1f\x8b")


def test_a_volume_without_axis_asks_for_one() -> None:
    wanted = r"anatomical\.nii: 3-D volume 33x41x25; choose axis=0\|1\|2 \(sagittal, coronal, axial\)"
    with pytest.raises(ImageError, match=wanted):
        read(BUNDLED / "anatomical.nii", "anatomical.nii")
    with pytest.raises(ImageError, match=r"axis=3; choose axis=0\|1\|2"):
        read(BUNDLED / "anatomical.nii", axis=3)
    with pytest.raises(ImageError, match=r"25 frames; choose one with frame=0\.\.24"):
        read(BUNDLED / "anatomical.nii", axis=2)


@pytest.mark.parametrize(("axis", "shape", "count"), [(0, (25, 41), 33), (1, (25, 33), 41), (2, (41, 33), 25)])
def test_slices_of_a_real_head(axis: int, shape: tuple[int, int], count: int) -> None:
    path = BUNDLED / "anatomical.nii"
    wanted = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata().take(7, axis)[::-1, ::-1].T
    image = read(path, axis=axis, frame=7, window=(1000, 2000))
    np.testing.assert_allclose(image.pixels, np.clip(wanted / 2000, 0, 1), atol=1e-6)
    assert (image.pixels.shape, image.frames, image.frame) == (shape, count, 7)
    assert (image.format, image.modality, image.bits_stored, image.spacing_mm) == ("nifti", None, 16, (2, 2))
    assert step(image, "orientation")["stored"] == "LAS"
    assert step(image, "orientation")["plane"] == volume.PLANES[axis]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_the_grid_says_which_voxel_each_pixel_is(axis: int, codes: str) -> None:
    turn = inv_ornt_aff(axcodes2ornt(tuple(codes)), VALUES.shape)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) @ turn
    image = read(nifti(VALUES, affine), axis=axis, frame=1, window=(500, 1000))
    grid = image.grid
    assert grid is not None
    assert grid.shape == (*VALUES.shape, 1)
    np.testing.assert_allclose(grid.affine, affine)
    row, column = np.indices(image.pixels.shape)
    i, j, k, volume = np.tensordot(np.array(grid.to_voxel), np.stack([row, column, np.ones_like(row)]), 1)
    assert not volume.any()
    np.testing.assert_allclose(image.pixels, np.clip(VALUES[i, j, k] / 1000, 0, 1), atol=1e-6)


def test_streamed_slices_equal_chosen_ones_and_share_one_window() -> None:
    path = BUNDLED / "anatomical.nii"
    streamed = frames(path, axis=2)
    assert len(streamed) == 25
    assert len({str(step(image, "window")) for image in streamed}) == 1
    for number in (0, 11, 24):
        np.testing.assert_array_equal(read(path, axis=2, frame=number).pixels, streamed[number].pixels)


def test_the_window_is_the_percentiles_of_what_is_not_zero() -> None:
    image = nibabel.load(BUNDLED / "anatomical.nii")
    values = image.get_fdata()
    low, high = np.percentile(values[values != 0], (0.5, 99.5))
    found = step(read(BUNDLED / "anatomical.nii", axis=0, frame=3), "window")
    assert (found["low"], found["high"]) == (low, high)
    assert "percentiles 0.5..99.5" in str(found["from"])


def test_packed_4d_runs_over_volumes_and_slices() -> None:
    path = BUNDLED / "example4d.nii.gz"
    values = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    image = read(path, "example4d.nii.gz", axis=2, frame=24 + 5, window=(500, 1000))
    np.testing.assert_allclose(image.pixels, np.clip(values[:, :, 5, 1] / 1000, 0, 1)[::-1, ::-1].T, atol=1e-6)
    assert image.frames == 48
    assert (step(image, "orientation")["slice"], step(image, "orientation")["volume"]) == (5, 1)
    from_bytes = read(path.read_bytes(), axis=2, frame=29, window=(500, 1000))
    np.testing.assert_array_equal(from_bytes.pixels, image.pixels)


def test_a_clear_stack_needs_no_axis() -> None:
    image = read(BUNDLED / "functional.nii", frame=0)  # 4 x 4 x 8 mm, 3 slices, 20 volumes
    assert (image.frames, image.pixels.shape, image.spacing_mm) == (60, (21, 17), (4, 4))
    assert step(image, "orientation")["axis_from"] == "slices 8 mm apart, pixels at most 4 mm"
    assert step(image, "rescale")["from"] == "file"
    proxy = nibabel.load(BUNDLED / "functional.nii").dataobj
    assert step(image, "rescale")["slope"] == proxy.slope


def test_one_slice_needs_neither_axis_nor_frame() -> None:
    flat = read(nifti(VALUES[:, :, 0]))
    assert (flat.pixels.shape, flat.frame, flat.frames) == ((6, 5), None, 1)
    for axis in range(3):
        image = read(nifti(VALUES.take([2], axis)))
        assert step(image, "orientation")["axis"] == axis
        assert step(image, "orientation")["axis_from"] == "one slice"
    with pytest.raises(ImageError, match="5x1x1 voxels are a line"):
        read(nifti(VALUES[:, :1, :1]))


ORIENTATIONS = ["".join(c) for p in itertools.permutations(["RL", "AP", "SI"]) for c in itertools.product(*p)]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_storage_order_does_not_change_what_is_shown(codes: str) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = apply_orientation(VALUES, turn)
    data = nifti(stored, affine @ inv_ornt_aff(turn, SHAPE))
    for axis, spacing in enumerate([(3, 2), (3, 1), (2, 1)]):
        wanted = read(nifti(VALUES, affine), axis=axis, frame=1)
        image = read(data, axis=axis, frame=1)
        np.testing.assert_array_equal(image.pixels, wanted.pixels)
        assert image.spacing_mm == pytest.approx(spacing)
        assert step(image, "orientation")["stored"] == codes


def test_anatomy_is_upright_in_every_plane() -> None:
    """A bright voxel at the right, front and top of the head lands at the left, top, as DICOM shows it."""
    values = np.zeros((8, 9, 10), np.float32)
    values[7, 8, 9] = 1  # RAS: most right, most anterior, most superior
    values[0, 0, 0] = 0.5
    data = nifti(values)
    for axis, last in enumerate((7, 8, 9)):
        assert read(data, axis=axis, frame=last, window=(0.5, 1)).pixels[0, 0] == 1
        assert read(data, axis=axis, frame=0, window=(0.5, 1)).pixels[-1, -1] == 0.5


def test_nifti2_and_slope_and_intercept() -> None:
    made = nibabel.Nifti2Image(VALUES, np.eye(4))
    made.header.set_slope_inter(2, -100)
    # nibabel would rescale on saving; the file is put together by hand: header, no extension, voxels
    made.header["magic"] = b"n+2"
    made.header.set_data_offset(544)
    data = made.header.binaryblock + bytes(4) + VALUES.tobytes("F")
    image = read(data, axis=2, frame=0, window=(100, 400))
    np.testing.assert_allclose(
        image.pixels, np.clip((VALUES[::-1, ::-1, 0].T * 2.0 - 200) / 400 + 0.5, 0, 1), atol=1e-6
    )


@pytest.fixture
def reference() -> np.ndarray:
    """Slice 2 of VALUES stored as left-posterior-superior: shown as stored, x to the right and y down."""
    return np.asarray(np.clip(VALUES[:, :, 2].T / 210, 0, 1))


def shown(data: bytes | Path, name: str) -> np.ndarray:
    return read(data, name, axis=2, frame=2, window=(105, 210)).pixels


@pytest.mark.parametrize("case", ["raw", "zlib", "gzip", "big endian", "with header size", "shortest"])
def test_metaimage(case: str, reference: np.ndarray) -> None:
    raw = VALUES.tobytes("F")
    data = {
        "raw": mha(VALUES, TransformMatrix="1 0 0 0 1 0 0 0 1", Offset="1 2 3"),
        "zlib": mha(VALUES, zlib.compress(raw), CompressedData="True", CompressedDataSize=len(raw)),
        "gzip": mha(VALUES, gzip.compress(raw), CompressedData="True"),
        "big endian": mha(VALUES, VALUES.astype(">i2").tobytes("F"), BinaryDataByteOrderMSB="True"),
        "with header size": mha(VALUES, b"12345" + raw, HeaderSize="-1"),
        "shortest": mha(VALUES).replace(b"ObjectType = Image\n", b""),
    }[case]
    np.testing.assert_allclose(shown(data, "x.mha"), reference, atol=1e-6)
    assert read(data, "x.mha", axis=2, frame=2).format == "mha"


def test_metaimage_orientation_and_spacing(reference: np.ndarray) -> None:
    turned = VALUES.transpose(1, 0, 2)[:, ::-1]  # first stored axis to the back, second to the right
    data = mha(np.ascontiguousarray(turned), TransformMatrix="0 1 0 -1 0 0 0 0 1", ElementSpacing="2 3 9")
    image = read(data, "x.mha", frame=2, window=(105, 210))  # 9 mm slices: a clear stack
    np.testing.assert_allclose(image.pixels, reference, atol=1e-6)
    assert image.spacing_mm == pytest.approx((2, 3))


def test_metaimage_with_its_data_beside(tmp_path: Path, reference: np.ndarray) -> None:
    (tmp_path / "x.raw").write_bytes(VALUES.tobytes("F"))
    path = tmp_path / "x.mhd"
    path.write_bytes(mha(VALUES, b"", ElementDataFile="x.raw"))
    np.testing.assert_allclose(shown(path, "x.mhd"), reference, atol=1e-6)
    with pytest.raises(ImageError, match=r"x\.raw, which is not at hand"):
        shown(path.read_bytes(), "x.mhd")
    (tmp_path / "x.raw").unlink()
    with pytest.raises(ImageError, match=r"its data file x\.raw is missing"):
        shown(path, "x.mhd")
    path.write_bytes(mha(VALUES, b"", ElementDataFile="../../etc/passwd"))
    with pytest.raises(ImageError, match="outside its folder; refused"):
        shown(path, "x.mhd")


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_nrrd(encoding: str, tmp_path: Path, reference: np.ndarray) -> None:
    header = {"space": "left-posterior-superior", "space directions": np.diag([1.0, 1, 1]), "encoding": encoding}
    np.testing.assert_allclose(shown(nrrd_bytes(VALUES, tmp_path, **header), "x.nrrd"), reference, atol=1e-6)


def test_nrrd_spaces(tmp_path: Path, reference: np.ndarray) -> None:
    ras = nrrd_bytes(VALUES, tmp_path, **{"space": "RAS", "space directions": np.diag([-1.0, -1, 1])})
    np.testing.assert_allclose(shown(ras, "x.nrrd"), reference, atol=1e-6)
    plain = nrrd_bytes(VALUES, tmp_path, spacings=[1.0, 1.0, 4.0])
    image = read(plain, "x.nrrd", frame=2, window=(105, 210))
    np.testing.assert_allclose(image.pixels, reference, atol=1e-6)
    assert "taken as left-posterior-superior" in image.warnings[0]


def test_nrrd_volumes_may_come_first(tmp_path: Path, reference: np.ndarray) -> None:
    both = np.stack([np.zeros_like(VALUES), VALUES])
    directions = np.vstack([np.full(3, np.nan), np.eye(3)])
    header = {"space": "LPS", "space directions": directions, "kinds": ["list", "domain", "domain", "domain"]}
    data = nrrd_bytes(both, tmp_path, **header)
    image = read(data, "x.nrrd", axis=2, frame=7 + 2, window=(105, 210))
    assert image.frames == 14
    np.testing.assert_allclose(image.pixels, reference, atol=1e-6)


def test_nrrd_with_its_data_beside(tmp_path: Path, reference: np.ndarray) -> None:
    nrrd.write(str(tmp_path / "x.nhdr"), VALUES, {"encoding": "gzip"}, detached_header=True)
    np.testing.assert_allclose(shown(tmp_path / "x.nhdr", "x.nhdr"), reference, atol=1e-6)


def with_dim(index: int, size: int) -> bytes:
    data = bytearray(nifti(VALUES))
    data[40 + 2 * index : 42 + 2 * index] = size.to_bytes(2, "little", signed=True)
    return bytes(data)


NIFTI = nifti(VALUES)
BROKEN = {
    "empty": ("x.nii", b"", "empty file"),
    "text": ("x.nii", b"no volume here\n" * 99, "no NIfTI, NRRD or MetaImage header"),
    "text as mha": ("x.mha", b"no volume here\n", "no NIfTI, NRRD or MetaImage header"),
    "half a header": ("x.nii", NIFTI[:200], "truncated: 200 bytes of a header of 348"),
    "wrong magic": ("x.nii", NIFTI[:344] + b"n*1\0" + NIFTI[348:], "magic b'n\\*1', wanted"),
    "pair": ("x.nii", NIFTI[:344] + b"ni1\0" + NIFTI[348:], "convert the pair to one .nii"),
    "negative size": ("x.nii", with_dim(2, -6), "size 5x-6x7 cannot be"),
    "zero size": ("x.nii", with_dim(1, 0), "size 0x6x7 cannot be"),
    "no dimensions": ("x.nii", with_dim(0, 0), "size nothing cannot be"),
    "too large a size": ("x.nii", with_dim(3, 700), "truncated: 5x6x700 voxels of 2 bytes need 42000 bytes, 420 are"),
    "truncated": ("x.nii", NIFTI[:-9], "truncated: .* 411 are there"),
    "truncated gzip": ("x.nii.gz", gzip.compress(NIFTI)[:-40], "x.nii.gz: "),
    "gzip with too little": ("x.nii.gz", gzip.compress(NIFTI[:-9]), "truncated: 411 of 420 bytes"),
    "gzip of text": ("x.nii.gz", gzip.compress(b"no volume here"), "no NIfTI"),
    "gzip bomb": ("x.nii.gz", gzip.compress(with_dim(3, 32000)[:352]), "packed bytes cannot hold"),
    "complex": ("x.nii", nifti(np.zeros(SHAPE, np.complex64)), "voxels of type complex64"),
    "nrrd cut": ("x.nrrd", b"NRRD0004\ntype: short\n", "x.nrrd: "),
    "nrrd type": ("x.nrrd", b"NRRD0004\ntype: block\ndimension: 2\nsizes: 2 2\nencoding: raw\n\n1234", "type block"),
    "nrrd ascii": (
        "x.nrrd",
        b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 1 1\nencoding: ascii\n\n1",
        "encoding ascii",
    ),
    "nrrd size": (
        "x.nrrd",
        b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: -1 1\nencoding: raw\n\n1",
        "size -1x1 cannot",
    ),
    "mha cut": ("x.mha", b"ObjectType = Image\nNDims = 3\n", "the header does not end"),
    "mha truncated": ("x.mha", mha(VALUES)[:-1], "truncated"),
    "mha zlib truncated": (
        "x.mha",
        mha(VALUES, zlib.compress(VALUES.tobytes())[:90], CompressedData="True"),
        "truncated",
    ),
    "mha zlib broken": ("x.mha", mha(VALUES, bytes(200), CompressedData="True"), "broken or unsupported volume"),
    "mha colour": ("x.mha", mha(VALUES, ElementNumberOfChannels=3), "3 channels"),
    "mha negative": ("x.mha", mha(VALUES).replace(b"5 6 7", b"5 -6 7"), "size 5x-6x7 cannot be"),
    "mha without size": ("x.mha", mha(VALUES).replace(b"DimSize", b"DimSizf"), "DimSize"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_volume_is_refused(case: str) -> None:
    name, data, reason = BROKEN[case]
    with pytest.raises(ImageError, match=reason):
        read(data, name, axis=2, frame=0)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.nii: .*No such file"):
        read(tmp_path / "gone.nii", "gone.nii")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    values = VALUES.astype(np.float32)
    values[1, 2, 3] = bad
    with pytest.raises(ImageError, match=r"x\.nii: the volume holds NaN or infinite"):
        read(nifti(values), axis=2, frame=3)
    with pytest.raises(ImageError, match="slice 3 of volume 0 holds NaN"):
        read(nifti(values), axis=2, frame=3, window=(100, 200))


def test_large_slices_and_foolish_windows_are_refused() -> None:
    with pytest.raises(ImageError, match=r"slices of 6x5 = 30 pixels, more than max_pixels=20"):
        read(NIFTI, axis=2, frame=0, max_pixels=20)
    with pytest.raises(ImageError, match="a width above 0"):
        read(NIFTI, axis=2, frame=0, window=(5, -1))


def test_a_useless_affine_is_replaced_and_said() -> None:
    made = nibabel.Nifti1Image(VALUES, np.eye(4))
    made.header.set_sform(np.zeros((4, 4)), 1)
    image = read(made.header.binaryblock + bytes(4) + VALUES.tobytes("F"), axis=2, frame=0)
    assert any("no usable orientation" in warning for warning in image.warnings)


def test_a_label_map_is_not_black() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:4, 2:4] = 1
    assert read(nifti(labels), axis=2, frame=0).pixels.max() == 1


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzip"])
def test_streaming_takes_the_memory_of_a_slice_not_of_the_volume(pack: object, tmp_path: Path) -> None:
    size = 160
    path = tmp_path / "large.nii"
    values = np.tile(np.arange(size, dtype=np.int16), (size, size, 1))
    path.write_bytes(pack(nifti(values)))  # type: ignore[operator]
    for axis in (0, 2):
        tracemalloc.start()
        count = sum(1 for _ in volume.frames(path, "large.nii", window=(50, 100), axis=axis, max_pixels=2 * LIMIT))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == size
        assert peak < values.nbytes / 3


@given(st.binary(min_size=1, max_size=16), st.integers(0, 360))
def test_damaged_bytes_never_escape_as_foreign_errors(junk: bytes, at: int) -> None:
    for whole in (NIFTI, mha(VALUES, Offset="1 2 3", ElementSpacing="1 1 3")):
        damaged = whole[:at] + junk + whole[at + len(junk) :]
        try:
            image = read(damaged, axis=2, frame=0)
        except ImageError:
            continue
        assert np.isfinite(image.pixels).all()

"""PNG, JPEG, TIFF, BMP, WebP: the same light whatever the container, and typed refusals."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saqm.errors import ImageError
from saqm.image import raster
from saqm.image.decoded import Decoded

LIMIT = 10_000_000
RAMP = np.arange(256, dtype=np.uint8).reshape(8, 32)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP // 2], -1)


def encoded(array: np.ndarray | PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    picture = array if isinstance(array, PIL.Image.Image) else PIL.Image.fromarray(array)
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def read(
    data: bytes | Path, name: str = "x.png", frame: int | None = None, window: tuple[float, float] | None = None
) -> Decoded:
    return raster.read(data, name, frame=frame, window=window, axis=None, max_pixels=LIMIT)


def frames(data: bytes, name: str = "x.tif") -> list[Decoded]:
    return list(raster.frames(data, name, window=None, axis=None, max_pixels=LIMIT))


def step(image: Decoded, name: str) -> dict[str, object]:
    (found,) = [dict(s.details) for s in image.steps if s.name == name]
    return found


def test_claims_goes_by_content_then_by_suffix() -> None:
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP"):
        assert raster.claims("no_suffix", encoded(RAMP, kind)[:132])
    assert raster.claims("SCAN.TIFF", b"text")
    assert not raster.claims("scan.dat", b"BMI and weight")
    assert not raster.claims("scan.dcm", b"II*\0".ljust(128, b"\0") + b"DICM")  # a TIFF header in a DICOM preamble


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_grey_bytes_become_shares_of_255(kind: str) -> None:
    image = read(encoded(RAMP, kind))
    np.testing.assert_array_equal(image.pixels, (RAMP / 255).astype(np.float32))
    assert image.pixels.dtype == np.float32
    assert (image.format, image.frame, image.frames, image.bits_stored) == (kind.lower(), None, 1, 8)
    assert (image.valid, image.spacing_mm, image.modality) == (None, None, None)
    assert step(image, "range") == {"low": 0, "high": 255, "from": "8 bits stored"}
    assert image.warnings == ()


def test_lossless_webp_and_jpeg_colour_keep_three_channels() -> None:
    np.testing.assert_array_equal(
        read(encoded(COLOUR, "WEBP", lossless=True)).pixels, (COLOUR / 255).astype(np.float32)
    )
    assert read(encoded(COLOUR, "JPEG")).pixels.shape == (8, 32, 3)


def test_path_and_bytes_read_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(RAMP))
    np.testing.assert_array_equal(read(tmp_path / "a.png").pixels, read(encoded(RAMP)).pixels)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)), st.sampled_from(["PNG", "TIFF"]))
def test_8_and_16_bit_copies_give_the_same_pixels(values: np.ndarray, kind: str) -> None:
    wide = encoded(values.astype(np.uint16) * 257, kind)
    np.testing.assert_array_equal(read(wide).pixels, read(encoded(values, kind)).pixels)


def test_12_bits_in_16_are_found_and_recorded() -> None:
    values = np.linspace(0, 4000, 256).astype(np.uint16).reshape(16, 16)
    image = read(encoded(values))
    np.testing.assert_allclose(image.pixels, values / 4095, atol=1e-7)
    assert image.bits_stored == 12
    assert step(image, "range") == {"low": 0, "high": 4095, "from": "largest value 4000", "container_bits": 16}


@pytest.mark.parametrize(("high", "bits"), [(1000, 10), (1024, 12), (16000, 14), (16384, 16)])
def test_bits_in_use(high: int, bits: int) -> None:
    assert read(encoded(np.array([[0, high]], np.uint16))).bits_stored == bits


def test_the_scale_is_the_files_not_the_frames() -> None:
    stack = np.stack([np.full((4, 4), 200, np.uint16), np.full((4, 4), 4000, np.uint16)])
    data = tiff(stack, photometric="minisblack")
    first, second = frames(data)
    assert (first.frame, second.frame, first.frames) == (0, 1, 2)
    np.testing.assert_allclose(first.pixels, 200 / 4095, atol=1e-7)
    for index, streamed in enumerate((first, second)):
        alone = read(data, frame=index)
        np.testing.assert_array_equal(alone.pixels, streamed.pixels)
        assert alone.steps == streamed.steps


def test_16_bit_grey_keeps_its_low_bits() -> None:
    values = np.array([[40000, 40001], [65535, 0]], np.uint16)
    for data in (encoded(values), tiff(values), tiff(values, compression="zlib"), tiff(values, byteorder=">")):
        assert len(np.unique(read(data).pixels)) == 4


def test_16_bit_colour_tiff_is_not_cut_to_8_bits() -> None:
    values = np.random.default_rng(1).integers(0, 65536, (6, 7, 3), np.uint16)
    np.testing.assert_allclose(read(tiff(values, photometric="rgb")).pixels, values / 65535, atol=1e-7)
    planes = tiff(values.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_allclose(read(planes).pixels, values / 65535, atol=1e-7)


def test_16_bit_colour_png_says_what_is_lost() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in np.full((4, 4, 3), 0x8040, ">u2"))
    assert "16-bit colour" in read(png(4, 4, depth=16, colour=2, pixels=rows)).warnings[0]


def test_window_is_in_stored_units_and_overrules_the_range() -> None:
    values = np.array([[900, 1000, 1100, 3000]], np.uint16)
    image = read(encoded(values), window=(1000, 200))
    np.testing.assert_allclose(image.pixels, [[0, 0.5, 1, 1]])
    assert step(image, "window") == {"center": 1000, "width": 200, "from": "caller"}
    shallow = read(encoded(RAMP), window=(100, 50))
    np.testing.assert_array_equal(shallow.pixels, read(encoded(RAMP)).pixels)
    assert "not applied: a picture of 8 bits" in shallow.warnings[0]
    with pytest.raises(ImageError, match="a width above 0"):
        read(encoded(values), window=(1000, 0))


def test_float_tiff_within_0_and_1_is_taken_as_it_is() -> None:
    values = np.linspace(0.2, 0.7, 12, dtype=np.float32).reshape(3, 4)
    image = read(tiff(values))
    np.testing.assert_array_equal(image.pixels, values)
    assert step(image, "range")["from"] == "floats within 0..1"


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.int32])
def test_values_without_a_scale_use_the_data_range_and_say_so(kind: type) -> None:
    image = read(tiff(np.array([[-1000, 0, 1000]], kind)))
    np.testing.assert_allclose(image.pixels, [[0, 0.5, 1]])
    assert step(image, "window") == {"low": -1000, "high": 1000, "from": "data range"}
    assert "own range -1000..1000; give a window" in image.warnings[0]


def test_32_bit_integers_that_hold_16_are_read_as_16() -> None:
    values = np.array([[0, 30000, 65535]], np.uint32)
    np.testing.assert_allclose(read(tiff(values)).pixels, values / 65535, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers_are_refused(bad: float) -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = bad
    with pytest.raises(ImageError, match=r"x\.tif: frame 0 holds 1 NaN or infinite"):
        read(tiff(values), "x.tif")
    with pytest.raises(ImageError, match=r"frame 1 holds"):  # of any frame: they share one scale
        read(tiff(np.stack([np.zeros_like(values), values]), photometric="minisblack"), frame=0)


def test_white_is_zero_is_inverted() -> None:
    image = read(tiff(RAMP, photometric="miniswhite"))
    np.testing.assert_allclose(image.pixels, 1 - RAMP / 255, atol=1e-7)
    assert step(image, "invert") == {"from": "white is zero"}


def test_alpha_is_dropped_and_what_is_transparent_is_not_valid() -> None:
    alpha = np.full(RAMP.shape, 255, np.uint8)
    alpha[:, :8], alpha[:, 8:16] = 0, 9
    for data in (
        encoded(np.dstack([COLOUR, alpha])),
        tiff(np.dstack([COLOUR, alpha]), photometric="rgb", extrasamples=["unassalpha"]),
    ):
        image = read(data)
        assert image.pixels.shape == (8, 32, 3)
        assert image.valid is not None
        np.testing.assert_array_equal(image.valid, alpha > 0)
        assert step(image, "alpha") == {"dropped": True, "transparent_share": 0.25}
    grey = read(encoded(PIL.Image.fromarray(np.dstack([RAMP, alpha]), "LA")))
    assert grey.pixels.shape == RAMP.shape
    assert grey.valid is not None
    opaque = read(encoded(np.dstack([COLOUR, np.full_like(alpha, 255)])))
    assert opaque.valid is None


def test_transparent_colour_of_a_grey_png_is_not_valid() -> None:
    for values in (RAMP, RAMP.astype(np.uint16) * 257):
        image = read(encoded(values, transparency=0))
        assert image.pixels.shape == RAMP.shape
        assert image.valid is not None
        np.testing.assert_array_equal(image.valid, RAMP > 0)


def test_palette_one_bit_and_cmyk() -> None:
    palette = PIL.Image.fromarray(COLOUR).quantize(16)
    image = read(encoded(palette))
    np.testing.assert_array_equal(image.pixels, (np.asarray(palette.convert("RGB")) / 255).astype(np.float32))
    assert step(image, "palette") == {"from": "file"}

    bits = RAMP > 100
    for data in (encoded(bits), encoded(bits, "TIFF"), tiff(bits, photometric="minisblack")):
        one = read(data)
        np.testing.assert_array_equal(one.pixels, bits.astype(np.float32))
        assert one.bits_stored == 1

    print_colours = PIL.Image.fromarray(np.full((16, 16, 3), (200, 100, 50), np.uint8)).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        image = read(encoded(print_colours, kind))
        np.testing.assert_allclose(image.pixels.mean((0, 1)) * 255, (200, 100, 50), atol=3)
        assert step(image, "colour")["from"] == "CMYK"


def test_palette_tiff() -> None:
    palette = np.random.default_rng(2).integers(0, 256, (3, 256), np.uint16)
    image = read(tiff(RAMP, photometric="palette", colormap=palette * 257))
    np.testing.assert_allclose(image.pixels, palette.T[RAMP] / 255, atol=1e-7)


def test_three_equal_channels_are_grey() -> None:
    image = read(encoded(np.repeat(RAMP[..., None], 3, 2)))
    np.testing.assert_array_equal(image.pixels, read(encoded(RAMP)).pixels)
    assert step(image, "grey") == {"from": "three equal channels"}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_as_pillow_would(orientation: int) -> None:
    picture = PIL.Image.fromarray(RAMP)
    exif = picture.getexif()
    exif[0x0112] = orientation
    data = encoded(picture, exif=exif)
    with PIL.Image.open(io.BytesIO(data)) as opened:
        wanted = np.asarray(PIL.ImageOps.exif_transpose(opened))
    tagged = tiff(RAMP, extratags=[(274, "H", 1, orientation, True)])
    for image in (read(data), read(tagged)):
        np.testing.assert_array_equal(image.pixels, (wanted / 255).astype(np.float32))
        if orientation > 1:
            assert step(image, "orientation") == {"exif": orientation}


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_animation_frames_stream(kind: str) -> None:
    pictures = [PIL.Image.fromarray(np.full((16, 16, 3), (level, 0, 99), np.uint8)) for level in (10, 120, 240)]
    data = encoded(pictures[0], kind, save_all=True, append_images=pictures[1:], lossless=True)
    found = frames(data)
    assert [round(float(image.pixels[..., 0].mean()) * 255) for image in found] == [10, 120, 240]
    np.testing.assert_array_equal(read(data, frame=1).pixels, found[1].pixels)


def test_a_frame_has_to_be_chosen() -> None:
    data = tiff(np.zeros((3, 4, 4), np.uint8), photometric="minisblack")
    with pytest.raises(ImageError, match=r"x\.tif: 3 frames; choose one with frame=0\.\.2"):
        read(data, "x.tif")
    with pytest.raises(ImageError, match=r"no frame 3"):
        read(data, "x.tif", frame=3)


def test_thumbnails_are_no_frames() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(RAMP)
        writer.write(RAMP[::2, ::2], subfiletype=1)
    assert read(stream.getvalue()).frames == 1


def test_lzw_without_imagecodecs_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(RAMP.astype(np.uint16) * 100, "TIFF", compression="tiff_lzw")
    wanted = read(data)

    def refuse(page: object) -> None:
        raise ValueError(f"{page} requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    alone = read(data)
    np.testing.assert_array_equal(alone.pixels, wanted.pixels)
    with pytest.raises(ImageError, match=r"imagecodecs: pip install 'saqm\[dicom-decoders\]'"):
        read(tiff(COLOUR.astype(np.uint16), photometric="rgb"))


def png(width: int, height: int, depth: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


BROKEN = {
    "empty": (b"", "empty file"),
    "text": (b"this is no picture\n" * 20, "no PNG, JPEG, TIFF, BMP or WebP picture"),
    "magic only": (b"\x89PNG\r\n\x1a\n", "x.png: "),
    "tiff magic only": (b"II*\0\x08\0\0\0", "x.png: "),
    "zero size": (png(0, 5), "x.png: "),
    "negative size": (png(2**32 - 5, 5), "x.png: "),
    "no rows": (png(64, 64), "x.png: "),
    "bomb": (png(60_000, 60_000), "refused before decoding"),
    "over max_pixels": (png(4_000, 4_000), "more than max_pixels=10000000"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_picture_is_refused(case: str) -> None:
    data, reason = BROKEN[case]
    with pytest.raises(ImageError, match=reason):
        read(data)
    with pytest.raises(ImageError, match=reason):
        frames(data, "x.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (64, 64), np.uint8)
    data = encoded(noise, kind)
    with pytest.raises(ImageError, match=r"x\.png: "):
        read(data[: int(len(data) * share)])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_16_bit_tiff_is_refused(compression: str | None, share: float) -> None:
    data = tiff(np.random.default_rng(3).integers(0, 65536, (64, 64), np.uint16), compression=compression)
    with pytest.raises(ImageError, match=r"x\.tif: (truncated|broken)"):
        read(data[: int(len(data) * share)], "x.tif")


def test_a_tiff_whose_pages_run_in_a_circle_is_refused() -> None:
    data = bytearray(encoded(RAMP, "TIFF"))
    directory = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[directory : directory + 2], "little")
    after = directory + 2 + 12 * entries
    data[after : after + 4] = data[4:8]
    with pytest.raises(ImageError, match=r"x\.tif: broken"):
        read(bytes(data), "x.tif")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: .*No such file"):
        read(tmp_path / "gone.png", "gone.png")


def test_channels_that_are_no_picture_are_refused() -> None:
    with pytest.raises(ImageError, match="5 channels"):
        read(tiff(np.zeros((8, 8, 5), np.uint8), photometric="minisblack", planarconfig="contig"))
    with pytest.raises(ImageError, match="complex"):
        read(tiff(np.zeros((8, 8), np.complex64)))
    with pytest.raises(ImageError, match="ImageJ stack"):
        read(imagej_stack())


def imagej_stack() -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((1, 8, 8), np.uint16), imagej=True)
    return stream.getvalue().replace(b"images=1\n", b"images=5\n")


@given(st.binary(max_size=80), st.integers(0, 400))
def test_damaged_bytes_never_escape_as_foreign_errors(junk: bytes, at: int) -> None:
    for whole in (encoded(RAMP), encoded(COLOUR, "TIFF"), tiff(RAMP)):
        damaged = whole[:at] + junk + whole[at + len(junk) :]
        try:
            image = read(damaged, frame=0)
        except ImageError:
            continue
        assert np.isfinite(image.pixels).all()

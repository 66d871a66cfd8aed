"""Anatomy is judged; air, the outside of a sector, bars and text are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Picture
from pydicom.data import get_testdata_file

from saqm.image import read_image
from saqm.image.foreground import _grown, _shrink, foreground

Grey = NDArray[np.float32]


def opened(path: Path) -> Grey:
    return np.asarray(Picture.open(path), np.float32) / 255


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2)


def body(side: int = 200, seed: int = 0, background: float = 0.0) -> tuple[Grey, NDArray[np.bool_]]:
    """A textured disc with a black cavity, and where the disc is."""
    rng = np.random.default_rng(seed)
    inside = disc((side, side), (side / 2, side / 2), 0.35 * side)
    cavity = disc((side, side), (side / 2, 0.4 * side), 0.1 * side)
    pixels = np.full((side, side), background)
    pixels[inside] = 0.4 + 0.1 * rng.standard_normal(int(inside.sum()))
    pixels[cavity] = background
    return np.clip(pixels, 0, 1).astype(np.float32), inside


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_all_versions_of_a_ct_scene_share_a_mask(ct_study: Path) -> None:
    """Denoisers with a raised black background (PNDM) must not be known by their mask."""
    overlaps = []
    for reference in sorted((ct_study / "images").glob("*_NDCT.png")):
        wanted, _ = foreground(opened(reference), None)
        assert 0.15 < wanted.mean() < 0.8
        for version in sorted(reference.parent.glob(reference.name.replace("NDCT", "*"))):
            overlaps.append(overlap(foreground(opened(version), None)[0], wanted))
    assert len(overlaps) == 308
    assert np.mean(np.array(overlaps) >= 0.95) >= 0.95


def test_lungs_and_ventricles_stay_in_and_the_table_goes(ct_study: Path) -> None:
    chest, _ = foreground(opened(ct_study / "images" / "abdomen_set01_NDCT.png"), None)
    assert chest[270, 100]  # lung, black in this window
    assert not chest[505:].any()  # the table
    assert not chest[:, :20].any()
    head = opened(ct_study / "images" / "brain_set01_NDCT.png")
    mask, _ = foreground(head, None)
    rows, columns = np.nonzero(head > 0.99)  # the skull
    y, x = int(rows.mean()), int(columns.mean())
    assert mask[y - 100 : y + 100, x - 100 : x + 100].all()


def test_the_fan_is_kept_and_its_outside_dropped(shared: Path) -> None:
    shares = []
    for path in sorted((shared / "data" / "abdominal_ultrasound" / "images").iterdir())[::8]:
        pixels = opened(path)
        mask, _ = foreground(pixels, "US")
        assert not mask[:5].any()
        assert not mask[440:].any()
        assert not (mask & (np.abs(np.arange(640) - 320) > 300)).any()
        assert mask[pixels > 0.2].mean() > 0.97  # echoes
        shares.append(mask.mean())
    assert np.median(shares) == pytest.approx(0.41, abs=0.03)  # the fan's share of the screen


def test_photographs_are_judged_whole(shared: Path) -> None:
    shares = [foreground(opened(path), None)[0].mean() for path in sorted((shared / "data" / "kodak24").glob("*.png"))]
    assert len(shares) == 24
    assert np.median(shares) > 0.99
    assert min(shares) > 0.9  # a burnt-out sky is the least


def test_a_disc_is_found_with_its_cavity_and_its_air_counted() -> None:
    pixels, inside = body()
    mask, details = foreground(pixels, "CT")
    assert overlap(mask, inside) > 0.95
    assert details["judged_share"] == round(float(mask.mean()), 4)
    left_out = details["left_out"]
    assert isinstance(left_out, dict)
    assert set(left_out) <= {"air", "bars", "flat", "detached"}
    assert sum(left_out.values()) + float(mask.mean()) == pytest.approx(1, abs=3e-4)


@pytest.mark.parametrize("level", [0.0, 0.03, 0.07, 0.15])
def test_noise_of_the_background_is_no_foreground(level: float) -> None:
    pixels, inside = body(512, background=level)
    noisy = pixels + np.random.default_rng(1).normal(0, 0.015, pixels.shape)
    mask, _ = foreground(np.clip(noisy, 0, 1).astype(np.float32), None)
    assert overlap(mask, inside) > 0.95


def test_text_tables_and_bars_are_left_out() -> None:
    pixels, _ = body(256)
    marked = pixels.copy()
    marked[10:17, 8:60:4] = 1.0  # letters
    marked[10:12, 8:60] = 1.0
    marked[244:247] = 0.8  # a table, from side to side
    mask, details = foreground(marked, None)
    assert overlap(mask, foreground(pixels, None)[0]) > 0.98
    assert details["left_out"]["detached"] > 0  # type: ignore[index]
    panel = np.clip(np.random.default_rng(2).normal(0.5, 0.1, (256, 256)), 0, 1).astype(np.float32)
    panel[100:160, 60:180] = 0.7  # one value: an overlay in the middle
    panel[:, 200:] = 0.9  # and a bar at the right
    mask, details = foreground(panel, None)
    assert not mask[102:158, 62:178].any()
    assert not mask[:, 202:].any()
    assert mask[:90, :190].all()
    assert details["left_out"] == {"bars": 0.2188, "flat": pytest.approx(0.11, abs=0.01)}


def test_two_parts_of_like_size_are_both_kept() -> None:
    pixels = np.zeros((128, 256), np.float32)
    both = disc(pixels.shape, (64, 64), 40) | disc(pixels.shape, (64, 190), 30)
    pixels[both] = 0.5 + 0.1 * np.random.default_rng(3).random(int(both.sum()))
    mask, _ = foreground(pixels, None)
    assert mask[both].all()
    assert overlap(mask, both) > 0.92  # a rim of one pixel


def test_a_shadow_belongs_to_the_sector_of_an_ultrasound_picture() -> None:
    y, x = np.mgrid[:240, :320]
    reach, angle = np.hypot(y + 30, x - 160), np.abs(np.arctan2(x - 160, y + 30))
    sector = (reach > 50) & (reach < 250) & (angle < 0.6)
    pixels = np.where(sector, 0.3 + 0.1 * np.random.default_rng(4).random(sector.shape), 0).astype(np.float32)
    pixels[(angle > 0.3) & (x > 160) & (reach > 80) & (reach < 220)] = 0  # a shadow along the right edge
    mask, _ = foreground(pixels, "US")
    assert overlap(mask, sector) > 0.93
    assert overlap(mask, sector) > overlap(foreground(pixels, None)[0], sector)


# (row, column) of each, read off the pictures. The two of a lymph node are one scene at two sizes.
Points = dict[str, list[tuple[int, int]]]
LYMPH_NODE: Points = {
    "tissue": [(220, 320), (120, 500), (320, 100), (310, 600), (260, 240), (115, 30)],
    "blood flow": [(208, 180), (215, 440)],
    "header": [(32, 90), (96, 40), (80, 590), (96, 590)],
    "logo": [(32, 318)],
    "label": [(368, 270), (368, 340)],
    "scale bar": [(454, 165), (450, 79)],
    "indices": [(464, 410), (464, 600)],
    "arrows": [(92, 277), (204, 3)],
    "colour bars": [(165, 30), (205, 30), (165, 612), (205, 612)],
}
CONSOLES: dict[str, Points] = {
    "examples_palette.dcm": {
        "tissue": [(90, 360), (120, 460), (120, 560)],
        "echo-free": [(250, 460), (200, 560), (340, 220), (345, 700)],
        "header": [(30, 50), (30, 400), (43, 720)],
        "logo": [(72, 321)],
        "label": [(94, 132), (94, 180), (94, 270)],
        "grey bar": [(90, 785), (150, 785), (97, 795), (287, 795)],
        "settings": [(75, 40), (210, 40)],
        "beside": [(200, 200), (200, 740), (75, 460)],
    },
    "examples_ybr_color.dcm": {
        "tissue": [(35, 170), (60, 140), (110, 150), (180, 120), (190, 170)],
        "echo-free": [(100, 175), (160, 170)],
        "header": [(7, 20), (18, 10), (26, 5)],
        "marker": [(20, 190)],
        "indices": [(18, 310), (75, 310), (93, 310), (202, 291)],
        "scale bar": [(70, 299), (168, 299)],
        "soft keys": [(233, 45), (233, 100), (228, 150), (233, 180), (233, 260)],
        "beside": [(50, 60), (50, 280)],
    },
    "examples_jpeg2k.dcm": LYMPH_NODE,
    "examples_rgb_color.dcm": {name: [(y // 2, x // 2) for y, x in at] for name, at in LYMPH_NODE.items()},
}


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("examples_palette.dcm", None),
        ("examples_ybr_color.dcm", 0),
        ("examples_ybr_color.dcm", 15),
        ("examples_ybr_color.dcm", 29),
        ("examples_jpeg2k.dcm", None),
        ("examples_rgb_color.dcm", None),
    ],
)
def test_the_sector_is_judged_and_the_console_is_not(name: str, frame: int | None) -> None:
    image = read_image(str(get_testdata_file(name, download=False)), frame=frame)
    assert image.modality == "US"
    for what, points in CONSOLES[name].items():
        wanted = what in ("tissue", "echo-free", "blood flow")
        assert [bool(image.mask[point]) for point in points] == [wanted] * len(points), what


def fan(shape: tuple[int, int] = (240, 320), reach: float = 250) -> NDArray[np.bool_]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance, angle = np.hypot(y + 30, x - shape[1] / 2), np.arctan2(x - shape[1] / 2, y + 30)
    return np.asarray((distance > 50) & (distance < reach) & (np.abs(angle) < 0.6))


def echoes(where: NDArray[np.bool_]) -> Grey:
    return np.where(where, 0.3 + 0.1 * np.random.default_rng(4).random(where.shape), 0).astype(np.float32)


@pytest.mark.parametrize("reach", [200, 250, 400])
def test_a_fan_that_runs_into_the_border_is_kept_to_its_end(reach: float) -> None:
    sector = fan(reach=reach)
    assert overlap(foreground(echoes(sector), "US")[0], sector) > 0.93


def test_a_sepia_picture_is_tissue_and_not_console() -> None:
    sector = fan()
    grey = echoes(sector)
    sepia = np.dstack([grey, 0.8 * grey, 0.5 * grey])
    assert overlap(foreground(sepia, "US")[0], sector) > 0.93


def test_an_echo_free_sector_one_grey_level_above_the_background_is_whole() -> None:
    sector = fan()
    pixels = echoes(sector & (np.arange(240) < 60)[:, None])
    pixels[sector & (pixels == 0)] = 1 / 255
    assert overlap(foreground(pixels, "US")[0], sector) > 0.93


def test_two_sectors_side_by_side_are_both_judged() -> None:
    both = np.hstack([fan(), fan()])
    assert overlap(foreground(echoes(both), "US")[0], both) > 0.9


def test_what_lies_outside_the_region_takes_no_part() -> None:
    sector = fan()
    pixels = np.pad(echoes(sector), ((40, 0), (80, 0)), constant_values=0.4)  # consoles above and at the left
    pixels[:40, ::3] = 0.6
    valid = np.zeros(pixels.shape, np.bool_)
    valid[40:, 80:] = True
    mask, details = foreground(pixels, "US", valid)
    alone, _ = foreground(echoes(sector), "US")
    assert (mask[40:, 80:] == alone).all()
    assert not mask[~valid].any()
    left_out = details["left_out"]
    assert isinstance(left_out, dict)
    assert left_out["outside_region"] == pytest.approx(1 - valid.mean(), abs=1e-4)
    assert sum(left_out.values()) + float(mask.mean()) == pytest.approx(1, abs=3e-4)


@given(st.integers(0, 99), st.sampled_from([64, 128, 256, 300, 512]))
@settings(max_examples=15, deadline=None)
def test_mirroring_mirrors_the_mask(seed: int, side: int) -> None:
    pixels, _ = body(side, seed)
    pixels[: side // 3] = 0  # so that it is not its own mirror
    pixels[:, : side // 5] = 0
    mask, _ = foreground(pixels, None)
    for mirrored in (np.s_[:, ::-1], np.s_[::-1]):
        assert (foreground(np.ascontiguousarray(pixels[mirrored]), None)[0] == mask[mirrored]).all()


@given(st.integers(0, 90), st.integers(0, 90), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 0.1))
@settings(max_examples=25, deadline=None)
def test_a_border_does_not_change_what_is_judged(before: int, after: int, value: float, background: float) -> None:
    pixels, _ = body(150, seed=before, background=background)
    noisy = np.clip(pixels + np.random.default_rng(after).normal(0, 0.01, pixels.shape), 0, 1).astype(np.float32)
    mask, _ = foreground(noisy, None)
    framed, details = foreground(np.pad(noisy, ((before, after), (after, before)), constant_values=value), None)
    inside = np.s_[before : before + 150, after : after + 150]
    assert (framed[inside] == mask).all()
    assert framed.sum() == mask.sum()
    assert details["judged_share"] == round(float(framed.mean()), 4)


@pytest.mark.parametrize("side", [16, 40, 64, 128])
def test_a_small_detail_without_background_is_judged_whole(side: int) -> None:
    detail = np.random.default_rng(5).normal(0.5, 0.1, (side, side)).clip(0, 1).astype(np.float32)
    mask, details = foreground(detail, "MR")
    assert mask.all()
    assert details == {"judged_share": 1.0, "left_out": {}}


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 3), (5, 400), (33, 1000)])
def test_any_shape_has_a_mask_of_its_shape(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(6).random(shape, np.float32)
    mask, _ = foreground(pixels, None)
    assert mask.shape == shape
    assert mask.dtype == np.bool_


def test_a_constant_picture_is_left_to_the_caller() -> None:
    for value in (0.0, 0.5, 1.0):
        assert foreground(np.full((50, 60), value, np.float32), None)[0].all()


def test_noise_alone_in_the_dark_leaves_nothing() -> None:
    pixels = np.zeros((128, 128), np.float32)
    pixels[60, 60] = pixels[20, 90] = 1
    mask, details = foreground(pixels, None)
    assert not mask.any()
    assert details["judged_share"] == 0


def test_colour_is_masked_by_its_light() -> None:
    pixels, _ = body()
    tinted = np.dstack([pixels, pixels * 0.5, pixels * 0.2])
    assert overlap(foreground(tinted, None)[0], foreground(pixels, None)[0]) > 0.98


def test_a_large_radiograph_is_masked_on_a_small_copy() -> None:
    small, inside = body(256)
    large = small.repeat(8, 0).repeat(8, 1)
    mask, _ = foreground(large, "DX")
    assert mask.shape == (2048, 2048)
    assert overlap(mask, inside.repeat(8, 0).repeat(8, 1)) > 0.95


@pytest.mark.parametrize("factor", [1, 2, 3, 7, 8, 16])
def test_block_means_are_numpys_own(factor: int) -> None:
    grey = np.random.default_rng(factor).random((12 * factor, 9 * factor), np.float32)
    grey[:factor, :factor] = 0.25
    blocks = grey.reshape(12, factor, 9, factor)
    means, constant = _shrink(grey, factor)
    np.testing.assert_array_equal(means, blocks.mean((1, 3), dtype=np.float32))
    assert constant[0, 0]
    assert constant.all() == (factor == 1)


@pytest.mark.parametrize("radius", [1, 3, 5, 40])
def test_grown_is_all_within_a_radius(radius: int) -> None:
    from scipy import ndimage

    mask = np.random.default_rng(radius).random((30, 47)) > 0.99
    np.testing.assert_array_equal(_grown(mask, radius), ndimage.distance_transform_edt(~mask) <= radius)
    assert not _grown(np.zeros((4, 4), bool), radius).any()

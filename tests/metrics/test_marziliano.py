"""Marziliano blur against MATLAB's edges and widths, against its definition walked pixel by pixel, and by meaning."""

from __future__ import annotations

import math

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from tests.metrics import reference

from saqm.errors import ImageError, NotScorable, SaqmError
from saqm.metrics._pixels import luminance
from saqm.metrics.marziliano import Rule, edge_map, edge_widths, marziliano

Floats = NDArray[np.float64]
RULES: list[Rule] = ["strict", "asu", "cross"]
COLUMNS: dict[Rule, str] = {"strict": "mean_strict", "asu": "mean_asu", "cross": "mean_plateau_crossing"}
BASES = [
    "astronaut_rgb", "brick", "camera", "chelsea_rgb", "china_rgb", "coins", "flower_rgb", "moon", "page", "us_j2k",
    "us_palette", "us_tissue", "mr_abdomen", "ct_smooth",
]  # fmt: skip


def picture(seed: int = 0, height: int = 60, width: int = 75, levels: int = 255) -> Floats:
    """Whole grey levels; with few of them, many plateaus and ties."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((height, width)), 1.5)
    scaled: Floats = np.rint(levels * (smooth - smooth.min()) / np.ptp(smooth))
    return scaled


def disc(height: int = 60, width: int = 75) -> NDArray[np.bool_]:
    y, x = np.ogrid[:height, :width]
    inside: NDArray[np.bool_] = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (0.45 * min(height, width)) ** 2
    return inside


# Against other programs


def test_edges_and_widths_equal_matlab_pixel_by_pixel() -> None:
    def stored(name: str) -> NDArray[np.uint8]:
        with PIL.Image.open(reference.folder("metric_reference", "marziliano_matlab", f"{name}.png")) as image:
            return np.array(image)

    edges, widths = edge_map(stored("input"), threshold=2), edge_widths(stored("input"), rule="asu")
    assert edges.sum() == 21150
    np.testing.assert_array_equal(edges, stored("edges") > 0)
    np.testing.assert_array_equal(widths, stored("widths"))
    assert (widths > 0).sum() == 9585
    assert marziliano(stored("input"), rule="asu") == pytest.approx(7.202086593635889, rel=1e-15)


@pytest.mark.parametrize("name", reference.IMAGES)
def test_counts_and_means_equal_the_reference_set(name: str) -> None:
    pixels, row = reference.pixels(name), reference.features("marziliano_widths")[name]
    assert edge_map(pixels).sum() == row["edges_auto"]
    assert edge_map(pixels, threshold=2).sum() == row["edges_thr2"]
    for rule in RULES:
        expected = row[COLUMNS[rule]]
        if math.isnan(expected):
            with pytest.raises(NotScorable, match="no vertical edge with a width; the picture is too flat"):
                marziliano(pixels, rule=rule)
        else:
            assert marziliano(pixels, rule=rule) == pytest.approx(expected, rel=1e-9)
            if rule != "cross":
                assert (edge_widths(pixels, rule=rule) > 0).sum() == row[f"widths_{rule}"]


# Against the definition


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("levels", [3, 12, 255])
def test_widths_equal_a_walk_pixel_by_pixel(rule: Rule, levels: int) -> None:
    grey = picture(levels, levels=levels)
    grey[20:30] = np.rint(np.linspace(0, 255, grey.shape[1]))  # one long way from rim to rim
    widths = edge_widths(grey, rule=rule)
    edges = edge_map(grey, threshold=2 if rule == "asu" else None)
    assert edges.any()
    expected = np.zeros(grey.shape, int)
    for row, column in np.argwhere(edges):
        expected[row, column] = _walk(grey, int(row), int(column), rule)
    np.testing.assert_array_equal(widths, expected)


def test_asu_stops_after_101_pixels_on_each_side() -> None:
    ramp = np.tile(3.0 * np.arange(300), (20, 1))
    widths = edge_widths(ramp + (np.arange(300) >= 150), rule="asu")
    assert widths.max() == 202


def _walk(grey: Floats, row: int, c: int, rule: Rule) -> int:
    y = [int(level) for level in grey[row]]
    width = len(y)
    if rule == "asu":
        if row in (0, len(grey) - 1) or c in (0, width - 1):
            return 0
        gx, gy = y[c + 1] - y[c - 1], grey[row + 1, c] - grey[row - 1, c]
        angle = 45 * round(math.degrees(math.atan2(gy, gx)) / 45) if gx else 0
        if angle not in (0, 180, -180):
            return 0
        s, left, right = 1 if angle == 0 else -1, 1, 1
        while left <= 100 and c - 1 - left >= 0 and s * (y[c - left] - y[c - 1 - left]) > 0:
            left += 1
        while right <= 100 and c + 1 + right < width and s * (y[c + 1 + right] - y[c + right]) > 0:
            right += 1
        return left + right
    if rule == "cross":
        i, j = max(c - 1, 0), min(c + 1, width - 1)
        s, t = (1 if y[c] > y[i] else -1), (1 if y[j] > y[c] else -1)
        while i > 0 and s * (y[i] - y[i - 1]) >= 0:
            i -= 1
        while j < width - 1 and t * (y[j + 1] - y[j]) >= 0:
            j += 1
        return j - i
    slope = np.sign(y[min(c + 1, width - 1)] - y[max(c - 1, 0)])
    i = j = c
    while slope and i > 0 and np.sign(y[i] - y[i - 1]) == slope:
        i -= 1
    while slope and j < width - 1 and np.sign(y[j + 1] - y[j]) == slope:
        j += 1
    return j - i


@pytest.mark.parametrize("threshold", [None, 2.0])
def test_edges_equal_the_definition_in_squares(threshold: float | None) -> None:
    """As the map is published: b = gx^2 > 4 mean(b), or > 64 threshold^2; here one pixel at a time."""
    grey = picture(1, 24, 30, levels=40).astype(int)
    framed = np.pad(grey, 1, "edge")
    height, width = grey.shape
    gx, gy, kernel = np.zeros_like(grey), np.zeros_like(grey), np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    for row, column in np.ndindex(height, width):
        window = framed[row : row + 3, column : column + 3]
        gx[row, column], gy[row, column] = (kernel * window).sum(), (kernel.T * window).sum()
    b = np.pad(gx**2, 1)
    found = edge_map(grey, threshold=threshold)
    for row, column in np.ndindex(height, width):
        here, r, c = b[row + 1, column + 1], row + 1, column + 1
        above = here * grey.size > 4 * (gx**2).sum() if threshold is None else here > 64 * threshold**2
        ridge = abs(gx[row, column]) >= abs(gy[row, column]) and b[r, c - 1] <= here > b[r, c + 1]
        assert found[row, column] == (above and (ridge or b[r - 1, c] <= here > b[r + 1, c]))


# What it means


def test_known_widths() -> None:
    ramp = reference.pixels("syn_ramp10")  # extrema at columns 123 and 132
    assert marziliano(ramp) == 9
    assert marziliano(ramp, rule="cross") == ramp.shape[1] - 1
    assert marziliano(reference.pixels("syn_checker8")) == 1


@pytest.mark.parametrize("name", BASES)
def test_it_rises_with_blur(name: str) -> None:
    grey = luminance(reference.pixels(name))
    top, left = max(0, len(grey) - 384) // 2, max(0, grey.shape[1] - 576) // 2
    grey = grey[top : top + 384, left : left + 576]
    blurred = [grey, *(ndimage.gaussian_filter(grey, sigma, mode="nearest") for sigma in (0.7, 1.4, 2.8, 4))]
    assert np.all(np.diff([marziliano(np.rint(image)) for image in blurred]) > 0)


def test_noise_looks_sharper_to_it() -> None:
    """A weakness of the metric, kept: the reason not to use it alone."""
    grey = luminance(reference.pixels("camera"))
    noise = np.random.default_rng(7).standard_normal(grey.shape)
    assert np.all(np.diff([marziliano(np.clip(np.rint(grey + s * noise), 0, 255)) for s in (0, 4, 10, 20, 40)]) < 0)


def test_contrast_offset_and_inversion_do_not_matter() -> None:
    grey = picture(2, levels=60)
    value = marziliano(grey)
    assert marziliano(3 * grey + 11) == value
    assert marziliano(255 - grey) == value
    assert marziliano(grey + 0.25) == value  # rounded to whole levels


def test_flips_matter_by_ties_only_and_transposition_does() -> None:
    grey = luminance(reference.pixels("camera"))
    value = marziliano(grey)
    assert marziliano(grey[:, ::-1]) == pytest.approx(value, rel=5e-4)
    assert marziliano(grey[::-1]) == pytest.approx(value, rel=1e-3)
    assert marziliano(grey.T) != pytest.approx(value, rel=0.01)


def test_type_and_memory_layout_do_not_matter() -> None:
    grey = picture(4)
    for rule in RULES:
        value = marziliano(grey, rule=rule)
        assert marziliano(grey.astype(np.uint8), rule=rule) == value
        assert marziliano(np.asfortranarray(grey), rule=rule) == value
        assert marziliano(np.repeat(grey, 2, axis=1)[:, ::2], rule=rule) == value


# Masks


@pytest.mark.parametrize("rule", RULES)
def test_values_outside_the_mask_and_air_around_it_do_not_matter(rule: Rule) -> None:
    grey, mask = picture(5), disc()
    value = marziliano(grey, mask=mask, rule=rule)
    widths = edge_widths(grey, mask=mask, rule=rule)
    for other in (picture(6), np.zeros_like(grey), np.full_like(grey, 255)):
        np.testing.assert_array_equal(edge_widths(np.where(mask, grey, other), mask=mask, rule=rule), widths)
    air = ((9, 4), (0, 30))
    assert marziliano(np.pad(grey, air), mask=np.pad(mask, air), rule=rule) == value


@pytest.mark.parametrize("rule", RULES)
def test_a_mask_of_everything_is_no_mask(rule: Rule) -> None:
    grey = picture(5)
    np.testing.assert_array_equal(
        edge_widths(grey, mask=np.ones(grey.shape, bool), rule=rule), edge_widths(grey, rule=rule)
    )


def test_a_mask_drops_widths_but_changes_none() -> None:
    """With a fixed threshold: inside, the widths of the whole picture; dropped only what reaches the mask's border."""
    grey, mask = picture(7), np.ones((60, 75), bool)
    mask[20:24, 30:35] = False
    whole, masked = edge_widths(grey, rule="asu"), edge_widths(grey, mask=mask, rule="asu")
    far = np.ones_like(mask)
    far[17:27] = False  # rows of the hole, and those whose Sobel neighbourhoods reach it
    np.testing.assert_array_equal(masked[far], whole[far])
    kept = masked > 0
    np.testing.assert_array_equal(masked[kept], whole[kept])
    assert not kept[~mask].any()
    assert kept[17:27].any()


def test_the_mask_decides_what_is_measured() -> None:
    sharp, mask = picture(8), np.zeros((60, 75), bool)
    mask[:, :37] = True
    half_blurred = np.where(mask, sharp, np.rint(ndimage.gaussian_filter(sharp, 3)))
    assert marziliano(half_blurred, mask=~mask) > 1.5 * marziliano(half_blurred, mask=mask)


# Refusals


def test_what_cannot_be_measured_is_refused_with_the_reason() -> None:
    grey, mask = picture(5), disc()
    with pytest.raises(NotScorable, match=r"marziliano: no vertical edge with a width inside the mask; .* too flat"):
        marziliano(np.where(mask, 100, grey), mask=mask)
    with pytest.raises(NotScorable, match="no vertical edge with a width;"):
        marziliano(np.tile(np.arange(40.0)[:, None], 40))  # horizontal edges only
    with pytest.raises(NotScorable, match="marziliano: 15x75 pixels to judge; it needs at least 16"):
        marziliano(grey[:15])
    with pytest.raises(SaqmError, match="unknown rule 'wide'; choose strict, asu, cross"):
        marziliano(grey, rule="wide")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"grey levels from 0 to 2\.5\d*e\+08; a metric needs 0\.\.255: window them"):
        marziliano(1e6 * grey)

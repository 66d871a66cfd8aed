"""RadialIndex against the reference set, and by what a spectrum must do."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from tests.metrics import reference

from saqm.errors import ImageError, NotScorable
from saqm.metrics._pixels import luminance
from saqm.metrics.radial_index import radial_index, ring_energies

Floats = NDArray[np.float64]
BASES = [
    "astronaut_rgb", "brick", "camera", "chelsea_rgb", "china_rgb", "coins", "flower_rgb", "moon", "page", "us_j2k",
    "us_palette", "us_tissue", "mr_abdomen", "ct_smooth",
]  # fmt: skip


def picture(seed: int = 0, height: int = 60, width: int = 47) -> Floats:
    rng = np.random.default_rng(seed)
    smooth: Floats = 128 + 400 * ndimage.gaussian_filter(rng.standard_normal((height, width)), 2)
    return np.clip(np.rint(smooth), 0, 255)


def disc(height: int = 60, width: int = 47) -> NDArray[np.bool_]:
    y, x = np.ogrid[:height, :width]
    inside: NDArray[np.bool_] = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (0.4 * min(height, width)) ** 2
    return inside


# Against the reference set


@pytest.mark.parametrize("name", reference.IMAGES)
def test_both_forms_equal_the_reference_set(name: str) -> None:
    pixels = reference.pixels(name)
    absolute = reference.score(name, "RadialIndex", "RECONSTRUCTION")
    assert radial_index(pixels) == pytest.approx(absolute, rel=1e-6)
    relative = reference.score(name, "RadialIndex-relative", "RECONSTRUCTION")
    assert radial_index(pixels, relative=True) == pytest.approx(relative, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize(("height", "width"), [(60, 47), (47, 60), (48, 48), (33, 33), (16, 64)])
def test_half_a_spectrum_and_a_transfer_function_equal_two_whole_transforms(height: int, width: int) -> None:
    """The definition, word for word: blur periodically, transform both, mean over rings."""
    grey = picture(1, height, width)
    centred = grey - grey.mean()
    blurred = ndimage.convolve1d(ndimage.convolve1d(centred, [0.25, 0.5, 0.25], 0, mode="wrap"), [0.25, 0.5, 0.25], 1,
                                 mode="wrap")  # fmt: skip
    n = min(height, width) // 2
    ring = np.rint(2 * n * np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))).astype(int).ravel()
    means = [
        (np.bincount(ring, np.abs(np.fft.fft2(image)).ravel()) / np.maximum(np.bincount(ring), 1))[1 : n + 1]
        / (height * width)
        for image in (centred, blurred)
    ]
    energy, lost = ring_energies(grey)
    assert energy == pytest.approx(means[0], rel=1e-12)
    assert lost == pytest.approx(means[0] - means[1], rel=1e-9)
    assert radial_index(grey) == pytest.approx(np.log10(np.mean(np.abs(means[0] - means[1])) + 1e-12), rel=1e-12)


# What it means


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_it_falls_with_blur_and_rises_with_noise(name: str, relative: bool) -> None:
    grey = luminance(reference.pixels(name))
    top, left = max(0, len(grey) - 384) // 2, max(0, grey.shape[1] - 576) // 2
    grey = grey[top : top + 384, left : left + 576]
    noise = np.random.default_rng(7).standard_normal(grey.shape)
    blurred = [grey, *(ndimage.gaussian_filter(grey, sigma, mode="nearest") for sigma in (0.7, 1.4, 2.8, 4))]
    noisy = [np.clip(np.rint(grey + sigma * noise), 0, 255) for sigma in (0, 4, 10, 20, 40)]
    assert np.all(np.diff([radial_index(np.rint(image), relative=relative) for image in blurred]) < 0)
    assert np.all(np.diff([radial_index(image, relative=relative) for image in noisy]) > 0)


@pytest.mark.parametrize("relative", [False, True])
def test_place_and_offset_do_not_matter(relative: bool) -> None:
    grey = picture(2)
    value = radial_index(grey, relative=relative)
    for same in (grey + 20, np.roll(grey, (7, 11), (0, 1)), grey[::-1], grey[:, ::-1], grey.T, np.rot90(grey)):
        assert radial_index(same, relative=relative) == pytest.approx(value, rel=1e-12)


def test_contrast_shifts_the_logarithm_and_leaves_the_relative_form() -> None:
    grey = picture(3)
    assert radial_index(0.3 * grey) == pytest.approx(radial_index(grey) + np.log10(0.3), abs=1e-9)
    assert radial_index(0.3 * grey, relative=True) == pytest.approx(radial_index(grey, relative=True), rel=1e-9)


def test_white_noise_loses_what_the_kernel_takes() -> None:
    """A flat spectrum: the share lost is the mean over the rings of 1 - cos^2 cos^2, here by integration."""
    grey = np.zeros((64, 64))
    grey[5, 9] = 255  # one bright pixel: all amplitudes equal
    radius, angle = np.meshgrid(np.arange(1, 33) / 64, np.linspace(0, 2 * np.pi, 720, endpoint=False), indexing="ij")
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    expected = np.mean(1 - np.cos(np.pi * u) ** 2 * np.cos(np.pi * v) ** 2)
    assert radial_index(grey, relative=True) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("level", [0, 128, 0.1])
def test_a_constant_picture_gives_the_guard(level: float) -> None:
    assert radial_index(np.full((40, 37), level)) == -12
    assert radial_index(np.full((40, 37), level), relative=True) == 0


def test_type_and_memory_layout_do_not_matter() -> None:
    grey = picture(4)
    value = radial_index(grey)
    assert radial_index(grey.astype(np.uint8)) == value
    assert radial_index(np.asfortranarray(grey)) == value
    assert radial_index(np.repeat(grey, 2, axis=1)[:, ::2]) == value


# Masks


def test_values_outside_the_mask_and_air_around_it_do_not_matter() -> None:
    grey, mask = picture(5), disc()
    value = radial_index(grey, mask=mask)
    other = np.where(mask, grey, picture(6))
    assert radial_index(other, mask=mask) == value
    air = ((9, 4), (0, 30))
    assert radial_index(np.pad(grey, air), mask=np.pad(mask, air)) == value
    assert value != radial_index(grey)


def test_a_mask_is_the_judged_mean_outside() -> None:
    grey, mask = picture(5), disc()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    filled = np.where(mask, grey, grey[mask].mean())[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert radial_index(grey, mask=mask) == pytest.approx(radial_index(filled), rel=1e-12)


def test_a_mask_of_everything_is_no_mask() -> None:
    grey = picture(5)
    assert radial_index(grey, mask=np.ones(grey.shape, bool)) == radial_index(grey)


def test_a_constant_inside_the_mask_gives_the_guard() -> None:
    mask = disc()
    assert radial_index(np.where(mask, 0.1, picture(5)), mask=mask) == -12


# Refusals


def test_too_little_is_refused_with_the_reason() -> None:
    grey, mask = picture(5), np.zeros((60, 47), bool)
    with pytest.raises(NotScorable, match="radial_index: nothing to judge"):
        radial_index(grey, mask=mask)
    np.fill_diagonal(mask, True)
    with pytest.raises(NotScorable, match=r"radial_index: 47 judged pixels; it needs at least 256: widen the mask"):
        radial_index(grey, mask=mask)
    with pytest.raises(NotScorable, match="radial_index: 60x15 pixels to judge; it needs at least 16"):
        radial_index(grey[:, :15])
    with pytest.raises(ImageError, match="NaN"):
        radial_index(np.full((40, 40), np.nan))

"""SURE non-local means against the reference set, its divergence against finite differences, SURE against the truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from tests.metrics import reference

from saqm.errors import ImageError, NotScorable, SaqmError
from saqm.metrics import sure_noise as module
from saqm.metrics._pixels import luminance
from saqm.metrics.sure_noise import LAMBDAS, immerkaer_sigma, sure_noise, sure_noise_details

Floats = NDArray[np.float64]
BASES = [
    "astronaut_rgb", "brick", "camera", "chelsea_rgb", "china_rgb", "coins", "flower_rgb", "moon", "page", "us_j2k",
    "us_palette", "us_tissue", "mr_abdomen", "ct_smooth",
]  # fmt: skip


def picture(seed: int = 0, height: int = 64, width: int = 64, noise: float = 6) -> Floats:
    rng = np.random.default_rng(seed)
    smooth = 128 + 400 * ndimage.gaussian_filter(rng.standard_normal((height, width)), 4)
    levels: Floats = np.rint(np.clip(smooth + noise * rng.standard_normal((height, width)), 0, 255))
    return levels


def disc(height: int = 64, width: int = 64) -> NDArray[np.bool_]:
    y, x = np.ogrid[:height, :width]
    inside: NDArray[np.bool_] = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (0.47 * min(height, width)) ** 2
    return inside


# Against the reference set


@pytest.mark.parametrize("name", reference.IMAGES)
def test_every_step_equals_the_reference_set(name: str) -> None:
    found, row = sure_noise_details(reference.pixels(name)), reference.features("noise_sure_nlm")[name]
    assert found.sigma == pytest.approx(row["sigma_immerkaer"], rel=1e-6)
    assert immerkaer_sigma(reference.pixels(name)) == found.sigma
    assert found.best_lambda == row["lambda_star"]
    assert found.bandwidth == pytest.approx(row["h_star"], rel=1e-6)
    assert found.sure == pytest.approx([row[f"sure_{value:g}"] for value in LAMBDAS], abs=1e-6)
    assert found.divergence == pytest.approx([row[f"mean_div_{value:g}"] for value in LAMBDAS], abs=1e-6)
    assert found.score == pytest.approx(row["residual_std"], rel=1e-6)


# Against the definition


def test_divergence_equals_finite_differences() -> None:
    """The derivative of every denoised pixel with respect to itself; periodic, so that no border stands out."""
    y = np.random.default_rng(3).normal(128, 20, (20, 20))

    def denoised(picture: Floats) -> Floats:
        removed, _ = module._non_local_means(np.pad(picture, 5, "wrap"), np.array([63.0]), patch=2, search=3)
        x: Floats = picture + removed[0]
        return x

    divergence = module._non_local_means(np.pad(y, 5, "wrap"), np.array([63.0]), patch=2, search=3)[1][0]
    step, differences = 1e-3, np.zeros_like(y)
    for row, column in np.ndindex(10, 10):  # four pixels at a time, too far apart to see each other
        bump = np.zeros_like(y)
        bump[row::10, column::10] = step
        change = (denoised(y + bump) - denoised(y - bump)) / (2 * step)
        differences[row::10, column::10] = change[row::10, column::10]
    assert divergence == pytest.approx(differences, abs=1e-8)
    assert np.ptp(divergence) > 0.1
    assert divergence.mean() < 0.9


def test_denoised_pixels_equal_the_weighted_mean_written_out() -> None:
    y = picture(1, 20, 23)
    extended, bandwidths = np.pad(y, 8, "symmetric"), np.array([15.0, 30.0, 45.0])
    removed, _ = module._non_local_means(extended, bandwidths)

    def patch(row: int, column: int) -> Floats:
        found: Floats = extended[row + 5 : row + 12, column + 5 : column + 12]
        return found

    for row, column in [(0, 0), (7, 22), (19, 3), (10, 11)]:
        for at, h in enumerate(bandwidths):
            weights, total = 0.0, 0.0
            for down, right in np.ndindex(11, 11):
                distance = ((patch(row, column) - patch(row + down - 5, column + right - 5)) ** 2).sum()
                weights += np.exp(-distance / (2 * h**2))
                total += np.exp(-distance / (2 * h**2)) * extended[row + down + 3, column + right + 3]
            assert removed[at, row, column] == pytest.approx(total / weights - y[row, column], abs=1e-10)


@pytest.mark.parametrize("sigma", [5, 10, 25])
def test_sure_is_close_to_the_true_error(sigma: float) -> None:
    clean = luminance(reference.pixels("camera_blur0.5"))[192:320, 192:320]
    noisy = clean + sigma * np.random.default_rng(0).standard_normal(clean.shape)
    removed, divergence = module._non_local_means(np.pad(noisy, 8, "symmetric"), 7 * sigma * np.array(LAMBDAS))
    sure = (removed**2).mean((1, 2)) - sigma**2 + 2 * sigma**2 * divergence.mean((1, 2))
    truth = ((noisy + removed - clean) ** 2).mean((1, 2))
    assert sure.argmin() == truth.argmin()
    assert sure == pytest.approx(truth, abs=3 * sigma**2 * np.sqrt(2 / clean.size))  # SURE's own spread: that of sigma


def test_strips_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = picture(2)
    value = sure_noise(grey)
    monkeypatch.setattr(module, "_STRIP", 7)
    assert sure_noise(grey) == pytest.approx(value, rel=1e-12)


# What it means


def test_white_noise_is_measured() -> None:
    pixels = reference.pixels("syn_noise25")
    found = sure_noise_details(pixels)
    assert found.sigma == pytest.approx(25, abs=0.4)
    assert found.score == pytest.approx(24.27, abs=0.005)
    assert found.sure.min() == pytest.approx(4.3, abs=0.05)


@pytest.mark.parametrize("name", BASES)
def test_it_rises_with_noise(name: str) -> None:
    grey = luminance(reference.pixels(name))
    noise = np.random.default_rng(7).standard_normal(grey.shape)
    noisy = [np.clip(np.rint(grey + sigma * noise), 0, 255) for sigma in (0, 4, 10, 20, 40)]
    assert np.all(np.diff([sure_noise(image, crop=96) for image in noisy]) > 0)
    assert np.all(np.diff([immerkaer_sigma(image) for image in noisy]) > 0)


@pytest.mark.parametrize("name", BASES)
def test_immerkaer_ends_lower_after_blur(name: str) -> None:
    grey = luminance(reference.pixels(name))
    assert immerkaer_sigma(np.rint(ndimage.gaussian_filter(grey, 4, mode="nearest"))) < immerkaer_sigma(grey)


def test_offset_flips_and_rotation_do_not_matter() -> None:
    grey = picture(3, 64, 80)
    for crop in (None, 48):
        value = sure_noise(grey, crop=crop)
        assert value > 1
        for same in (grey - 17.3, grey[::-1], grey[:, ::-1], np.rot90(grey), grey.T):
            assert sure_noise(same, crop=crop) == pytest.approx(value, rel=1e-9)


def test_it_scales_with_contrast() -> None:
    grey = picture(4)
    for contrast in (0.1, 0.37, 2.0):
        assert sure_noise(contrast * grey) == pytest.approx(contrast * sure_noise(grey), rel=1e-9)
        assert immerkaer_sigma(contrast * grey) == pytest.approx(contrast * immerkaer_sigma(grey), rel=1e-9)


def test_below_the_least_sigma_it_does_not_scale() -> None:
    grey = 0.01 * picture(4)
    found = sure_noise_details(grey)
    assert found.sigma < 0.1
    assert found.bandwidth == pytest.approx(0.7 * found.best_lambda)


@pytest.mark.parametrize("level", [0, 128, 0.1])
def test_a_constant_picture_has_no_noise(level: float) -> None:
    assert sure_noise(np.full((40, 37), level)) == 0
    assert immerkaer_sigma(np.full((40, 37), level)) == 0


def test_a_crop_takes_sigma_from_the_whole_and_the_rest_from_the_middle() -> None:
    grey = picture(5, 64, 81)
    found = sure_noise_details(grey, crop=33)
    assert found.sigma == immerkaer_sigma(grey)
    elsewhere = grey.copy()
    elsewhere[15:48, 24:57] = np.roll(grey[15:48, 24:57], 5, axis=0)
    assert sure_noise(elsewhere, crop=33) != found.score
    y = np.pad(grey[15:48, 24:57], 8, "symmetric")
    removed, _ = module._non_local_means(y, np.array([found.bandwidth]))
    assert removed.std() == pytest.approx(found.score, rel=1e-12)
    assert sure_noise(grey, crop=500) == sure_noise(grey, crop=None)


def test_type_and_memory_layout_do_not_matter() -> None:
    grey = picture(6)
    value = sure_noise(grey)
    assert sure_noise(grey.astype(np.uint8)) == value
    assert sure_noise(np.asfortranarray(grey)) == value
    assert sure_noise(np.repeat(grey, 2, axis=1)[:, ::2]) == value


# Masks


def test_values_outside_the_mask_and_air_around_it_do_not_matter() -> None:
    grey, mask = picture(7), disc()
    for crop in (None, 32):
        found = sure_noise_details(grey, mask=mask, crop=crop)
        for other in (picture(8, noise=40), np.zeros_like(grey), np.full_like(grey, 255)):
            again = sure_noise_details(np.where(mask, grey, other), mask=mask, crop=crop)
            assert (again.sigma, again.score) == (found.sigma, found.score)
            np.testing.assert_array_equal(again.sure, found.sure)
        air = ((9, 4), (0, 30))
        assert sure_noise(np.pad(grey, air), mask=np.pad(mask, air), crop=crop) == found.score
    assert immerkaer_sigma(np.pad(grey, air), mask=np.pad(mask, air)) == immerkaer_sigma(grey, mask=mask)


def test_a_mask_of_everything_is_no_mask() -> None:
    grey, everything = picture(7), np.ones((64, 64), bool)
    found, plain = sure_noise_details(grey, mask=everything), sure_noise_details(grey)
    assert (found.sigma, found.score) == (plain.sigma, plain.score)
    np.testing.assert_array_equal(found.sure, plain.sure)
    assert immerkaer_sigma(grey, mask=everything) == immerkaer_sigma(grey)


def test_the_mask_decides_what_is_measured() -> None:
    mask = np.zeros((64, 128), bool)
    mask[:, :64] = True
    mask[30, 10] = mask[30, 100] = False
    grey = np.hstack([picture(1, noise=20), picture(1, noise=3)])
    for half, sigma in ((np.s_[:, :64], 20), (np.s_[:, 64:], 3)):
        assert immerkaer_sigma(grey, mask=mask) == pytest.approx(sigma, rel=0.05)
        assert sure_noise(grey, mask=mask) == pytest.approx(sure_noise(grey[half]), rel=0.05)
        mask = np.roll(mask, 64, axis=1)


def test_a_small_hole_changes_little() -> None:
    grey, mask = picture(2, 128, 128), np.ones((128, 128), bool)
    mask[64, 64] = False
    assert sure_noise(grey, mask=mask) == pytest.approx(sure_noise(grey), rel=0.02)


def test_the_crop_goes_where_most_is_judged_and_else_to_the_middle() -> None:
    mask = np.zeros((200, 200), bool)
    mask[0, 0] = mask[-1, -1] = True  # the bounding box is everything
    mask[130:190, 20:80] = True
    grey = picture(3, 200, 200)
    square, counted = module._square(grey, mask, 70)
    assert counted is not None
    assert counted.sum() == 44 * 44  # 60 less 8 on each side: all of it is in the square
    top, left = np.argwhere((np.lib.stride_tricks.sliding_window_view(grey, (70, 70)) == square).all((2, 3)))[0]
    assert (top, left) == (112, 28)  # of all squares with all of it the one nearest to the middle, (65, 65)


# Refusals


def test_too_little_is_refused_with_the_reason() -> None:
    grey, mask = picture(9), ndimage.zoom(disc(), 0.5, order=0)
    mask = np.pad(mask, 16)
    with pytest.raises(
        NotScorable, match=r"sure_noise: \d+ pixels have their 17x17 neighbourhood inside the mask; .* 256: widen"
    ):
        sure_noise(grey, mask=mask)
    checks = np.indices((64, 64)).sum(0) % 2 == 0
    for metric in (sure_noise, immerkaer_sigma):
        with pytest.raises(NotScorable, match="no 3x3 pixels together inside the mask; widen it"):
            metric(grey, mask=checks)
        with pytest.raises(NotScorable, match=r"64x15 pixels to judge; it needs at least 16"):
            metric(grey[:, :15])
        with pytest.raises(ImageError, match="NaN or infinite"):
            metric(np.full((40, 40), np.inf))
    with pytest.raises(SaqmError, match="crop=15; at least 16 pixels, or None for the whole picture"):
        sure_noise(grey, crop=15)

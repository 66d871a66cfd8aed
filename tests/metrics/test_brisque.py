"""BRISQUE: the authors' scores and features, its symmetries, what a mask leaves, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from tests.metrics import reference

from saqm.errors import ImageError, ModelFileError, NotScorable
from saqm.metrics._pixels import luminance
from saqm.metrics.brisque import brisque, brisque_features, predicted
from saqm.metrics.parameters import Parameters, import_official


@pytest.fixture(scope="module")
def official() -> Parameters:
    return import_official(reference.official("brisque"))


@pytest.fixture(scope="module")
def ours() -> Parameters:
    """Two support vectors that are nobody's, for what needs no particular ones."""
    return Parameters(
        "brisque",
        "plain",
        {
            "support_vectors": np.stack([np.zeros(36), np.full(36, 0.5)]),
            "coefficients": np.array([3.0, -1.0]),
            "gamma": np.array(0.05),
            "rho": np.array(-10.0),
            "minimum": np.zeros(36),
            "maximum": np.full(36, 2.0),
            "lower": np.array(-1.0),
            "upper": np.array(1.0),
        },
    )


def texture(height: int, width: int) -> NDArray[np.uint8]:
    """A picture without flat areas."""
    picture = 128 + 150 * gaussian_filter(np.random.default_rng(0).normal(size=(height, width)), 1)
    levels: NDArray[np.uint8] = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return levels


def disc(side: int) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:side, :side]
    inside: NDArray[np.bool_] = np.hypot(rows - side / 2 + 0.5, columns - side / 2 + 0.5) < side / 2
    return inside


# The authors' values

DEFINED = [name for name in reference.IMAGES if name != "syn_const"]


@pytest.mark.parametrize("name", DEFINED)
def test_it_gives_the_scores_of_the_release(name: str, official: Parameters) -> None:
    found = brisque(reference.pixels(name), official)
    # svm-predict reads features of six decimals
    for implementation, rounding in [("LIVE release features", 0), ("NumPy float64", 0), ("dsoellinger/", 1e-3)]:
        row = implementation if implementation != "NumPy float64" else "NumPy float64 cross-check, 2-D"
        expected = reference.score(name, "BRISQUE", row)
        allowed = reference.tolerance(name).unsnapped("brisque", expected) + rounding
        assert found == pytest.approx(expected, rel=0, abs=allowed)


@pytest.mark.parametrize("name", DEFINED)
def test_snapped_it_gives_the_scores_that_depend_on_no_platform(name: str, official: Parameters) -> None:
    expected = reference.score(name, "BRISQUE", "NumPy float64 cross-check, |MSCN|<1e-9 snapped")
    assert brisque(reference.pixels(name), official, snap=True) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", DEFINED)
def test_the_features_are_those_of_the_release(name: str) -> None:
    expected = list(reference.features("brisque_features_official_octave")[name].values())
    # flat areas are rounding noise in the release, too: 2e-4 there, 1e-12 elsewhere
    flat = reference.tolerance(name).flat_fraction > 0
    np.testing.assert_allclose(brisque_features(reference.pixels(name)), expected, atol=2e-4 if flat else 1e-12)


@pytest.mark.parametrize("snap", [False, True])
def test_where_the_release_has_nan_there_is_a_reason(snap: bool, official: Parameters) -> None:
    assert math.isnan(reference.score("syn_const", "BRISQUE", "LIVE release features"))
    with pytest.raises(NotScorable, match="products of neighbours are nowhere negative or nowhere positive; too flat"):
        brisque(reference.pixels("syn_const"), official, snap=snap)


def test_the_regression_is_the_kernel_sum(ours: Parameters) -> None:
    at_the_first = predicted(np.ones(36), ours)  # scaled: all 0
    assert at_the_first == pytest.approx(3 - math.exp(-0.05 * 36 * 0.25) + 10)


def test_far_from_all_it_was_trained_on_the_score_is_minus_rho(official: Parameters) -> None:
    assert brisque(reference.pixels("syn_checker8"), official) == pytest.approx(153.591, abs=1e-9)


# Meaning


@pytest.mark.parametrize("name", ["camera", "us_tissue"])
def test_mirrors_and_transposition_swap_features(name: str) -> None:
    pixels = reference.pixels(name)
    upright = brisque_features(pixels, snap=True)
    diagonals = np.r_[0:10, 14:18, 10:14, 18:28, 32:36, 28:32]
    axes = np.r_[0:2, 6:10, 2:6, 10:20, 24:28, 20:24, 28:36]
    np.testing.assert_allclose(brisque_features(pixels[::-1], snap=True), upright[diagonals], atol=1e-9)
    np.testing.assert_allclose(brisque_features(pixels[:, ::-1], snap=True), upright[diagonals], atol=1e-9)
    np.testing.assert_allclose(brisque_features(pixels.T, snap=True), upright[axes], atol=1e-9)


def test_both_mirrors_give_the_same_score_but_not_the_upright_one(official: Parameters) -> None:
    pixels = reference.pixels("camera")
    value, flipped = brisque(pixels, official), brisque(pixels[::-1], official)
    assert brisque(pixels[:, ::-1], official) == pytest.approx(flipped, abs=1e-9)
    assert flipped - value == pytest.approx(7.9, abs=0.1)
    assert brisque(pixels.T, official) - value == pytest.approx(0.007, abs=0.001)


@pytest.mark.parametrize("name", ["camera", "brick", "chelsea_rgb", "us_tissue", "mr_abdomen"])
def test_heavy_blur_and_heavy_noise_end_higher(name: str, official: Parameters) -> None:
    pixels = luminance(reference.pixels(name))
    value = brisque(pixels, official, snap=True)
    noise = np.random.default_rng(0).normal(0, 40, pixels.shape)
    assert brisque(np.rint(gaussian_filter(pixels, 4)), official, snap=True) > value
    assert brisque(np.clip(np.rint(pixels + noise), 0, 255), official, snap=True) > value


@pytest.mark.parametrize("snap", [False, True])
def test_type_and_layout_do_not_matter(snap: bool) -> None:
    pixels = reference.pixels("ct_smooth")
    features = brisque_features(pixels, snap=snap)
    apart = np.zeros((512, 1024), np.float32)
    apart[:, ::2] = pixels
    for other in (pixels.astype(np.float64), np.asfortranarray(pixels), apart[:, ::2], pixels.tolist()):
        assert np.array_equal(brisque_features(other, snap=snap), features)


# Masks


@pytest.mark.parametrize("snap", [False, True])
@pytest.mark.parametrize("air", [(0, 1, 0, 0), (200, 7, 0, 0), (13, 200, 64, 96)])
def test_air_around_what_is_judged_does_not_count(air: tuple[int, int, int, int], snap: bool, ours: Parameters) -> None:
    pixels, mask = texture(121, 121), disc(121)
    (top, bottom, left, right), value = air, brisque(pixels, ours, mask=mask, snap=snap)
    around = (top, bottom), (left, right)
    assert brisque(np.pad(pixels, around), ours, mask=np.pad(mask, around), snap=snap) == value
    everything = np.pad(np.ones_like(mask), around)
    assert brisque(np.pad(pixels, around), ours, mask=everything, snap=snap) == brisque(pixels, ours, snap=snap)


def test_a_mask_that_is_all_true_is_no_mask(ours: Parameters) -> None:
    pixels = texture(50, 61)
    assert brisque(pixels, ours, mask=np.ones((50, 61), bool)) == brisque(pixels, ours)


def test_what_lies_outside_the_mask_does_not_count() -> None:
    pixels, mask = texture(121, 121), disc(121)
    dark, grey = np.where(mask, pixels, 0), np.where(mask, pixels, 30)
    noisy = np.where(mask, pixels, np.random.default_rng(1).integers(0, 256, mask.shape))
    features = brisque_features(dark, mask=mask, snap=True)
    assert np.array_equal(brisque_features(grey, mask=mask, snap=True), features)
    assert np.array_equal(brisque_features(noisy, mask=mask, snap=True), features)
    # unsnapped, flat air has the window summed another way in the same rows
    features = brisque_features(dark, mask=mask)
    np.testing.assert_allclose(brisque_features(grey, mask=mask), features, rtol=1e-10)
    np.testing.assert_allclose(brisque_features(noisy, mask=mask), features, rtol=1e-10)


def test_one_masked_pixel_changes_little() -> None:
    """The rule for masked pictures is near the authors' rule for whole ones."""
    pixels, mask = reference.pixels("brick"), np.ones((512, 512), bool)
    mask[0, 0] = False
    whole, masked = brisque_features(pixels), brisque_features(pixels, mask=mask)
    np.testing.assert_allclose(masked, whole, atol=0.05)


# Refusals


def test_too_small_a_picture_is_refused(ours: Parameters) -> None:
    assert math.isfinite(brisque(texture(16, 16), ours))
    with pytest.raises(NotScorable, match="brisque: 15x40 pixels to judge; it needs at least 16 on each side"):
        brisque(texture(15, 40), ours)


def test_too_little_inside_the_mask_is_refused(ours: Parameters) -> None:
    pixels, mask = texture(100, 100), np.zeros((100, 100), bool)
    with pytest.raises(NotScorable, match="brisque: nothing to judge, the whole picture is masked"):
        brisque(pixels, ours, mask=mask)
    mask[20:40, 20:40] = True
    mask[20, 20] = False
    with pytest.raises(
        NotScorable, match="brisque: 0 windows of 7x7 pixels lie inside the mask at one scale; it needs 64"
    ):
        brisque(pixels, ours, mask=mask)
    mask[:60, :60] = True
    assert math.isfinite(brisque(pixels, ours, mask=mask))


def test_a_constant_picture_is_refused(ours: Parameters) -> None:
    for snap in (False, True):
        with pytest.raises(NotScorable, match="brisque: products of neighbours are nowhere negative"):
            brisque(np.full((64, 64), 0), ours, snap=snap)
        inside = np.zeros((80, 80), bool)
        inside[10:70, 10:69] = True
        with pytest.raises(NotScorable, match="brisque: products of neighbours are nowhere negative"):
            brisque(np.where(inside, 70, texture(80, 80)), ours, mask=inside, snap=True)


def test_wrong_pixels_and_parameters_are_refused(ours: Parameters) -> None:
    pixels = texture(40, 40).astype(np.float64)
    with pytest.raises(ImageError, match=r"pixels of shape \(2, 40, 40\); a metric needs grey"):
        brisque(np.stack([pixels, pixels]), ours)
    with pytest.raises(ImageError, match="pixels of type complex128; a metric needs real numbers"):
        brisque(pixels + 1j, ours)
    with pytest.raises(ImageError, match=r"a mask of .*\(3, 3\) for a picture of .*\(40, 40\)"):
        brisque(pixels, ours, mask=np.ones((3, 3), bool))
    pixels[5, 5] = np.inf
    with pytest.raises(ImageError, match="NaN or infinite pixels"):
        brisque(pixels, ours)
    foreign = Parameters("niqe", "foreign", {"mean": np.zeros(36), "covariance": np.eye(36)})
    with pytest.raises(ModelFileError, match="parameters of niqe given to brisque"):
        brisque(pixels, foreign)

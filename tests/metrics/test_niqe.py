"""NIQE: the authors' scores and features, what does not change it, what does, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from tests.metrics import reference

from saqm.errors import ImageError, ModelFileError, NotScorable
from saqm.metrics._nss import deviation
from saqm.metrics._pixels import luminance
from saqm.metrics.niqe import block_sharpness, niqe, niqe_features
from saqm.metrics.parameters import Parameters, import_official

UNDEFINED = ["syn_const", "syn_ramp10"]
DEFINED = [name for name in reference.IMAGES if name not in UNDEFINED]


@pytest.fixture(scope="module")
def official() -> Parameters:
    return import_official(reference.official("niqe"))


@pytest.fixture(scope="module")
def ours() -> Parameters:
    """Parameters that are nobody's, for what needs no particular ones."""
    return Parameters("niqe", "plain", {"mean": np.zeros(36), "covariance": np.eye(36)})


def texture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture without flat areas, finer towards the right."""
    rng = np.random.default_rng(seed)
    coarse, fine = (gaussian_filter(rng.normal(size=(height, width)), sigma) for sigma in (2, 0.8))
    ramp = np.linspace(0, 1, width)
    picture = 128 + 200 * (1 - ramp) * coarse + 80 * ramp * fine
    levels: NDArray[np.uint8] = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return levels


def ellipse(height: int, width: int) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:height, :width]
    inside: NDArray[np.bool_] = ((2 * rows + 1) / height - 1) ** 2 + ((2 * columns + 1) / width - 1) ** 2 < 1
    return inside


# The authors' values


@pytest.mark.parametrize("name", DEFINED)
def test_it_gives_the_scores_of_the_release(name: str, official: Parameters) -> None:
    found = niqe(reference.pixels(name), official)
    for implementation in ("utlive/niqe@d80aead297 (Octave 7.3)", "NumPy float64 cross-check, 2-D"):
        expected = reference.score(name, "NIQE", implementation)
        assert found == pytest.approx(expected, rel=0, abs=reference.tolerance(name).unsnapped("niqe", expected))


@pytest.mark.parametrize("name", DEFINED)
def test_snapped_it_gives_the_scores_that_depend_on_no_platform(name: str, official: Parameters) -> None:
    expected = reference.score(name, "NIQE", "NumPy float64 cross-check, |MSCN|<1e-9 snapped")
    assert niqe(reference.pixels(name), official, snap=True) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["coins", "page", "china_rgb", "us_palette", "mr_abdomen", "ct_smooth", *UNDEFINED])
def test_blocks_and_flat_blocks_are_counted_as_the_release_does(name: str) -> None:
    expected = reference.features("niqe_mean_features")[name]
    found = niqe_features(reference.pixels(name))
    assert len(found) == expected["n_blocks"]
    assert np.isnan(found).any(1).sum() == expected["n_blocks_with_nan"]


@pytest.mark.parametrize("name", DEFINED)
def test_the_features_are_those_of_the_release(name: str) -> None:
    expected = reference.features("niqe_mean_features")[name]
    found = niqe_features(reference.pixels(name))
    # flat areas are rounding noise in the release, too: 1e-4 there, 1e-8 elsewhere
    flat = reference.tolerance(name).flat_fraction > 0
    means = [expected[f"mu{number}"] for number in range(1, 37)]
    np.testing.assert_allclose(np.nanmean(found, 0), means, rtol=0, atol=1e-4 if flat else 1e-8)


@pytest.mark.parametrize("snap", [False, True])
@pytest.mark.parametrize("name", UNDEFINED)
def test_where_the_release_has_nan_there_is_a_reason(name: str, snap: bool, official: Parameters) -> None:
    assert math.isnan(reference.score(name, "NIQE", "utlive/niqe@d80aead297 (Octave 7.3)"))
    with pytest.raises(NotScorable, match="niqe: 0 of 4 blocks are complete, the others flat; it needs 2"):
        niqe(reference.pixels(name), official, snap=snap)


# Meaning


@pytest.mark.parametrize("name", ["camera", "us_tissue", "mr_abdomen"])
def test_snapped_it_does_not_see_an_offset_or_an_inversion(name: str, official: Parameters) -> None:
    pixels = reference.pixels(name).astype(np.float64)
    value = niqe(pixels, official, snap=True)
    assert niqe(pixels + 20, official, snap=True) == pytest.approx(value, abs=1e-10)
    assert niqe(255 - pixels, official, snap=True) == pytest.approx(value, abs=1e-10)


def test_unsnapped_an_offset_moves_a_picture_with_air(official: Parameters) -> None:
    """Why there is a snap: rounding noise in flat areas, not content."""
    pixels = reference.pixels("ct_smooth").astype(np.float64)
    assert abs(niqe(pixels + 20, official) - niqe(pixels, official)) > 0.1


def test_contrast_counts(official: Parameters) -> None:
    pixels = reference.pixels("camera") / 2
    assert niqe(pixels, official) - niqe(2 * pixels, official) == pytest.approx(0.26, abs=0.01)


@pytest.mark.parametrize("name", ["camera", "brick", "chelsea_rgb", "us_tissue", "mr_abdomen"])
def test_heavy_blur_and_heavy_noise_end_higher(name: str, official: Parameters) -> None:
    pixels = luminance(reference.pixels(name))
    value = niqe(pixels, official, snap=True)
    noise = np.random.default_rng(0).normal(0, 40, pixels.shape)
    assert niqe(np.rint(gaussian_filter(pixels, 4)), official, snap=True) > value
    assert niqe(np.clip(np.rint(pixels + noise), 0, 255), official, snap=True) > value


def test_two_blocks_are_enough(official: Parameters) -> None:
    assert 0 < niqe(texture(96, 192), official) < 100


def test_pixels_that_fill_no_block_do_not_count() -> None:
    pixels = texture(200, 300)
    assert np.array_equal(niqe_features(pixels), niqe_features(pixels[:192, :288]))


def test_features_stand_row_by_row() -> None:
    pixels = texture(192, 288)
    pixels[:96, 192:] = np.random.default_rng(0).integers(0, 256, (96, 96))  # the third block
    assert np.argmax(niqe_features(pixels)[:, 4]) == 2  # the coefficients of white noise are the largest


def test_sharpness_is_the_mean_deviation_of_a_block() -> None:
    pixels = texture(192, 200)
    whole = deviation(pixels[:, :192].astype(np.float64), "nearest")
    expected = [whole[:96, :96].mean(), whole[:96, 96:].mean(), whole[96:, :96].mean(), whole[96:, 96:].mean()]
    assert block_sharpness(pixels) == pytest.approx(expected)


@pytest.mark.parametrize("snap", [False, True])
def test_type_and_layout_do_not_matter(snap: bool, ours: Parameters) -> None:
    pixels = reference.pixels("ct_smooth")
    value = niqe(pixels, ours, snap=snap)
    apart = np.zeros((512, 1024), np.float32)
    apart[:, ::2] = pixels
    for other in (pixels.astype(np.float64), np.asfortranarray(pixels), apart[:, ::2], pixels.tolist()):
        assert niqe(other, ours, snap=snap) == value


# Masks


@pytest.mark.parametrize("snap", [False, True])
@pytest.mark.parametrize("air", [(0, 1, 0, 0), (200, 7, 0, 0), (13, 200, 64, 96)])
def test_air_around_what_is_judged_does_not_count(air: tuple[int, int, int, int], snap: bool, ours: Parameters) -> None:
    pixels, mask = texture(310, 320), ellipse(310, 320)
    (top, bottom, left, right), value = air, niqe(pixels, ours, mask=mask, snap=snap)
    around = (top, bottom), (left, right)
    assert niqe(np.pad(pixels, around), ours, mask=np.pad(mask, around), snap=snap) == value
    everything = np.pad(np.ones_like(mask), around)
    assert niqe(np.pad(pixels, around), ours, mask=everything, snap=snap) == niqe(pixels, ours, snap=snap)


def test_a_mask_that_is_all_true_is_no_mask(ours: Parameters) -> None:
    pixels = texture(200, 300)
    assert niqe(pixels, ours, mask=np.ones((200, 300), bool)) == niqe(pixels, ours)


def test_what_lies_outside_the_mask_does_not_count(ours: Parameters) -> None:
    pixels, mask = texture(310, 320), ellipse(310, 320)
    dark, grey = np.where(mask, pixels, 0), np.where(mask, pixels, 30)
    noisy = np.where(mask, pixels, np.random.default_rng(1).integers(0, 256, mask.shape))
    value = niqe(dark, ours, mask=mask, snap=True)
    assert niqe(grey, ours, mask=mask, snap=True) == value
    assert niqe(noisy, ours, mask=mask, snap=True) == value
    # unsnapped, flat air has the window summed another way in the same rows
    value = niqe(dark, ours, mask=mask)
    assert niqe(grey, ours, mask=mask) == pytest.approx(value, rel=1e-10)
    assert niqe(noisy, ours, mask=mask) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("name", ["camera", "brick", "astronaut_rgb", "china_rgb", "flower_rgb"])
def test_an_ellipse_of_a_photograph_scores_like_the_whole(name: str, official: Parameters) -> None:
    pixels = reference.pixels(name)
    whole = niqe(pixels, official, snap=True)
    assert niqe(pixels, official, mask=ellipse(*pixels.shape[:2]), snap=True) == pytest.approx(whole, rel=0.06)


def test_a_block_counts_where_half_of_it_is_usable_at_both_scales() -> None:
    pixels, mask = texture(96, 384), np.ones((96, 384), bool)
    mask[:, 370:] = False  # the box ends here, three blocks are whole
    mask[:, 96:130] = False  # leaves 65 % of the second block judged, 58 % usable, and 43 % at half size
    assert len(niqe_features(pixels, mask=mask)) == 2
    mask[:, 96:120] = True  # 54 % at half size
    assert len(niqe_features(pixels, mask=mask)) == 3


# Refusals


def test_too_small_a_picture_is_refused(ours: Parameters) -> None:
    with pytest.raises(NotScorable, match="niqe: 95x300 pixels to judge; it needs at least 96 on each side"):
        niqe(texture(95, 300), ours)
    with pytest.raises(NotScorable, match="niqe: 191x191 pixels to judge hold one block of 96x96; it needs 2"):
        niqe(texture(191, 191), ours)


def test_too_little_inside_the_mask_is_refused(ours: Parameters) -> None:
    pixels, mask = texture(300, 300), np.zeros((300, 300), bool)
    with pytest.raises(NotScorable, match="niqe: nothing to judge, the whole picture is masked"):
        niqe(pixels, ours, mask=mask)
    mask[10:100, 10:290] = True
    with pytest.raises(NotScorable, match="niqe: 90x280 pixels to judge; it needs at least 96"):
        niqe(pixels, ours, mask=mask)
    with pytest.raises(NotScorable, match="niqe: 0 blocks of 96x96 pixels lie inside the mask; it needs 2"):
        niqe(pixels, ours, mask=np.eye(300, dtype=bool))


def test_a_constant_picture_is_refused(ours: Parameters) -> None:
    for snap in (False, True):
        with pytest.raises(NotScorable, match="0 of 4 blocks are complete, the others flat"):
            niqe(np.full((192, 192), 40), ours, snap=snap)


def test_wrong_pixels_and_parameters_are_refused(ours: Parameters) -> None:
    pixels = texture(192, 192).astype(np.float64)
    with pytest.raises(ImageError, match=r"pixels of shape \(2, 192, 192\); a metric needs grey"):
        niqe(np.stack([pixels, pixels]), ours)
    with pytest.raises(ImageError, match=r"a mask of .*\(3, 3\) for a picture of .*\(192, 192\)"):
        niqe(pixels, ours, mask=np.ones((3, 3), bool))
    pixels[5, 5] = np.nan
    with pytest.raises(ImageError, match="NaN or infinite pixels"):
        niqe(pixels, ours)
    foreign = Parameters("bliinds", "foreign", {"mean": np.zeros(25), "inverse_covariance": np.eye(25)})
    with pytest.raises(ModelFileError, match="parameters of bliinds given to niqe"):
        niqe(pixels, foreign)

"""The shared statistics: MSCN, fits of known distributions, half size, flat areas, and what a mask leaves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.metrics import reference

from saqm.errors import ImageError, NotScorable
from saqm.metrics import _nss

Floats = NDArray[np.float64]
SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1), (1, -1))


def noise(*shape: int, seed: int = 0) -> Floats:
    return np.rint(np.random.default_rng(seed).uniform(0, 255, shape))


def sums(samples: Floats) -> Floats:
    """The sums over one list of samples, (6,)."""
    return np.asarray(_nss.sample_sums(samples[None, None], None, ())[0, 0])


# MSCN


@pytest.mark.parametrize(("border", "padding"), [("nearest", "edge"), ("constant", "constant")])
def test_mscn_is_what_its_definition_says(border: _nss.Border, padding: str) -> None:
    grey = noise(9, 12)
    offsets = range(-3, 4)
    window = np.array([[math.exp(-(i * i + j * j) / (2 * (7 / 6) ** 2)) for j in offsets] for i in offsets])
    window /= window.sum()
    assert window[3, 3] == pytest.approx(0.11739635539, rel=1e-9)  # the values the authors' window has
    assert window[0, 0] == pytest.approx(0.00015775863581, rel=1e-9)
    padded = np.pad(grey, 3, padding)  # type: ignore[call-overload]
    for row, column in [(0, 0), (4, 5), (8, 11), (8, 0)]:
        seen = padded[row : row + 7, column : column + 7]
        mean = (window * seen).sum()
        deviation = math.sqrt((window * seen**2).sum() - mean**2)
        expected = (grey[row, column] - mean) / (deviation + 1)
        assert _nss.mscn(grey, border, snap=False)[row, column] == pytest.approx(expected, rel=1e-10)
        assert _nss.deviation(grey, border)[row, column] == pytest.approx(deviation, rel=1e-10)


def test_results_do_not_depend_on_the_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = noise(61, 47)
    steps: list[Callable[[], Floats]] = [
        lambda: _nss.mscn(grey, "nearest", snap=False),
        lambda: _nss.mscn(grey, "constant", snap=True),
        lambda: _nss.deviation(grey, "nearest"),
        lambda: _nss.half(grey),
        lambda: _nss.sample_sums(grey[None] - 128, None, SHIFTS),
        lambda: _nss.sample_sums(grey[:60, :40].reshape(6, 20, 20) - 128, None, SHIFTS),
    ]
    whole = [step() for step in steps]
    for size in (1, 100, 1000):
        monkeypatch.setattr(_nss, "_STRIP", size)
        for step, expected in zip(steps, whole, strict=True):
            np.testing.assert_allclose(step(), expected, rtol=1e-13)


@pytest.mark.parametrize("border", ["nearest", "constant"])
def test_snapped_the_order_of_summation_does_not_matter(border: _nss.Border, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = reference.pixels("us_palette").astype(np.float64)  # 79 % flat
    separable = _nss.mscn(grey, border, snap=True)
    monkeypatch.setattr(_nss, "_window", _nss._window_at_once)
    at_once = _nss.mscn(grey, border, snap=True)
    assert np.array_equal(separable == 0, at_once == 0)
    np.testing.assert_allclose(separable, at_once, atol=1e-10)


def test_unsnapped_flat_areas_keep_their_noise_and_snapped_they_are_zero() -> None:
    flat = np.full((32, 32), 77.0)
    assert not _nss.mscn(flat, "nearest", snap=True).any()
    unsnapped = _nss.mscn(flat, "nearest", snap=False)
    assert unsnapped.any()
    assert np.abs(unsnapped).max() < 1e-12


# Fits

COUNT = 400_000


def generalised_gaussian(alpha: float) -> Floats:
    """Samples of density ~ exp(-|v|^alpha): |v|^alpha is gamma distributed with shape 1 / alpha."""
    rng = np.random.default_rng(int(10 * alpha))
    samples: Floats = rng.gamma(1 / alpha, size=COUNT) ** (1 / alpha) * rng.choice([-1, 1], COUNT)
    return samples


@pytest.mark.parametrize("alpha", [0.5, 1, 2, 3])
def test_both_fits_find_the_shape_of_known_distributions(alpha: float) -> None:
    samples = generalised_gaussian(alpha)
    symmetric, variance = _nss.ggd(sums(samples))
    asymmetric, left, right = _nss.aggd(sums(samples))
    assert symmetric == pytest.approx(alpha, abs=0.02)
    assert asymmetric == pytest.approx(alpha, abs=0.02)
    expected = math.gamma(3 / alpha) / math.gamma(1 / alpha)
    assert variance == pytest.approx(expected, rel=0.02)
    assert left == pytest.approx(math.sqrt(expected), rel=0.02)
    assert right == pytest.approx(math.sqrt(expected), rel=0.02)


def test_the_asymmetric_fit_finds_both_sides() -> None:
    # of an AGGD each side is taken in proportion to its scale
    magnitudes = np.abs(generalised_gaussian(1))
    is_left = np.random.default_rng(1).random(COUNT) < 2 / 5
    alpha, left, right = _nss.aggd(sums(np.where(is_left, -2 * magnitudes, 3 * magnitudes)))
    assert alpha == pytest.approx(1, abs=0.02)
    assert right / left == pytest.approx(3 / 2, rel=0.02)


def test_the_nearest_shape_is_that_of_the_full_search() -> None:
    wanted = np.random.default_rng(0).uniform(0, 1.2, 300)
    searched = [_nss._ALPHA[np.argmin((value - _nss._GAUSSIANITY) ** 2)] for value in wanted]
    assert np.array_equal(_nss._nearest(_nss._GAUSSIANITY, _nss._ALPHA, wanted), searched)


def test_zeros_belong_to_neither_side_but_are_samples() -> None:
    samples = np.array([-2.0, 0, 0, 1, 3])
    assert sums(samples).tolist() == [5, 1, 2, 4, 10, 6]
    _, left, right = _nss.aggd(sums(samples))
    assert left == 2
    assert right == pytest.approx(math.sqrt(5))


@pytest.mark.parametrize("samples", [[0.0, 0, 0], [1.0, 2, 0], [-1.0, -2, 0]])
def test_a_side_without_samples_is_unknown_and_the_shape_is_the_first_of_the_grid(samples: list[float]) -> None:
    alpha, left, right = _nss.aggd(sums(np.array(samples)))
    assert alpha == 0.2
    assert np.isnan(left) == (min(samples) == 0)
    assert np.isnan(right) == (max(samples) == 0)


def plain_sums(samples: Floats) -> list[float]:
    below, above = samples[samples < 0], samples[samples > 0]
    return [samples.size, below.size, above.size, (below**2).sum(), (above**2).sum(), np.abs(samples).sum()]


def test_products_are_those_of_the_rolled_picture() -> None:
    values = noise(3, 20, 30) - 128
    found = _nss.sample_sums(values, None, SHIFTS)
    for n, picture in enumerate(values):
        assert found[0, n] == pytest.approx(plain_sums(picture))
        for s, shift in enumerate(SHIFTS, 1):
            assert found[s, n] == pytest.approx(plain_sums(picture * np.roll(picture, shift, (0, 1))))


def test_with_a_mask_only_pairs_of_judged_neighbours_count_and_nothing_wraps() -> None:
    usable = np.random.default_rng(0).random((2, 10, 12)) < 0.7
    values = np.where(usable, noise(2, 10, 12) - 128, 0)
    found = _nss.sample_sums(values, usable, SHIFTS)
    for n in range(2):
        assert found[0, n] == pytest.approx(plain_sums(values[n][usable[n]]))
        for s, (down, right) in enumerate(SHIFTS, 1):
            pairs = [
                values[n, row, column] * values[n, row - down, column - right]
                for row in range(10)
                for column in range(12)
                if 0 <= row - down < 10 and 0 <= column - right < 12
                if usable[n, row, column] and usable[n, row - down, column - right]
            ]
            assert found[s, n] == pytest.approx(plain_sums(np.array(pairs)))


# Half size


def test_the_taps_sum_to_one_and_a_constant_stays_constant() -> None:
    assert _nss.HALF_TAPS.sum() == 1
    assert np.array_equal(_nss.half(np.full((19, 24), 200.0)), np.full((10, 12), 200.0))


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (427, 31), (5, 4)])
def test_half_size_is_the_sum_over_mirrored_taps(shape: tuple[int, int]) -> None:
    grey = noise(*shape)
    found = _nss.half(grey)
    assert found.shape == (math.ceil(shape[0] / 2), math.ceil(shape[1] / 2))
    padded = np.pad(grey, 8, "symmetric")
    for row, column in [(0, 0), (1, 1), (found.shape[0] - 1, found.shape[1] - 1), (found.shape[0] - 1, 0)]:
        seen = padded[8 + 2 * row - 3 :, 8 + 2 * column - 3 :][:8, :8]
        assert found[row, column] == _nss.HALF_TAPS @ seen @ _nss.HALF_TAPS  # exact: the taps are dyadic


# Masks


def test_a_window_is_usable_where_all_of_it_is_judged() -> None:
    mask = np.random.default_rng(0).random((40, 50)) < 0.98
    padded = np.pad(mask, 4)
    for before, after in [(3, 3), (3, 4)]:
        found = _nss.covered(mask, before, after)
        for row in range(40):
            for column in range(50):
                seen = padded[row + 4 - before : row + 5 + after, column + 4 - before : column + 5 + after]
                assert found[row, column] == seen.all()
    assert np.array_equal(_nss.half_mask(mask), _nss.covered(mask, 3, 4)[::2, ::2])


def test_no_usable_value_of_either_scale_sees_a_pixel_outside_the_mask() -> None:
    rows, columns = np.ogrid[:90, :110]
    mask = (rows - 44) ** 2 / 45**2 + (columns - 55) ** 2 / 54**2 < 1
    one, other = (np.where(mask, noise(90, 110), noise(90, 110, seed=seed)) for seed in (1, 2))
    for (a, usable), (b, _) in zip(
        _nss.scales(one, mask, "nearest", snap=True), _nss.scales(other, mask, "nearest", snap=True), strict=True
    ):
        assert usable is not None
        assert usable.sum() > 500
        assert np.array_equal(a, b)
        assert not a[~usable].any()


# Flat areas


@pytest.mark.parametrize("name", reference.IMAGES)
def test_the_flat_fraction_is_that_of_the_reference(name: str) -> None:
    expected = reference.tolerance(name).flat_fraction
    assert _nss.flat_fraction(reference.pixels(name)) == pytest.approx(expected, abs=1e-12)


def test_the_flat_fraction_looks_at_what_is_judged() -> None:
    pixels = np.hstack([noise(40, 40), np.full((40, 40), 9.0)])
    right = np.arange(80) >= 40
    assert _nss.flat_fraction(pixels) == pytest.approx(37 / 80)  # three columns at the seam see both
    assert _nss.flat_fraction(pixels, np.tile(right, (40, 1))) == 1
    assert _nss.flat_fraction(pixels, np.tile(~right, (40, 1))) == 0


def test_the_flat_fraction_refuses_what_it_cannot_look_at() -> None:
    sparse = np.zeros((40, 40), bool)
    sparse[::6, ::6] = True
    with pytest.raises(NotScorable, match="flat fraction: no window of 7x7 pixels lies inside the mask"):
        _nss.flat_fraction(noise(40, 40), sparse)
    with pytest.raises(NotScorable, match="flat fraction: 15x40 pixels to judge; it needs at least 16"):
        _nss.flat_fraction(noise(15, 40))
    with pytest.raises(ImageError, match="NaN or infinite"):
        _nss.flat_fraction(np.full((40, 40), np.nan))

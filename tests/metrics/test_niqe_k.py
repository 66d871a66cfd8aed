"""NIQE-K, a reconstruction: the reference set's values, the laws of its spectrum, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from tests.metrics import reference

from saqm.errors import ImageError, ModelFileError, NotScorable, SaqmError
from saqm.metrics.niqe import niqe
from saqm.metrics.niqe_k import log_spectrum, niqe_k
from saqm.metrics.parameters import Parameters, import_official

EPS = {"1e-8": 1e-8, "1": 1.0}  # by the names that the columns have
ROWS = {"1e-8": "reconstruction: official NIQE", "1": "reconstruction, robust form: official NIQE"}
UNDEFINED = {"syn_const", "syn_ramp10"}


@pytest.fixture(scope="module")
def official() -> Parameters:
    return import_official(reference.official("niqe"))


@pytest.fixture(scope="module")
def ours() -> Parameters:
    """Parameters that are nobody's, for what needs no particular ones."""
    return Parameters("niqe", "plain", {"mean": np.zeros(36), "covariance": np.eye(36)})


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(128, 25, shape)


def factor(pixels: ArrayLike, eps: float = 1e-8) -> float:
    kurtosis, deviation = log_spectrum(pixels, eps=eps)
    return kurtosis / deviation


# The reference set's values


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("name", reference.IMAGES)
def test_the_log_spectrum_is_that_of_the_reference(name: str, eps: str) -> None:
    expected = reference.features("niqek_log_spectrum")[name]
    kurtosis, deviation = log_spectrum(reference.pixels(name), eps=EPS[eps])
    assert kurtosis == pytest.approx(expected[f"kurtosis_eps{eps}"], rel=1e-6)
    assert deviation == pytest.approx(expected[f"std_eps{eps}"], rel=1e-6)


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("name", [name for name in reference.IMAGES if name not in UNDEFINED])
def test_it_gives_the_scores_of_the_reference(name: str, eps: str, official: Parameters) -> None:
    plain = reference.score(name, "NIQE", "utlive/niqe@d80aead297 (Octave 7.3)")
    expected = reference.score(name, "NIQE-K", ROWS[eps])
    allowed = reference.tolerance(name).unsnapped("niqe", plain) * expected / plain + 1e-6 * expected
    assert niqe_k(reference.pixels(name), official, eps=EPS[eps]) == pytest.approx(expected, rel=0, abs=allowed)


@pytest.mark.parametrize("name", sorted(UNDEFINED))
def test_where_niqe_is_undefined_it_is_too(name: str, official: Parameters) -> None:
    assert math.isnan(reference.score(name, "NIQE-K", ROWS["1e-8"]))
    with pytest.raises(NotScorable, match="niqe: 0 of 4 blocks are complete, the others flat"):
        niqe_k(reference.pixels(name), official)


# Meaning


@pytest.mark.parametrize("shape", [(100, 120), (101, 120), (100, 121), (101, 121)])
def test_the_half_spectrum_stands_for_the_whole(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    logarithms = np.log(np.abs(np.fft.fft2(pixels)) + 1e-8)
    centred = logarithms - logarithms.mean()
    kurtosis, deviation = log_spectrum(pixels)
    assert deviation == pytest.approx(logarithms.std(), rel=1e-12)
    assert kurtosis == pytest.approx((centred**4).mean() / (centred**2).mean() ** 2, rel=1e-12)


@pytest.mark.parametrize("name", ["camera", "us_tissue"])
def test_the_factor_does_not_see_scale_mirrors_turns_or_cyclic_shifts(name: str) -> None:
    pixels = reference.pixels(name).astype(np.float64)
    value = factor(pixels)
    for other in (
        pixels / 2,
        pixels[::-1],
        pixels[:, ::-1],
        pixels.T,
        np.rot90(pixels),
        np.roll(pixels, (17, 40), (0, 1)),
    ):
        assert factor(other) == pytest.approx(value, rel=1e-9)


def test_an_offset_moves_only_the_coefficient_of_the_mean() -> None:
    pixels = reference.pixels("camera").astype(np.float64)
    assert factor(pixels + 20) - factor(pixels) == pytest.approx(0.0023, abs=0.0001)


@pytest.mark.parametrize("eps", EPS.values())
def test_white_noise_has_a_log_rayleigh_spectrum(eps: float) -> None:
    kurtosis, deviation = log_spectrum(noise(512, 512), eps=eps)
    assert kurtosis == pytest.approx(5.4, abs=0.1)
    assert deviation == pytest.approx(math.pi / (2 * math.sqrt(6)), abs=0.005)
    assert kurtosis / deviation == pytest.approx(8.42, abs=0.15)


def test_bins_that_are_zero_weigh_less_with_eps_1() -> None:
    enlarged = reference.pixels("moon")  # each pixel was repeated
    assert factor(enlarged) == pytest.approx(41.9, abs=0.1)
    assert factor(enlarged, eps=1) == pytest.approx(3.8, abs=0.1)


@pytest.mark.parametrize("name", ["camera", "brick", "chelsea_rgb", "us_tissue", "mr_abdomen"])
def test_noise_raises_it(name: str, official: Parameters) -> None:
    pixels = reference.pixels(name)
    pixels = pixels if pixels.ndim == 2 else pixels[..., 1]
    normal = np.random.default_rng(0).normal(0, 1, pixels.shape)
    values = [
        niqe_k(np.clip(np.rint(pixels + sigma * normal), 0, 255), official, snap=True, eps=1)
        for sigma in (0, 4, 10, 20, 40)
    ]
    assert values == sorted(values)


def test_the_snap_is_that_of_niqe(official: Parameters) -> None:
    pixels = reference.pixels("ct_smooth")
    expected = niqe(pixels, official, snap=True) * factor(pixels)
    assert niqe_k(pixels, official, snap=True) == expected
    assert niqe_k(pixels, official) != expected


# Masks


def test_a_mask_that_is_all_true_is_no_mask(ours: Parameters) -> None:
    pixels = noise(200, 300)
    assert niqe_k(pixels, ours, mask=np.ones((200, 300), bool)) == niqe_k(pixels, ours)


def test_nothing_outside_the_mask_counts_and_the_mean_stands_for_it(ours: Parameters) -> None:
    rows, columns = np.ogrid[:300, :300]
    mask = np.hypot(rows - 149.5, columns - 149.5) < 150
    pixels, other = noise(300, 300), np.where(mask, noise(300, 300), noise(300, 300, seed=1))
    value = niqe_k(pixels, ours, mask=mask, snap=True)
    assert niqe_k(other, ours, mask=mask, snap=True) == value
    around = (17, 200), (40, 3)
    assert niqe_k(np.pad(pixels, around), ours, mask=np.pad(mask, around), snap=True) == value
    filled = np.where(mask, pixels, pixels[mask].mean())
    assert log_spectrum(pixels, mask=mask) == log_spectrum(filled)


# Refusals


def test_what_niqe_refuses_is_refused(ours: Parameters) -> None:
    with pytest.raises(NotScorable, match="95x300 pixels to judge; it needs at least 96 on each side"):
        niqe_k(noise(95, 300), ours)
    with pytest.raises(NotScorable, match="niqe-k: 95x300 pixels to judge; it needs at least 96 on each side"):
        log_spectrum(noise(95, 300))
    with pytest.raises(NotScorable, match="191x191 pixels to judge hold one block of 96x96"):
        niqe_k(noise(191, 191), ours)
    with pytest.raises(ImageError, match="NaN or infinite pixels"):
        niqe_k(np.full((200, 200), np.nan), ours)
    foreign = Parameters("bliinds", "foreign", {"mean": np.zeros(25), "inverse_covariance": np.eye(25)})
    with pytest.raises(ModelFileError, match="parameters of bliinds given to niqe"):
        niqe_k(noise(200, 200), foreign)


def test_a_spectrum_without_spread_is_refused() -> None:
    with pytest.raises(NotScorable, match="niqe-k: all magnitudes of the spectrum are the same"):
        log_spectrum(np.zeros((128, 128)))


@pytest.mark.parametrize("eps", [0, -1, math.nan])
def test_eps_has_to_be_positive(eps: float, ours: Parameters) -> None:
    with pytest.raises(SaqmError, match=f"eps is {eps}; it has to be above 0"):
        niqe_k(noise(200, 200), ours, eps=eps)

"""Pictures get worse by known amounts, the same way every time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from saqm.degradations import DEGRADATIONS, LADDERS, Picture, blur, grain, noise

KINDS = sorted(DEGRADATIONS)


def textured(height: int = 95, width: int = 78, seed: int = 3) -> Picture:
    """Soft shapes with fine texture, well inside 0..255 but for some bright and dark spots."""
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(rng.standard_normal((height, width)), 6)
    fine = ndimage.gaussian_filter(rng.standard_normal((height, width)), 1)
    picture = 120 + 60 * soft / soft.std() + 15 * fine / fine.std()
    return np.asarray(np.clip(picture, 0, 255), np.float32)


def degraded(kind: str, strength: float, picture: Picture, seed: int = 0) -> Picture:
    return DEGRADATIONS[kind](picture, strength, np.random.default_rng(seed))


def test_every_kind_has_a_rising_ladder() -> None:
    assert LADDERS.keys() == DEGRADATIONS.keys()
    assert all(list(rungs) == sorted(set(rungs)) and rungs[0] > 0 for rungs in LADDERS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_is_the_picture(kind: str) -> None:
    np.testing.assert_array_equal(degraded(kind, 0, textured()), textured())


@pytest.mark.parametrize("kind", KINDS)
def test_more_strength_is_farther_from_the_picture(kind: str) -> None:
    picture = textured()
    distances = [float(np.square(degraded(kind, s, picture) - picture).mean()) for s in LADDERS[kind]]
    assert distances[0] > 0
    assert distances == sorted(set(distances))  # Spearman 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(33, 47), (1, 5), (44, 44)])
def test_shape_range_and_type_are_kept(kind: str, shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).choice([0.0, 255.0], shape).astype(np.float32)  # as harsh as can be
    made = degraded(kind, LADDERS[kind][-1], picture)
    assert made.shape == shape
    assert made.dtype == np.float32
    assert 0 <= made.min() <= made.max() <= 255


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bits_and_the_picture_is_left_alone(kind: str) -> None:
    picture = textured()
    once = degraded(kind, LADDERS[kind][1], picture)
    np.testing.assert_array_equal(once, degraded(kind, LADDERS[kind][1], picture))
    np.testing.assert_array_equal(picture, textured())


@pytest.mark.parametrize("kind", ["noise", "grain"])
def test_another_seed_is_another_noise(kind: str) -> None:
    assert not np.array_equal(degraded(kind, 5, textured(), seed=0), degraded(kind, 5, textured(), seed=1))


@pytest.mark.parametrize("kind", ["noise", "grain"])
@pytest.mark.parametrize("strength", [2.0, 10.0])
def test_noise_has_the_standard_deviation_it_says(kind: str, strength: float) -> None:
    flat = np.full((200, 200), 128, np.float32)
    added = degraded(kind, strength, flat) - flat
    assert added.std() == pytest.approx(strength, rel=0.03)
    assert added.mean() == pytest.approx(0, abs=0.1 * strength)


def test_neighbours_agree_in_grain_and_not_in_noise() -> None:
    flat = np.full((200, 200), 128, np.float32)

    def agreement(picture: Picture) -> float:
        return float(np.corrcoef(picture[:, 1:].ravel(), picture[:, :-1].ravel())[0, 1])

    assert abs(agreement(noise(flat, 10, np.random.default_rng(0)))) < 0.03
    assert agreement(grain(flat, 10, np.random.default_rng(0))) > 0.4


@pytest.mark.parametrize("kind", ["blur", "median", "shrink"])
def test_smoothing_takes_gradient_energy_and_keeps_the_level(kind: str) -> None:
    picture = textured()

    def energy(values: Picture) -> float:
        return sum(float(np.square(slope).mean()) for slope in np.gradient(values))

    energies = [energy(picture), *(energy(degraded(kind, s, picture)) for s in LADDERS[kind])]
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] < 0.7 * energies[0]
    assert degraded(kind, LADDERS[kind][-1], picture).mean() == pytest.approx(picture.mean(), abs=1.5)


def test_blur_spreads_a_point_by_its_standard_deviation() -> None:
    picture = np.zeros((61, 61), np.float32)
    picture[30, 30] = 255
    spread = blur(picture, 2.0, np.random.default_rng(0)).sum(0)
    assert np.sqrt((spread * (np.arange(61) - 30.0) ** 2).sum() / spread.sum()) == pytest.approx(2.0, rel=0.02)

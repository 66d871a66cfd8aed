"""BIQAA against the authors' MATLAB, against a slow version written from the paper, and by its own laws."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
from numpy.typing import NDArray
from tests.metrics import reference

from saqm.errors import ImageError, NotScorable
from saqm.metrics import biqaa as module
from saqm.metrics.biqaa import DIRECTIONS, biqaa, biqaa_entropies

Floats = NDArray[np.float64]


@pytest.fixture
def texture() -> NDArray[np.uint8]:
    """Smooth noise that is finer down than across."""
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(7).normal(size=(240, 300)), (1, 2), mode="wrap")
    return np.asarray(np.clip(128 + 160 * noise, 0, 255), np.uint8)


# Other people's numbers


@pytest.mark.parametrize("name", reference.IMAGES)
def test_entropies_and_score_are_the_authors(name: str) -> None:
    wanted = reference.features("biqaa_directional_entropy")[name]
    entropies = biqaa_entropies(reference.pixels(name))
    np.testing.assert_allclose(entropies, [wanted[f"H{angle}"] for angle in DIRECTIONS], rtol=1e-9, atol=1e-15)
    score = biqaa(reference.pixels(name))
    assert score == pytest.approx(wanted["std_ddof1"], rel=1e-9, abs=1e-15)
    assert score == pytest.approx(reference.score(name, "BIQAA", "dsoellinger"), rel=1e-7, abs=1e-15)


# A slow version written from the paper


def slow_entropies(grey: Floats) -> Floats:
    height, width = grey.shape
    eps = 2.0**-52
    padded = np.pad(grey, 4, mode="symmetric") + eps
    entropies = []
    for angle in DIRECTIONS:
        slope = np.tan(np.deg2rad(angle - 90))
        total = 0.0
        for row, column in np.ndindex(height, width):
            line = []
            for t in range(-4, 5):
                moved = (t, nearest(slope * t)) if abs(slope) < 1 else (nearest(t / slope), t)
                line.append(padded[row + 4 + moved[0], column + 4 + moved[1]])
            products = np.array(line) * line[::-1]
            wigner = np.fft.fft(products[:8]).real
            shares = wigner**2 / ((wigner**2).sum() + eps)
            renyi = -np.log2((shares**3).sum() + eps) / 2
            total += renyi / 3 if 0 <= renyi <= 3 else 0
        entropies.append(total / grey.size)
    return np.array(entropies)


def nearest(value: float) -> int:
    """Halves away from zero, as MATLAB rounds; tan and its inverse reach them from either side."""
    return int(np.sign(value) * np.floor(abs(value) + 0.5 + 1e-9))


@pytest.mark.parametrize("shape", [(16, 16), (17, 21)])
def test_entropies_are_those_of_the_paper(shape: tuple[int, int]) -> None:
    grey = np.random.default_rng(3).integers(0, 256, shape).astype(float)
    grey[:9, :9] = 0
    np.testing.assert_allclose(biqaa_entropies(grey), slow_entropies(grey), rtol=1e-12)


# Laws


def test_turns_flips_and_contrast_do_not_matter() -> None:
    for name in ("camera", "us_tissue"):
        pixels = reference.pixels(name).astype(float)
        score = biqaa(pixels)
        turned = [np.rot90(pixels, quarter) for quarter in (1, 2, 3)]
        for same in (*turned, pixels[::-1], pixels[:, ::-1], pixels.T, 0.5 * pixels, 3 * pixels):
            assert biqaa(same) == pytest.approx(score, rel=1e-12)


def test_a_quarter_turn_exchanges_the_directions(texture: NDArray[np.uint8]) -> None:
    turned = biqaa_entropies(np.rot90(texture))
    np.testing.assert_allclose(turned, np.roll(biqaa_entropies(texture), 3), rtol=1e-12)


def test_brightness_matters() -> None:
    camera = reference.pixels("camera").astype(float)
    assert biqaa(camera) == pytest.approx(0.0035, abs=5e-5)
    assert biqaa(camera + 20) == pytest.approx(0.0023, abs=5e-5)


def test_stripes_have_a_direction_and_a_constant_picture_has_none() -> None:
    stripes = np.tile(np.where(np.arange(64) % 4 < 2, 60, 180), (64, 1))
    entropies = biqaa_entropies(stripes)
    assert entropies[DIRECTIONS.index(90)] == 0  # down the stripes nothing changes
    assert entropies[DIRECTIONS.index(0)] == entropies.max() > 0.1
    for level in (0, 128, 255):
        np.testing.assert_array_equal(biqaa_entropies(np.full((40, 50), level)), np.zeros(6))
        assert biqaa(np.full((40, 50), level)) == 0


def test_colour_is_the_mean_of_the_channels() -> None:
    colour = np.random.default_rng(2).integers(0, 256, (40, 40, 3))
    assert biqaa(colour) == biqaa(colour.mean(2))


def blurred(grey: Floats) -> Floats:
    return np.asarray(scipy.ndimage.gaussian_filter(grey, 4, mode="nearest"))


def noisy(grey: Floats) -> Floats:
    return grey + np.random.default_rng(5).normal(0, 40, grey.shape)


def smoothed(grey: Floats) -> Floats:
    return np.asarray(scipy.ndimage.median_filter(grey, 9, mode="nearest"))


@pytest.mark.parametrize("damaged", [blurred, noisy, smoothed])
@pytest.mark.parametrize("name", ["camera", "brick", "us_tissue", "mr_abdomen"])
def test_damage_lowers_the_score(name: str, damaged: Callable[[Floats], Floats]) -> None:
    grey = reference.pixels(name)[:384, :576].astype(float)
    assert biqaa(np.clip(np.rint(damaged(grey)), 0, 255)) < biqaa(grey)


def test_jpeg_may_raise_it() -> None:
    camera = reference.pixels("camera")
    stream = io.BytesIO()
    PIL.Image.fromarray(camera).save(stream, "JPEG", quality=10)
    assert biqaa(np.asarray(PIL.Image.open(stream))) > biqaa(camera)


def test_neither_type_nor_layout_nor_strips_matter(texture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = biqaa_entropies(texture)
    for same in (texture.astype(np.float32), np.asfortranarray(texture), texture.astype(int)[::-1].copy()[::-1]):
        np.testing.assert_array_equal(biqaa_entropies(same), wanted)
    monkeypatch.setattr(module, "_STRIP", 900)
    np.testing.assert_allclose(biqaa_entropies(texture), wanted, rtol=1e-13)


# Masks


def test_a_mask_of_everything_is_no_mask(texture: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(biqaa_entropies(texture, mask=np.ones(texture.shape, bool)), biqaa_entropies(texture))


def test_air_around_and_values_outside_do_not_matter(texture: NDArray[np.uint8]) -> None:
    height, width = texture.shape
    rows, columns = np.mgrid[:height, :width]
    disc = np.hypot(rows - height / 2, columns - width / 2) < 110
    wanted = biqaa_entropies(texture, mask=disc)
    for around in ((7, 11), (1, 40)):
        padded = np.pad(texture, around, constant_values=9)
        np.testing.assert_array_equal(biqaa_entropies(padded, mask=np.pad(disc, around)), wanted)
    np.testing.assert_array_equal(biqaa_entropies(np.where(disc, texture, 255), mask=disc), wanted)
    np.testing.assert_array_equal(biqaa_entropies(np.where(disc, texture, 0), mask=disc), wanted)
    # and it is a sample of the same texture, which the air would have diluted
    assert biqaa(texture, mask=disc) == pytest.approx(biqaa(texture), rel=0.1)
    assert biqaa(np.where(disc, texture, 0)) < 0.8 * biqaa(texture)


def test_a_mask_keeps_exactly_the_neighbourhoods_inside_it(texture: NDArray[np.uint8]) -> None:
    hole = np.ones((16, 16), bool)
    hole[0, 15] = hole[15, 0] = False  # of the 8 x 8 pixels that are 4 from the rim two corners see one
    entropies = []
    for row in range(4, 12):
        for column in range(4, 12):
            if (row, column) not in ((4, 11), (11, 4)):
                nine = texture[row - 4 : row + 5, column - 4 : column + 5].astype(float) + np.finfo(float).eps
                entropies.append([module._entropy(nine, line)[0, 0] for line in module._LINES])
    wanted = np.mean(entropies, axis=0)
    np.testing.assert_allclose(biqaa_entropies(texture[:16, :16], mask=hole), wanted, rtol=1e-12)


def test_a_mask_too_thin_is_refused() -> None:
    diagonal = np.abs(np.subtract.outer(range(80), range(80))) < 8
    with pytest.raises(NotScorable, match=r"biqaa: no 9x9 neighbourhood lies wholly inside the mask; .* larger area"):
        biqaa(np.zeros((80, 80)), mask=diagonal)


# Refusals


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(NotScorable, match=r"biqaa: 15x40 pixels to judge; it needs at least 16"):
        biqaa(np.zeros((15, 40)))
    with pytest.raises(ImageError, match="NaN or infinite"):
        biqaa(np.full((32, 32), np.nan))
    with pytest.raises(ImageError, match=r"pixels of shape \(4, 4, 4\)"):
        biqaa(np.zeros((4, 4, 4)))

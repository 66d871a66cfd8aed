"""BLIINDS-II against the authors' release, against a slow version written from the paper, and by its own laws."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest
import scipy.fft
import scipy.io
import scipy.ndimage
from numpy.typing import NDArray
from tests.metrics import reference

from saqm.errors import ImageError, ModelFileError, NotScorable
from saqm.metrics import bliinds as module
from saqm.metrics.bliinds import bliinds, bliinds_features
from saqm.metrics.parameters import Parameters, import_official

Floats = NDArray[np.float64]

# scored by the release itself under Octave 7.3; the other pictures by an independent NumPy version of it
RELEASED = {
    "camera", "camera_blur2", "camera_noise25", "camera_jpeg10", "coins", "page", "chelsea_rgb", "us_tissue",
    "us_tissue_blur2", "us_tissue_noise10", "us_tissue_median7", "us_palette", "mr_abdomen", "syn_const", "syn_noise25",
}  # fmt: skip
# the density that the released predictor searches has p = exp(-(b q)^g)
B, G = 1.0168, 0.42


@pytest.fixture(scope="module")
def official() -> Parameters:
    return import_official(reference.official("bliinds"))


@pytest.fixture
def texture() -> NDArray[np.uint8]:
    """Smooth noise in which every patch is like every other."""
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(7).normal(size=(240, 300)), 1, mode="wrap")
    return np.asarray(np.clip(128 + 120 * noise, 0, 255), np.uint8)


# Other people's numbers


@pytest.mark.parametrize("name", reference.IMAGES)
def test_features_and_score_are_the_released_ones(name: str, official: Parameters) -> None:
    wanted = reference.features("bliinds2_features_numpy")[name]
    features = bliinds_features(reference.pixels(name))
    np.testing.assert_allclose(features, [wanted[f"f{number}"] for number in range(1, 25)], rtol=0, atol=1e-7)
    score = bliinds(reference.pixels(name), official)
    assert score == wanted["score"]
    if name in RELEASED:
        assert score == reference.score(name, "BLIINDS-II", "utlive")
    # on the table's scale the search begins at 1; four decimals
    continuous = bliinds(reference.pixels(name), official, continuous=True)
    assert continuous + 1 == pytest.approx(wanted["continuous_optimum"], abs=1e-4)
    assert score == searched(features, official)


def searched(features: Floats, parameters: Parameters) -> float:
    """The score as the release finds it: the place in 0, 0.5, ... of the likeliest of 1, 1.5, ..., 100."""
    candidates = np.arange(2, 201) / 2
    points = np.column_stack([np.tile(features, (len(candidates), 1)), candidates]) - parameters.arrays["mean"]
    distances = np.einsum("ij,jk,ik->i", points, parameters.arrays["inverse_covariance"], points)
    return float(np.argmax(np.exp(-((B * distances) ** G)))) / 2


def test_the_released_model_is_the_regression_on_its_training_data() -> None:
    stored = scipy.io.loadmat(reference.official("bliinds"))
    features, opinions = stored["live_features"], stored["live_dmos"].ravel()
    assert features.shape == (982, 24)
    fitted = np.linalg.lstsq(np.column_stack([features, np.ones(982)]), opinions, rcond=None)[0]
    mean, inverse = stored["live_mu"].ravel(), stored["live_sigma_inv"]
    slopes = -inverse[24, :24] / inverse[24, 24]
    np.testing.assert_allclose(fitted[:24], slopes, rtol=1e-10)
    assert fitted[24] == pytest.approx(mean[24] - slopes @ mean[:24], rel=1e-10)


def test_the_score_needs_the_rounded_model(official: Parameters) -> None:
    stored = scipy.io.loadmat(reference.official("bliinds"))
    exact = {"mean": stored["live_mu"].ravel(), "inverse_covariance": stored["live_sigma_inv"]}
    unrounded = Parameters("bliinds", "unrounded", exact)
    china = reference.pixels("china_rgb")
    assert abs(bliinds(china, unrounded) - bliinds(china, official)) == 0.5


# A slow version written from the paper


def slow_features(grey: Floats) -> Floats:
    offsets = np.arange(-1, 2)
    gauss = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 0.5**2))
    features: list[float] = []
    for _ in range(3):
        height, width = grey.shape
        padded = np.pad(np.pad(grey, ((0, -height % 3), (0, -width % 3))), 1)
        measures = np.array(
            [
                slow_measures(padded[row : row + 5, column : column + 5])
                for row in range(0, height, 3)
                for column in range(0, width, 3)
            ]
        )
        tenth = math.ceil(len(measures) / 10)
        for number, column in enumerate(measures.T):
            ordered = np.sort(column)
            features += [column.mean(), (ordered[:tenth] if number == 1 else ordered[-tenth:]).mean()]
        grey = scipy.ndimage.correlate(grey, gauss / gauss.sum(), mode="constant")[1::2, 1::2]
    return np.array(features)


def slow_measures(patch: Floats) -> tuple[float, float, float, float]:
    c = {(row + 1, k + 1): value for (row, k), value in np.ndenumerate(scipy.fft.dctn(patch, norm="ortho"))}
    del c[1, 1]

    def variation(values: list[float]) -> float:
        return float(np.std(np.abs(values), ddof=1) / (np.mean(np.abs(values)) + 1e-7))

    every = np.array(list(c.values()))
    ratio = every.var(ddof=1) / (np.abs(every - every.mean()).mean() ** 2 + 1e-7)
    shapes = [0.03 + 0.001 * number for number in range(9971)]
    moments = np.array([math.gamma(1 / g) * math.gamma(3 / g) / math.gamma(2 / g) ** 2 for g in shapes])
    found = np.flatnonzero((ratio <= moments[:-1]) & (ratio > moments[1:]))
    shape = shapes[found[0]] if len(found) else 11

    low = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 2)]
    high = [(3, 5), (4, 4), (5, 3), (4, 5), (5, 4), (5, 5)]
    middle = [at for at in c if at not in low + high]
    v1, v2, v3 = (float(np.var([c[at] for at in ring], ddof=1)) for ring in (low, middle, high))
    m = (v1 + v2) / 2
    energy = (abs(v3 - m) / (v3 + m + 1e-8) + abs(v2 - v1) / (v3 + v1 + 1e-8)) / 2

    first = [(1, 2), (1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5), (3, 5)]
    third = [(k, row) for row, k in first]
    second = [at for at in c if at not in first + third]
    oriented = np.var([variation([c[at] for at in band]) for band in (first, second, third)], ddof=1)
    return variation(list(c.values())), shape, energy, float(oriented)


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (21, 18)])
def test_features_are_those_of_the_paper_on_any_size(shape: tuple[int, int]) -> None:
    grey = np.random.default_rng(3).integers(0, 256, shape).astype(float)
    np.testing.assert_allclose(bliinds_features(grey), slow_features(grey), rtol=0, atol=1e-9)


def test_the_closed_form_is_the_search_for_any_model() -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        root = rng.normal(size=(25, 25)) / 10
        model = Parameters(
            "bliinds", "drawn", {"mean": rng.uniform(0, 50, 25), "inverse_covariance": root @ root.T + np.eye(25) / 1e3}
        )
        grey = rng.integers(0, 256, (20, 20))
        assert bliinds(grey, model) == searched(bliinds_features(grey), model)


# Laws


def test_a_transposed_picture_scores_the_same(official: Parameters) -> None:
    for name in ("camera", "chelsea_rgb"):
        pixels = reference.pixels(name)
        transposed = pixels.swapaxes(0, 1)
        np.testing.assert_allclose(bliinds_features(transposed), bliinds_features(pixels), rtol=0, atol=1e-9)
        assert bliinds(transposed, official) == bliinds(pixels, official)


def test_contrast_and_brightness_hardly_matter(official: Parameters) -> None:
    camera = reference.pixels("camera").astype(float)
    score = bliinds(camera, official, continuous=True)
    assert bliinds(camera / 2, official, continuous=True) == pytest.approx(score, abs=1e-3)
    # only the rim of zeros around each level sees it
    assert 1e-3 < abs(bliinds(camera + 20, official, continuous=True) - score) < 0.2


def test_a_constant_picture_scores_worst(official: Parameters) -> None:
    for level in (0, 128, 255):
        assert bliinds(np.full((64, 64), level), official) == 99
    assert bliinds(np.full((256, 256), 0), official, continuous=True) == pytest.approx(771, abs=1)


def test_a_flat_patch_has_shape_11_and_no_variation() -> None:
    disc = np.hypot(*np.mgrid[-50:50, -50:50]) < 48
    for level in bliinds_features(np.full((100, 100), 128), mask=disc).reshape(3, 4, 2):
        np.testing.assert_allclose(level, [[0, 0], [11, 11], [0, 0], [0, 0]], rtol=0, atol=1e-5)


def blurred(grey: Floats) -> Floats:
    return np.asarray(scipy.ndimage.gaussian_filter(grey, 4, mode="nearest"))


def noisy(grey: Floats) -> Floats:
    return grey + np.random.default_rng(5).normal(0, 40, grey.shape)


def speckled(grey: Floats) -> Floats:
    return grey * (1 + np.random.default_rng(5).normal(0, 0.4, grey.shape))


def compressed(grey: Floats) -> Floats:
    stream = io.BytesIO()
    PIL.Image.fromarray(grey.astype(np.uint8)).save(stream, "JPEG", quality=10)
    return np.asarray(PIL.Image.open(stream), dtype=float)


@pytest.mark.parametrize("damaged", [blurred, noisy, speckled, compressed])
@pytest.mark.parametrize("name", ["camera", "brick", "us_tissue", "mr_abdomen"])
def test_damage_raises_the_score(name: str, damaged: Callable[[Floats], Floats], official: Parameters) -> None:
    grey = reference.pixels(name)[:384, :576].astype(float)
    worse = np.clip(np.rint(damaged(grey)), 0, 255)
    assert bliinds(worse, official, continuous=True) > bliinds(grey, official, continuous=True)


def test_neither_type_nor_layout_nor_strips_matter(texture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = bliinds_features(texture)
    for same in (texture.astype(np.float32), np.asfortranarray(texture), texture.astype(int)[::-1].copy()[::-1]):
        np.testing.assert_array_equal(bliinds_features(same), wanted)
    monkeypatch.setattr(module, "_STRIP", 100)
    np.testing.assert_array_equal(bliinds_features(texture), wanted)


# Masks


def test_a_mask_of_everything_is_no_mask(texture: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(
        bliinds_features(texture, mask=np.ones(texture.shape, bool)), bliinds_features(texture)
    )


def test_air_around_and_values_outside_do_not_matter(texture: NDArray[np.uint8]) -> None:
    height, width = texture.shape
    rows, columns = np.mgrid[:height, :width]
    disc = np.hypot(rows - height / 2, columns - width / 2) < 110
    wanted = bliinds_features(texture, mask=disc)
    for around in ((7, 11), (1, 40)):
        padded = np.pad(texture, around, constant_values=9)
        np.testing.assert_array_equal(bliinds_features(padded, mask=np.pad(disc, around)), wanted)
    np.testing.assert_array_equal(bliinds_features(np.where(disc, texture, 255), mask=disc), wanted)
    np.testing.assert_array_equal(bliinds_features(np.where(disc, texture, 0), mask=disc), wanted)
    # and it is a sample of the same texture, here without the rim of zeros that no patch of a mask sees
    rimless = np.ones(texture.shape, bool)
    rimless[0, 0] = False
    np.testing.assert_allclose(wanted, bliinds_features(texture, mask=rimless), rtol=0.1, atol=0.02)


def test_a_mask_keeps_exactly_the_patches_inside_it(texture: NDArray[np.uint8]) -> None:
    hole = np.ones((60, 60), bool)
    hole[30, 31] = False
    inside = module._measures(texture[:60, :60].astype(float), hole)
    everything = module._measures(texture[:60, :60].astype(float), None).reshape(4, 20, 20)
    # of 20 x 20 patches the rim reaches outside, and the patches of rows 27-31 or 30-34 and columns 29-33 hold the hole
    kept = np.zeros((20, 20), bool)
    kept[1:-1, 1:-1] = True
    kept[[9, 10], 10] = False
    np.testing.assert_array_equal(inside, everything[:, kept])


def test_a_mask_too_thin_is_refused() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (80, 80))
    lines = np.zeros((80, 80), bool)
    lines[:, ::4] = True
    with pytest.raises(NotScorable, match=r"bliinds: no 5x5 patch .* level 1 of 3, 80x77 pixels; .* larger area"):
        bliinds_features(pixels, mask=lines)
    diagonal = np.abs(np.subtract.outer(range(80), range(80))) < 8
    with pytest.raises(NotScorable, match=r"wholly inside the mask at level 2 of 3, 40x40 pixels"):
        bliinds_features(pixels, mask=diagonal)


# Refusals


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(NotScorable, match=r"bliinds: 15x40 pixels to judge; it needs at least 16"):
        bliinds_features(np.zeros((15, 40)))
    with pytest.raises(ImageError, match="NaN or infinite"):
        bliinds_features(np.full((32, 32), np.nan))
    with pytest.raises(ImageError, match=r"mask of bool \(3, 3\)"):
        bliinds_features(np.zeros((32, 32)), mask=np.ones((3, 3), bool))


def test_parameters_of_another_metric_are_refused() -> None:
    niqe = Parameters("niqe", "toy", {"mean": np.zeros(36), "covariance": np.eye(36)})
    with pytest.raises(ModelFileError, match="parameters of niqe given to bliinds"):
        bliinds(np.zeros((32, 32)), niqe)

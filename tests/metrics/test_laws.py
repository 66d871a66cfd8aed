"""The laws of all eight metrics together: what must not matter to a score, and what must.

The table of docs/metrics.md measures laws on real pictures; here stand those that hold exactly, on made textures, and
those of the ladders that are known to hold with the authors' own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from tests.metrics import reference

from saqm.degradations import blur, compression
from saqm.errors import ImageError, ModelFileError, NotScorable
from saqm.metrics import METRICS, luminance
from saqm.metrics._pixels import channel_mean
from saqm.metrics.brisque import brisque_features
from saqm.metrics.niqe_k import log_spectrum
from saqm.metrics.parameters import Parameters, import_official, load_parameters
from saqm.metrics.radial_index import radial_index

Pixels = NDArray[np.float64]
Mask = NDArray[np.bool_]
Change = Callable[[Pixels], Pixels]


# In the forms whose laws are exact: flat areas snapped, BLIINDS-II not rounded to halves. A smaller crop saves time.
EXACT: Mapping[str, Mapping[str, object]] = {
    "brisque": {"snap": True},
    "niqe": {"snap": True},
    "niqe-k": {"snap": True},
    "bliinds": {"continuous": True},
    "sure-noise": {"crop": 48},
}
trained = cache(load_parameters)


@cache
def released(metric: str) -> Parameters:
    """The authors' own parameters. Skips the test where they are not at hand."""
    return import_official(reference.official(metric))


def score(name: str, pixels: ArrayLike, mask: Mask | None = None, parameters: Parameters | None = None) -> float:
    """The metric with its default parameters, or those given."""
    metric = METRICS[name]
    given = () if metric.parameters is None else (parameters or trained(metric.default or ""),)
    return metric.function(pixels, *given, mask=mask, **{**metric.options, **EXACT.get(name, {})})


ALL = pytest.mark.parametrize("name", METRICS)
SHAPES = ((96, 192), (104, 194), (193, 111), (200, 206))  # even and odd; each holds two of NIQE's blocks
few = settings(max_examples=3, deadline=None, derandomize=True)


def texture(seed: int, shape: tuple[int, int] = (104, 194), grain: float = 1.0) -> Pixels:
    """Whole grey levels between 40 and 215: waves, an edge, and noise that is finer down than across."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    field = scipy.ndimage.gaussian_filter(rng.standard_normal(shape), (0.6 * grain, grain), mode="wrap")
    waves = np.sin(x / (7 + 3 * grain)) + np.cos((x + 2 * y) / 19)
    return np.asarray(np.clip(np.rint(120 + 20 * waves + 15 * field / field.std() + 40 * (y > x)), 40, 215))


textures = st.builds(texture, st.integers(0, 2**31), st.sampled_from(SHAPES), st.floats(0.5, 2.0))


def mirrored(pixels: Pixels) -> Pixels:
    return pixels[:, ::-1]


def upside_down(pixels: Pixels) -> Pixels:
    return pixels[::-1]


def turned(pixels: Pixels) -> Pixels:
    return np.asarray(np.rot90(pixels))


def transposed(pixels: Pixels) -> Pixels:
    return pixels.T


def shifted(pixels: Pixels) -> Pixels:
    return np.roll(pixels, (13, 31), (0, 1))


def halved(pixels: Pixels) -> Pixels:
    return 0.5 * pixels


def doubled(pixels: Pixels) -> Pixels:
    return 2 * pixels


def brighter(pixels: Pixels) -> Pixels:
    return pixels + 20


def negative(pixels: Pixels) -> Pixels:
    return 255 - pixels


# What leaves a score alone, to rounding. What is not here changes it: docs/metrics.md says by how much.
INVARIANT: Mapping[str, tuple[Change, ...]] = {
    "brisque": (),
    "niqe": (brighter, negative),
    "niqe-k": (),  # an offset changes the coefficient of the mean
    "bliinds": (transposed,),
    "biqaa": (mirrored, upside_down, turned, transposed, halved, doubled),
    "sure-noise": (mirrored, upside_down, turned, transposed, brighter, negative),
    "marziliano": (doubled, brighter, negative),
    "radial-index": (mirrored, upside_down, turned, transposed, shifted, brighter, negative),
}


def test_the_laws_are_about_every_metric() -> None:
    assert set(INVARIANT) == set(METRICS)


# What must not matter


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, laws in INVARIANT.items() for change in laws])
@few
@given(pixels=textures)
def test_a_change_that_shows_the_same_scores_the_same(name: str, change: Change, pixels: Pixels) -> None:
    if name == "sure-noise":  # its square has a middle only on even sides
        pixels = pixels[: len(pixels) // 2 * 2, : pixels.shape[1] // 2 * 2]
    assert score(name, change(pixels)) == pytest.approx(score(name, pixels), rel=1e-9, abs=1e-9)


@few
@given(seed=st.integers(0, 2**31), shape=st.sampled_from(((96, 192), (104, 194), (200, 206))))
def test_brisque_takes_both_mirror_images_for_the_same(seed: int, shape: tuple[int, int]) -> None:
    """Either flip exchanges the two diagonals, and transposition rows and columns: exact on even sides only."""
    pixels = texture(seed, shape)
    features = brisque_features(pixels, snap=True).reshape(2, 18)
    exchanged = [*range(10), *range(14, 18), *range(10, 14)]
    for change in (mirrored, upside_down):
        np.testing.assert_allclose(brisque_features(change(pixels), snap=True), features[:, exchanged].ravel(), 1e-9)
    exchanged = [0, 1, *range(6, 10), *range(2, 6), *range(10, 18)]
    np.testing.assert_allclose(brisque_features(pixels.T, snap=True), features[:, exchanged].ravel(), 1e-9)


@few
@given(pixels=textures)
def test_what_niqe_k_takes_from_the_spectrum_knows_neither_place_nor_contrast(pixels: Pixels) -> None:
    kurtosis, deviation = log_spectrum(pixels)
    for change in (mirrored, upside_down, turned, transposed, shifted, halved):
        assert log_spectrum(change(pixels)) == pytest.approx((kurtosis, deviation), rel=1e-9)


@few
@given(pixels=textures, gain=st.floats(0.5, 3))
def test_noise_and_radial_index_follow_the_contrast(pixels: Pixels, gain: float) -> None:
    noise, index = (score(name, pixels) for name in ("sure-noise", "radial-index"))
    assert score("sure-noise", gain * pixels) == pytest.approx(gain * noise, rel=1e-9)
    assert score("radial-index", gain * pixels) == pytest.approx(index + np.log10(gain), abs=1e-9)
    assert radial_index(gain * pixels, relative=True) == pytest.approx(radial_index(pixels, relative=True), rel=1e-9)


# How the pixels are stored


@ALL
def test_type_and_memory_layout_do_not_matter(name: str) -> None:
    pixels = texture(1)
    wanted = score(name, pixels)
    for kind in (np.uint8, np.uint16, np.int32, np.float32, np.float64):
        assert score(name, pixels.astype(kind)) == wanted
    apart = np.zeros((2 * pixels.shape[0], 3 * pixels.shape[1]), np.uint8)[::2, ::3]
    apart[:] = pixels
    backwards = np.ascontiguousarray(pixels[::-1, ::-1])[::-1, ::-1]
    for same in (np.asfortranarray(pixels), apart, backwards, pixels.astype(">f8"), pixels.astype(int).tolist()):
        assert score(name, same) == wanted


@ALL
def test_twice_the_same_is_the_same_and_the_picture_stays_as_it_was(name: str) -> None:
    pixels, mask = anatomy()
    before = pixels.copy(), mask.copy()
    assert score(name, pixels, mask) == score(name, pixels, mask)
    np.testing.assert_array_equal(pixels, before[0])
    np.testing.assert_array_equal(mask, before[1])
    pixels.flags.writeable = mask.flags.writeable = False
    assert score(name, pixels, mask) == score(name, *before)


@ALL
def test_colour_is_its_luminance(name: str) -> None:
    grey = texture(2)
    assert score(name, np.repeat(grey[..., None], 3, 2)) == pytest.approx(score(name, grey), rel=1e-12)
    colour = np.stack([texture(seed) for seed in (3, 4, 5)], 2)
    reduced = channel_mean(colour) if name == "biqaa" else luminance(colour)
    assert score(name, colour) == score(name, reduced)
    assert score(name, colour) == score(name, colour.astype(np.uint8))


# The mask


def anatomy() -> tuple[Pixels, Mask]:
    """An ellipse of texture in black air, well inside the picture, and where it is."""
    y, x = np.ogrid[:236, :322]
    mask = ((y - 118) / 105) ** 2 + ((x - 165) / 145) ** 2 <= 1
    return np.where(mask, texture(6, mask.shape), 0), np.asarray(mask)


@ALL
def test_a_mask_of_everything_is_no_mask(name: str) -> None:
    pixels = texture(7)
    assert score(name, pixels, np.ones(pixels.shape, bool)) == score(name, pixels)


@ALL
def test_more_air_or_less_of_it_does_not_matter(name: str) -> None:
    pixels, mask = anatomy()
    wanted = score(name, pixels, mask)
    assert wanted != score(name, pixels)  # the air counts unless it is masked
    assert score(name, np.pad(pixels, 64), np.pad(mask, 64)) == wanted
    assert score(name, np.pad(pixels, ((0, 7), (31, 0))), np.pad(mask, ((0, 7), (31, 0)))) == wanted
    box = np.s_[
        mask.any(1).argmax() : -mask[::-1].any(1).argmax(), mask.any(0).argmax() : -mask[:, ::-1].any(0).argmax()
    ]
    assert score(name, pixels[box], mask[box]) == wanted


@ALL
def test_what_is_outside_the_mask_does_not_matter(name: str) -> None:
    pixels, mask = anatomy()
    wanted = score(name, pixels, mask)
    rng = np.random.default_rng(8)
    for air in (20, 255, rng.integers(0, 256, mask.shape)):
        assert score(name, np.where(mask, pixels, air), mask) == pytest.approx(wanted, rel=1e-12)


# What cannot be judged


@ALL
@pytest.mark.parametrize("shape", [(15, 300), (300, 15), (1, 1)])
def test_too_small_is_said(name: str, shape: tuple[int, int]) -> None:
    least = 96 if name.startswith("niqe") else 16
    with pytest.raises(NotScorable, match=rf"{shape[0]}x{shape[1]} pixels to judge; it needs at least {least} on each"):
        score(name, np.zeros(shape))


@ALL
def test_a_mask_that_leaves_too_little_is_said(name: str) -> None:
    pixels, mask = anatomy()
    with pytest.raises(NotScorable, match="whole picture is masked"):
        score(name, pixels, np.zeros_like(mask))
    corner = np.zeros_like(mask)
    corner[100:110, 100:300] = True
    with pytest.raises(NotScorable, match="10x200 pixels to judge"):
        score(name, pixels, corner)
    with pytest.raises(ImageError, match=r"a mask of .*\(236, 321\) for a picture of .*\(236, 322\)"):
        score(name, pixels, mask[:, 1:])


@ALL
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(name: str, bad: float) -> None:
    pixels = texture(9)
    pixels[50, 50] = bad
    with pytest.raises(ImageError, match="NaN or infinite pixels"):
        score(name, pixels)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.parameters])
def test_parameters_of_another_metric_are_refused(name: str) -> None:
    wrong = "niqe" if name in ("brisque", "bliinds") else "brisque"
    with pytest.raises(ModelFileError, match=f"parameters of {wrong} given to {METRICS[name].parameters}"):
        score(name, texture(10), parameters=trained(METRICS[wrong].default or ""))


# What must matter: laws of the ladders

NOISE = np.random.default_rng(11).standard_normal((512, 576))
LADDERS: Mapping[str, Callable[[Pixels], list[Pixels]]] = {
    "blur": lambda p: [
        p,
        *(blur(p.astype(np.float32), s, np.random.default_rng()).astype(float) for s in (0.7, 1.4, 4)),
    ],
    "noise": lambda p: [p, *(np.clip(p + s * NOISE[: p.shape[0], : p.shape[1]], 0, 255) for s in (4, 10, 40))],
    "jpeg": lambda p: [p, compression(p.astype(np.float32), 90, np.random.default_rng()).astype(float)],
}
# Rising along the whole ladder (1), or falling, on all fourteen pictures (ten photographs, two ultrasound, an MR, a CT)
# on which an independent version of the metrics had been tried, with the authors' own parameters
STRICTLY = {
    ("sure-noise", "noise"): 1,
    ("marziliano", "blur"): 1,
    ("radial-index", "blur"): -1,
    ("radial-index", "noise"): 1,
}
# Higher (1), or lower, at the end than at the start on all fourteen
AT_THE_END = {
    ("brisque", "blur"): 1,
    ("brisque", "noise"): 1,
    ("brisque", "jpeg"): 1,
    ("niqe", "blur"): 1,
    ("niqe", "noise"): 1,
    ("bliinds", "blur"): 1,
    ("bliinds", "noise"): 1,
    ("bliinds", "jpeg"): 1,
    ("biqaa", "blur"): -1,
    ("biqaa", "noise"): -1,
}
REAL = ("camera", "coins", "us_tissue", "mr_abdomen")


@cache
def climbed(name: str, ladder: str, image: str) -> list[float]:
    picture = luminance(reference.pixels(image))[:288, :384]
    kind = METRICS[name].parameters
    return [score(name, np.rint(step), parameters=kind and released(kind)) for step in LADDERS[ladder](picture)]


@pytest.mark.parametrize("image", REAL)
@pytest.mark.parametrize(("name", "ladder"), STRICTLY)
def test_every_step_of_the_ladder_is_seen(name: str, ladder: str, image: str) -> None:
    steps = STRICTLY[name, ladder] * np.diff(climbed(name, ladder, image))
    assert (steps > 0).all()


@pytest.mark.parametrize("image", REAL)
@pytest.mark.parametrize(("name", "ladder"), AT_THE_END)
def test_the_end_of_the_ladder_is_seen(name: str, ladder: str, image: str) -> None:
    values = climbed(name, ladder, image)
    assert AT_THE_END[name, ladder] * (values[-1] - values[0]) > 0


def test_the_table_says_which_direction_is_better() -> None:
    """Each of these ladders is called worse, but for one: noise raises the RadialIndex as sharpness does."""
    misled = {("radial-index", "noise")}
    for (name, ladder), direction in {**AT_THE_END, **STRICTLY}.items():
        assert ((direction < 0) == METRICS[name].higher_is_better) != ((name, ladder) in misled), (name, ladder)


@few
@given(pixels=textures, strength=st.floats(2, 12), seed=st.integers(0, 2**31))
def test_noise_is_measured_in_grey_levels(pixels: Pixels, strength: float, seed: int) -> None:
    """On a smooth picture the score is the deviation of what was added: NLM leaves little of it."""
    smooth = scipy.ndimage.gaussian_filter(pixels, 6)
    noisy = smooth + strength * np.random.default_rng(seed).standard_normal(smooth.shape)
    assert score("sure-noise", noisy) == pytest.approx(strength, rel=0.15)

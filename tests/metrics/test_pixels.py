"""Colour to grey levels: the values, the same ones whatever the strips, and no copies of whole pictures on the way."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from saqm.errors import ImageError
from saqm.metrics import _pixels
from saqm.metrics._pixels import channel_mean, luminance

Floats = NDArray[np.float64]


def colour(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def whole_luminance(pixels: NDArray[Any]) -> Floats:
    """All at once."""
    weighted: Floats = pixels.astype(np.float64, order="C") @ _pixels._LUMINANCE
    return np.floor(weighted + 0.5) if np.array_equal(pixels, np.rint(pixels)) else weighted


def whole_mean(pixels: NDArray[Any]) -> Floats:
    return np.asarray(pixels.astype(np.float64, order="C").mean(2))


@pytest.mark.parametrize("strip", [1, 700, 32_768])
@pytest.mark.parametrize("shape", [(16, 16), (301, 77), (3, 40_000)])
def test_strips_change_no_bit(shape: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pixels, "_STRIP", strip)
    levels = colour(*shape)
    for pixels in (levels, levels.astype(np.float32) / 3, np.asfortranarray(levels / 7)):
        assert np.array_equal(luminance(pixels), whole_luminance(pixels))
        assert np.array_equal(channel_mean(pixels), whole_mean(pixels))


def test_one_value_between_levels_keeps_the_whole_picture_from_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pixels, "_STRIP", 100)
    pixels = colour(50, 20).astype(np.float64)
    assert np.array_equal(luminance(pixels), np.rint(luminance(pixels)))
    pixels[0, 0, 0] = 0.5
    assert not np.array_equal(luminance(pixels)[-1], np.rint(luminance(pixels)[-1]))


@pytest.mark.parametrize("function", [luminance, channel_mean])
def test_nan_is_found_in_any_strip(function: Callable[[Any], Floats], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pixels, "_STRIP", 100)
    pixels = colour(50, 20).astype(np.float32)
    pixels[-1, -1, 2] = np.nan
    with pytest.raises(ImageError, match="NaN or infinite pixels"):
        function(pixels)


@pytest.mark.parametrize("function", [luminance, channel_mean])
def test_no_channel_is_copied_as_a_whole(function: Callable[[Any], Floats]) -> None:
    pixels = colour(1000, 1200)
    function(pixels)
    tracemalloc.start()
    try:
        grey = function(pixels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert grey.nbytes < peak < 1.5 * grey.nbytes  # three channels in float64 would be 3 times

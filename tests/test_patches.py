"""The cutter: no pixel is lost or invented, and a window does not depend on its company."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqm.errors import NotScorable, SaqmError
from saqm.image import Image, Source, from_array
from saqm.patches import Preparation, coverage, cut, grey_levels, grid, luminance, planes, pool

GRAY = Preparation(channels="gray")


def picture(pixels: np.ndarray, mask: np.ndarray | None = None) -> Image:
    pixels = np.asarray(pixels, np.float32)
    mask = np.ones(pixels.shape[:2], bool) if mask is None else mask
    return Image(pixels, mask, None, None, Source("made", "0" * 64, "array"))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


@given(st.integers(32, 150), st.integers(32, 150), st.integers(1, 40))
def test_the_grid_stays_inside_and_leaves_no_pixel_out(height: int, width: int, stride: int):
    positions = grid(height, width, 32, min(stride, 32))
    assert positions.min() == 0
    assert (positions.max(0) == (height - 32, width - 32)).all()
    covered = np.zeros((height, width), bool)
    for top, left in positions:
        covered[top : top + 32, left : left + 32] = True
    assert covered.all()


def test_the_grid_is_in_reading_order_without_doubles_and_shifts_the_last_inside():
    assert grid(64, 70, 32, 32).tolist() == [[0, 0], [0, 32], [0, 38], [32, 0], [32, 32], [32, 38]]
    assert grid(32, 32, 32, 7).tolist() == [[0, 0]]


@given(st.integers(0, 2**32 - 1))
def test_coverage_is_the_share_of_the_mask_in_each_window(seed: int):
    mask = np.random.default_rng(seed).random((50, 61)) < 0.7
    positions = grid(50, 61, 32, 9)
    expected = [mask[top : top + 32, left : left + 32].mean() for top, left in positions]
    np.testing.assert_allclose(coverage(mask, positions, 32), expected)


def test_windows_are_the_pixels_under_them():
    image = picture(noise(100, 90))
    windows = cut(image, GRAY)
    (top, left), taken = windows.positions_N2[5], windows.take(slice(5, 6))
    assert taken.shape == (1, 3, 32, 32)
    assert taken.dtype == np.float32
    for channel in range(3):
        np.testing.assert_allclose(taken[0, channel], image.pixels[top : top + 32, left : left + 32], rtol=1e-6)


def test_batches_are_all_windows_in_order_whatever_their_size():
    windows = cut(picture(noise(200, 200)), Preparation(stride=16))
    whole = windows.take(slice(None))
    assert len(whole) == len(windows) == windows.total == 12 * 12
    for size in (1, 7, 64, 1000):
        np.testing.assert_array_equal(np.concatenate(list(windows.batches(size))), whole)
        assert max(map(len, windows.batches(size))) <= size


def test_only_windows_inside_the_mask_are_judged():
    mask = np.zeros((96, 96), bool)
    mask[:, 32:] = True
    mask[10, 40] = False  # a hole of less than a twentieth does not matter
    windows = cut(picture(noise(96, 96), mask), GRAY)
    assert windows.total == 9
    assert sorted({int(left) for left in windows.positions_N2[:, 1]}) == [32, 64]


def test_a_smaller_stride_looks_more_often():
    image = picture(noise(96, 96))
    assert [len(cut(image, GRAY, stride)) for stride in (None, 32, 16, 8)] == [9, 9, 25, 81]


@pytest.mark.parametrize("stride", [0, -8])
def test_a_stride_that_does_not_move_is_refused(stride: int):
    with pytest.raises(SaqmError, match=f"stride of {stride} pixels"):
        cut(picture(noise(64, 64)), GRAY, stride)


@pytest.mark.parametrize("channels", ["gray", "rgb", "bands"])
@pytest.mark.parametrize("shape", [(48, 40), (48, 40, 3)])
def test_every_preparation_makes_three_finite_channels_of_grey_and_of_colour(channels: str, shape: tuple[int, ...]):
    made = planes(picture(noise(*shape)), Preparation(channels=channels))
    assert made.shape == (3, 48, 40)
    assert made.dtype == np.float32
    assert np.isfinite(made).all()


def test_rgb_keeps_the_colours_and_gray_has_luminance_three_times():
    pixels = noise(40, 40, 3)
    np.testing.assert_array_equal(planes(picture(pixels), Preparation(channels="rgb")), pixels.transpose(2, 0, 1))
    grey = planes(picture(pixels), GRAY)
    np.testing.assert_array_equal(grey[0], grey[2])
    np.testing.assert_allclose(grey[0], pixels @ [0.299, 0.587, 0.114], atol=1e-6)


def test_luminance_is_on_0_to_255_and_grey_stays_grey():
    grey = noise(8, 8)
    np.testing.assert_allclose(luminance(picture(grey)), 255 * grey, rtol=1e-6)
    np.testing.assert_allclose(luminance(picture(np.repeat(grey[..., None], 3, 2))), 255 * grey, rtol=1e-5)
    assert luminance(picture(np.ones((4, 4)))).max() == 255


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3)])
def test_an_8_bit_picture_comes_back_in_its_own_grey_levels(shape: tuple[int, ...]):
    levels = np.random.default_rng(0).permutation(np.resize(np.arange(256), shape).ravel()).reshape(shape)
    found = grey_levels(from_array(levels.astype(np.uint8)))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, levels)


def test_finer_pictures_keep_their_fractions():
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    np.testing.assert_array_equal(grey_levels(from_array(levels)), levels / 257)  # 8 bits in 16
    levels[3, 4] += 1  # one pixel between two levels of 8 bit: nothing is rounded
    found = grey_levels(from_array(levels))
    np.testing.assert_allclose(found, levels / 257, atol=1e-4)
    assert found[3, 4] % 1 == pytest.approx(1 / 257, abs=1e-4)


def test_mean_and_sd_are_taken_out_by_channel():
    pixels = noise(40, 40, 3)
    made = planes(picture(pixels), Preparation(channels="rgb", mean=(0.1, 0.2, 0.3), sd=(0.5, 1, 2)))
    expected = (pixels - [0.1, 0.2, 0.3]) / [0.5, 1, 2]
    np.testing.assert_allclose(made, expected.transpose(2, 0, 1), atol=1e-6)


def test_bands_take_fine_detail_apart_from_shading():
    flat = planes(picture(np.full((64, 64), 110 / 255)), Preparation())
    np.testing.assert_allclose(flat, 0, atol=1e-4)  # 110 of 255 is the middle of the shade band
    checks = np.indices((64, 64)).sum(0) % 2
    fine, middle, shade = planes(picture((110 + 20 * (checks - 0.5)) / 255), Preparation())[:, 8:-8, 8:-8]
    np.testing.assert_allclose(np.abs(fine), np.arcsinh(10 / 2), rtol=1e-3)  # the finest detail is all in the first
    assert np.abs(middle).max() < 1e-3
    assert np.abs(shade).max() < 1e-3
    ramp = planes(picture(np.tile(np.linspace(0, 1, 64), (64, 1))), Preparation())[:, 8:-8, 8:-8]
    assert np.abs(ramp[:2]).max() < 1e-3  # a straight ramp is all in the last
    np.testing.assert_allclose(ramp[2, 0], (255 * np.linspace(0, 1, 64)[8:-8] - 110) / 70, atol=1e-3)


def test_bands_against_convolution_written_out():
    grey = noise(40, 44) * 255
    kernel = np.array([1, 4, 6, 4, 1]) / 16

    def smooth(picture: np.ndarray, dilation: int) -> np.ndarray:
        reach = 2 * dilation
        padded = np.pad(picture, reach, mode="edge")
        total = np.zeros_like(picture)
        for row, first in enumerate(kernel):
            for column, second in enumerate(kernel):
                top, left = row * dilation, column * dilation
                total += first * second * padded[top : top + picture.shape[0], left : left + picture.shape[1]]
        return total

    once = smooth(grey.astype(np.float64), 1)
    twice = smooth(once, 2)
    expected = [np.arcsinh((grey - once) / 2), np.arcsinh((once - twice) / 4), (twice - 110) / 70]
    np.testing.assert_allclose(planes(picture(grey / 255), Preparation()), expected, atol=2e-4)


def test_a_mean_is_a_mean_and_weights_weigh():
    assert pool(np.array([1.0, 2.0, 6.0])) == 3
    assert pool(np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 1.0])) == 3
    assert pool(np.array([1.0, 3.0]), np.array([3.0, 1.0])) == 1.5


@given(st.floats(1e-3, 1e3))
def test_only_the_ratio_of_weights_counts(factor: float):
    scores, weights = noise(20), noise(20, seed=1) + 0.1
    assert pool(scores, weights * factor) == pytest.approx(pool(scores, weights), rel=1e-5)


@pytest.mark.parametrize(
    ("pixels", "mask", "reason"),
    [
        (noise(31, 200), None, "image of 31x200 pixels is smaller than one 32x32 window"),
        (np.full((64, 64), 0.25), None, r"constant image: every judged pixel is 0\.25"),
        (np.tile([1.0, 0.0, 0.5], (64, 64, 1)), None, r"constant image: every judged pixel is \[1"),
        (noise(64, 64), np.zeros((64, 64), bool), "nothing to judge: the mask is empty"),
        (noise(64, 64), np.eye(64, dtype=bool), r"no 32x32 window lies at least 95% inside the mask \(2% of the pict"),
    ],
)
def test_a_picture_with_nothing_to_judge_says_why(pixels: np.ndarray, mask: np.ndarray | None, reason: str):
    with pytest.raises(NotScorable, match=reason):
        cut(picture(pixels, mask), GRAY)


def test_a_constant_organ_in_a_busy_frame_is_constant():
    pixels, mask = noise(96, 96), np.zeros((96, 96), bool)
    pixels[32:64, 32:64], mask[32:64, 32:64] = 0.5, True
    with pytest.raises(NotScorable, match="constant image"):
        cut(picture(pixels, mask), GRAY)

"""Where a score comes from: that the map adds up to the score and shows where, and what a window attends to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqm.engine import load_engine
from saqm.errors import MissingExtra, ModelFileError, SaqmError
from saqm.image import Image, from_array, read_image
from saqm.maps import attention, in_score_units
from saqm.modelfile import ModelHeader, write_onnx
from saqm.scorer import ModelScorer, load_scorer, quality_map, score, score_and_map


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def picture(pixels: np.ndarray, mask: np.ndarray | None = None) -> Image:
    return from_array(np.asarray(pixels, np.float32), modality="CT", mask=mask)


@pytest.fixture
def scorer(toy_model: Path) -> ModelScorer:
    return load_scorer(toy_model)


@pytest.fixture
def weighted(toy_model: Path, toy_onnx: Callable[..., bytes], header: ModelHeader) -> ModelScorer:
    """The toy with windows that count more the brighter they are."""
    write_onnx(toy_onnx(weight="Exp(scaled)"), header, toy_model)
    return load_scorer(toy_model)


# The map


@pytest.mark.parametrize("shape", [(64, 96), (70, 50), (133, 101)])
@pytest.mark.parametrize("stride", [None, 40, 32, 13, 8])
def test_the_map_adds_up_to_the_score(weighted: ModelScorer, shape: tuple[int, int], stride: int | None) -> None:
    mask = np.ones(shape, bool)
    mask[: shape[0] // 3, : shape[1] // 8] = False
    image = picture(noise(*shape, seed=2), mask)
    result, made = score_and_map(image, weighted, stride=stride)
    assert result == score(image, weighted, stride=stride)
    assert made.mean == pytest.approx(result.score, abs=1e-4)
    assert made.weight_HW.sum() == pytest.approx(1)
    assert made.score_HW.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(made.score_HW), made.weight_HW == 0)


def test_a_finer_map_leaves_the_score_alone_and_its_mean_is_the_score_of_its_own_stride(weighted: ModelScorer) -> None:
    image = picture(noise(96, 96) ** np.linspace(0.2, 4, 96, dtype=np.float32))
    result, made = score_and_map(image, weighted, map_stride=8)
    finer = score(image, weighted, stride=8)
    assert (result, made.stride) == (score(image, weighted), 8)
    assert made.mean == pytest.approx(finer.score, abs=1e-4)
    assert abs(made.mean - result.score) > 0.1


def test_the_middle_of_a_window_shows_that_windows_score(scorer: ModelScorer) -> None:
    blocks = np.array([[0.1, 0.9, 0.4], [0.6, 0.2, 0.8]])
    made = quality_map(picture(np.kron(blocks, np.ones((32, 32))) + 0.01 * noise(64, 96)), scorer)
    np.testing.assert_allclose(made.score_HW[16::32, 16::32], 100 * blocks, atol=2)


@pytest.mark.parametrize("stride", [32, 16])
def test_no_edge_of_a_window_is_seen(scorer: ModelScorer, stride: int) -> None:
    pixels = noise(256, 256, seed=1) * np.kron(noise(8, 8, seed=2), np.ones((32, 32)))
    made = quality_map(picture(pixels), scorer, stride=stride).score_HW
    steps = np.concatenate([np.abs(np.diff(made, axis=axis)).ravel() for axis in (0, 1)])
    assert steps.max() < 0.07 * np.ptp(made)  # a raised cosine over 64 pixels climbs by pi/64 of a jump at most


def test_where_one_quarter_is_made_worse_the_map_falls_there_and_nowhere_far_from_it(scorer: ModelScorer) -> None:
    pixels = 0.5 + 0.2 * noise(128, 128)
    worse = pixels.copy()
    worse[:64, 64:] -= 0.4
    before, after = (quality_map(picture(each), scorer) for each in (pixels, worse))
    change = after.score_HW - before.score_HW
    assert change[:48, 80:].max() < -30
    np.testing.assert_allclose(change[80:, :48], 0, atol=1e-3)
    assert change.max() < 1e-3


def test_a_real_slice_with_noise_in_one_quarter_is_worse_there(ct_study: Path) -> None:
    image = read_image(ct_study / "images" / "abdomen_set01_NDCT.png")
    quarter = np.zeros(image.pixels.shape, bool)
    quarter[256:, 256:] = True
    grain = np.random.default_rng(0).normal(0, 0.08, image.pixels.shape)
    noisy = from_array(np.clip(image.pixels + grain * quarter, 0, 1), mask=image.mask)
    before, after = (quality_map(each, load_scorer()) for each in (image, noisy))
    change = after.score_HW - before.score_HW
    inside = np.zeros_like(quarter)
    inside[272:, 272:] = True  # half a window within
    assert np.nanmean(change[inside]) < -10
    np.testing.assert_allclose(np.nan_to_num(change[:224, :224]), 0, atol=6)  # the slope moves with the image's score


def test_only_judged_windows_are_shown(scorer: ModelScorer) -> None:
    mask = np.zeros((128, 128), bool)
    mask[32:96, 32:96] = True
    made = quality_map(picture(noise(128, 128), mask), scorer)
    np.testing.assert_array_equal(np.isnan(made.score_HW), ~mask)


def test_a_scorer_without_windows_has_no_map() -> None:
    with pytest.raises(SaqmError, match="biqaa judges the picture as a whole: it has no quality map"):
        quality_map(picture(noise(64, 64)), load_scorer("biqaa"))


# Units


def curve(raw: np.ndarray) -> np.ndarray:
    return 100 / (1 + np.exp(-6 * (np.asarray(raw) - 0.5)))


values = st.lists(st.tuples(st.floats(0, 1), st.floats(0.05, 20)), min_size=1, max_size=40)


@given(values)
def test_windows_in_score_units_average_to_the_images_score_and_keep_their_order(
    pairs: list[tuple[float, float]],
) -> None:
    raw, weight = map(np.array, zip(*pairs, strict=True))
    pooled = float(np.average(raw, weights=weight))
    made = in_score_units(raw, pooled, curve)
    assert np.average(made, weights=weight) == pytest.approx(float(curve(pooled)), abs=1e-6)
    assert (np.diff(made[raw.argsort()]) >= -1e-9).all()


def test_of_a_straight_scale_the_windows_are_exact() -> None:
    raw = noise(20)
    np.testing.assert_allclose(
        in_score_units(raw, 0.3, lambda raw: 10 + 25 * np.asarray(raw)), 10 + 25 * raw, rtol=1e-6
    )


def test_of_a_curve_no_straight_line_through_the_images_score_comes_nearer() -> None:
    raw = noise(50, seed=3)
    pooled = float(raw.mean())
    made, own = in_score_units(raw, pooled, curve), curve(raw)
    error = np.square(made - own).sum()
    slope = (made[0] - curve(pooled)) / (raw[0] - pooled)
    for other in (0.99 * slope, 1.01 * slope):
        assert np.square(curve(pooled) + other * (raw - pooled) - own).sum() > error


def test_equal_windows_all_have_the_images_score() -> None:
    np.testing.assert_allclose(in_score_units(np.full(3, 0.25), 0.25, curve), curve(0.25))


# Attention


@pytest.fixture
def attentive(tmp_path: Path, toy_model: Path, header: ModelHeader) -> ModelScorer:
    """The toy, beside it weights of a network that attends."""
    pytest.importorskip("torch")
    from saqm.export import save_network
    from saqm.network import SAQM

    network = SAQM.from_header(header)
    network.gamma.data.fill_(0.25)
    save_network(network, header, tmp_path / "toy.safetensors")
    return load_scorer(toy_model)


def test_attention_is_that_of_the_position_under_the_pixel(attentive: ModelScorer) -> None:
    import torch

    from saqm.modelfile import read_model, unpack
    from saqm.network import SAQM

    image = picture(noise(96, 64))
    made = attention(image, attentive, (70, 9))
    assert (made.corner, made.side, made.query, made.gamma) == ((64, 0), 32, (1, 2), 0.25)
    assert made.weight_QQ.sum() == pytest.approx(1)

    model = read_model(attentive.engine.path.with_suffix(".safetensors"))
    network = SAQM.from_header(model.header)
    network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in unpack(model).items()})
    window = torch.from_numpy(image.pixels[64:, :32]).expand(1, 3, 32, 32)
    with torch.inference_mode():
        _, wanted = network.eval().attend(window)
    np.testing.assert_allclose(made.weight_QQ.ravel(), wanted[0, 1 * 8 + 2], rtol=1e-4)


def test_of_overlapping_windows_the_one_around_the_pixel_is_taken(attentive: ModelScorer) -> None:
    assert attention(picture(noise(70, 70)), attentive, (55, 55)).corner == (38, 38)  # 32 to 63 holds it, too


def test_attention_is_refused_where_there_is_none(attentive: ModelScorer) -> None:
    mask = np.zeros((96, 96), bool)
    mask[:, :40] = True
    image = picture(noise(96, 96), mask)
    with pytest.raises(
        SaqmError, match=r"pixel \(50, 80\) lies in no window that is judged: choose one inside the mask"
    ):
        attention(image, attentive, (50, 80))
    with pytest.raises(SaqmError, match=r"no pixel \(96, 0\) in a picture of 96 rows and 96 columns"):
        attention(image, attentive, (96, 0))
    with pytest.raises(SaqmError, match="biqaa judges the picture as a whole: it has no windows"):
        attention(image, load_scorer("biqaa"), (0, 0))


def test_attention_needs_the_weights_of_that_very_model(attentive: ModelScorer, header: ModelHeader) -> None:
    image, weights = picture(noise(64, 64)), attentive.engine.path.with_suffix(".safetensors")
    from saqm.export import save_network
    from saqm.network import SAQM

    save_network(SAQM.from_header(header), header.model_copy(update={"version": "0.2"}), weights)
    with pytest.raises(ModelFileError, match=r"toy 0\.2, not the weights of toy 0\.1 beside it"):
        attention(image, attentive, (3, 3))
    weights.unlink()
    with pytest.raises(ModelFileError, match=r"attention needs the model's weights, toy\.safetensors, beside it"):
        attention(image, attentive, (3, 3))


def test_attention_without_torch_names_the_install_line(
    attentive: ModelScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_engine(attentive.engine.path).name == "onnx"  # which needs none
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"attention needs torch: pip install 'saqm\[train\]'"):
        attention(picture(noise(64, 64)), attentive, (3, 3))

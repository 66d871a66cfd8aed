"""An image's score from some of its windows: spread over the picture, with an error that is true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saqm.batch import Settings, score_many
from saqm.errors import SaqmError
from saqm.image import Image, from_array
from saqm.patches import CHUNK, pool
from saqm.sampling import LEAST, order, standard_error
from saqm.scorer import load_scorer, score


@pytest.fixture
def large() -> Image:
    """1,600 windows, noisier from left to right."""
    random = np.random.default_rng(0)
    noise = random.standard_normal((1280, 1280)) * np.linspace(2, 60, 1280)
    return from_array(np.clip(128 + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("count", [1, 5, CHUNK, CHUNK + 1, 1000])
def test_every_window_has_its_turn_once(count: int) -> None:
    assert sorted(order(count, 3)) == list(range(count))
    np.testing.assert_array_equal(order(count, 3), order(count, 3))


def test_a_first_part_is_spread_over_the_picture() -> None:
    first = set(order(1000, 0)[:CHUNK])
    assert [len(first & set(run)) for run in np.array_split(np.arange(1000), CHUNK)] == [1] * CHUNK
    assert list(order(1000, 0)) != list(order(1000, 1))


def test_the_standard_error_is_what_samples_really_err_by() -> None:
    random = np.random.default_rng(1)
    scores, weights = random.normal(0.5, 0.1, 400), random.uniform(0.2, 3, 400)
    true = pool(scores, weights)
    drawn = [random.permutation(400)[:100] for _ in range(2000)]
    erred = np.sqrt(np.mean([(pool(scores[one], weights[one]) - true) ** 2 for one in drawn]))
    told = np.mean([standard_error(scores[one], weights[one], 400) for one in drawn])
    assert told == pytest.approx(erred, rel=0.08)
    assert standard_error(scores, weights, 400) == 0


def test_a_tolerance_saves_windows_and_is_kept(large: Image, toy_model: Path) -> None:
    scorer = load_scorer(toy_model, threads=1)
    whole = score(large, scorer)
    loose, tight = (score(large, scorer, tolerance=points) for points in (0.5, 0.05))
    assert whole.score is not None
    assert whole.preparation is not None
    assert "sampled" not in whole.preparation
    for found, points in ((loose, 0.5), (tight, 0.05)):
        assert found.score is not None
        assert found.preparation is not None
        sampled = found.preparation["sampled"]
        assert isinstance(sampled, dict)
        assert sampled["of"] == 1600
        assert LEAST <= sampled["windows"] <= 1600
        assert sampled["standard_error"] <= points
        assert found.patches == {"used": sampled["windows"], "masked": 0}
        assert abs(found.score - whole.score) < 4 * points
    assert loose.patches is not None
    assert tight.patches is not None
    assert loose.patches["used"] < tight.patches["used"]
    assert score(large, scorer, tolerance=0.5) == loose  # the picture's own bytes decide which windows


def test_no_error_left_means_all_windows_and_the_same_score(toy_model: Path) -> None:
    scorer = load_scorer(toy_model, threads=1)
    image = from_array(np.random.default_rng(5).random((160, 160), np.float32))
    exact = score(image, scorer, tolerance=1e-9)
    assert exact.score_raw == pytest.approx(score(image, scorer).score_raw, rel=1e-12)
    assert exact.preparation is not None
    assert exact.preparation["sampled"]["standard_error"] == 0  # type: ignore[index]


@pytest.mark.parametrize("points", [0.0, -1.0, float("nan")])
def test_a_tolerance_that_is_none_is_refused(large: Image, toy_model: Path, points: float) -> None:
    with pytest.raises(SaqmError, match="points of the score, above 0, are wanted"):
        score(large, load_scorer(toy_model), tolerance=points)


def test_whoever_has_no_windows_or_needs_all_refuses(large: Image, toy_model: Path, tmp_path: Path) -> None:
    with pytest.raises(SaqmError, match="it has no windows to leave out"):
        score(large, load_scorer("radial-index"), tolerance=1.0)
    settings = Settings(model=toy_model, tolerance=1.0)
    with pytest.raises(SaqmError, match="a quality map needs every window"):
        list(score_many([], replace(settings, map_folder=tmp_path)))
    with pytest.raises(SaqmError, match="a tolerance is for models"):
        list(score_many([], replace(settings, model="radial-index")))

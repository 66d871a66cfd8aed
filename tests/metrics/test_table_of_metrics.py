"""The one table of the metrics: what it says is what the functions are."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from saqm.errors import ImageError, NotScorable
from saqm.metrics import METRICS, Metric
from saqm.metrics.parameters import SHAPES, Parameters, load_parameters, shipped_parameters

TRAINED = [metric for metric in METRICS.values() if metric.parameters is not None]
FREE = [metric for metric in METRICS.values() if metric.parameters is None]
each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
each_trained = pytest.mark.parametrize("metric", TRAINED, ids=lambda metric: metric.name)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(float)


def made_parameters(kind: str) -> Parameters:
    """Parameters that are no good but can be used."""
    rng = np.random.default_rng(0)
    arrays = {
        "niqe": {"mean": np.zeros(36), "covariance": np.eye(36)},
        "brisque": {
            "support_vectors": rng.uniform(-1, 1, (5, 36)), "coefficients": rng.normal(size=5), "gamma": 0.05,
            "rho": -10.0, "minimum": np.zeros(36), "maximum": np.ones(36), "lower": -1.0, "upper": 1.0,
        },
        "bliinds": {"mean": np.zeros(25), "inverse_covariance": np.eye(25)},
    }  # fmt: skip
    return Parameters(kind, f"{kind}-toy", {name: np.asarray(array) for name, array in arrays[kind].items()})


def value(metric: Metric, pixels: np.ndarray, mask: np.ndarray | None = None) -> float:
    given = () if metric.parameters is None else (made_parameters(metric.parameters),)
    return metric.function(pixels, *given, mask=mask, **metric.options)


def test_the_eight_metrics_of_the_paper_are_there() -> None:
    assert list(METRICS) == [
        "brisque", "niqe", "niqe-k", "bliinds", "biqaa", "sure-noise", "marziliano", "radial-index",
    ]  # fmt: skip
    assert all(metric.name == name for name, metric in METRICS.items())


def test_directions_and_reconstructions_are_those_of_the_sources() -> None:
    assert {name for name, metric in METRICS.items() if metric.higher_is_better} == {"biqaa", "radial-index"}
    assert {name for name, metric in METRICS.items() if metric.exact == "reconstruction"} == {
        "niqe-k", "sure-noise", "radial-index",
    }  # fmt: skip
    assert METRICS["niqe"].direction == "lower is better"
    assert METRICS["biqaa"].direction == "higher is better"


@each_metric
def test_a_line_says_what_its_function_takes(metric: Metric) -> None:
    taken = inspect.signature(metric.function).parameters
    assert ("parameters" in taken) == (metric.parameters is not None) == (metric.default is not None)
    assert ("snap" in taken) == metric.takes_snap
    options = {name: p.default for name, p in taken.items() if name not in ("pixels", "parameters", "mask", "snap")}
    assert options == metric.options  # all of them, with the values that the function itself has


@each_metric
def test_a_line_is_filled_in(metric: Metric) -> None:
    assert all((metric.title, metric.range, metric.source, metric.smallest))
    assert metric.parameters is None or metric.parameters in SHAPES


@each_trained
def test_the_default_parameters_come_with_the_package(metric: Metric) -> None:
    assert metric.default in shipped_parameters()
    load_parameters(metric.default or "").expect(metric.parameters or "")


@each_metric
def test_every_metric_gives_one_finite_number_and_a_full_mask_changes_no_bit(metric: Metric) -> None:
    pixels = noise(192, 200)
    found = value(metric, pixels)
    assert isinstance(found, float)
    assert np.isfinite(found)
    assert value(metric, pixels, np.ones(pixels.shape, bool)) == found
    assert value(metric, pixels.astype(np.uint8)) == found


@each_metric
def test_the_features_are_finite(metric: Metric) -> None:
    if metric.features is None:
        assert metric.name in ("sure-noise", "marziliano", "radial-index")
    else:
        features = metric.features(noise(192, 200))
        assert features.size
        assert np.isfinite(features).all()


@each_metric
def test_too_small_all_masked_and_misshapen_pictures_are_refused_by_all(metric: Metric) -> None:
    with pytest.raises(NotScorable, match=r"15x40 pixels to judge; it needs at least"):
        value(metric, noise(15, 40))
    with pytest.raises(NotScorable, match="the whole picture is masked"):
        value(metric, noise(192, 200), np.zeros((192, 200), bool))
    with pytest.raises(ImageError, match=r"shape \(40,\)"):
        value(metric, noise(40))
    with pytest.raises(ImageError, match="NaN or infinite pixels"):
        value(metric, np.full((192, 200), np.nan))

"""The map of features: its plane is the principal one, and nothing that does not fit is drawn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from saqm.errors import MissingExtra, OutputError
from saqm.outputs.feature_map import COLOURS, feature_map, plane, thirds

Features = dict[str, NDArray[np.float64]]


@pytest.fixture
def apart() -> Features:
    """Two domains, 5 apart along the first of six features, which vary by 1."""
    rng = np.random.default_rng(0)
    shift = np.array([5.0, 0, 0, 0, 0, 0])
    return {"ct-abdomen": rng.normal(size=(30, 6)), "ct-brain": rng.normal(size=(50, 6)) + shift}


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        counted = picture.convert("RGB").getcolors(1_000_000)
    assert counted is not None
    return {colour for _, colour in counted if isinstance(colour, tuple)}


def near(path: Path, colour: str) -> bool:
    """Whether a picture has a pixel close to a colour at 0.7 on white."""
    wanted = [255 - 0.7 * (255 - int(colour[i : i + 2], 16)) for i in (1, 3, 5)]
    return any(max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 3 for found in colours(path))


def test_the_first_axis_is_where_the_domains_differ(apart: Features) -> None:
    points, (first, second) = plane(apart)
    gap = points["ct-brain"][:, 0].mean() - points["ct-abdomen"][:, 0].mean()
    assert gap == pytest.approx(5, abs=0.4)
    assert 0.4 < first < 0.75
    assert second < 0.2


def test_the_plane_is_that_of_the_covariance_s_eigenvectors(apart: Features) -> None:
    """With as many rows in each domain it is ordinary PCA of all rows."""
    same = {domain: values[:30] for domain, values in apart.items()}
    points, shares = plane(same)
    rows = np.concatenate(list(same.values()))
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    expected = (rows - rows.mean(0)) @ vectors[:, [-1, -2]]
    found = np.concatenate(list(points.values()))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(shares, values[[-1, -2]] / values.sum())


def test_a_domain_counts_alike_however_many_its_images(apart: Features) -> None:
    points, shares = plane(apart)
    thrice, same = plane({"ct-abdomen": np.repeat(apart["ct-abdomen"], 3, 0), "ct-brain": apart["ct-brain"]})
    np.testing.assert_allclose(thrice["ct-brain"], points["ct-brain"], atol=1e-9)
    np.testing.assert_allclose(same, shares)


def test_the_signs_of_the_axes_are_fixed(apart: Features) -> None:
    points, _ = plane(apart)
    turned, _ = plane({domain: values[::-1] for domain, values in apart.items()})
    for domain in apart:
        np.testing.assert_allclose(turned[domain][::-1], points[domain], atol=1e-9)


def test_thirds_are_by_rank_and_ties_stay_together() -> None:
    assert thirds(np.array([30, 10, 20])).tolist() == [2, 0, 1]
    assert np.bincount(thirds(np.exp(np.arange(99.0) / 9))).tolist() == [33, 33, 33]
    assert thirds(np.array([1, 1, 1, 1, 5, 6])).tolist() == [1, 1, 1, 1, 2, 2]
    assert thirds(np.full(4, 3.0)).tolist() == [1, 1, 1, 1]


def test_the_map_has_a_panel_each_for_before_and_after_in_the_domains_colours(apart: Features, tmp_path: Path) -> None:
    standard = {domain: (values - values.mean(0)) / values.std(0) for domain, values in apart.items()}
    quality = {domain: np.arange(len(values)) / 7 for domain, values in apart.items()}
    feature_map(apart, tmp_path / "one.png")
    feature_map(apart, tmp_path / "two.png", after=standard, quality=quality)
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width == 2 * one.width
    for name in ("one", "two"):
        assert [near(tmp_path / f"{name}.png", colour) for colour in COLOURS] == [True, True, False, False]


def test_the_same_features_give_the_same_file(apart: Features, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        feature_map(apart, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


NAN = np.where(np.eye(4, dtype=bool), np.nan, 1.0)


@pytest.mark.parametrize(
    ("features", "more", "message"),
    [
        ({}, {}, "0 domains; a map of features has colours for 1 to 4"),
        ({"a": np.ones(4)}, {}, r"features of 'a' are \(4,\); wanted \(images, features\)"),
        ({"a": np.ones((4, 1))}, {}, r"features of 'a' are \(4, 1\); wanted"),
        ({"a": NAN}, {}, "features of 'a' hold NaN or infinity"),
        ({"a": np.ones((4, 2)), "b": np.ones((4, 3))}, {}, "different numbers of features"),
        ({"a": np.full((7, 3), 0.1)}, {}, "all images have the same features"),
        ({"a": np.eye(4)}, {"after": {"a": np.eye(4)[:3]}}, "not of the same domains and images"),
        ({"a": np.eye(4)}, {"after": {"b": np.eye(4)}}, "not of the same domains and images"),
        ({"a": np.eye(4)}, {"quality": {"a": np.ones(3)}}, "one number for each image"),
        ({"a": np.eye(4)}, {"quality": {"a": NAN[0]}}, "quality holds NaN"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(
    features: Features, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=message):
        feature_map(features, tmp_path / "x.png", **more)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(
    apart: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"a map of features needs matplotlib: pip install 'saqm\[plot\]'"):
        feature_map(apart, tmp_path / "x.png")

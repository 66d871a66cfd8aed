"""The scatter plot."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saqm.errors import MissingExtra
from saqm.evaluate import Evaluation, evaluate_predictions
from saqm.manifest import Row
from saqm.outputs.scatter import scatter


def evaluation(*domains: str) -> Evaluation:
    rows = [
        Row(Path(f"/x/{domain}{place}.png"), 1 + place % 5, f"{domain}-{place // 5}", domain, method=f"m{place % 5}")
        for domain in domains
        for place in range(40)
    ]
    noise = np.random.default_rng(0).normal(0, 0.5, len(rows))
    predictions = [float((row.score or 0) + error) for row, error in zip(rows, noise, strict=True)]
    return evaluate_predictions(rows, predictions, seed=0, replicates=50)


def test_the_scatter_is_a_picture_with_a_panel_a_domain(tmp_path: Path) -> None:
    scatter(evaluation("ct"), tmp_path / "one.png")
    scatter(evaluation("ct", "mr"), tmp_path / "two.png")
    one, two = (Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("one", "two"))
    assert two.width > 1.7 * one.width
    assert len(one.getcolors(1_000_000)) > 100


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"a scatter plot needs matplotlib: pip install 'saqm\[plot\]'"):
        scatter(evaluation("ct"), tmp_path / "x.png")


def test_a_reader_s_error_is_a_band_around_the_diagonal(tmp_path: Path) -> None:
    made = evaluation("ct")
    for name, error in (("none", {}), ("half", {"ct": 0.5}), ("one", {"ct": 1.0}), ("other", {"mr": 1.0})):
        scatter(made, tmp_path / f"{name}.png", of_one_reader=error)
    band = 0.9 * 255  # the grey of the band
    shares = {}
    for path in tmp_path.glob("*.png"):
        grey = np.asarray(Image.open(path).convert("RGB"), float)
        shares[path.stem] = float((np.abs(grey - band).max(-1) < 1.5).mean())
    assert shares["none"] == shares["other"] < 0.01
    assert shares["one"] > 1.5 * shares["half"] > 0.05

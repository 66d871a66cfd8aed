"""Curves of adaptation: drawn where there is something to draw, in colours that can be told apart."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saqm.errors import MissingExtra, OutputError
from saqm.evaluate import Result
from saqm.outputs.curves import label_curve, learning_curves
from saqm.outputs.feature_map import COLOURS


def point(share: float, srocc: float | None) -> tuple[float, Result]:
    interval = None if srocc is None else (srocc - 0.1, srocc + 0.1)
    return share, Result("b", f"{share}", 9, 3, srocc=srocc, srocc_interval=interval)


RISING = [point(0, 0.4), point(0.05, 0.5), point(0.25, None), point(1, 0.8)]
RUNS = {"one": np.linspace(0, 1, 30).reshape(3, 10), "two": np.ones((2, 5))}


def pixels(path: Path, colour: str) -> int:
    """How many pixels of a picture are of a colour."""
    with Image.open(path) as picture:
        found = np.asarray(picture.convert("RGB"), int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(found - wanted).max(-1) < 4).sum())


def test_the_label_curve_has_a_panel_a_direction_and_leaves_out_what_is_undefined(tmp_path: Path) -> None:
    label_curve({"a → b": RISING}, tmp_path / "one.png", lines={"a → b": {"oracle": 0.6}})
    label_curve({"a → b": RISING, "b → a": RISING[:2]}, tmp_path / "two.png", lines={})
    label_curve({"a → b": [point(0, None), point(1, None)]}, tmp_path / "none.png", lines={})
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width == 2 * one.width
    assert pixels(tmp_path / "one.png", COLOURS[0]) > 300
    assert pixels(tmp_path / "none.png", COLOURS[0]) == 0


def test_learning_curves_have_a_colour_a_configuration_and_a_row_a_quantity(tmp_path: Path) -> None:
    learning_curves({"a → b": {"MMD": RUNS}}, tmp_path / "one.png")
    learning_curves({"a → b": {"MMD": RUNS, "accuracy": {"one": RUNS["one"]}}}, tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.height > 1.5 * one.height
        assert two.width == one.width
    assert [pixels(tmp_path / "one.png", colour) > 100 for colour in COLOURS] == [True, True, False, False]


def test_the_same_curves_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        learning_curves({"a → b": {"MMD": RUNS}}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="b → a: no share of opinions to draw"):
        label_curve({"a → b": RISING, "b → a": []}, tmp_path / "x.png", lines={})
    with pytest.raises(OutputError, match="runs of 0 configurations; learning curves have colours for 1 to 4"):
        learning_curves({"a → b": {}}, tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"a plot of curves needs matplotlib: pip install 'saqm\[plot\]'"):
        learning_curves({"a → b": {"MMD": RUNS}}, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())

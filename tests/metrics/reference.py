"""The reference set of the metrics: 32 pictures with the scores and features that the authors' programs gave.

    from tests.metrics import reference

    @pytest.mark.parametrize("name", reference.IMAGES)
    def test_it(name: str) -> None:
        value = brisque(reference.pixels(name), parameters)
        assert value == pytest.approx(reference.score(name, "BRISQUE", "LIVE release features"), rel=1e-6)

It is no part of the project: whatever reads it skips, with the reason, where SAQM_SHARED does not lead to it.
"""

from __future__ import annotations

import csv
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

IMAGES = [
    "astronaut_rgb", "brick", "camera", "camera_blur0.5", "camera_blur2", "camera_blur4", "camera_jpeg10",
    "camera_median3", "camera_noise25", "camera_noise5", "chelsea_rgb", "china_rgb", "coins", "ct_smooth",
    "ct_smooth_blur2", "ct_smooth_median5", "flower_rgb", "moon", "mr_abdomen", "page", "syn_checker8", "syn_const",
    "syn_noise25", "syn_ramp10", "us_j2k", "us_palette", "us_tissue", "us_tissue_blur0.5", "us_tissue_blur2",
    "us_tissue_jpeg50", "us_tissue_median7", "us_tissue_noise10",
]  # fmt: skip

_OFFICIAL = {
    "niqe": "niqe/modelparameters.mat",
    "brisque": "brisque/allmodel",  # allrange stands beside it
    "brisque-ranges": "brisque/allrange",
    "bliinds": "bliinds2/parameters_from_training.mat",
}


class Tolerance(NamedTuple):
    """What the order of summation does to a picture's scores: NaN where they are undefined."""

    niqe: float
    brisque: float
    flat_fraction: float

    def unsnapped(self, metric: str, score: float) -> float:
        """How far an unsnapped NIQE or BRISQUE ("niqe", "brisque") may lie from the reference score."""
        own = 1e-6 * abs(score) if self.flat_fraction < 1e-4 else 1e-2
        return own + 3 * float(getattr(self, metric))


def folder(*parts: str) -> Path:
    """A file or folder below SAQM_SHARED/data; skips the test where the reference data are not at hand."""
    root = Path(__file__).parents[2]
    shared = root / os.environ.get("SAQM_SHARED", "../shared")
    if not (shared / "data").is_dir():
        pytest.skip(f"reference data not at hand: {shared} (set SAQM_SHARED)")
    return shared.joinpath("data", *parts)


@cache
def pixels(name: str) -> NDArray[np.uint8]:
    """The stored samples of a picture, (H, W) or (H, W, 3) on 0..255, read-only."""
    with PIL.Image.open(folder("metric_reference", "images", f"{name}.png")) as picture:
        array: NDArray[np.uint8] = np.array(picture)
    array.flags.writeable = False  # shared by all tests of a run
    return array


def score(name: str, metric: str, implementation_prefix: str) -> float:
    """The one row of scores.csv whose metric is this and whose implementation begins so; NaN = undefined."""
    found = [float(s) for n, m, i, s in _scores() if (n, m) == (name, metric) and i.startswith(implementation_prefix)]
    assert len(found) == 1, f"{len(found)} rows for {name}, {metric}, {implementation_prefix!r}"
    return found[0]


@cache
def features(table: str) -> dict[str, dict[str, float]]:
    """A table of features ("niqe_mean_features", say): picture -> column -> value; an empty cell is NaN."""
    return {
        row.pop("image").removesuffix(".png"): {column: float(value or "nan") for column, value in row.items()}
        for row in _rows("features", f"{table}.csv")
    }


def tolerance(name: str) -> Tolerance:
    """The row of tolerances.csv."""
    return _tolerances()[name]


def official(name: str) -> Path:
    """The path of the authors' parameter file: "niqe", "brisque" or "brisque-ranges", "bliinds"."""
    return folder("official_params", *_OFFICIAL[name].split("/"))


def _rows(*parts: str) -> list[dict[str, str]]:
    with folder("metric_reference", *parts).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@cache
def _scores() -> list[tuple[str, str, str, str]]:
    return [
        (row["image"].removesuffix(".png"), row["metric"], row["implementation"], row["score"])
        for row in _rows("scores.csv")
    ]


@cache
def _tolerances() -> dict[str, Tolerance]:
    return {
        row.pop("image").removesuffix(".png"): Tolerance(*(float(value or "nan") for value in row.values()))
        for row in _rows("tolerances.csv")
    }

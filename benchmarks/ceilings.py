"""What can be reached on the CT reader study without our network: `make ceilings`, a minute or two.

Knowing the denoiser, hand-made statistics of windows (blind), and statistics relative to the normal-dose twin (which no
blind metric has), on the folds that the shipped model was judged on. Reads the study below SAQM_SHARED; writes
benchmarks/results/ceilings.csv and .md. The regressions and their settings were tried on these same images: the best of
a group is a little kind to it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from saqm.datasets import ct_reader_study
from saqm.evaluate import method_oracle
from saqm.image import read_image
from saqm.manifest import Fold, Manifest, folds
from saqm.patches import Preparation, luminance
from saqm.pretrain import band_planes, differences, judged_corners, statistics
from saqm.statistics import srocc
from saqm.texture import STRIDE, mean_and_sd, padded_windows

ROOT = Path(__file__).parents[1]
STUDY = Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")).resolve() / "data" / "ct_reader_study"
REGRESSIONS: dict[str, Callable[[], object]] = {
    "SVR, C 1": lambda: SVR(C=1, epsilon=0.1),
    "SVR, C 10": lambda: SVR(C=10, epsilon=0.1),
    "ridge, 10": lambda: Ridge(10),
}


def features(manifest: Manifest) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and sd over an image's windows of 42 statistics (I, 84), and of 9 differences to its twin (I, 18)."""
    twins = {row.scene: row for row in manifest.rows if row.reference}
    blind, relative = [], []
    for row in manifest.rows:
        image = read_image(row.path)
        corners = judged_corners(image, Preparation(), STRIDE)
        own, twin = (padded_windows(luminance(one), corners) for one in (image, read_image(twins[row.scene].path)))
        bands = band_planes(own)
        blind.append(mean_and_sd(statistics(own, bands)))
        relative.append(mean_and_sd(differences(bands, band_planes(twin))))
    return np.array(blind), np.array(relative)


def out_of_fold(
    manifest: Manifest, divided: tuple[Fold, ...], given: NDArray[np.float64], make: Callable[[], object]
) -> NDArray[np.float64]:
    """Predictions of every row from the other side of its fold, each organ by itself."""
    scores = np.array([row.score for row in manifest.rows])
    domains = np.array([row.domain for row in manifest.rows])
    found = np.full(len(scores), np.nan)
    for fold in divided:
        for domain in set(domains):
            train = [i for i in fold.train if domains[i] == domain]
            test = [i for i in fold.test if domains[i] == domain]
            if test:
                machine = make_pipeline(StandardScaler(), make()).fit(given[train], scores[train])
                found[test] = machine.predict(given[test])
    return found


def rows(manifest: Manifest) -> Iterator[tuple[str, str, str, int, float]]:
    """Test, organ, predictor, images, SROCC."""
    blind, relative = features(manifest)
    scores = np.array([row.score for row in manifest.rows])
    judged = np.array([row.judged for row in manifest.rows])
    domains = np.array([row.domain for row in manifest.rows])
    methods = np.array([str(row.method) for row in manifest.rows])
    oracle = np.array([np.nan if v is None else v for v in method_oracle(manifest.rows)])
    known = np.array([
        scores[(methods == methods[i]) & (domains == domains[i]) & judged].mean() if judged[i] else np.nan
        for i in range(len(scores))
    ])  # fmt: skip
    scenes, cells = folds(manifest, 4, 0), folds(manifest, 3, 0, by=("scene", "method"))
    predictors = [
        ("new scenes", "oracle: mean of the denoiser on other scenes", oracle),
        ("new scenes", "mean of the denoiser, the judged scene among them", known),
    ]
    for test, divided in (("new scenes", scenes), ("new scenes and denoisers, 9 cells", cells)):
        for name, make in REGRESSIONS.items():
            predictors.append((test, f"84 statistics, blind: {name}", out_of_fold(manifest, divided, blind, make)))
        for name, make in REGRESSIONS.items():
            predictors.append(
                (test, f"18 differences to the twin: {name}", out_of_fold(manifest, divided, relative, make))
            )
    for test, name, values in predictors:
        for domain in sorted(set(domains)):
            kept = judged & (domains == domain) & np.isfinite(values)
            yield test, domain, name, int(kept.sum()), srocc(values[kept], scores[kept])


def main() -> None:
    torch.set_num_threads(1)
    made = list(rows(ct_reader_study(STUDY)))
    with (ROOT / "benchmarks" / "results" / "ceilings.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["test", "domain", "predictor", "images", "srocc"])
        table.writerows([*row[:4], f"{row[4]:.4f}"] for row in made)
    for row in made:
        print(*row[:4], f"{row[4]:.3f}", sep=" | ")


if __name__ == "__main__":
    main()

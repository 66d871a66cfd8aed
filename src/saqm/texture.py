"""Hand-made statistics of windows and a ridge regression on them: what is reached without a network.

Axes: I images, S statistics of an image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saqm.errors import NotScorable, TrainingError
from saqm.image import Image
from saqm.patches import MARGIN, Preparation, luminance
from saqm.pretrain import band_planes, judged_corners, statistics
from saqm.statistics import Floats

STRIDE = 16  # pixels between windows; ours, half a window
RIDGE = 10.0  # penalty on standardised statistics; ours, that of benchmarks/ceilings.py


def texture_statistics(image: Image) -> Floats:
    """Mean, then sd, over the judged windows of an image, of the 42 statistics that towers are pre-trained on: (84,).

    No opinion, twin or method is read. Raises NotScorable for an image without two judged windows.
    """
    corners = judged_corners(image, Preparation(), STRIDE)
    if len(corners) < 2:
        raise NotScorable(f"{len(corners)} judged windows; statistics over windows want 2 or more")
    padded = padded_windows(luminance(image), corners)
    return mean_and_sd(statistics(padded, band_planes(padded)))


def padded_windows(grey_HW: NDArray[np.float32], corners_N2: NDArray[np.int_]) -> Tensor:
    """Windows with the margin that their bands see, (N, P + 2 M, P + 2 M); borders repeat the edge pixel."""
    padded = np.pad(grey_HW, MARGIN, mode="edge")
    side = Preparation().patch + 2 * MARGIN
    return torch.from_numpy(np.stack([padded[top : top + side, left : left + side] for top, left in corners_N2]))


def mean_and_sd(values_NS: Tensor) -> Floats:
    """Mean, then sd, over windows: (2 S,)."""
    return np.concatenate([values_NS.mean(0).numpy(), values_NS.std(0).numpy()]).astype(np.float64)


def standardised(values_IS: Floats, by_IS: Floats) -> Floats:
    """Statistics less the mean of others, over their sd; one that is the same in all of those becomes 0."""
    sd = by_IS.std(0)
    made: Floats = np.divide(values_IS - by_IS.mean(0), sd, out=np.zeros_like(values_IS), where=sd > 0)
    return made


def fit_ridge(values_IS: Floats, scores_I: Floats) -> tuple[Floats, float]:
    """Weights (S,) and offset of a ridge regression of scores on standardised statistics.

    Raises TrainingError for fewer than two scores.
    """
    if len(scores_I) < 2:
        raise TrainingError(f"{len(scores_I)} scored images; a regression needs at least 2")
    mean_S, offset = values_IS.mean(0), float(scores_I.mean())
    centred_IS = values_IS - mean_S
    penalised_SS = centred_IS.T @ centred_IS + RIDGE * np.eye(values_IS.shape[1])
    weights_S = np.linalg.solve(penalised_SS, centred_IS.T @ (scores_I - offset))
    return weights_S, offset - float(mean_S @ weights_S)

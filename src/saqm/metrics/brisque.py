"""BRISQUE: how far the statistics of neighbouring pixels are from those of pictures that people scored.

A. Mittal, A. K. Moorthy, A. C. Bovik, "No-reference image quality assessment in the spatial domain", IEEE TIP 21(12),
2012, as LIVE's release has it. Exact: with the release's own parameters it gives the release's scores (evaluated in
double precision). Lower is better. With the release's parameters photographs score about -7..104; scores below 0 and
above 100 are not clamped. Far from everything it was trained on the score tends to -rho (153.591 there).

Not the authors': `mask`, `snap` (see `_nss`), and that pictures below 16 pixels on a side are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gamma

from saqm.errors import NotScorable
from saqm.metrics._nss import Floats, Mask, aggd, ggd, sample_sums, scales
from saqm.metrics._pixels import judged, luminance

if TYPE_CHECKING:
    from saqm.metrics.parameters import Parameters

_SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1))  # rows, columns
_LEAST = 64  # usable values at a scale: what the smallest picture, 16 x 16, has at half size


def brisque(pixels: ArrayLike, parameters: Parameters, *, mask: Mask | None = None, snap: bool = False) -> float:
    """BRISQUE of a picture on 0..255, (H, W) or (H, W, 3); lower is better.

    `snap` makes flat areas independent of rounding. With a mask only values whose whole 7 x 7 window is judged count.
    Raises NotScorable below 16 pixels on a side and where a product of neighbours has no negative or no positive value
    (a constant picture); ImageError for wrong pixels; ModelFileError for parameters of another metric.
    """
    parameters.expect("brisque")
    return predicted(brisque_features(pixels, mask=mask, snap=snap), parameters)


def brisque_features(pixels: ArrayLike, *, mask: Mask | None = None, snap: bool = False) -> Floats:
    """The 36 features, 18 of the picture and 18 of it at half size: of the MSCN coefficients alpha and variance; of
    their products with the neighbour right, below, below right and above right alpha, eta, left^2 and right^2.

    Raises NotScorable and ImageError as `brisque` does.
    """
    grey_HW, mask = judged(luminance(pixels), mask, "brisque")
    return np.concatenate([_of_scale(*scale) for scale in scales(grey_HW, mask, "constant", snap=snap)])


def predicted(features: Floats, parameters: Parameters) -> float:
    """The support vector regression (RBF kernel) of 36 features; ranges are extrapolated, not clipped."""
    p = parameters.arrays
    scaled = p["lower"] + (p["upper"] - p["lower"]) * (features - p["minimum"]) / (p["maximum"] - p["minimum"])
    distances = np.sum((p["support_vectors"] - scaled) ** 2, axis=1)
    return float(np.exp(-p["gamma"] * distances) @ p["coefficients"] - p["rho"])


def _of_scale(values_HW: Floats, usable_HW: Mask | None) -> Floats:
    sums = sample_sums(values_HW[None], None if usable_HW is None else usable_HW[None], _SHIFTS)[:, 0]
    if sums[0, 0] < _LEAST:
        raise NotScorable(
            f"brisque: {sums[0, 0]:.0f} windows of 7x7 pixels lie inside the mask at one scale; it needs {_LEAST}"
        )
    if not sums[1:, 1:3].all():
        raise NotScorable("brisque: products of neighbours are nowhere negative or nowhere positive; too flat")
    alpha, left, right = aggd(sums[1:])
    eta = (right - left) * gamma(2 / alpha) / gamma(1 / alpha) * np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    return np.concatenate([np.array(ggd(sums[0])), np.stack([alpha, eta, left**2, right**2], 1).ravel()])

"""NIQE: how far the statistics of a picture's blocks are from those of pristine photographs.

A. Mittal, R. Soundararajan, A. C. Bovik, "Making a completely blind image quality analyzer", IEEE SPL 20(3), 2013, as
the release utlive/niqe has it. Exact: with the release's own parameters it gives the release's scores. Lower is better,
0 and up, no upper bound: photographs about 2..19.

Not the authors': `snap` (see `_nss`), and `mask`. With a mask the blocks are those of the mask's bounding box, from its
top left corner; MSCN coefficients count where their whole 7 x 7 window is judged, products where both do (within
a block, without wrapping around), and a block counts where at least half of its values do, at both scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gamma

from saqm.errors import NotScorable
from saqm.metrics._nss import Entry, Floats, Mask, aggd, deviation, sample_sums, scales
from saqm.metrics._pixels import judged, luminance

if TYPE_CHECKING:
    from saqm.metrics.parameters import Parameters

BLOCK = 96  # pixels
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows, columns; (1, -1) has the pairs of BRISQUE's (-1, 1)
# of a block's values that have to be usable, at both scales. Measured with the released parameters on eight pictures of
# the reference set, judged inside an ellipse only: with 0.5 NIQE is within 6 % of the whole picture's, with 0.75 within
# 33 % (few blocks are left), with 0.9 two of the eight have no two blocks
LEAST_SHARE = 0.5
_LEAST_BLOCKS = 2  # of fewer there is no covariance


def niqe(pixels: ArrayLike, parameters: Parameters, *, mask: Mask | None = None, snap: bool = False) -> float:
    """NIQE of a picture on 0..255, (H, W) or (H, W, 3); lower is better.

    `snap` makes flat areas independent of rounding. Raises NotScorable below 96 pixels on a side and with fewer than
    two complete blocks of 96 x 96 (a flat block is not complete); ImageError for wrong pixels; ModelFileError for
    parameters of another metric.
    """
    parameters.expect("niqe")
    features = niqe_features(pixels, mask=mask, snap=snap)
    complete = features[~np.isnan(features).any(1)]
    if len(complete) < _LEAST_BLOCKS:
        raise NotScorable(
            f"niqe: {len(complete)} of {len(features)} blocks are complete, the others flat; it needs {_LEAST_BLOCKS}"
        )
    difference = parameters.arrays["mean"] - np.nanmean(features, 0)
    pooled = (parameters.arrays["covariance"] + np.cov(complete, rowvar=False)) / 2
    rounding = len(pooled) * np.finfo(np.float64).eps  # MATLAB's pinv takes singular values below as 0
    return float(np.sqrt(difference @ np.linalg.pinv(pooled, rcond=rounding) @ difference))


def niqe_features(pixels: ArrayLike, *, mask: Mask | None = None, snap: bool = False) -> Floats:
    """The features of each block, (blocks, 36), row by row from the top left: 18 of the picture, 18 at half size.

    Of the MSCN coefficients alpha and the mean of beta left and right; of their products with the neighbour right,
    below, below right and below left alpha, eta, beta left and beta right. A feature is NaN where the samples have no
    negative or no positive value. Raises NotScorable where fewer than two blocks can be taken, and ImageError.
    """
    grey_HW, mask = _whole_blocks(pixels, mask)
    features, shares = [], []
    for side, (values_HW, usable_HW) in zip(
        (BLOCK, BLOCK // 2), scales(grey_HW, mask, "nearest", snap=snap), strict=True
    ):
        usable_Nhw = None if usable_HW is None else _blocks(usable_HW, side)
        sums = sample_sums(_blocks(values_HW, side), usable_Nhw, _SHIFTS)
        features.append(_of_scale(sums))
        shares.append(sums[0, :, 0] / side**2)
    enough = np.min(shares, 0) >= LEAST_SHARE
    if np.count_nonzero(enough) < _LEAST_BLOCKS:
        raise NotScorable(
            f"niqe: {np.count_nonzero(enough)} blocks of {BLOCK}x{BLOCK} pixels lie inside the mask; "
            f"it needs {_LEAST_BLOCKS}"
        )
    return np.asarray(np.concatenate(features, 1)[enough])


def block_sharpness(pixels: ArrayLike) -> Floats:
    """The mean local deviation of each block in grey levels, (blocks,), in the order of `niqe_features`.

    It chooses the blocks from which parameters are fitted (Mittal 2013, sec. II.B); no score depends on it.
    """
    grey_HW, _ = _whole_blocks(pixels, None)
    return np.asarray(_blocks(deviation(grey_HW, "nearest"), BLOCK).mean((1, 2)))


def _whole_blocks(pixels: ArrayLike, mask: Mask | None) -> tuple[Floats, Mask | None]:
    """What is judged, cropped at the bottom and right to whole blocks."""
    grey_HW, mask = judged(luminance(pixels), mask, "niqe", BLOCK)
    height, width = (length // BLOCK * BLOCK for length in grey_HW.shape)
    if height * width < _LEAST_BLOCKS * BLOCK**2:
        raise NotScorable(
            f"niqe: {grey_HW.shape[0]}x{grey_HW.shape[1]} pixels to judge hold one block of {BLOCK}x{BLOCK}; "
            f"it needs {_LEAST_BLOCKS}"
        )
    return grey_HW[:height, :width], None if mask is None else mask[:height, :width]


def _blocks(picture_HW: NDArray[Entry], side: int) -> NDArray[Entry]:
    """The blocks of a picture, (N, side, side), row by row."""
    height, width = picture_HW.shape
    grid = picture_HW.reshape(height // side, side, width // side, side).swapaxes(1, 2)
    return grid.reshape(-1, side, side)


def _of_scale(sums_SN6: Floats) -> Floats:
    """The 18 features (N, 18) of a scale."""
    alpha, left, right = aggd(sums_SN6)
    spread = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    left, right = left * spread, right * spread
    eta = (right - left) * gamma(2 / alpha) / gamma(1 / alpha)
    own = np.stack([alpha[0], (left[0] + right[0]) / 2], 1)
    products = np.stack([alpha[1:], eta[1:], left[1:], right[1:]], 2)  # (4, N, 4)
    return np.concatenate([own, products.swapaxes(0, 1).reshape(len(own), -1)], 1)

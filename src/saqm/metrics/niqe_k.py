"""NIQE-K: NIQE times the kurtosis of the picture's log spectrum over its standard deviation. A reconstruction.

M. Outtas et al., "A study on the usability of opinion-unaware no-reference natural image quality metrics in the context
of medical images", ISIVC 2016. Neither its full text nor code of its authors could be had; the formula is the one that
MellevdB/photoacoustic-image-quality-assessment quotes from it, read as one number over all coefficients. Choices: the
natural logarithm, the DC coefficient included, no window, no padding, `eps`. Lower is better, 0 and up; photographs
about 10..100.

Ours: `mask`. The spectrum is that of the mask's bounding box, with whatever is outside of the mask replaced by the mean
of the judged pixels; the NIQE is the masked one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy.fft import rfft2

from saqm.errors import NotScorable, SaqmError
from saqm.metrics._nss import Mask
from saqm.metrics._pixels import judged, luminance
from saqm.metrics.niqe import BLOCK, niqe

if TYPE_CHECKING:
    from saqm.metrics.parameters import Parameters


def niqe_k(
    pixels: ArrayLike, parameters: Parameters, *, mask: Mask | None = None, snap: bool = False, eps: float = 1e-8
) -> float:
    """NIQE-K (a reconstruction) of a picture on 0..255, (H, W) or (H, W, 3), with NIQE's parameters; lower is better.

    `eps` is added to the magnitudes before the logarithm: 1e-8 as quoted; 1 keeps bins that are exactly 0 (enlarged,
    zero-filled or periodic pictures) from dominating. Raises NotScorable and ImageError as `niqe` does, and NotScorable
    for a spectrum without spread.
    """
    value = niqe(pixels, parameters, mask=mask, snap=snap)
    kurtosis, deviation = log_spectrum(pixels, mask=mask, eps=eps)
    return value * kurtosis / deviation


def log_spectrum(pixels: ArrayLike, *, mask: Mask | None = None, eps: float = 1e-8) -> tuple[float, float]:
    """Kurtosis (3 for a Gaussian) and standard deviation of ln(|FFT| + eps) over all coefficients, DC included."""
    if not eps > 0:
        raise SaqmError(f"eps is {eps}; it has to be above 0, or coefficients that are 0 have no logarithm")
    grey_HW, mask = judged(luminance(pixels), mask, "niqe-k", BLOCK)
    if mask is not None:
        grey_HW = np.where(mask, grey_HW, grey_HW[mask].mean())
    logarithms = np.log(np.abs(rfft2(grey_HW)) + eps)
    if logarithms.min() == logarithms.max():
        raise NotScorable("niqe-k: all magnitudes of the spectrum are the same")
    # rfft2 leaves out the columns that are mirror images of others: those others count twice
    weight = np.full(logarithms.shape[1], 2.0)
    weight[0] = 1
    if grey_HW.shape[1] % 2 == 0:
        weight[-1] = 1
    weight /= grey_HW.size
    logarithms -= logarithms.sum(0) @ weight
    logarithms *= logarithms
    variance = logarithms.sum(0) @ weight
    fourth = np.einsum("ij,ij->j", logarithms, logarithms) @ weight
    return float(fourth / variance**2), float(np.sqrt(variance))

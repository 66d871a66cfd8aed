"""RadialIndex: how much of the spectrum a little more blur takes away. Higher = sharper; noise raises it, too.

A RECONSTRUCTION. Chetouani, Beghdadi & Deriche, "A new reference-free image quality index for blur estimation in the
frequency domain", ISSPIT 2009 (sister paper with Mostafaoui: ISVC 2009), have published no code, and of their text only
abstract and introduction could be read: "adding blur to the test image and measuring its impact ... using radial
analysis in the frequency domain". Ours are the kernel ([1, 2, 1] / 4, periodic), rings instead of polar sampling, the
logarithm and its base, and the relative form. Range: about -3 to -1.3 (log10), 0 to 1 (relative).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from saqm.errors import NotScorable
from saqm.metrics._pixels import MIN_SIDE, judged, luminance

FLOOR = 1e-12  # keeps the logarithm of a constant picture at -12


def radial_index(pixels: ArrayLike, *, mask: NDArray[np.bool_] | None = None, relative: bool = False) -> float:
    """log10 of the mean amplitude, in grey levels, that a re-blur takes from a ring of the spectrum. Higher = sharper.

    `pixels`: (H, W) or (H, W, 3) on 0..255. `relative`: instead the share, 0 to 1, of the amplitude of all rings, which
    does not change with contrast. A constant picture gives -12, relative 0.

    `mask`: bool (H, W), True = judged. A spectrum needs a rectangle: what lies outside the mask but inside its bounding
    box is replaced by the mean of the judged pixels, so its values do not matter, but the outline of the mask does.
    Raises NotScorable below 16 pixels on a side or 256 judged pixels.
    """
    energy, lost = ring_energies(pixels, mask=mask)
    if not relative:
        return float(np.log10(lost.mean() + FLOOR))
    return float(lost.sum() / energy.sum()) if energy.any() else 0.0


def ring_energies(
    pixels: ArrayLike, *, mask: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean amplitude of each ring of the spectrum, and what of it the re-blur takes away: both (n,), in grey levels.

    Rings 1 to n = min(H, W) // 2, the last at the Nyquist frequency: without the mean, and without the corners.
    """
    centred_HW = _centred(*judged(luminance(pixels), mask, "radial_index"))
    height, width = centred_HW.shape
    n = min(height, width) // 2
    u, v = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    amplitude = np.abs(fft.rfft2(centred_HW, overwrite_x=True)) / (height * width)
    ring = np.rint(2 * n * np.hypot(u, v)).astype(np.intp).ravel()

    twice = np.full(v.shape, 2.0)  # half of a real picture's spectrum is enough, the other is its mirror image ...
    twice[0] = 1  # ... but these columns are their own
    if width % 2 == 0:
        twice[-1] = 1
    amplitude *= twice
    kept = np.cos(np.pi * u) ** 2 * np.cos(np.pi * v) ** 2  # by [1, 2, 1] / 4 along both axes

    def ring_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(ring, values.ravel())[1 : n + 1].astype(np.float64)

    sizes = ring_sums(np.broadcast_to(twice, amplitude.shape))
    return ring_sums(amplitude) / sizes, ring_sums(amplitude * (1 - kept)) / sizes


def _centred(grey_HW: NDArray[np.float64], mask_HW: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """Minus the mean of what is judged, and 0 elsewhere: exactly 0 for a constant."""
    if mask_HW is None:
        shifted: NDArray[np.float64] = (
            grey_HW - grey_HW[0, 0]
        )  # first, as the mean of a constant need not be the constant
        shifted -= shifted.mean()
        return shifted
    values = grey_HW[mask_HW]
    if len(values) < MIN_SIDE**2:
        raise NotScorable(f"radial_index: {len(values)} judged pixels; it needs at least {MIN_SIDE**2}: widen the mask")
    values -= values[0]
    centred_HW = np.zeros_like(grey_HW)
    centred_HW[mask_HW] = values - values.mean()
    return centred_HW

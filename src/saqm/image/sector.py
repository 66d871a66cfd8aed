"""The sector of an ultrasound picture among the console's text, logos, strips, scales and colour bars.

A sector is convex, grey and large: letters are thin, and what the console colours is tinted. Blood flow is coloured
too, but lies within the hull of the grey echoes around it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# All constants are ours, set on 404 abdominal frames and pydicom's bundled ultrasound files.
TINT = 8 / 255  # a pixel whose channels differ by more is coloured
LETTER_RISE = 0.15  # a stroke is this much brighter than what opening leaves of it
LEAST_TINTED = 0.0015  # a coloured component smaller than this share of the picture is blood flow
RECTANGULAR = 0.85  # share of its bounding box that a colour bar or strip fills, and blood flow does not
HULL_DIRECTIONS = 32  # half-planes that bound a sector, each from both sides
FACE_DEPTH = 0.12  # share of a sector's height within which both ends of the transducer's face are found


def tinted(pixels: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Where (H, W) or (H, W, 3) is coloured; nowhere, if most of what is above the threshold is: a sepia picture."""
    if pixels.ndim == 2:
        return np.zeros(pixels.shape, np.bool_)
    colour = np.ptp(pixels, axis=2) > TINT
    above = pixels.mean(axis=2) > threshold
    sepia = np.count_nonzero(colour & above) > 0.5 * np.count_nonzero(above)
    return np.zeros_like(colour) if sepia else np.asarray(colour, np.bool_)


def colour_bars(colour: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The coloured components that are large and rectangular: colour bars, soft keys, header strips."""
    from scipy import ndimage

    found = np.zeros(colour.shape, np.bool_)
    if not colour.any():
        return found
    labels, count = ndimage.label(ndimage.binary_closing(np.pad(colour, 2), np.ones((5, 5))))
    labels = labels[2:-2, 2:-2]
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        box_area = (rows.stop - rows.start) * (columns.stop - columns.start)
        if areas[label] >= max(LEAST_TINTED * colour.size, RECTANGULAR * box_area):
            found[rows, columns] = True
    return found


def without_letters(grey: NDArray[np.float32], stroke: int) -> NDArray[np.float32]:
    """The picture less bright structures at most `stroke` pixels thin: letters, ticks, calipers."""
    from scipy import ndimage

    opened = ndimage.grey_opening(grey, (stroke + 1, stroke + 1), mode="nearest")
    thin = ndimage.binary_dilation(grey - opened > LETTER_RISE, np.ones((3, 3)))
    # Opening leaves what lies between blurred strokes; the darkest pixel about is the ground they stand on.
    ground = ndimage.grey_erosion(grey, (2 * stroke + 1, 2 * stroke + 1), mode="nearest")
    return np.where(thin, ground, grey)


def solid(mask: NDArray[np.bool_], stroke: int) -> NDArray[np.bool_]:
    """The mask less everything at most `stroke` pixels thin; the outside counts as inside, so that borders stay."""
    from scipy import ndimage

    square = np.ones((stroke + 1, stroke + 1))
    padded = np.pad(mask, stroke + 1, mode="edge")
    opened = ndimage.binary_opening(padded, square)
    return np.asarray(opened[stroke + 1 : -stroke - 1, stroke + 1 : -stroke - 1], np.bool_)


def hull(part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The convex hull of the echoes, less what lies above the curved face of the transducer: shadows belong to it."""
    rows, columns = np.nonzero(part)
    y, x = np.ogrid[: part.shape[0], : part.shape[1]]
    within = np.ones(part.shape, np.bool_)
    for angle in np.linspace(0, np.pi, HULL_DIRECTIONS, endpoint=False):
        sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
        reach, across = rows * sine + columns * cosine, y * sine + x * cosine
        within &= (across >= reach.min()) & (across <= reach.max())
    face = columns[rows <= rows.min() + FACE_DEPTH * np.ptp(rows)]
    over_face = (x >= face.min()) & (x <= face.max()) & ~np.logical_or.accumulate(part, 0)
    return np.asarray(within & ~over_face, np.bool_)

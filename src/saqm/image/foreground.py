"""What of a picture is to be judged: anatomy, not the air around it, the outside of a sector, bars or burned-in text.

Works on a copy of at most WORK_SIDE pixels a side (block means), so cost does not grow with the radiograph and noise
shrinks before it is judged. Lengths below are pixels of that copy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# All constants are ours, set on 308 CT slices, 404 ultrasound frames, 24 photographs and pydicom's bundled files.
WORK_SIDE = 256
RING = 2  # width of the border ring that the background is read from
DARKEST_BRIGHT = 0.2  # a background brighter than this is a subject, not air
LEAST_AIR_IN_RING = 0.25  # a noisy background must fill this much of the ring ...
LEAST_BLACK_IN_RING = 0.03  # ... an exactly constant one (clipped air, padding) only this much
LEAST_RISE = 3 / 255  # a pixel this far above the background is no background
NEAR = 6 / 255  # ring pixels this close to the commonest level are background
NOISE_RISE = 5.0  # and also this many standard deviations of the background
CLOSING, OPENING = 5, 3  # radii: bridges the scalp's dark fat; removes tables, headrests, letters
LEAST_SPECK = 0.001  # a component of the picture smaller than this share of it is a letter or noise
LEAST_PART = 0.1  # a component smaller than this share of the largest is text, a marker, a table
HULL_DIRECTIONS = 32  # half-planes that bound a sector, each from both sides
FACE_DEPTH = 0.12  # share of a sector's height within which both ends of the transducer's face are found
LEAST_FLAT = 0.02  # a constant area smaller than this share of the picture is left alone
RECTANGULAR = 0.9  # share of its bounding box that a flat area fills to count as an overlay inside the picture


def foreground(pixels: NDArray[np.float32], modality: str | None) -> tuple[NDArray[np.bool_], dict[str, object]]:
    """Mask (H, W), True where there is something to judge, and what was left out, as shares of the picture.

    `pixels`: float32 in [0, 1], (H, W) or (H, W, 3), air dark. `modality`: DICOM's word or None; "US" also takes the
    dark, echo-free parts of the sector in. A picture whose border is no flat dark background (a photograph, a zoomed
    detail) is judged whole; so is a constant one, whose judgement is left to the caller. The mask may be empty.
    """
    grey = pixels.mean(axis=2, dtype=np.float32) if pixels.ndim == 3 else np.asarray(pixels, np.float32)
    mask = np.zeros(grey.shape, np.bool_)
    box = _without_bars(grey)
    if box is None:
        return ~mask, {"judged_share": 1.0, "left_out": {}}
    rows, columns = box
    inner = grey[rows, columns]
    bars = grey.size - inner.size
    factor = max(1, -(-max(inner.shape) // WORK_SIDE))
    small, constant = _shrink(inner, factor)
    threshold = _background(small)
    flat = _flat_overlays(constant, small, threshold)
    if threshold is None:
        parts, detached = ~flat, np.zeros_like(flat)
    else:
        parts, detached = _anatomy(small, flat, threshold, modality)
    full = parts.repeat(factor, 0).repeat(factor, 1)[: inner.shape[0], : inner.shape[1]]
    mask[rows, columns] = full
    share = inner.size / grey.size
    left_out = {
        "bars": bars / grey.size,
        "flat": share * float((flat & ~parts).mean()),
        "detached": share * float((detached & ~parts & ~flat).mean()),
    }
    judged = float(mask.mean())
    left_out["air"] = max(0.0, 1 - judged - sum(left_out.values()))
    return mask, {
        "judged_share": round(judged, 4),
        "left_out": {name: round(value, 4) for name, value in left_out.items() if round(value, 4) > 0},
    }


def _without_bars(grey: NDArray[np.float32]) -> tuple[slice, slice] | None:
    """Rows and columns left when bars of one value at the four sides are cut off; None for a constant picture."""
    if (grey == grey[0, 0]).all():
        return None
    top, bottom = _bar(grey), len(grey) - _bar(grey[::-1])
    band = grey[top:bottom].T
    return slice(top, bottom), slice(_bar(band), len(band) - _bar(band[::-1]))


def _bar(grey: NDArray[np.float32]) -> int:
    """How many rows from the top hold one single value."""
    if (grey[0] != grey[0, 0]).any():
        return 0
    return int((grey != grey[0, 0]).any(1).argmax())


def _shrink(grey: NDArray[np.float32], factor: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Block means, and which blocks hold one single value; the last block repeats the edge."""
    height, width = grey.shape
    padded = np.pad(grey, ((0, -height % factor), (0, -width % factor)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor)
    return blocks.mean((1, 3), dtype=np.float32), blocks.max((1, 3)) == blocks.min((1, 3))


def _flat_overlays(
    constant: NDArray[np.bool_], small: NDArray[np.float32], threshold: float | None
) -> NDArray[np.bool_]:
    """Large areas of exactly one value that touch the border or are rectangles: bars, panels, collimation.

    Clipped air, below the threshold, is background like any other: closing may cross it (the fat under the scalp).
    """
    from scipy import ndimage

    cross = ndimage.generate_binary_structure(2, 1)
    same = ndimage.maximum_filter(small, 3, mode="nearest") == ndimage.minimum_filter(small, 3, mode="nearest")
    cores = constant & same
    if threshold is not None:
        cores &= small > threshold
    labels, count = ndimage.label(cores, cross)
    flat = np.zeros(small.shape, np.bool_)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    boxes = ndimage.find_objects(labels)
    for label in np.flatnonzero(areas[1:] >= LEAST_FLAT * small.size) + 1:
        rows, columns = boxes[label - 1]
        touches = rows.start == 0 or columns.start == 0 or rows.stop == small.shape[0] or columns.stop == small.shape[1]
        box_area = (rows.stop - rows.start) * (columns.stop - columns.start)
        if touches or areas[label] >= RECTANGULAR * box_area:
            flat |= ndimage.binary_dilation(labels == label, np.ones((3, 3)))
    return flat


def _background(small: NDArray[np.float32]) -> float | None:
    """The threshold between background and subject, read from the border ring; None where there is no background."""
    inside = np.zeros(small.shape, np.bool_)
    inside[RING:-RING, RING:-RING] = True
    ring = small[~inside]
    counts, edges = np.histogram(ring, 128, (0, 1))
    mode = int(counts[: int(128 * DARKEST_BRIGHT)].argmax())
    near = ring[np.abs(ring - (edges[mode] + edges[mode + 1]) / 2) <= NEAR]
    values, counts = np.unique(near, return_counts=True)
    exact = len(near) > 0 and counts.max() >= LEAST_BLACK_IN_RING * len(ring)
    if not exact and len(near) < LEAST_AIR_IN_RING * len(ring):
        return None
    level = float(values[counts.argmax()]) if exact else float(np.median(near))
    spread = 1.4826 * float(np.median(np.abs(near - level)))
    return level + max(LEAST_RISE, NOISE_RISE * spread)


def _anatomy(
    small: NDArray[np.float32], flat: NDArray[np.bool_], threshold: float, modality: str | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The large solid parts above the background, holes filled; and what was above it but is small or thin."""
    from scipy import ndimage

    smooth = ndimage.uniform_filter(small, 3, mode="nearest")
    above = (smooth > threshold) & ~flat
    # The frame of background lets parts that touch the border keep their shape under closing and opening.
    margin = CLOSING + OPENING + 1
    solid = np.pad(_without_specks(above), margin)
    solid = ndimage.binary_fill_holes(_close(solid, CLOSING))
    solid = _open(np.asarray(solid, np.bool_), OPENING)
    labels, count = ndimage.label(solid)
    if not count:
        return np.zeros_like(flat), above
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    chosen = [labels == label for label in np.flatnonzero(areas >= LEAST_PART * areas.max())]
    kept = np.logical_or.reduce([_sector(part) for part in chosen] if modality == "US" else chosen)
    parts = kept[margin:-margin, margin:-margin] & ~flat
    return parts, above & ~parts


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Letters and noise leave before closing can weld them into something solid."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    large = np.bincount(labels.ravel()) >= LEAST_SPECK * mask.size
    large[0] = False
    return np.asarray(large[labels], np.bool_)


def _close(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    from scipy import ndimage

    grown = ndimage.distance_transform_edt(~mask) <= radius
    return np.asarray(ndimage.distance_transform_edt(grown) > radius, np.bool_)


def _open(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    from scipy import ndimage

    core = ndimage.distance_transform_edt(mask) > radius
    return np.asarray(ndimage.distance_transform_edt(~core) <= radius, np.bool_)


def _sector(part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The convex hull of the echoes, less what lies above the curved face of the transducer: shadows belong to it."""
    rows, columns = np.nonzero(part)
    y, x = np.ogrid[: part.shape[0], : part.shape[1]]
    hull = np.ones(part.shape, np.bool_)
    for angle in np.linspace(0, np.pi, HULL_DIRECTIONS, endpoint=False):
        sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
        reach, across = rows * sine + columns * cosine, y * sine + x * cosine
        hull &= (across >= reach.min()) & (across <= reach.max())
    face = columns[rows <= rows.min() + FACE_DEPTH * np.ptp(rows)]
    over_face = (x >= face.min()) & (x <= face.max()) & ~np.logical_or.accumulate(part, 0)
    return np.asarray(hull & ~over_face, np.bool_)

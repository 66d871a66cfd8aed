"""Windows and lookup tables: from a modality's values to display values in [0, 1]."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Centre and width in rescaled units, for files that bring none. CT: soft tissue of the trunk, the usual first choice
# of a viewer and the window of abdominal reading (Hounsfield units).
DEFAULT_WINDOWS: dict[str, tuple[float, float]] = {"CT": (40.0, 400.0)}

PERCENTILES = (0.5, 99.5)  # where no scale is known (MR has no units): the range of all but the extreme pixels

WindowFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


def apply_window(
    values: NDArray[np.floating] | NDArray[np.integer], center: float, width: float, function: WindowFunction
) -> NDArray[np.float32]:
    """Display values in [0, 1] by the range of the window, not of the picture (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3).

    `values` in rescaled units, any shape; `width` positive, and at least 1 for LINEAR.
    """
    x = values.astype(np.float64)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # far below the window: exp is infinite and the display value 0, as meant
            return np.asarray(1 / (1 + np.exp(-4 * (x - center) / width)), np.float32)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:  # LINEAR of width 1 is a threshold
        return np.asarray(x > center, np.float32)
    return np.asarray(np.clip((x - center) / width + 0.5, 0, 1), np.float32)


def apply_range(values: NDArray[np.floating] | NDArray[np.integer], low: float, high: float) -> NDArray[np.float32]:
    """Display values in [0, 1]: low becomes 0, high 1, beyond is clipped. A range of no width becomes 0."""
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return np.asarray(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1), np.float32)


def apply_table(
    values: NDArray[np.floating] | NDArray[np.integer], first: int, entries: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Each value looked up; values below `first` take the first entry, values beyond the last (PS3.3 C.11.1.1).

    pydicom's own function indexes in the type of the entries, so that more than 256 entries of 8 bits wrap around.
    """
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)
    return np.asarray(entries[index])

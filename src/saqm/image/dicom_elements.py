"""Single values out of a DICOM data set, whatever a file made of them: absent, empty, multiple, not a number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from saqm.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def text(dataset: Dataset, keyword: str) -> str | None:
    """An element that holds one text, without the blanks around it; None when absent, empty or something else."""
    value = dataset.get(keyword)
    return str(value).strip() or None if isinstance(value, str) else None


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Every value of an element as finite floats; empty when one is missing or no number."""
    value = dataset.get(keyword)
    values = [value] if isinstance(value, (int, float, str)) or value is None else list(value)
    try:
        found = [float(number) for number in values if number not in (None, "")]
    except (TypeError, ValueError):
        return []
    return found if all(map(math.isfinite, found)) else []


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first of an element's numbers, None where there is none."""
    found = numbers(dataset, keyword)
    return found[0] if found else None


def integer(dataset: Dataset, keyword: str, name: str) -> int | None:
    """A single whole number, None when absent or empty; ImageError for anything else."""
    value = dataset.get(keyword)
    if value in (None, ""):
        return None
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ImageError(f"{name}: {keyword} is {str(value)[:40]!r}, not a number") from error


def functional_group(dataset: Dataset, index: int, sequence: str) -> tuple[Dataset, str]:
    """The group of an enhanced multi-frame object that holds for a frame, or the data set itself; and which it was."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    for groups, origin in ((per_frame[index : index + 1], "frame"), (shared[:1], "file")):
        for group in groups:
            if found := group.get(sequence):
                return found[0], origin
    return dataset, "file"

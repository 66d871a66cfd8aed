"""What was read from a file and what was done to it, as a record and as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from saqm.image import Image
from saqm.outputs.table import printable
from saqm.patches import luminance

HISTOGRAM_BINS = 64
HISTOGRAM_ROWS = 6  # lines of text, eight levels each
_BLOCKS = " ▁▂▃▄▅▆▇█"


def describe(image: Image) -> dict[str, object]:
    """All that is known of an image: its source, each step with its numbers, the share judged, and a histogram.

    The histogram counts judged pixels (luminance) in HISTOGRAM_BINS equal bins; empty where none is judged.
    """
    source, pixels = image.source, image.pixels
    counts, _ = np.histogram(luminance(image)[image.mask], bins=HISTOGRAM_BINS, range=(0, 255))
    return {
        "path": source.path,
        "sha256": source.sha256,
        "format": source.format,
        "modality": image.modality,
        "shape": list(pixels.shape),
        "spacing_mm": None if image.spacing_mm is None else list(image.spacing_mm),
        "frame": source.frame,
        "frames": source.frames,
        "bits_stored": source.bits_stored,
        "transfer_syntax": source.transfer_syntax,
        "uids": dict(source.uids),
        "steps": [{"step": step.name, **step.details} for step in source.steps],
        "warnings": list(source.warnings),
        "judged_share": image.judged_share,
        "histogram": counts.tolist() if image.mask.any() else [],
    }


def report(description: Mapping[str, object]) -> Iterator[str]:
    """`describe`'s record as lines for a terminal."""
    steps, uids, histogram = description["steps"], description["uids"], description["histogram"]
    for key, value in description.items():
        if key in ("steps", "uids", "histogram", "warnings", "judged_share") or value is None:
            continue
        text = " x ".join(map(str, value)) if isinstance(value, list) else value
        yield f"{key:<16} {printable(text)}"
    if isinstance(uids, Mapping):
        for name, uid in uids.items():
            yield f"{'uid ' + name:<16} {printable(uid)}"
    if isinstance(steps, list):
        for number, step in enumerate(steps, 1):
            details = ", ".join(f"{k} {_short(v)}" for k, v in step.items() if k != "step")
            yield printable(f"{f'step {number}':<16} {step['step']}{': ' if details else ''}{details}")
    warnings = description["warnings"]
    if isinstance(warnings, list):
        for warning in warnings:
            yield f"{'warning':<16} {printable(warning)}"
    yield f"{'judged':<16} {description['judged_share']:.1%} of the picture"
    if isinstance(histogram, list) and histogram:
        yield from bars(histogram)
        yield "black" + "white".rjust(len(histogram) - 5) + "   judged pixels, height ~ square root of their number"


def bars(counts: Sequence[int], rows: int = HISTOGRAM_ROWS) -> list[str]:
    """Counts as columns of block characters, `rows` lines high; the height grows with the square root."""
    peak = max(counts, default=0)
    if peak == 0:
        return []
    eighths = [round((count / peak) ** 0.5 * rows * 8) for count in counts]
    return [
        "".join(_BLOCKS[min(max(height - 8 * row, 0), 8)] for height in eighths).rstrip()
        for row in range(rows - 1, -1, -1)
    ]


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value)

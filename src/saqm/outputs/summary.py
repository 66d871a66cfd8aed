"""Many frames in a few numbers: for each file and model the middle, the spread and the worst frame.

    scores = score_many(find_images(["volume.nii"]), Settings(model=("saqm-ct", "niqe"), axis=2))
    for summary in summarise(scores):
        print(summary.path, summary.model, summary.median, summary.worst, summary.worst_frame)

Median and quartiles, so that a few odd slices at the ends of a volume do not move them. Only numbers are kept, never
images or records.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from saqm.outputs.table import Column, Record, save_records

if TYPE_CHECKING:
    from saqm.scorer import Score

Row = TypeVar("Row", "Score", Record)

HIGHER = "higher is better"  # the direction of every score of 0..100
COLUMNS = (
    Column("path", ("path",)),
    Column("model", ("model",)),
    Column("frames", ("frames",), "integer"),
    Column("scored", ("scored",), "integer"),
    Column("not_scored", ("not_scored",), "integer"),
    Column("of", ("of",)),
    Column("direction", ("direction",)),
    Column("lower_quartile", ("lower_quartile",), "number"),
    Column("median", ("median",), "number"),
    Column("upper_quartile", ("upper_quartile",), "number"),
    Column("worst", ("worst",), "number"),
    Column("worst_frame", ("worst_frame",), "integer"),
)


@dataclass(frozen=True)
class Summary:
    """One file by one model. The numbers are None where no frame was scored.

    frames: how many rows there were, scored or not. of: which number is summarised: "score" (0 to 100), or "score_raw"
    of a metric, which has no score. direction: "higher is better" or "lower is better". lower_quartile, median,
    upper_quartile: of the scored frames, linear between neighbours. worst: the lowest value, or the highest where lower
    is better. worst_frame: the first frame that has it; None for a single image.
    """

    path: str
    model: str | None
    frames: int
    scored: int
    not_scored: int
    of: Literal["score", "score_raw"] | None = None
    direction: str | None = None
    lower_quartile: float | None = None
    median: float | None = None
    upper_quartile: float | None = None
    worst: float | None = None
    worst_frame: int | None = None


def summarise(scores: Iterable[Score] | Iterable[Record]) -> list[Summary]:
    """A summary for each file and model of scores, or of their records, in the order in which they first come."""
    summariser = Summariser()
    for score in scores:
        summariser.note(score)
    return summariser.summaries()


def save_summaries(summaries: Iterable[Summary], path: str | Path) -> None:
    """Write summaries to a file of the format its suffix names. Raises as `save_records` does."""
    save_records((asdict(summary) for summary in summaries), path, COLUMNS)


class Summariser:
    """Summarises scores, or their records, while they pass on their way to somewhere else."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str | None], _Frames] = {}

    def watch(self, rows: Iterable[Row]) -> Generator[Row]:
        """The same rows, each noted before it is given out."""
        for row in rows:
            self.note(row)
            yield row

    def note(self, row: Score | Record) -> None:
        """Take one more row into account."""
        model = _get(row, "model") or {}
        self._seen.setdefault((_get(row, "path"), model.get("name")), _Frames()).add(row, model.get("direction"))

    def summaries(self) -> list[Summary]:
        """What was noted so far."""
        return [frames.summary(*key) for key, frames in self._seen.items()]


class _Frames:
    """The numbers of one file by one model."""

    def __init__(self) -> None:
        self.values = array("d")
        self.not_scored = 0
        self.of: Literal["score", "score_raw"] | None = None
        self.direction: str | None = None
        self.worst: float | None = None
        self.worst_frame: int | None = None

    def add(self, row: Score | Record, direction: str | None) -> None:
        if _get(row, "status") != "scored":
            self.not_scored += 1
            return
        if self.of is None:
            self.of = "score" if _get(row, "score") is not None else "score_raw"
            self.direction = HIGHER if self.of == "score" else direction
        value = float(_get(row, self.of))
        if self.worst is None or (value < self.worst if self.direction == HIGHER else value > self.worst):
            self.worst, self.worst_frame = value, _get(row, "frame")
        self.values.append(value)

    def summary(self, path: str, model: str | None) -> Summary:
        low, middle, high = np.percentile(self.values, (25, 50, 75)).tolist() if self.values else (None, None, None)
        return Summary(
            path=path,
            model=model,
            frames=len(self.values) + self.not_scored,
            scored=len(self.values),
            not_scored=self.not_scored,
            of=self.of,
            direction=self.direction,
            lower_quartile=low,
            median=middle,
            upper_quartile=high,
            worst=self.worst,
            worst_frame=self.worst_frame,
        )


def _get(row: Score | Record, name: str) -> Any:
    return row[name] if isinstance(row, Mapping) else getattr(row, name)

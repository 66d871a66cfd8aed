"""Does a device drift? Control charts of its daily mean scores: Shewhart's limits, and an EWMA for slow changes.

A day is one point, because images of one day resemble each other: limits from single images would cry wolf. The spread
is that of the mean moving range between days (Montgomery, Introduction to Statistical Quality Control, 6.4 and 9.2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from saqm.errors import UndefinedScore
from saqm.outputs.report.rows import value_of
from saqm.outputs.table import Record

LEAST_DAYS = 8  # fewer say nothing about limits
BASELINE_DAYS = 20  # the first so many set the limits (Montgomery 6.2.2: 20 to 25 samples)
D2 = 1.128  # expected range of two normal values, in standard deviations (Montgomery, appendix VI, n = 2)
SIGMAS = 3.0
EWMA_WEIGHT, EWMA_SIGMAS = 0.2, 2.962  # a false alarm in 500 points (Lucas and Saccucci 1990; Montgomery table 9.11)


@dataclass(frozen=True)
class ControlChart:
    """Daily means of one device against the limits that its first days set.

    days, means, counts: one for each day, in order. baseline: how many of the first days set `centre` and `sigma`.
    low, high: Shewhart's limits. ewma, ewma_low, ewma_high: the weighted average and its limits, one for each day.
    beyond, drifting: numbers of the days whose mean is outside its limits, whose average is outside its own.
    """

    days: tuple[str, ...]
    means: tuple[float, ...]
    counts: tuple[int, ...]
    baseline: int
    centre: float
    sigma: float
    low: float
    high: float
    ewma: tuple[float, ...]
    ewma_low: tuple[float, ...]
    ewma_high: tuple[float, ...]
    beyond: tuple[int, ...]
    drifting: tuple[int, ...]


def control_chart(days: Sequence[str], values: Sequence[float]) -> ControlChart:
    """The chart of one device: a value for each image, with its day (ISO 8601, in any order).

    Raises UndefinedScore for fewer than LEAST_DAYS days, and where the baseline's days do not differ at all.
    """
    by_day: dict[str, list[float]] = defaultdict(list)
    for day, value in zip(days, values, strict=True):
        by_day[day].append(value)
    ordered = sorted(by_day)
    if len(ordered) < LEAST_DAYS:
        raise UndefinedScore(f"{len(ordered)} {'day' if len(ordered) == 1 else 'days'}; limits need {LEAST_DAYS}")
    means = np.array([np.mean(by_day[day]) for day in ordered])
    first = means[:BASELINE_DAYS]
    centre = float(first.mean())
    sigma = float(np.mean([abs(after - before) for before, after in pairwise(first)])) / D2
    if sigma == 0:
        raise UndefinedScore(f"the first {len(first)} days have the same mean, so there is no spread to set limits by")
    number = np.arange(1, len(means) + 1)
    ewma = np.empty(len(means))
    level = centre
    for at, mean in enumerate(means):
        ewma[at] = level = EWMA_WEIGHT * mean + (1 - EWMA_WEIGHT) * level
    width = EWMA_SIGMAS * sigma * np.sqrt(EWMA_WEIGHT / (2 - EWMA_WEIGHT) * (1 - (1 - EWMA_WEIGHT) ** (2 * number)))
    return ControlChart(
        days=tuple(ordered),
        means=tuple(means.tolist()),
        counts=tuple(len(by_day[day]) for day in ordered),
        baseline=len(first),
        centre=centre,
        sigma=sigma,
        low=centre - SIGMAS * sigma,
        high=centre + SIGMAS * sigma,
        ewma=tuple(ewma.tolist()),
        ewma_low=tuple((centre - width).tolist()),
        ewma_high=tuple((centre + width).tolist()),
        beyond=tuple(np.flatnonzero(abs(means - centre) > SIGMAS * sigma).tolist()),
        drifting=tuple(np.flatnonzero(abs(ewma - centre) > width).tolist()),
    )


def control_charts(rows: Sequence[Record], model_of: Sequence[int]) -> list[Mapping[str, object]]:
    """For each model and named device with dated scores its `ControlChart` as a mapping, or `why_not` there is none."""
    dated: dict[tuple[int, str], tuple[list[str], list[float]]] = defaultdict(lambda: ([], []))
    for row, model in zip(rows, model_of, strict=True):
        value, device, day = value_of(row), row.get("device"), row.get("acquired")
        if value is not None and device is not None and day is not None:
            days, values = dated[model, str(device)]
            days.append(str(day))
            values.append(value)
    charts: list[Mapping[str, object]] = []
    for (model, device), (days, values) in dated.items():
        about = {"model": model, "device": device, "images": len(values)}
        try:
            charts.append({**about, **asdict(control_chart(days, values))})
        except UndefinedScore as error:
            charts.append({**about, "why_not": str(error)})
    return charts

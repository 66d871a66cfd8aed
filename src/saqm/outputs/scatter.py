"""Opinion against prediction, drawn. Needs the extra `plot`."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saqm.errors import MissingExtra
from saqm.statistics import LEAST, Interval, fit_logistic
from saqm.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from saqm.evaluate import Evaluation


def scatter(evaluation: Evaluation, path: str | Path, *, of_one_reader: Mapping[str, float] | None = None) -> None:
    """Draw opinion against prediction as PNG, a panel a domain, each method's mean by name. Needs the extra `plot`.

    of_one_reader: by domain, one reader's error in points of the opinion scale, drawn as a band on either side.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "a scatter plot") from error

    domains = sorted({row.domain for row in evaluation.rows})
    figure = Figure(figsize=(5.2 * len(domains), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, domain in zip(figure.subplots(1, len(domains), squeeze=False)[0], domains, strict=True):
        index = [i for i, row in enumerate(evaluation.rows) if row.domain == domain]
        _panel(axes, evaluation, domain, index, (of_one_reader or {}).get(domain))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    with replacing(path) as beside:
        beside.write_bytes(buffer.getvalue())


def _panel(axes: Axes, evaluation: Evaluation, domain: str, index: Sequence[int], error: float | None) -> None:
    x = np.array([evaluation.predictions[i] for i in index])
    y = np.array([evaluation.rows[i].score for i in index], np.float64)
    own = evaluation.orientation  # of a metric, whose values are on no opinion scale: no diagonal, an axis of their own
    across = _limits(x) if own is not None else _limits(np.concatenate([x, y]))
    limits = across if own is None else _limits(y)
    if own is None:
        axes.plot(limits, limits, color="0.75", linewidth=1, linestyle="--", label="prediction = opinion", zorder=1)
        if error is not None:
            around = np.array(limits)
            says = "± error of one reader"
            axes.fill_between(limits, around - error, around + error, color="0.9", linewidth=0, label=says, zorder=0)
    axes.scatter(x, y, s=18, color="#3b75af", alpha=0.45, linewidths=0, label="image", zorder=2)
    if np.ptp(x) > 0 and np.ptp(y) > 0 and len(x) >= LEAST:
        sign = -1 if own is not None and own.turned else 1  # the curve rises with quality by the metric's own claim
        fitted = fit_logistic(sign * x, y)
        grid = np.linspace(x.min(), x.max(), 200)
        label = "logistic" if fitted.fallback is None else "straight line"
        axes.plot(grid, fitted(sign * grid), color="#c1440e", linewidth=1.5, label=f"{label}, fitted here", zorder=3)
    _name_methods(axes, evaluation, index, across, limits)
    result = next(r for r in evaluation.results if r.domain == domain)
    prediction = result.name if own is None else f"{own.name} ({own.direction})"
    value = "undefined" if result.srocc is None else f"{result.srocc:.2f}"
    bounds = "" if result.srocc_interval is None else " [{:.2f}, {:.2f}]".format(*result.srocc_interval)
    axes.set(
        xlim=across,
        ylim=limits,
        xlabel=prediction,
        ylabel="opinion score",
        title=f"{domain}: SROCC {value}{bounds}\n{result.n} images of {result.scenes} scenes; diamonds: method means",
    )
    axes.set_box_aspect(1)
    axes.title.set_fontsize(10)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)


def _limits(values: NDArray[np.float64]) -> Interval:
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _name_methods(axes: Axes, evaluation: Evaluation, index: Sequence[int], across: Interval, limits: Interval) -> None:
    """A diamond at each method's mean, its name on the right edge in the same order, a thin line between the two."""
    by_method: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for i in index:
        row = evaluation.rows[i]
        if row.method is not None and row.score is not None:
            by_method[row.method].append((evaluation.predictions[i], row.score))
    side = limits[1] - limits[0]
    line, below = side / 26, -math.inf  # a line of text, in data units
    for method, places in sorted(by_method.items(), key=lambda item: float(np.mean(item[1], axis=0)[1])):
        x, y = np.mean(places, axis=0)
        below = max(y, below + line)
        at = (across[1] + 0.02 * (across[1] - across[0]), below)
        axes.plot(x, y, marker="D", color="0.15", markersize=4, zorder=5)
        axes.plot((x, across[1], at[0]), (y, below, below), color="0.6", linewidth=0.5, clip_on=False, zorder=4)
        axes.text(*at, f" {method}", fontsize=8, color="0.15", va="center")
